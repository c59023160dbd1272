//! The guest is resumed, and stands still again.

use super::{Debuggee, Reported};
use crate::breakpoint;
use crate::context::listen::Notice;
use crate::context::stop::{Stop, Stopped};
use crate::context::tree::Group;
use crate::machine::{Action, Activity, Event, Machine, MachineError, Order, StopReason};
use crate::memory::Translation;
use crate::view::View;
use arch::register::RegisterFile;
use arch::{GuestVirt, Isa};

impl<M: Machine> Debuggee<M> {
    /// Gives each vCPU its order. A stop that is still to be reported is reported instead, by
    /// [`Self::next_stop`].
    ///
    /// # Errors
    /// [`MachineError`]; then nothing runs.
    pub fn run(&mut self, actions: &[Action]) -> Result<(), MachineError> {
        self.actions = actions.to_vec();
        // Hits of breakpoints happen again when the vCPU runs again; what cannot happen
        // again is kept.
        let isa = self.isa();
        let mut requests = self.engine.requests();
        self.pending.retain(|(vcpu, reason)| {
            let stays = match reason {
                StopReason::Watchpoint { .. } => isa == Isa::X86_64,
                StopReason::Fatal(_) | StopReason::Hypercall(_) => true,
                _ => false,
            };
            if !stays {
                requests.take_back_hit(*vcpu);
            }
            stays
        });
        drop(requests);
        if !self.pending.is_empty() {
            self.owes_a_stop();
            return Ok(());
        }
        self.retry_refused();
        if !self.refused.is_empty() {
            let words: Vec<String> = self
                .refused()
                .map(|((kind, address, _), why)| format!("no {} at {address:#x}: {why}", kind.name()))
                .collect();
            let reason = StopReason::Refused(format!("the guest does not run: {}", words.join("; ")));
            self.pending.push((self.current, reason));
            self.owes_a_stop();
            return Ok(());
        }
        self.go()?;
        self.tell_started();
        Ok(())
    }

    /// It counts as running, and its next stop is there already. Whoever waits for the machine's descriptor is to look.
    fn owes_a_stop(&mut self) {
        self.is_running = true;
        self.machine.ring();
        self.tell_started();
    }

    /// Listeners hear that the guest runs, unless they know.
    pub(super) fn tell_started(&mut self) {
        if !std::mem::replace(&mut self.is_told_running, true) {
            self.listeners.tell(&Notice::Started(self.intercept_group()));
        }
    }

    /// Listeners hear that a guest runs whose debugger was taken away.
    pub(super) fn tell_if_left(&mut self) {
        if self.machine.is_left() {
            self.tell_started();
        }
    }

    /// Listeners hear that a guest runs whose debugger is just taken away: nobody asks of it any more.
    pub(crate) fn tell_if_leaving(&mut self) {
        if self.machine.is_leaving() {
            self.tell_started();
        }
    }

    /// Listeners hear that the guest stands still as nobody has let it run, unless they know.
    pub(super) fn tell_held(&mut self) {
        if std::mem::replace(&mut self.is_told_running, false) {
            let held = self.held();
            self.listeners.tell(&Notice::Stopped(self.intercept_group(), held));
        }
    }

    /// Why a guest stands still that has come to no stop.
    pub(super) fn held(&self) -> Stopped {
        Stopped { context: self.tree.root(), reason: StopReason::Interrupt, breakpoints: Vec::new() }
    }

    /// Gives each vCPU the order for the action that it has.
    pub(super) fn go(&mut self) -> Result<(), MachineError> {
        self.engine.refresh(self.machine.memory(), || self.space_for_breakpoints());
        let mut orders = Vec::new();
        {
            let mut requests = self.engine.requests();
            requests.begin(&self.actions);
            for (vcpu, action) in (0..).zip(self.actions.iter().copied()) {
                let arming = self.engine.arming(&requests, vcpu);
                let steps_off = self.reported.get(vcpu as usize).is_some_and(Option::is_some);
                orders.push(Order { action, arming, steps_off });
            }
        }
        for (vcpu, order) in (0..).zip(&mut orders) {
            order.steps_off =
                order.steps_off && order.action != Action::Stay && self.stands_at_reported(vcpu);
        }
        self.machine.resume(orders)?;
        (self.is_running, self.stopped) = (true, None);
        Ok(())
    }

