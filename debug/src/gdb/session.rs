//! A debug session: what a debugger has asked for of one [`Machine`].
//!
//! Threads are vCPUs; gdb's thread-ids are their numbers plus one.

use super::description::{Believed, Described, RegisterSet};
use crate::breakpoint::{Breakpoint, Kind};
use crate::cancel::Cancel;
use crate::disassemble::Mode;
use crate::engine::Engine;
use crate::memory::{self, Space};
use crate::target::{Action, Control, Ended, Event, Machine, Order, StopReason, TargetError, VcpuState};
use crate::view::View;
use arch::register::{Bank, RegisterFile};
use arch::{GuestVirt, Isa};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

mod breakpoints;
mod stop;

pub use breakpoints::InsertError;
use breakpoints::Refused;
pub use stop::Stop;

/// Debuggers that are told apart, where they read the protocol in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// It may be told between two packets that an answer is worth waiting for, and `TextSeg` of `qOffsets`
    /// is an address to it (GDB manual, "General Query Packets").
    Gdb,
    /// It takes a word in between for the answer, and all of `qOffsets` for offsets.
    Lldb,
    /// It has not said.
    Unknown,
}

/// Why a write is refused that [`Session::write`] takes for a part of a program.
pub const OVERLOADED: &str = "no program is written over the kernel that runs, unless 'monitor allow-load on' says so; \
                              another kernel is for --kernel, and 'monitor reset' starts it";

/// What the guest is to a debugger that is connected: its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// It is debugged.
    Attached,
    /// It runs, and is not.
    Detached,
    /// It was ended, and may begin again.
    Killed,
}

/// A session with a machine.
#[derive(Debug)]
pub struct Session<M: Machine> {
    /// The machine.
    pub machine: M,
    /// What judges its exits.
    pub engine: Arc<Engine>,
    /// Registers that are described to the debugger...
    pub registers: RegisterSet,
    /// ...and what as, to the one that attaches next, if somebody has said so...
    pub described: Option<Described>,
    /// ...else by what the kernel's file is.
    pub believed: Believed,
    /// The debugger has been told that it was told of another processor than there is.
    is_told: bool,
    /// The vCPU that memory is looked at through, and that stopped last.
    pub current: u32,
    /// Addresses are guest-physical.
    pub is_physical: bool,
    /// What commands that take long ask whether they are still wanted.
    pub cancel: Cancel,
    /// The folder that dumps are written below.
    pub dump_folder: PathBuf,
    /// The vCPU that the debugger chose for `c` and `s`.
    pub chosen: Option<u32>,
    /// Which debugger it is.
    pub client: Client,
    /// It takes errors in words for an answer to any packet.
    pub takes_words: bool,
    /// It wants thread-ids that name the process.
    pub names_process: bool,
    /// It stays connected when it has let go of the guest, or ended it (GDB manual, "Packets", `!`).
    pub is_extended: bool,
    /// What the guest is to it.
    pub process: Process,
    /// The debugger wants the server to end.
    pub is_done: bool,
    /// It may write a program over the kernel that runs.
    pub allows_load: bool,
    /// Bytes that it has written to pages that can be executed, since the target ran last.
    code_written: u64,
    /// What vCPUs were told to do last.
    actions: Vec<Action>,
    /// What it is to be told on its console.
    words: String,
    /// The guest is held for the debugger that comes next.
    is_left: bool,
    /// vCPUs that stand at a breakpoint whose hit has been reported, with its address.
    reported: Vec<Option<u64>>,
    /// Breakpoints that gdb has asked for and that are not there, and why: kind, address and length. gdb has words
    /// of its own for that, which are wrong here; it inserts them when it resumes, and that is answered with these.
    refused: BTreeMap<(Kind, u64, u64), Refused>,
    /// Stops of further vCPUs that have not been reported yet.
    pending: Vec<(u32, StopReason)>,
}

