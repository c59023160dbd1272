//! A debugger comes and goes, and the guest begins again.

use super::Debuggee;
use crate::arming::Arming;
use crate::breakpoint::{Breakpoint, Id as BreakpointId, Purpose};
use crate::cancel::Cancel;
use crate::context::listen::{Change, Notice};
use crate::machine::{Action, Control, Ended, Event, Machine, MachineError, Order};
use arch::words::{counted, verb};

impl<M: Machine> Debuggee<M> {
    /// Takes the guest: all vCPUs stand still when it returns, and stop for this debugger from now on. A guest that has
    /// been [left](crate::live::debugger::Debugger::leave) is not had again by this.
    pub fn attach(&mut self) {
        if self.machine.is_left() {
            return;
        }
        self.engine.requests().is_attached = true;
        self.machine.pause();
        self.engine.requests().forget();
        (self.is_attached, self.is_left) = (true, false);
        // What happened while nobody had it is nobody's stop.
        self.idle();
        self.machine.pause();
        self.pending.clear();
        self.reported.fill(None);
        self.words.clear();
        self.refused.clear();
        self.current = 0;
        (self.is_running, self.stopped) = (false, None);
        if self.ended.is_none() {
            self.tell_held();
        }
    }

    /// Has the guest begin again, and holds it at its first instruction. Breakpoints stay, under their ids.
    ///
    /// # Errors
    /// [`MachineError`]; then it is as it was.
    pub fn restart(&mut self) -> Result<(), MachineError> {
        self.machine.pause();
        self.machine.control(Control::Reset)?;
        self.machine.pause();
        self.begin_again();
        self.tell_held();
        Ok(())
    }

    /// Goes over to the machine in which the guest has begun again while it stood still for its debugger, as somebody else
    /// has had it ([`Machine::has_restarted`]); it is held there, at its first instruction. Breakpoints stay.
    pub(crate) fn go_over(&mut self) {
        // That it has is what comes next, and is known.
        drop(self.machine.next_event());
        self.machine.pause();
        self.say("somebody else has had the guest begin again: it is held at its first instruction\n");
        self.begin_again();
    }

    /// The guest has begun again, and stands still: what was planted went with its memory.
    pub(super) fn begin_again(&mut self) {
        self.pending.clear();
        self.happened.clear();
        self.reported.fill(None);
        (self.stepping, self.stopped, self.ended) = (None, None, None);
        (self.current, self.is_running) = (0, false);
        self.beginnings += 1;
        self.forget_tasks();
        let (before, was_filtered) = {
            let mut requests = self.engine.requests();
            let was_filtered = !requests.filters.is_empty();
            requests.forget();
            (requests.table.uprooted(), was_filtered)
        };
        if was_filtered {
            self.say(
                "breakpoints stop every task again: those that some were for have gone with their kernel\n",
            );
        }
        let before: Vec<_> = before.into_iter().filter(|(_, it)| it.purpose == Purpose::Asked).collect();
        let count = before.len();
        let is_refused = |(id, it): (BreakpointId, Breakpoint)| self.put_back(id, it).is_err();
        let refused = before.into_iter().map(is_refused).filter(|refused| *refused).count();
        if refused > 0 {
            self.say(&format!(
                "of {} {refused} {} not inserted any more: until the guest maps their pages they need debug \
                 registers, which are used up\n",
                counted(count, "breakpoint"),
                verb(refused, "is", "are")
            ));
        }
        self.listeners.tell(&Notice::Changed(self.tree.root(), Change::BegunAgain));
    }

    /// Deals with what happens while no debugger has the guest; its end, if it has ended.
    pub fn idle(&mut self) -> Option<Ended> {
        let mut ended = None;
        while let Some(event) = self.next_event() {
            match event {
                Event::Stopped { .. } => {}
                Event::Ended(how) => {
                    self.has_ended(&how);
                    ended = Some(how);
                }
                Event::Restarted { had_run } => {
                    self.begin_again();
                    if had_run && !self.is_attached && !self.is_left {
                        self.let_run();
                    }
                }
            }
        }
        ended
    }

    /// Lets the guest go: planted instructions are taken out, and it runs on.
    pub fn detach(&mut self) {
        self.let_go();
        self.let_run();
    }

    /// What somebody has begun to stop the guest for who has not attached comes to nothing.
    pub(crate) fn give_back(&mut self) {
        // One that a debugger has left held is.
        if !self.is_attached && !self.is_left {
            self.machine.give_back();
        }
    }

    /// All vCPUs run, and are not debugged.
    fn let_run(&mut self) {
        // Whoever has taken the debugger away has let it run.
        if self.machine.is_left() {
            return self.tell_started();
        }
        let arming = Arming::off(self.isa());
        let order = Order { action: Action::Run, arming, steps_off: false };
        if let Err(error) = self.machine.resume(vec![order; self.machine.vcpus() as usize]) {
            log::warn!("the guest cannot run on without its debugger: {error}");
            return;
        }
        self.tell_started();
    }

    /// Leaves the guest without its debugger, held: planted instructions go, and it waits for the next debugger.
    pub fn leave_held(&mut self) {
        self.let_go();
        self.is_left = true;
        self.tell_held();
    }

    /// Nothing of the debugger's is left in the guest, which stands still.
    fn let_go(&mut self) {
        (self.is_left, self.is_attached) = (false, false);
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
        self.points.clear();
        (self.stepping, self.stopped, self.is_running) = (None, None, false);
        self.machine.disarm();
    }

    /// Ends the guest.
    pub fn kill(&mut self) {
        if let Err(error) = self.machine.control(Control::Quit) {
            log::warn!("the guest cannot be ended: {error}");
        }
    }

    /// The guest is over.
    pub(super) fn has_ended(&mut self, how: &Ended) {
        (self.is_running, self.stepping, self.stopped) = (false, None, None);
        self.ended = Some(how.clone());
        self.listeners.tell(&Notice::Exited(self.tree.root(), how.clone()));
    }
}
