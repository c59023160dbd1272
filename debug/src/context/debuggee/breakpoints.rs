//! The breakpoints of a guest: which are taken, which are refused, and what becomes of them.

use super::Debuggee;
use crate::abilities::Access;
use crate::breakpoint::{Breakpoint, Condition, Hit, Id, Kind, PATCHED, Place, Purpose};
use crate::context::listen::{Change, Notice};
use crate::context::space::{Address, Space};
use crate::context::tree::{Group, Id as ContextId};
use crate::expression::Expression;
use crate::machine::Machine;
use crate::memory::Translation;
use crate::view::View;
use arch::{GuestPhys, GuestVirt, Isa};
use std::sync::Arc;

/// Breakpoints that there may be at a time.
const MOST_BREAKPOINTS: usize = 4096;

/// Why a breakpoint was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// There are not enough debug registers.
    #[error(transparent)]
    TooMany(#[from] crate::arming::TooMany),
    /// A processor that goes there does not execute what is planted, and nothing else is there.
    #[error("its page cannot be executed, and this host has no debug registers")]
    NotExecutable,
    /// More than anybody has use for, which would only slow all of them down.
    #[error("there are {MOST_BREAKPOINTS} breakpoints already")]
    Many,
    /// aarch64 has no instruction there.
    #[error("no instruction begins at an address that is no multiple of 4")]
    Unaligned,
    /// An instruction cannot be planted, and debug registers compare virtual addresses.
    #[error("at a guest-physical address a breakpoint can only be planted, which it cannot be here; {0}")]
    Physical(&'static str),
    /// Nobody has the guest, and it runs.
    #[error("nobody debugs the guest now: attach to it first")]
    Detached,
    /// Ports have none.
    #[error("there are no breakpoints on ports")]
    Port,
    /// A watchpoint watches something.
    #[error("a watchpoint of no bytes watches nothing")]
    Nothing,
    /// There is no such context, or it is no vCPU, through which an address could be looked at.
    #[error("{0} is no vCPU of this guest")]
    NoContext(ContextId),
    /// There is no such breakpoint.
    #[error("there is no such breakpoint (any more)")]
    NoBreakpoint,
    /// The table does not take it.
    #[error(transparent)]
    Table(#[from] crate::breakpoint::InsertError),
}

/// A breakpoint that was not inserted: what it is besides its place, and why not.
#[derive(Debug)]
pub(super) struct Refused {
    breakpoint: Breakpoint,
    why: String,
}

/// What a breakpoint is asked for: where, for which accesses, and when it stops.
///
/// A virtual address is looked at through the vCPU that stopped last, or through [`Point::through`], when the
/// breakpoint is added; what is planted then is met by every vCPU that executes that place of RAM.
#[derive(Clone, Debug)]
pub struct Point {
    address: Address,
    /// What a watchpoint watches for; `None` of a breakpoint.
    access: Option<Access>,
    length: u64,
    is_hardware: bool,
    is_enabled: bool,
    through: Option<ContextId>,
    conditions: Vec<Condition>,
}

impl Point {
    fn new(address: Address, access: Option<Access>, length: u64) -> Point {
        let (is_hardware, is_enabled, through) = (access.is_some(), true, None);
        Point { address, access, length, is_hardware, is_enabled, through, conditions: Vec::new() }
    }

    /// Stops in front of the instruction at an address.
    pub fn execute(address: impl Into<Address>) -> Point {
        Point::new(address.into(), None, 1)
    }

    /// Stops at a load from any of `length` bytes.
    pub fn read(address: impl Into<Address>, length: u64) -> Point {
        Point::new(address.into(), Some(Access::Read), length)
    }

    /// Stops at a store.
    pub fn write(address: impl Into<Address>, length: u64) -> Point {
        Point::new(address.into(), Some(Access::Write), length)
    }

    /// Stops at both.
    pub fn access(address: impl Into<Address>, length: u64) -> Point {
        Point::new(address.into(), Some(Access::Any), length)
    }

    /// On a debug register, of which there are few, and nothing is planted. Watchpoints always are.
    #[must_use]
    pub fn hardware(self) -> Point {
        Point { is_hardware: true, ..self }
    }

    /// Switched off until [`Debuggee::enable`] says otherwise.
    #[must_use]
    pub fn disabled(self) -> Point {
        Point { is_enabled: false, ..self }
    }

    /// Looks at the address as this context does.
    #[must_use]
    pub fn through(self, context: ContextId) -> Point {
        Point { through: Some(context), ..self }
    }

    /// Stops only when this holds, or another condition that it is given. What the closure may do and must not:
    /// [`Condition::Closure`].
    #[must_use]
    pub fn when(mut self, holds: impl Fn(&Hit<'_>) -> bool + Send + Sync + 'static) -> Point {
        self.conditions.push(Condition::Closure(Arc::new(holds)));
        self
    }

    /// Stops only when this agent bytecode is not 0, or another condition holds.
    #[must_use]
    pub fn when_bytecode(mut self, expression: Expression) -> Point {
        self.conditions.push(Condition::Bytecode(expression));
        self
    }

    fn kind(&self) -> Kind {
        match (self.access, self.is_hardware) {
            (None, false) => Kind::Software,
            (None, true) => Kind::Hardware,
            (Some(Access::Read), _) => Kind::Read,
            (Some(Access::Write), _) => Kind::Write,
            (Some(Access::Any), _) => Kind::Access,
        }
    }
}

/// What is known of a breakpoint.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it was asked for.
    pub point: Point,
    /// How it is noticed just now; [`Place::Off`] when it is switched off.
    pub place: Place,
    /// How often it was hit, false conditions included.
    pub hits: u64,
}

impl<M: Machine> Debuggee<M> {
    /// Adds a breakpoint, beside those on the same place. The guest may run: it stands still for a moment then.
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn add(&mut self, point: Point) -> Result<Id, InsertError> {
        self.while_standing(|it| it.put_point(None, point))
    }

    /// Puts another breakpoint in the place of one, under its id and with its hits. The guest may run.
    ///
    /// # Errors
    /// [`InsertError`]; then it is as it was.
    pub fn change(&mut self, id: Id, point: Point) -> Result<(), InsertError> {
        self.known(id)?;
        self.while_standing(|it| it.put_point(Some(id), point)).map(drop)
    }

    /// Switches a breakpoint on or off. The guest may run.
    ///
    /// # Errors
    /// [`InsertError`]; then it is as it was.
    pub fn enable(&mut self, id: Id, is_enabled: bool) -> Result<(), InsertError> {
        let point = Point { is_enabled, ..self.known(id)?.point };
        self.change(id, point)
    }

    /// Removes a breakpoint; whether it was there. The guest may run.
    pub fn take_out(&mut self, id: Id) -> bool {
        self.while_standing(|it| {
            it.points.remove(&id);
            let mut requests = it.engine.requests();
            let was_there = requests.table.take_out(it.machine.memory(), id);
            // Fewer wants than before always fit.
            let is_done = it.engine.reallocate(&mut requests).is_ok() && was_there;
            drop(requests);
            it.tell_breakpoints();
            is_done
        })
    }

    /// The breakpoints that have been added.
    pub fn breakpoints(&self) -> Vec<Id> {
        self.points.keys().copied().collect()
    }

    /// What is known of one of them.
    ///
    /// # Errors
    /// [`InsertError::NoBreakpoint`].
    pub fn known(&self, id: Id) -> Result<Known, InsertError> {
        let point = self.points.get(&id).cloned().ok_or(InsertError::NoBreakpoint)?;
        let requests = self.engine.requests();
        let Breakpoint { place, hits, .. } = requests.table.get(id).ok_or(InsertError::NoBreakpoint)?;
        Ok(Known { point, place: *place, hits: *hits })
    }

    fn put_point(&mut self, id: Option<Id>, point: Point) -> Result<Id, InsertError> {
        if !self.is_attached() {
            return Err(InsertError::Detached);
        }
        let vcpu = match point.through {
            None => self.current,
            Some(context) => self.tree.vcpu_of(context).ok_or(InsertError::NoContext(context))?,
        };
        let is_physical = match point.address.space {
            Space::Virtual => false,
            Space::Physical => true,
            Space::Ports => return Err(InsertError::Port),
        };
        if point.access.is_some() && point.length == 0 {
            return Err(InsertError::Nothing);
        }
        let hits = id.and_then(|id| self.known(id).ok()).map_or(0, |known| known.hits);
        let address = GuestVirt(point.address.address);
        let mut breakpoint = Breakpoint::new(point.kind(), address, point.length, Place::Off);
        (breakpoint.hits, breakpoint.conditions) = (hits, point.conditions.clone());
        let view = View { is_physical, ..self.view().through(vcpu) };
        if is_physical && breakpoint.kind != Kind::Software {
            return Err(InsertError::Physical("a debug register is not for it"));
        }
        if point.is_enabled {
            breakpoint.place = match place(&view, &breakpoint)? {
                // A register would compare another address.
                Place::Fallback(PATCHED) if is_physical => Place::Planted(GuestPhys(address.0)),
                Place::Fallback(why) if is_physical => return Err(InsertError::Physical(why)),
                place => place,
            };
        }
        let space = view.space();
        let id = self.put(id, breakpoint, &space)?;
        self.points.insert(id, point);
        self.tell_breakpoints();
        Ok(id)
    }

    /// Puts a breakpoint, whose place is known, in the table.
    fn put(&self, id: Option<Id>, breakpoint: Breakpoint, space: &Translation) -> Result<Id, InsertError> {
        let memory = self.machine.memory();
        let mut requests = self.engine.requests();
        // Whoever has come for it may have left since.
        if self.machine.is_left() {
            return Err(InsertError::Detached);
        }
        if id.is_none() && requests.table.iter().count() >= MOST_BREAKPOINTS {
            return Err(InsertError::Many);
        }
        let change = requests.table.put(memory, id, breakpoint)?;
        let id = change.id();
        let fits = self.engine.make_room(&mut requests, memory, space);
        requests.table.settle_change(memory, change, fits.is_err());
        fits?;
        Ok(id)
    }

    /// Puts a breakpoint back that was there before the guest began again.
    pub(super) fn put_back(&mut self, id: Id, mut breakpoint: Breakpoint) -> Result<(), InsertError> {
        let Breakpoint { kind, address, length, .. } = breakpoint;
        // It is a former one by now.
        self.engine.requests().table.former_hits(kind, address, length);
        let is_physical = self.points.get(&id).map(|it| it.address.space == Space::Physical);
        let view = View { is_physical: is_physical.unwrap_or(self.is_physical), ..self.view() };
        let space = view.space();
        let put = match breakpoint.place {
            Place::Off => Ok(Place::Off),
            _ => place(&view, &breakpoint),
        };
        let put = put.and_then(|place| {
            breakpoint.place = place;
            self.put(Some(id), breakpoint, &space)
        });
        if put.is_err() {
            self.points.remove(&id);
        }
        put.map(drop)
    }

    /// Inserts a breakpoint for the time of a step, through the vCPU that is stepped.
    pub(super) fn put_for_step(
        &mut self,
        vcpu: u32,
        address: u64,
        holds: Condition,
    ) -> Result<Id, InsertError> {
        let view = View { is_physical: false, ..self.view().through(vcpu) };
        let mut breakpoint = Breakpoint::new(Kind::Software, GuestVirt(address), 1, Place::Off);
        (breakpoint.purpose, breakpoint.conditions) = (Purpose::Step, vec![holds]);
        breakpoint.place = place(&view, &breakpoint)?;
        self.put(None, breakpoint, &view.space())
    }

    /// Removes it.
    pub(super) fn take_out_of_step(&mut self, id: Id) {
        let mut requests = self.engine.requests();
        requests.table.take_out(self.machine.memory(), id);
        if self.engine.reallocate(&mut requests).is_err() {
            log::error!("debug registers cannot be shared out anew");
        }
    }

    fn tell_breakpoints(&self) {
        let root = self.tree.root();
        let group = self.tree.group(root, Group::Breakpoint).unwrap_or(root);
        self.listeners.tell(&Notice::Changed(group, Change::Breakpoints));
    }

    /// Inserts a breakpoint; one that was asked for alike gets the new conditions and commands. Its place is chosen
    /// here, and a former one's hits are kept.
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn insert(&mut self, mut breakpoint: Breakpoint) -> Result<(), InsertError> {
        let Breakpoint { kind, address, length, .. } = breakpoint;
        let view = self.view();
        breakpoint.place = place(&view, &breakpoint)?;
        let (id, former) = {
            let mut requests = self.engine.requests();
            let former = requests.table.former_hits(kind, address, length);
            let id = requests.table.find(kind, address, length);
            (id, id.and_then(|id| requests.table.get(id)).map_or(former, |before| before.hits))
        };
        breakpoint.hits = former;
        let space = view.space();
        self.put(id, breakpoint, &space)?;
        // Asked for again, it is there now.
        self.refused.remove(&(kind, address.0, length));
        self.tell_breakpoints();
        Ok(())
    }

    /// Removes a breakpoint by what it was asked for; whether it was there.
    pub fn remove(&mut self, kind: Kind, address: u64, length: u64) -> bool {
        self.refused.remove(&(kind, address, length));
        let mut requests = self.engine.requests();
        let was_there = requests.table.remove(self.machine.memory(), kind, GuestVirt(address), length);
        // Fewer wants than before always fit.
        let is_done = self.engine.reallocate(&mut requests).is_ok() && was_there;
        drop(requests);
        self.tell_breakpoints();
        is_done
    }

    /// Inserts a breakpoint for a debugger that is told of a refusal when the guest is resumed: that is remembered
    /// until then, if it `remembers`, and is no error then.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert_or_remember(&mut self, breakpoint: Breakpoint, remembers: bool) -> Result<(), InsertError> {
        /// Many for a person.
        const MOST_REFUSED: usize = 64;
        let Breakpoint { kind, address: GuestVirt(address), length, .. } = breakpoint;
        let Err(error) = self.insert(breakpoint.clone()) else { return Ok(()) };
        let why = self.why_refused(&error, kind, address, length);
        log::warn!(target: "debug::rsp", "no {} at {address:#x}: {why}", kind.name());
        if !remembers || self.refused.len() >= MOST_REFUSED {
            return Err(error);
        }
        self.refused.insert((kind, address, length), Refused { breakpoint, why });
        Ok(())
    }

    /// Why a breakpoint was not inserted, in words.
    fn why_refused(&self, error: &InsertError, kind: Kind, address: u64, length: u64) -> String {
        match error {
            InsertError::TooMany(_) => self.engine.too_few(kind, address, length),
            _ => error.to_string(),
        }
    }

    /// Tries again what was refused: others may have made room, and a debugger that keeps its breakpoints
    /// inserted does not ask again.
    pub(super) fn retry_refused(&mut self) {
        for ((kind, address, length), mut refused) in std::mem::take(&mut self.refused) {
            if let Err(error) = self.insert(refused.breakpoint.clone()) {
                refused.why = self.why_refused(&error, kind, address, length);
                self.refused.insert((kind, address, length), refused);
            }
        }
    }

    /// Breakpoints that were refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&(Kind, u64, u64), &str)> {
        self.refused.iter().map(|(place, refused)| (place, refused.why.as_str()))
    }
}

/// How a breakpoint will be noticed.
fn place(view: &View<'_>, breakpoint: &Breakpoint) -> Result<Place, InsertError> {
    let Breakpoint { kind, address, .. } = *breakpoint;
    if view.isa() == Isa::Aarch64 && kind.access().is_none() && !address.0.is_multiple_of(4) {
        return Err(InsertError::Unaligned);
    }
    let place = view.place(kind, address);
    match place {
        Place::NotExecutable { .. } if view.engine.abilities().breakpoints == 0 => {
            Err(InsertError::NotExecutable)
        }
        _ => Ok(place),
    }
}

#[cfg(test)]
mod tests;
