//! Memory is written, but for a program over the kernel that runs.

use super::Session;
use crate::machine::Machine;
use crate::memory::Translation;
use arch::GuestVirt;

/// Why a write is refused that [`Session::write`] takes for a part of a program.
pub const OVERLOADED: &str = "no program is written over the kernel that runs, unless 'monitor allow-load on' says so; \
                              another one is given to the monitor before the guest begins";

impl<M: Machine> Session<M> {
    /// Whether the write that was refused last was refused as a part of a program.
    pub fn is_overloaded(&self) -> bool {
        self.debuggee.words().contains(OVERLOADED)
    }

    /// Whether a write is a part of a program that would go over the kernel that runs, as gdb's `load` makes them.
    fn overloads(&mut self, space: &Translation, address: u64, length: usize) -> bool {
        /// Bytes that a person may want to change at one stop.
        const MOST_CODE: u64 = 64 << 10;
        let memory = self.debuggee.machine.memory();
        let is_code = || space.is_executable(memory, GuestVirt(address));
        if self.allows_load || !matches!(space, Translation::Virtual(regime) if regime.is_on()) || !is_code()
        {
            return false;
        }
        self.code_written = self.code_written.saturating_add(length as u64);
        self.code_written > MOST_CODE && self.view().kernel_text().is_some()
    }

    /// Writes memory as the thread sees it that is looked at; whether all of it was.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Ok(space) = self.space(address) else { return false };
        if self.overloads(&space, address, bytes.len()) {
            if !self.is_overloaded() {
                log::warn!("{OVERLOADED}");
                self.debuggee.say(&format!("{OVERLOADED}\n"));
            }
            return false;
        }
        self.debuggee.write_in(&space, address, bytes) == bytes.len()
    }
}