    /// All vCPUs stand still. Those that have begun what they were told are not where they have been reported any
    /// more; one that was stopped before it had still is.
    pub(super) fn stand(&mut self) {
        self.machine.pause();
        let requests = self.engine.requests();
        for (vcpu, reported) in (0..).zip(&mut self.reported) {
            if requests.has_begun(vcpu) {
                *reported = None;
            }
        }
    }

    /// Whether there may be something to report for which all vCPUs are to stand still, where they must not be waited
    /// for ([`Machine::prepare`]).
    pub fn has_stopped(&mut self) -> bool {
        !self.pending.is_empty() || !self.happened.is_empty() || self.machine.has_stopped()
    }

    /// The next thing that has happened.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.happened.pop_front().or_else(|| self.machine.next_event())
    }

    /// Does something that is done while all vCPUs stand still; if they run, they do so again behind it, unless
    /// something has happened meanwhile.
    pub(super) fn while_standing<R>(&mut self, change: impl FnOnce(&mut Self) -> R) -> R {
        if !self.is_running || !self.pending.is_empty() || self.machine.is_left() {
            return change(self);
        }
        self.stand();
        let result = change(self);
        while let Some(event) = self.machine.next_event() {
            self.happened.push_back(event);
        }
        if self.happened.is_empty()
            && let Err(error) = self.go()
        {
            let reason = StopReason::Fatal(format!("it cannot be resumed: {error}"));
            self.pending.push((self.current, reason));
        }
        // What has told of it has been taken.
        if self.has_stopped() {
            self.machine.ring();
        }
        result
    }

    /// Has a vCPU go on somewhere else.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn set_pc(&mut self, vcpu: u32, address: u64) -> Result<(), MachineError> {
        let mut file = RegisterFile::new(self.isa());
        file.set(if self.isa() == Isa::X86_64 { "rip" } else { "pc" }, address);
        self.machine.set_registers(vcpu, &file)
    }

    /// The linear program counter of a vCPU that stands still.
    pub(super) fn linear_pc(&self, vcpu: u32) -> Option<u64> {
        let file = self.machine.at_stop(vcpu).ok()?;
        Some(self.machine.code(vcpu).ok()?.linear(file.pc()?))
    }

    /// Breakpoints that wait for their page look through the vCPU that is debugged.
    fn space_for_breakpoints(&self) -> Translation {
        View { is_physical: false, ..self.view() }.space()
    }

    /// Whether a vCPU is still where its stop was reported, and what it stopped for is too: a breakpoint by this name of
    /// its place or by another, or any watchpoint.
    fn stands_at_reported(&self, vcpu: u32) -> bool {
        let Some(reported) = self.reported[vcpu as usize] else { return false };
        // Questions to vCPUs come first: none is asked under the lock of the engine, which vCPUs take.
        let (pc, regime) = (self.linear_pc(vcpu), self.machine.regime(vcpu));
        if pc != Some(reported.at) {
            return false;
        }
        let requests = self.engine.requests();
        let mut breakpoints = requests.table.iter();
        if reported.is_access {
            return breakpoints.any(|breakpoint| breakpoint.kind.access().is_some());
        }
        let is_asked_for = breakpoints.any(|breakpoint| {
            breakpoint.kind.access().is_none() && breakpoint.address == GuestVirt(reported.at)
        });
        let is_planted = || {
            let memory = self.machine.memory();
            let mapping = regime.ok()?.translate(memory, GuestVirt(reported.at)).ok()?;
            Some(requests.table.is_planted(memory, mapping.address))
        };
        is_asked_for || is_planted().unwrap_or(false)
    }

    /// What there is to report, all vCPUs standing still; `None` while the guest runs on. It does not wait.
    pub fn next_stop(&mut self) -> Option<Stop> {
        if self.pending.is_empty() {
            match self.next_event()? {
                Event::Ended(ended) => return Some(self.end(ended)),
                Event::Restarted { .. } => return self.go_on_again(),
                Event::Stopped { vcpu, reason, .. } => self.pending.push((vcpu, reason)),
            }
        }
        self.stand();
        while let Some(event) = self.next_event() {
            match event {
                Event::Ended(ended) => return Some(self.end(ended)),
                Event::Restarted { .. } => return self.go_on_again(),
                Event::Stopped { vcpu, reason, .. } => self.pending.push((vcpu, reason)),
            }
        }
        loop {
            let (vcpu, reason) = self.pending.remove(0);
            let is_access = matches!(reason, StopReason::Watchpoint { .. });
            let is_breakpoint = matches!(reason, StopReason::Breakpoint | StopReason::HardwareBreakpoint);
            // Of a watchpoint aarch64 tells before the access is done, x86 behind it.
            if is_breakpoint || is_access && self.isa() == Isa::Aarch64 {
                self.reported[vcpu as usize] = self.linear_pc(vcpu).map(|at| Reported { at, is_access });
            }
            if let Some((vcpu, reason)) = self.step_on(vcpu, reason) {
                return Some(self.stop(vcpu, reason));
            }
            // The step's next part has not begun where another vCPU has stopped meanwhile.
            if self.pending.is_empty() {
                // What came while the step's next part was begun may have been looked for, and has rung nobody.
                if self.has_stopped() {
                    self.machine.ring();
                }
                return None;
            }
        }
    }

    /// A vCPU has stopped, and that is to be reported.
    fn stop(&mut self, vcpu: u32, reason: StopReason) -> Stop {
        (self.current, self.is_running) = (vcpu, false);
        let at: Vec<breakpoint::Id> = match reason {
            StopReason::Breakpoint | StopReason::HardwareBreakpoint | StopReason::Watchpoint { .. } => {
                // A step's own has gone by now.
                let requests = self.engine.requests();
                let at = requests.stopped_at(vcpu).iter().copied();
                at.filter(|id| requests.table.get(*id).is_some()).collect()
            }
            _ => Vec::new(),
        };
        let context = self.tree.vcpu(vcpu).unwrap_or(self.tree.root());
        let stopped = Stopped { context, reason: reason.clone(), breakpoints: at };
        if std::mem::replace(&mut self.is_told_running, false) {
            self.listeners.tell(&Notice::Stopped(self.intercept_group(), stopped.clone()));
        }
        self.stopped = Some(stopped);
        Stop::Vcpu(vcpu, reason)
    }

    fn end(&mut self, ended: crate::machine::Ended) -> Stop {
        self.has_ended(&ended);
        Stop::Ended(ended)
    }

    /// The context that starts and stops.
    pub(super) fn intercept_group(&self) -> crate::context::tree::Id {
        let root = self.tree.root();
        self.tree.group(root, Group::Intercept).unwrap_or(root)
    }

    /// The guest has reset itself, and runs on from its first instruction; a step ends there.
    fn go_on_again(&mut self) -> Option<Stop> {
        // It runs there by itself.
        if self.machine.is_left() {
            return None;
        }
        self.machine.pause();
        self.say("the guest has reset itself, and begins again\n");
        let was_stepping = self.stepping.is_some();
        self.begin_again();
        if was_stepping || self.actions.iter().any(|action| action.is_step()) {
            return Some(self.stop(0, StopReason::Step));
        }
        let everywhere = vec![Action::Run; self.machine.vcpus() as usize];
        let refused = self.run(&everywhere).err()?;
        Some(self.stop(0, StopReason::Fatal(format!("it cannot be resumed: {refused}"))))
    }

    /// Stops the guest for whoever debugs it, and what to report.
    pub fn interrupt(&mut self) -> Stop {
        self.stand();
        self.end_step();
        // A guest that has reset itself just now is held where it begins.
        self.actions.fill(Action::Step);
        if let Some(stop) = self.next_stop() {
            return stop;
        }
        let vcpus = 0..self.machine.vcpus();
        let running = vcpus.clone().find(|vcpu| self.machine.activity(*vcpu) == Activity::Running);
        self.stop(running.unwrap_or(0), StopReason::Interrupt)
    }
}
