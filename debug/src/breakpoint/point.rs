//! One breakpoint: what was asked for, and how it is noticed.

use super::condition::Condition;
use crate::abilities::Access;
use crate::expression::Expression;
use arch::{GuestPhys, GuestVirt};

/// What a debugger can insert (GDB manual, "Packets", `Z0` to `Z4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A breakpoint; how is left to us.
    Software,
    /// A breakpoint on a debug register.
    Hardware,
    /// A watchpoint for stores.
    Write,
    /// For loads.
    Read,
    /// For both.
    Access,
}

impl Kind {
    /// The kind of `Z<digit>`.
    pub fn from_digit(digit: u8) -> Option<Kind> {
        Some(match digit {
            b'0' => Kind::Software,
            b'1' => Kind::Hardware,
            b'2' => Kind::Write,
            b'3' => Kind::Read,
            b'4' => Kind::Access,
            _ => return None,
        })
    }

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Software => "breakpoint",
            Kind::Hardware => "hardware breakpoint",
            Kind::Write => "watchpoint",
            Kind::Read => "read watchpoint",
            Kind::Access => "access watchpoint",
        }
    }

    /// What a watchpoint watches for; `None` for breakpoints.
    pub const fn access(self) -> Option<Access> {
        match self {
            Kind::Software | Kind::Hardware => None,
            Kind::Write => Some(Access::Write),
            Kind::Read => Some(Access::Read),
            Kind::Access => Some(Access::Any),
        }
    }
}

/// How a breakpoint is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An instruction is planted at a guest-physical address.
    Planted(GuestPhys),
    /// On a debug register, as was asked for.
    Register,
    /// On a debug register, and why.
    Fallback(&'static str),
    /// On a debug register, because the page cannot be executed: a processor that goes there refuses the fetch
    /// before it would execute what is planted. x86 looks at debug registers before that (Intel SDM vol. 3,
    /// "Priority Among Concurrent Events"); aarch64 looks at the page first (Arm ARM (DDI 0487), "Synchronous
    /// exception prioritization"), so that another one is on the vector that the abort goes to.
    NotExecutable {
        /// Its address.
        vector: Option<u64>,
    },
    /// Not at all: it is switched off.
    Off,
}

/// Whom a breakpoint is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// Whoever debugs has asked for it.
    #[default]
    Asked,
    /// A step runs to it: nobody is shown it, and it is gone when the step is.
    Step,
}

/// One breakpoint.
#[derive(Clone, Debug)]
pub struct Breakpoint {
    /// What was asked for.
    pub kind: Kind,
    /// Where, guest-virtual.
    pub address: GuestVirt,
    /// Bytes watched; for a breakpoint what the debugger calls its kind.
    pub length: u64,
    /// How it is noticed.
    pub place: Place,
    /// It stops only if one of these is not zero, or if there are none.
    pub conditions: Vec<Condition>,
    /// What is done at a hit instead of stopping (`dprintf`).
    pub commands: Vec<Expression>,
    /// How often it was hit, false conditions included.
    pub hits: u64,
    /// Whom it is for.
    pub purpose: Purpose,
}

impl Breakpoint {
    /// One that stops always, and has not been hit.
    pub fn new(kind: Kind, address: GuestVirt, length: u64, place: Place) -> Breakpoint {
        let (conditions, commands, purpose) = (Vec::new(), Vec::new(), Purpose::Asked);
        Breakpoint { kind, address, length, place, conditions, commands, hits: 0, purpose }
    }

    /// Whether a vCPU whose linear program counter this is, at this place if it is anywhere, stands at it: it is no
    /// watchpoint.
    pub fn is_at(&self, pc: GuestVirt, place: Option<GuestPhys>) -> bool {
        let is_its = match self.place {
            Place::Planted(planted) => place.map_or(self.address == pc, |place| planted == place),
            Place::Off => false,
            Place::Register | Place::Fallback(_) | Place::NotExecutable { .. } => self.address == pc,
        };
        is_its && self.kind.access().is_none()
    }

    /// Whether somebody has asked for this: kind, address and, of a watchpoint, length.
    pub fn is_asked_for(&self, kind: Kind, address: GuestVirt, length: u64) -> bool {
        let same_length = kind.access().is_none() || self.length == length;
        self.purpose == Purpose::Asked && self.kind == kind && self.address == address && same_length
    }
}

/// Why a breakpoint that could be planted is on a debug register while there is one.
pub const PATCHED: &str = "a kernel patches such instructions and looks whether they are as it left them";

/// Why a breakpoint waits on a debug register.
pub const NOT_MAPPED: &str = "its page is not mapped yet";

/// The same.
pub const NOT_RAM: &str = "its page is not RAM";

/// Why a breakpoint is on a debug register for good.
pub const NOT_TRAPPED: &str = "this host does not trap planted instructions";
