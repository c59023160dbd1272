//! The machine that is debugged, as everything above it sees it: a live guest, a core, or a
//! scripted fake.
//!
//! [`Machine`] is for the thread that serves a debugger and acts on vCPUs that stand still. One vCPU on its own
//! thread is a [`Vcpu`](crate::vcpu::Vcpu): the [engine](crate::engine) judges its exits there, so that a step over a
//! breakpoint or a false condition needs no other thread.

pub use crate::abilities::{Abilities, Access, SoftwareBreakpoints};
pub use crate::ram::{Absence, Memory};

use crate::arming::Arming;
use crate::cancel::Cancel;
use crate::disassemble::OperatingMode;
#[cfg(feature = "linux")]
use crate::linux::Described;
use crate::reply::{Arguments, Command, Refusal, Reply};
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use std::os::fd::BorrowedFd;
use std::task::Poll;
use std::time::Duration;

/// How a vCPU reads the code that it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Width of its instructions' operands and addresses.
    pub mode: OperatingMode,
    /// x86: what the code segment adds to the program counter outside 64-bit mode.
    pub base: u64,
}

impl Code {
    /// 64-bit code, of either architecture.
    pub const FLAT_64: Code = Code { mode: OperatingMode::Bits64, base: 0 };

    /// The linear address of a program counter, which is what debug registers compare and page
    /// tables translate.
    pub fn linear(&self, pc: u64) -> u64 {
        match self.mode {
            OperatingMode::Bits64 => pc,
            OperatingMode::Protected32 | OperatingMode::Real16 => self.base.wrapping_add(pc) & 0xffff_ffff,
        }
    }
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executing the guest, or ready to.
    Running,
    /// Waiting for an interrupt (`HLT`, `WFI`).
    Halted,
    /// The guest has not started it yet.
    NotStarted,
    /// It is in a dump that does not tell.
    Unknown,
}

impl Activity {
    /// As gdb's `info threads` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Activity::Running => "running",
            Activity::Halted => "halted",
            Activity::NotStarted => "not started",
            Activity::Unknown => "dumped",
        }
    }
}

/// Why a vCPU stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A software breakpoint at the program counter.
    Breakpoint,
    /// A hardware breakpoint at the program counter.
    HardwareBreakpoint,
    /// A watchpoint.
    Watchpoint {
        /// Guest-virtual address that was accessed, within what is watched.
        address: u64,
        /// The watchpoint's kind.
        access: Access,
    },
    /// A requested step is done.
    Step,
    /// The debugger asked for it.
    Interrupt,
    /// It is about to make a hypercall that the debugger wants to see; which, in words.
    Hypercall(String),
    /// The guest cannot go on; in words.
    Fatal(String),
    /// The target does not run, for this reason; it is where it was.
    Refused(String),
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit code of the run.
    pub code: u8,
    /// In words.
    pub text: String,
}

/// Something that happened while the target ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vCPU stopped; others may be running still.
    Stopped {
        /// Which.
        vcpu: u32,
        /// Why.
        reason: StopReason,
        /// The registers that every debugger wants next; none where the machine keeps them for [`Machine::at_stop`].
        registers: RegisterFile,
    },
    /// The guest has begun again, as a new machine: its memory is new, so nothing is planted in it, and no vCPU
    /// runs before it is resumed.
    Restarted {
        /// The former machine had been let run: else the guest waits on.
        had_run: bool,
    },
    /// The guest is over.
    Ended(Ended),
}

/// What a vCPU does when the target is resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Run.
    #[default]
    Run,
    /// Execute one instruction.
    Step,
    /// Step until the program counter leaves the range: first address, and the one after
    /// the last.
    StepRange(u64, u64),
    /// Stay where it is.
    Stay,
}

impl Action {
    /// Whether it is a step, or more than one.
    pub fn is_step(self) -> bool {
        matches!(self, Action::Step | Action::StepRange(..))
    }
}

/// What a vCPU is told when the target is resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What it does.
    pub action: Action,
    /// What it runs with.
    pub arming: Arming,
    /// It stands at a breakpoint that has been reported, and steps off it first.
    pub steps_off: bool,
}

