//! A debugger comes and goes, and the guest begins again.

use super::{Client, Process, RegisterSet, Session, Threads};
use crate::machine::{Ended, Extent, Machine, MachineError};
use arch::register::Bank;
use std::task::Poll;

impl<M: Machine> Session<M> {
    /// Attaches: from now on vCPUs stop for this session.
    pub fn attach(&mut self) {
        self.take();
        self.client = Client::Unknown;
        (self.names_process, self.is_extended, self.takes_words) = (false, false, false);
        self.debuggee.is_physical = false;
        self.is_told = false;
        self.threads = Threads::default();
        if let Ok(file) = self.debuggee.machine.registers(0, &Bank::ALL) {
            self.registers = RegisterSet::new(&file);
        }
        self.registers.describe_as(self.describes());
    }

    /// Takes the guest, for a debugger that is connected.
    pub fn take(&mut self) {
        self.debuggee.attach();
        self.process = Process::Attached;
        (self.is_done, self.allows_load, self.code_written) = (false, false, 0);
        self.chosen = None;
        self.threads.stop();
    }

    /// Has the guest begin again, and holds it at its first instruction. Breakpoints stay.
    ///
    /// # Errors
    /// [`MachineError`]; then it is as it was.
    pub fn restart(&mut self) -> Result<(), MachineError> {
        self.debuggee.restart()?;
        self.threads.stop();
        self.look_for_beginnings();
        Ok(())
    }

    /// Goes over to the machine in which the guest has begun again while it stood still for the debugger, if it has. Pending
    /// as long as vCPUs are to stand still for that.
    pub fn go_over(&mut self) -> Poll<()> {
        let machine = &mut self.debuggee.machine;
        if self.process != Process::Attached || !machine.has_restarted() {
            return Poll::Ready(());
        }
        if machine.prepare(Extent::Whole).is_pending() {
            return Poll::Pending;
        }
        self.debuggee.go_over();
        self.threads.stop();
        self.look_for_beginnings();
        Poll::Ready(())
    }

    /// Deals with what happens while no debugger has the guest; its end, if it has ended.
    pub fn idle(&mut self) -> Option<Ended> {
        let ended = self.debuggee.idle();
        self.look_for_beginnings();
        ended
    }

    /// Detaches: planted instructions go, and the guest runs on.
    pub fn detach(&mut self) {
        self.debuggee.detach();
        self.process = Process::Detached;
    }

    /// The debugger has ended the guest, and may want to have it begin again.
    pub fn end(&mut self) {
        self.debuggee.leave_held();
        self.process = Process::Killed;
    }

    /// Leaves the guest without its debugger, held: planted instructions go, and it waits for the next
    /// debugger.
    pub fn leave_held(&mut self) {
        self.debuggee.leave_held();
    }

    /// Ends the guest.
    pub fn kill(&mut self) {
        self.debuggee.kill();
    }
}