impl<M: Machine> Session<M> {
    /// A session with a machine that stands still.
    pub fn new(machine: M, engine: Arc<Engine>) -> Session<M> {
        let vcpus = machine.vcpus() as usize;
        let file = machine.registers(0, &Bank::ALL).unwrap_or_else(|_| RegisterFile::new(machine.isa()));
        Session {
            registers: RegisterSet::new(&file),
            described: None,
            believed: Believed::default(),
            is_told: false,
            machine,
            engine,
            current: 0,
            is_physical: false,
            cancel: Cancel::never(),
            dump_folder: PathBuf::from("."),
            chosen: None,
            client: Client::Unknown,
            takes_words: false,
            names_process: false,
            is_extended: false,
            process: Process::Detached,
            is_done: false,
            allows_load: false,
            code_written: 0,
            actions: Vec::new(),
            words: String::new(),
            is_left: false,
            reported: vec![None; vcpus],
            refused: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.machine.isa()
    }

    /// A vCPU's thread-id, as the debugger wants it.
    pub fn thread_id(&self, vcpu: u32) -> String {
        let process = if self.names_process { "p01." } else { "" };
        format!("{process}{:02x}", u64::from(vcpu) + 1)
    }

    /// The machine as the debugger sees it, through the current vCPU.
    pub fn view(&self) -> View<'_> {
        View {
            machine: &self.machine,
            engine: &self.engine,
            vcpu: self.current,
            is_physical: self.is_physical,
            cancel: &self.cancel,
        }
    }

    /// Whether the write that was refused last was refused as a part of a program.
    pub fn is_overloaded(&self) -> bool {
        self.words.contains(OVERLOADED)
    }

    /// Whether a write is a part of a program that would go over the kernel that runs, as gdb's `load` makes them.
    fn overloads(&mut self, space: &Space, address: u64, length: usize) -> bool {
        /// Bytes that a person may want to change at one stop.
        const MOST_CODE: u64 = 64 << 10;
        let memory = self.machine.memory();
        let is_code = || space.is_executable(memory, GuestVirt(address));
        if self.allows_load || !matches!(space, Space::Virtual(regime) if regime.is_on()) || !is_code() {
            return false;
        }
        self.code_written = self.code_written.saturating_add(length as u64);
        self.code_written > MOST_CODE && self.view().kernel_text().is_some()
    }

    /// Writes memory; whether all of it was.
    pub fn write(&mut self, vcpu: u32, address: u64, bytes: &[u8]) -> bool {
        let space = self.view().through(vcpu).space();
        if self.overloads(&space, address, bytes.len()) {
            if !self.words.contains(OVERLOADED) {
                log::warn!("{OVERLOADED}");
                self.words.push_str(&format!("vmm: {OVERLOADED}\n"));
            }
            return false;
        }
        let mut state = self.engine.state();
        let table = Some(&mut state.table);
        memory::write(self.machine.memory(), &space, table, GuestVirt(address), bytes) == bytes.len()
    }

    /// Gives commands that take long, and the machine, what they ask whether they are still wanted.
    pub fn set_cancel(&mut self, cancel: &Cancel) {
        self.cancel = cancel.clone();
        self.machine.set_cancel(cancel);
    }

    /// Attaches: from now on vCPUs stop for this session.
    pub fn attach(&mut self) {
        self.take();
        self.client = Client::Unknown;
        (self.names_process, self.is_extended, self.takes_words) = (false, false, false);
        self.is_physical = false;
        self.is_told = false;
        self.registers.describe_as(self.describes());
    }