/// A request of `monitor` that the target itself carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Raise a non-maskable interrupt on a vCPU.
    Nmi(u32),
    /// Have the guest begin again. When that is done it is a new machine, as after [`Event::Restarted`], which
    /// is not told.
    Reset,
    /// End the run.
    Quit,
}

/// Why a target did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// It is something that this kind of target cannot do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// There is no such vCPU.
    #[error("there is no vCPU {0}")]
    NoVcpu(u32),
    /// The host refused; in words.
    #[error("{0}")]
    Host(String),
    /// It takes a while, and a debugger that must not wait asks again when [`Machine::prepare`] is ready.
    #[error("it is not done yet")]
    Later,
}

impl From<MachineError> for Refusal {
    /// A command asks for what the machine has.
    fn from(error: MachineError) -> Refusal {
        Refusal::NotThere(error.to_string())
    }
}

/// How much of a vCPU is asked for before somebody wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What every stop and every look at memory needs: general and system registers, how it reads code and translates
    /// addresses, what it is doing.
    Near,
    /// All of its registers.
    Whole,
}

/// A target that stands still, or runs until its next event.
pub trait Machine: Send {
    /// Its architecture.
    fn isa(&self) -> Isa;

    /// Number of vCPUs, at least 1.
    fn vcpus(&self) -> u32;

    /// What a vCPU is doing.
    fn activity(&self, vcpu: u32) -> Activity;

    /// Reads registers of a vCPU that stands still.
    ///
    /// # Errors
    /// [`MachineError::NoVcpu`].
    fn registers(&self, vcpu: u32, banks: &[Bank]) -> Result<RegisterFile, MachineError>;

    /// Reads the registers that a stop is told with ([`arch::register::at_stop`]) of a vCPU that stands still; there may
    /// be others with them.
    ///
    /// # Errors
    /// As [`Self::registers`].
    fn at_stop(&self, vcpu: u32) -> Result<RegisterFile, MachineError> {
        self.registers(vcpu, &[Bank::General])
    }

    /// How a vCPU that stands still reads its code.
    ///
    /// # Errors
    /// [`MachineError::NoVcpu`], [`MachineError::Host`].
    fn code(&self, vcpu: u32) -> Result<Code, MachineError>;

    /// How a vCPU that stands still translates addresses.
    ///
    /// # Errors
    /// [`MachineError::NoVcpu`], [`MachineError::Host`].
    fn regime(&self, vcpu: u32) -> Result<Regime, MachineError>;

