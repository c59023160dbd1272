//! A debugger comes and goes, and the guest begins again.

use super::{Client, Process, RegisterSet, Session};
use crate::arming::Arming;
use crate::breakpoint::Breakpoint;
use crate::cancel::Cancel;
use crate::machine::{Action, Control, Ended, Event, Machine, Order, TargetError};
use arch::register::Bank;

impl<M: Machine> Session<M> {
    /// Attaches: from now on vCPUs stop for this session.
    pub fn attach(&mut self) {
        self.take();
        self.client = Client::Unknown;
        (self.names_process, self.is_extended, self.takes_words) = (false, false, false);
        self.is_physical = false;
        self.is_told = false;
        if let Ok(file) = self.machine.registers(0, &Bank::ALL) {
            self.registers = RegisterSet::new(&file);
        }
        self.registers.describe_as(self.describes());
    }

    /// Takes the guest, for a debugger that is connected.
    pub fn take(&mut self) {
        self.engine.requests().is_attached = true;
        self.machine.pause();
        (self.process, self.is_left) = (Process::Attached, false);
        // What happened while nobody was attached is nobody's stop.
        self.idle();
        self.machine.pause();
        self.pending.clear();
        self.reported.fill(None);
        self.words.clear();
        (self.is_done, self.allows_load, self.code_written) = (false, false, 0);
        self.refused.clear();
        self.current = 0;
        self.chosen = None;
    }

    /// Has the guest begin again, and holds it at its first instruction. Breakpoints stay.
    ///
    /// # Errors
    /// [`TargetError`]; then it is as it was.
    pub fn restart(&mut self) -> Result<(), TargetError> {
        self.machine.pause();
        self.machine.control(Control::Reset)?;
        self.machine.pause();
        self.begin_again();
        Ok(())
    }

    /// The guest has begun again, and stands still: what was planted went with its memory.
    pub(super) fn begin_again(&mut self) {
        self.pending.clear();
        self.reported.fill(None);
        (self.current, self.chosen, self.is_told) = (0, None, false);
        let before = {
            let mut requests = self.engine.requests();
            requests.forget();
            requests.table.uprooted()
        };
        let count = before.len();
        let is_refused = |it: Breakpoint| {
            self.insert(it.kind, it.address.0, it.length, it.conditions, it.commands).is_err()
        };
        let refused = before.into_iter().map(is_refused).filter(|refused| *refused).count();
        if refused > 0 {
            self.words.push_str(&format!(
                "vmm: of {count} breakpoints {refused} are not inserted any more: until the guest maps their pages \
                 they need debug registers, which are used up\n"
            ));
        }
    }

    /// Deals with what happens while no debugger has the guest; its end, if it has ended.
    pub fn idle(&mut self) -> Option<Ended> {
        let mut ended = None;
        while let Some(event) = self.machine.next_event() {
            match event {
                Event::Stopped { .. } => {}
                Event::Ended(how) => ended = Some(how),
                Event::Restarted => {
                    self.begin_again();
                    if self.process != Process::Attached && !self.is_left {
                        self.let_run();
                    }
                }
            }
        }
        ended
    }

    /// Detaches: planted instructions go, and the guest runs on.
    pub fn detach(&mut self) {
        self.leave();
        (self.process, self.is_left) = (Process::Detached, false);
        self.let_run();
    }

    /// The debugger has ended the guest, and may want to have it begin again.
    pub fn end(&mut self) {
        self.leave();
        self.process = Process::Killed;
    }

    /// All vCPUs run, and are not debugged.
    fn let_run(&mut self) {
        let arming = Arming::off(self.isa());
        let order = Order { action: Action::Run, arming, steps_off: false };
        if let Err(error) = self.machine.resume(vec![order; self.machine.vcpus() as usize]) {
            log::warn!("the guest cannot run on without its debugger: {error}");
        }
    }

    /// Leaves the guest without its debugger, held: planted instructions go, and it waits for the next
    /// debugger.
    pub fn leave(&mut self) {
        self.is_left = true;
        self.set_cancel(&Cancel::never());
        self.machine.pause();
        {
            let mut requests = self.engine.requests();
            requests.table.clear(self.machine.memory());
            self.engine.reallocate(&mut requests).ok();
            requests.forget();
            requests.is_attached = false;
            while requests.take_output(usize::MAX).is_some() {}
        }
        self.machine.disarm();
    }

    /// Ends the guest.
    pub fn kill(&mut self) {
        if let Err(error) = self.machine.control(Control::Quit) {
            log::warn!("the guest cannot be ended: {error}");
        }
    }
}