    /// Takes the guest, for a debugger that is connected.
    pub fn take(&mut self) {
        self.engine.state().is_attached = true;
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
    fn begin_again(&mut self) {
        self.pending.clear();
        self.reported.fill(None);
        (self.current, self.chosen, self.is_told) = (0, None, false);
        let before = {
            let mut state = self.engine.state();
            state.forget();
            state.table.uprooted()
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

    /// What is to be told on the debugger's console, once.
    pub fn take_words(&mut self) -> Option<String> {
        let words = std::mem::take(&mut self.words);
        (!words.is_empty()).then_some(words)
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

    /// What a debugger that attaches now is told the processor is.
    pub fn describes(&self) -> Described {
        let follow = || {
            let mode = self.machine.code(self.current).map_or(Mode::Bits64, |code| code.mode);
            self.believed.describes(mode, self.is_long(self.current))
        };
        match self.isa() {
            Isa::X86_64 => self.described.unwrap_or_else(follow),
            Isa::Aarch64 => Described::Whole,
        }
    }

    /// Whether an x86 vCPU is in long mode.
    fn is_long(&self, vcpu: u32) -> bool {
        const EFER_LMA: u64 = 1 << 10;
        let file = self.machine.registers(vcpu, &[Bank::System]);
        file.is_ok_and(|file| file.get("efer").is_some_and(|efer| efer & EFER_LMA != 0))
    }

    /// What the debugger is told when it sees half of a processor that has gone to 64-bit mode; once.
    pub fn outgrown(&mut self, vcpu: u32) -> Option<&'static str> {
        let is_asked_for = self.described.is_some();
        if self.is_told || is_asked_for || !self.registers.is_narrow() || !self.is_long(vcpu) {
            return None;
        }
        self.is_told = true;
        Some(
            "vmm: the guest is in 64-bit mode now, and gdb sees a 32-bit processor. To see all of it, type:\n\
             vmm:   disconnect\nvmm:   file (or the file with 64-bit symbols behind it)\n\
             vmm:   set architecture auto\nvmm:   target remote ... (as before)\n\
             vmm: meanwhile the guest runs on, unless vmm was started with --gdb-lost hold.\n",
        )
    }

    /// What a gdb that may be too old for them is told of an aarch64 guest that signs return addresses; once.
    pub fn signs(&mut self, vcpu: u32) -> Option<&'static str> {
        /// `SCTLR_EL1.EnIA` (Arm ARM (DDI 0487)).
        const ENABLED: u64 = 1 << 31;
        // gdb before 14 does not know how to strip them; one that takes errors in words does.
        let may_be_old = self.client == Client::Gdb && !self.takes_words;
        if self.isa() != Isa::Aarch64 || self.is_told || !may_be_old {
            return None;
        }
        // Asked once: a guest that begins under its debugger does not sign.
        self.is_told = true;
        let file = self.machine.registers(vcpu, &[Bank::System]).ok()?;
        if file.get("SCTLR_EL1")? & ENABLED == 0 {
            return None;
        }
        Some(
            "vmm: this guest signs return addresses, which gdb before 14 cannot read: finish, return and up go \
             astray there. If yours is older, boot the guest with arm64.nopauth\n",
        )
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
        let arming = crate::arming::Arming::off(self.isa());
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
            let mut state = self.engine.state();
            state.table.clear(self.machine.memory());
            self.engine.reallocate(&mut state).ok();
            state.forget();
            state.is_attached = false;
            while state.take_output(usize::MAX).is_some() {}
        }
        self.machine.disarm();
    }

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
            let mut state = self.engine.state();
            state.begin(actions);
            for (vcpu, action) in (0..).zip(actions.iter().copied()) {
                let arming = self.engine.arming(&state, vcpu);
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
        let state = self.engine.state();
        let is_asked_for = || {
            let mut breakpoints = state.table.iter();
            breakpoints.any(|breakpoint| {
                breakpoint.kind.access().is_none() && breakpoint.address == GuestVirt(reported)
            })
        };
        let is_planted = || {
            let memory = self.machine.memory();
            let mapping = regime.ok()?.translate(memory, GuestVirt(reported)).ok()?;
            Some(state.table.is_planted(memory, mapping.address))
        };
        pc == Some(reported) && (is_asked_for() || is_planted().unwrap_or(false))
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
        let running = vcpus.clone().find(|vcpu| self.machine.state(*vcpu) == VcpuState::Running);
        self.current = running.unwrap_or(0);
        Stop::Vcpu(self.current, StopReason::Interrupt)
    }

    /// Ends the guest.
    pub fn kill(&mut self) {
        if let Err(error) = self.machine.control(Control::Quit) {
            log::warn!("the guest cannot be ended: {error}");
        }
    }
}