    /// Writes every register that the file has a value for.
    ///
    /// # Errors
    /// [`MachineError::NoVcpu`]; [`MachineError::Host`] for a value that is refused.
    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), MachineError>;

    /// Its RAM.
    fn memory(&self) -> &dyn Memory;

    /// What the host can do.
    fn abilities(&self) -> &Abilities;

    /// Lets each vCPU do what its order says: one order per vCPU.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] on a core; [`MachineError::Host`].
    fn resume(&mut self, orders: Vec<Order>) -> Result<(), MachineError>;

    /// Makes every vCPU stand still and returns when none runs any more. Events that happen
    /// meanwhile stay for [`Self::next_event`].
    fn pause(&mut self);

    /// Called when the debugger has nothing to do while the target stands still, before it waits: what
    /// is worth its while only when that lasts is done once it has. How long until it wants to be
    /// called again.
    fn settle(&mut self) -> Option<Duration> {
        None
    }

    /// Called by a debugger that has stopped the target and has nothing to call [`Self::settle`] from: it stands still
    /// for as long as somebody takes to look.
    fn stays(&mut self) {}

    /// The next event, if there is one already.
    fn next_event(&mut self) -> Option<Event>;

    /// Becomes readable when there is an event.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Switches all guest debugging off, as before a debugger came.
    fn disarm(&mut self);

    /// Carries out a request of `monitor`.
    ///
    /// # Errors
    /// [`MachineError`].
    fn control(&mut self, control: Control) -> Result<(), MachineError>;

    /// Counts of exits by vCPU and reason, for `monitor exits`.
    fn exits(&self) -> Vec<Vec<(&'static str, u64)>>;

    /// Whether it can run at all. Where it cannot, breakpoints are taken and never hit, and a resume
    /// ends at once with [`StopReason::Refused`].
    fn can_run(&self) -> bool {
        true
    }

    /// Why its registers and memory cannot be changed, if that is so.
    fn read_only(&self) -> Option<&'static str> {
        None
    }

    /// What is known of the guest's kernel, where the machine finds that out itself.
    #[cfg(feature = "linux")]
    fn kernel(&self) -> Option<&Described> {
        None
    }

    /// Called when [`Self::event_fd`] may have become readable, by a debugger that must not wait: takes what vCPUs have
    /// answered, and has it become readable again by what they answer from here on.
    fn look(&mut self) {}

    /// Called before it is paused, or asked something, on behalf of a debugger that must not wait: begins to make every
    /// vCPU stand still, and to ask what `extent` says of each. Once that is there, [`Self::pause`] and the questions
    /// return at once; until then [`Self::event_fd`] becomes readable when it is worth calling this again. A machine
    /// that may be waited for is always ready, whatever it does.
    fn prepare(&mut self, _extent: Extent) -> Poll<()> {
        Poll::Ready(())
    }

    /// What [`Self::prepare`] was called for comes to nothing: vCPUs do what they did. Called while nobody debugs the
    /// target.
    fn give_back(&mut self) {}

    /// Whether [`Event::Restarted`] comes before anything else that there is to tell. Asked while the target stands still
    /// for a debugger, who has not had the guest begin again.
    fn has_restarted(&mut self) -> bool {
        false
    }

    /// Whether it has asked vCPUs something that they have not answered, for [`Self::prepare`] or [`Self::written`].
    fn is_asking(&self) -> bool {
        false
    }

    /// Whether whoever has brought the debugger here has taken it away: nothing is to be done here any more.
    fn is_left(&self) -> bool {
        false
    }

    /// Whether whoever has brought the debugger here takes it away, or has: the guest runs without it then.
    fn is_leaving(&self) -> bool {
        self.is_left()
    }

    /// Makes [`Self::event_fd`] readable: what it has told of is still to be looked at.
    fn ring(&mut self) {}

    /// Whether an event waits that is told with all vCPUs standing still, so that [`Self::prepare`] comes first. Only
    /// of a machine that must not be waited for.
    fn has_stopped(&mut self) -> bool {
        false
    }

    /// What has become of the writes of registers, and of the interrupts, that were answered before they were made,
    /// for a debugger that must not wait; the first refusal, once.
    fn written(&mut self) -> Poll<Result<(), MachineError>> {
        Poll::Ready(Ok(()))
    }

    /// Gives it the token that long work of its own asks whether it is still wanted.
    fn set_cancel(&mut self, _cancel: &Cancel) {}

    /// How a vCPU that stands still translates addresses, and by whose tables.
    ///
    /// # Errors
    /// As [`Self::regime`].
    fn translation(&self, vcpu: u32) -> Result<(Regime, Tables), MachineError> {
        Ok((self.regime(vcpu)?, Tables::Own))
    }

    /// Reads an I/O port, as the guest would, all of whose vCPUs stand still: 1, 2 or 4 bytes.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] where nobody serves ports.
    fn read_port(&self, _port: u16, _bytes: &mut [u8]) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("there are no ports here"))
    }

    /// Writes one likewise.
    ///
    /// # Errors
    /// As [`Self::read_port`].
    fn write_port(&self, _port: u16, _bytes: &[u8]) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("there are no ports here"))
    }

    /// The file that it was read from, if it is a dump.
    fn file(&self) -> Option<DumpFile<'_>> {
        None
    }

    /// Commands that this machine adds to those that every machine has ([`crate::command`]).
    fn commands(&self) -> Vec<Command> {
        Vec::new()
    }

    /// Carries out one of them.
    ///
    /// # Errors
    /// [`Refusal`].
    fn run_command(&mut self, name: &str, _arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        Err(Refusal::Unknown(format!("this target has no command '{name}'")))
    }
}

/// Whose page tables addresses of a vCPU are translated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Its own.
    Own,
    /// This vCPU's.
    Vcpu(u32),
    /// Those that the kernel's description names.
    Description,
}

/// The file that a dump was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpFile<'a> {
    /// Its format in words.
    pub format: &'a str,
    /// What is odd about it, a line each.
    pub remarks: &'a [String],
}
