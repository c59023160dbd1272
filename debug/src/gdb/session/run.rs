//! The target is resumed, and stands still again.

use super::{Session, Stop};
use crate::machine::{Action, Activity, Event, Machine, Order, StopReason, TargetError};
use crate::memory::Space;
use crate::view::View;
use arch::register::{Bank, RegisterFile};
use arch::{GuestVirt, Isa};

impl<M: Machine> Session<M> {
    /// Gives each vCPU its order. A stop that is still to be reported is reported instead, by
    /// [`Self::next_stop`].
    ///
    /// # Errors
    /// [`TargetError`]; then nothing runs.
    pub fn run(&mut self, actions: &[Action]) -> Result<(), TargetError> {
        self.actions = actions.to_vec();
        self.code_written = 0;
        // Hits of breakpoints happen again when the vCPU runs again; what cannot happen
        // again is kept.
        let isa = self.isa();
        self.pending.retain(|(_, reason)| match reason {
            StopReason::Watchpoint { .. } => isa == Isa::X86_64,
            StopReason::Fatal(_) | StopReason::Hypercall(_) => true,
            _ => false,
        });
        if !self.pending.is_empty() {
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
            return Ok(());
        }
        self.engine.refresh(self.machine.memory(), || self.space_for_breakpoints());
        let mut orders = Vec::new();
        {
            let mut requests = self.engine.requests();
            requests.begin(actions);
            for (vcpu, action) in (0..).zip(actions.iter().copied()) {
                let arming = self.engine.arming(&requests, vcpu);
                orders.push(Order { action, arming, steps_off: self.reported[vcpu as usize].is_some() });
            }
        }
        for (vcpu, order) in (0..).zip(&mut orders) {
            order.steps_off =
                order.steps_off && order.action != Action::Stay && self.stands_at_reported(vcpu);
            if order.action != Action::Stay {
                self.reported[vcpu as usize] = None;
            }
        }
        self.machine.resume(orders)
    }

    /// Has a vCPU go on somewhere else.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn set_pc(&mut self, vcpu: u32, address: u64) -> Result<(), TargetError> {
        let mut file = RegisterFile::new(self.isa());
        file.set(if self.isa() == Isa::X86_64 { "rip" } else { "pc" }, address);
        self.machine.set_registers(vcpu, &file)
    }

    /// The linear program counter of a vCPU that stands still.
    fn pc(&self, vcpu: u32) -> Option<u64> {
        let file = self.machine.registers(vcpu, &[Bank::General]).ok()?;
        Some(self.machine.code(vcpu).ok()?.linear(file.pc()?))
    }

    /// Breakpoints that wait for their page look through the vCPU that is debugged.
    fn space_for_breakpoints(&self) -> Space {
        View { is_physical: false, ..self.view() }.space()
    }

    /// Whether a vCPU is still where its breakpoint was reported, and the breakpoint is too: by
    /// this name of its place or by another.
    fn stands_at_reported(&self, vcpu: u32) -> bool {
        let Some(reported) = self.reported[vcpu as usize] else { return false };
        // Questions to vCPUs come first: none is asked under the lock of the engine, which vCPUs take.
        let (pc, regime) = (self.pc(vcpu), self.machine.regime(vcpu));
        let requests = self.engine.requests();
        let is_asked_for = || {
            let mut breakpoints = requests.table.iter();
            breakpoints.any(|breakpoint| {
                breakpoint.kind.access().is_none() && breakpoint.address == GuestVirt(reported)
            })
        };
        let is_planted = || {
            let memory = self.machine.memory();
            let mapping = regime.ok()?.translate(memory, GuestVirt(reported)).ok()?;
            Some(requests.table.is_planted(memory, mapping.address))
        };
        pc == Some(reported) && (is_asked_for() || is_planted().unwrap_or(false))
    }

    /// Whether there may be something to report for which all vCPUs are to stand still, where they must not be waited
    /// for.
    pub fn has_stopped(&mut self) -> bool {
        !self.pending.is_empty() || self.machine.has_stopped()
    }

    /// What there is to report, all vCPUs standing still; `None` while the target runs on.
    pub fn next_stop(&mut self) -> Option<Stop> {
        if self.pending.is_empty() {
            match self.machine.next_event()? {
                Event::Ended(ended) => return Some(Stop::Ended(ended)),
                Event::Restarted => return self.go_on_again(),
                Event::Stopped { vcpu, reason, .. } => self.pending.push((vcpu, reason)),
            }
        }
        self.machine.pause();
        while let Some(event) = self.machine.next_event() {
            match event {
                Event::Ended(ended) => return Some(Stop::Ended(ended)),
                Event::Restarted => return self.go_on_again(),
                Event::Stopped { vcpu, reason, .. } => self.pending.push((vcpu, reason)),
            }
        }
        let (vcpu, reason) = self.pending.remove(0);
        self.current = vcpu;
        if matches!(reason, StopReason::Breakpoint | StopReason::HardwareBreakpoint) {
            self.reported[vcpu as usize] = self.pc(vcpu);
        }
        Some(Stop::Vcpu(vcpu, reason))
    }

    /// The guest has reset itself, and runs on from its first instruction; a step ends there.
    fn go_on_again(&mut self) -> Option<Stop> {
        self.machine.pause();
        self.words.push_str("vmm: the guest has reset itself, and begins again\n");
        self.begin_again();
        if self.actions.iter().any(|action| action.is_step()) {
            return Some(Stop::Vcpu(0, StopReason::Step));
        }
        let everywhere = vec![Action::Run; self.machine.vcpus() as usize];
        let refused = self.run(&everywhere).err()?;
        Some(Stop::Vcpu(0, StopReason::Fatal(format!("it cannot be resumed: {refused}"))))
    }

    /// Stops the target for the debugger, and what to report.
    pub fn interrupt(&mut self) -> Stop {
        self.machine.pause();
        // A guest that has reset itself just now is held where it begins.
        self.actions.fill(Action::Step);
        if let Some(stop) = self.next_stop() {
            return stop;
        }
        let vcpus = 0..self.machine.vcpus();
        let running = vcpus.clone().find(|vcpu| self.machine.activity(*vcpu) == Activity::Running);
        self.current = running.unwrap_or(0);
        Stop::Vcpu(self.current, StopReason::Interrupt)
    }
}
