//! The breakpoints of a session: which are taken, which are refused, and who is told so.

use super::{Client, Session};
use crate::breakpoint::{Breakpoint, Kind, Place};
use crate::expression::Expression;
use crate::machine::Machine;
use arch::{GuestVirt, Isa};

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
    /// The table does not take it.
    #[error(transparent)]
    Table(#[from] crate::breakpoint::InsertError),
}

/// A breakpoint that was not inserted: what it is besides its place, and why not.
#[derive(Debug)]
pub(super) struct Refused {
    conditions: Vec<Expression>,
    commands: Vec<Expression>,
    why: String,
}

impl<M: Machine> Session<M> {
    /// Inserts a breakpoint for the debugger. Where it is told of a refusal when the target is resumed, that is
    /// remembered until then; it is no error then.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert_or_remember(
        &mut self,
        (kind, address, length): (Kind, u64, u64),
        conditions: Vec<Expression>,
        commands: Vec<Expression>,
    ) -> Result<(), InsertError> {
        /// Many for a person.
        const MOST_REFUSED: usize = 64;
        let Err(error) = self.insert(kind, address, length, conditions.clone(), commands.clone()) else {
            return Ok(());
        };
        let why = self.why_refused(&error, kind, address, length);
        log::warn!(target: "debug::rsp", "no {} at {address:#x}: {why}", kind.name());
        if self.client != Client::Gdb || self.refused.len() >= MOST_REFUSED {
            return Err(error);
        }
        self.refused.insert((kind, address, length), Refused { conditions, commands, why });
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
            let (conditions, commands) = (refused.conditions.clone(), refused.commands.clone());
            if let Err(error) = self.insert(kind, address, length, conditions, commands) {
                refused.why = self.why_refused(&error, kind, address, length);
                self.refused.insert((kind, address, length), refused);
            }
        }
    }

    /// Inserts a breakpoint; one that is there already gets the new conditions and commands.
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn insert(
        &mut self,
        kind: Kind,
        address: u64,
        length: u64,
        conditions: Vec<Expression>,
        commands: Vec<Expression>,
    ) -> Result<(), InsertError> {
        let address = GuestVirt(address);
        let space = self.view().space();
        let memory = self.machine.memory();
        if self.isa() == Isa::Aarch64 && kind.access().is_none() && !address.0.is_multiple_of(4) {
            return Err(InsertError::Unaligned);
        }
        if self.engine.requests().table.iter().count() >= MOST_BREAKPOINTS {
            return Err(InsertError::Many);
        }
        let place = self.view().place(kind, address);
        if matches!(place, Place::NotExecutable { .. }) && self.engine.abilities().breakpoints == 0 {
            return Err(InsertError::NotExecutable);
        }
        let mut requests = self.engine.requests();
        let hits = requests.table.former_hits(kind, address, length);
        let breakpoint = Breakpoint { kind, address, length, place, conditions, commands, hits };
        let change = requests.table.replace(memory, breakpoint)?;
        let fits = self.engine.make_room(&mut requests, memory, &space);
        requests.table.settle_change(memory, change, fits.is_err());
        drop(requests);
        fits?;
        // Asked for again, it is there now.
        self.refused.remove(&(kind, address.0, length));
        Ok(())
    }

    /// Breakpoints that were refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&(Kind, u64, u64), &str)> {
        self.refused.iter().map(|(place, refused)| (place, refused.why.as_str()))
    }

    /// Removes a breakpoint; whether it was there.
    pub fn remove(&mut self, kind: Kind, address: u64, length: u64) -> bool {
        self.refused.remove(&(kind, address, length));
        let mut requests = self.engine.requests();
        let was_there = requests.table.remove(self.machine.memory(), kind, GuestVirt(address), length);
        // Fewer wants than before always fit.
        self.engine.reallocate(&mut requests).is_ok() && was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breakpoint::PATCHED;
    use crate::engine::Engine;
    use crate::fake::Still;
    use arch::GuestPhys;
    use std::sync::Arc;

    #[test]
    fn a_breakpoint_that_could_be_planted_gives_up_its_register_for_others() {
        for (isa, nop) in [(Isa::X86_64, &[0x66, 0x90][..]), (Isa::Aarch64, &[0x1f, 0x20, 0x03, 0xd5])] {
            let machine = Still::new(isa, 1, 1 << 16).unwrap();
            machine.memory().write(GuestPhys(0x1000), nop);
            let host = machine.abilities().clone();
            let registers = if isa == Isa::X86_64 { host.watchpoints } else { host.breakpoints };
            let mut session = Session::new(machine, Arc::new(Engine::new(isa, host, 1)));
            session.insert(Kind::Software, 0x1000, 4, Vec::new(), Vec::new()).unwrap();
            let place = |session: &Session<Still>| {
                session.engine.requests().table.iter().next().map(|first| first.place)
            };
            assert_eq!(place(&session), Some(Place::Fallback(PATCHED)), "{isa}");
            for index in 0..registers as u64 {
                session.insert(Kind::Hardware, 0x2000 + 16 * index, 4, Vec::new(), Vec::new()).unwrap();
            }
            assert_eq!(place(&session), Some(Place::Planted(GuestPhys(0x1000))), "{isa}");
            let refused = session.insert(Kind::Hardware, 0x3000, 4, Vec::new(), Vec::new());
            assert!(refused.is_err(), "{isa}");
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        for isa in Isa::ALL {
            let machine = Still::new(isa, 1, 1 << 16).unwrap();
            let host = machine.abilities().clone();
            let mut session = Session::new(machine, Arc::new(Engine::new(isa, host.clone(), 1)));
            let all = host.breakpoints as u64;
            let watch = |session: &mut Session<Still>, length| {
                session.insert(Kind::Write, 0x3000, length, Vec::new(), Vec::new())
            };
            let breakpoints = if isa == Isa::X86_64 { all - 1 } else { all };
            for index in 0..breakpoints {
                let always = vec![Expression::new(vec![0x22, 1, 0x27]).unwrap()];
                session.insert(Kind::Hardware, 0x2000 + 16 * index, 4, always, Vec::new()).unwrap();
            }
            watch(&mut session, 4).unwrap();
            let seen = |session: &Session<Still>| -> Vec<(GuestVirt, usize)> {
                let requests = session.engine.requests();
                requests.table.iter().map(|it| (it.address, it.conditions.len())).collect()
            };
            let before = (seen(&session), session.engine.arming(&session.engine.requests(), 0));
            // One more of another kind, a larger one, and the same ones again.
            assert!(session.insert(Kind::Hardware, 0x4000, 4, Vec::new(), Vec::new()).is_err(), "{isa}");
            assert!(watch(&mut session, 0xff).is_err(), "{isa}");
            let again = vec![Expression::new(vec![0x22, 0, 0x27]).unwrap()];
            session.insert(Kind::Hardware, 0x2000, 4, again, Vec::new()).unwrap();
            watch(&mut session, 4).unwrap();
            let after = (seen(&session), session.engine.arming(&session.engine.requests(), 0));
            assert_eq!(before, after, "{isa}");
            assert!(session.remove(Kind::Write, 0x3000, 4));
            assert_eq!(seen(&session).len() as u64, breakpoints);
        }
    }
    #[test]
    fn there_is_an_end_to_breakpoints() {
        for isa in Isa::ALL {
            let machine = Still::new(isa, 1, 1 << 20).unwrap();
            let host = machine.abilities().clone();
            let mut session = Session::new(machine, Arc::new(Engine::new(isa, host, 1)));
            let mut insert = |address| {
                session.insert(Kind::Software, address, 4, Vec::new(), Vec::new()).map_err(|e| e.to_string())
            };
            let unaligned = insert(0x1002);
            assert_eq!(unaligned.is_err(), isa == Isa::Aarch64, "{unaligned:?}");
            assert!(insert(0x2000).is_ok());
            for index in 0..MOST_BREAKPOINTS as u64 {
                let (address, place) = (GuestVirt(0x4000 + 16 * index), Place::Register);
                let (conditions, commands) = (Vec::new(), Vec::new());
                let it = Breakpoint {
                    kind: Kind::Software,
                    address,
                    length: 4,
                    place,
                    conditions,
                    commands,
                    hits: 0,
                };
                session.engine.requests().table.insert(session.machine.memory(), it).unwrap();
            }
            let refused = session.insert(Kind::Software, 0x2000, 4, Vec::new(), Vec::new());
            assert!(matches!(refused, Err(InsertError::Many)), "{refused:?}");
        }
    }
}
