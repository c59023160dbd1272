//! A debug session: what a debugger has asked for of one [`Machine`], and gdbstub's view of
//! it.
//!
//! Threads are vCPUs; gdb's thread ids are their numbers plus one.

use super::description::{Described, RegisterSet};
use super::monitor;
use crate::breakpoint::{Breakpoint, Kind};
use crate::cancel::Cancel;
use crate::engine::Engine;
use crate::expression::Expression;
use crate::memory::{self, Space};
use crate::target::{
    Access, Action, Control, Ended, Event, Machine, Order, StopReason, TargetError, VcpuState,
};
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile, table};
use arch::{GuestVirt, Isa};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::memory_map::{MemoryMap, MemoryMapOps};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError as StubError, TargetResult};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Errors that a client sees as `E` and a number, as errno has them.
pub mod errno {
    /// No such process, here: vCPU.
    pub const ESRCH: u8 = 3;
    /// Interrupted.
    pub const EINTR: u8 = 4;
    /// I/O.
    pub const EIO: u8 = 5;
    /// Bad address.
    pub const EFAULT: u8 = 14;
    /// Invalid argument.
    pub const EINVAL: u8 = 22;
    /// No space: debug registers are used up.
    pub const ENOSPC: u8 = 28;
}

/// Why a breakpoint was not inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// There are not enough debug registers.
    #[error(transparent)]
    TooMany(#[from] crate::arming::TooMany),
    /// The table does not take it.
    #[error(transparent)]
    Table(#[from] crate::breakpoint::InsertError),
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
    /// ...and what as, to the one that attaches next.
    pub described: Described,
    /// The vCPU that memory is looked at through, and that stopped last.
    pub current: u32,
    /// Addresses are guest-physical.
    pub is_physical: bool,
    /// What commands that take long ask whether they are still wanted.
    pub cancel: Cancel,
    /// What the debugger named for each vCPU in the resume that it is putting together.
    named: Vec<Option<Action>>,
    /// vCPUs that were not named stay where they are, instead of running.
    is_locked: bool,
    /// vCPUs that stand at a breakpoint whose hit has been reported, with its address.
    reported: Vec<Option<u64>>,
    /// Stops of further vCPUs that have not been reported yet.
    pending: Vec<(u32, StopReason)>,
}

/// A vCPU's thread id.
pub fn tid(vcpu: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu as usize)
}

impl<M: Machine> Session<M> {
    /// A session with a machine that stands still.
    pub fn new(machine: M, engine: Arc<Engine>) -> Session<M> {
        let vcpus = machine.vcpus() as usize;
        let file = machine.registers(0, &Bank::ALL).unwrap_or_else(|_| RegisterFile::new(machine.isa()));
        Session {
            registers: RegisterSet::new(&file),
            described: Described::Whole,
            machine,
            engine,
            current: 0,
            is_physical: false,
            cancel: Cancel::never(),
            named: vec![None; vcpus],
            is_locked: false,
            reported: vec![None; vcpus],
            pending: Vec::new(),
        }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.machine.isa()
    }

    /// The vCPU of a thread id.
    pub fn vcpu(&self, tid: Tid) -> Option<u32> {
        let vcpu = u32::try_from(tid.get() - 1).ok()?;
        (vcpu < self.machine.vcpus()).then_some(vcpu)
    }

    /// How a vCPU translates now.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn regime(&self, vcpu: u32) -> Result<Regime, TargetError> {
        self.machine.regime(vcpu)
    }

    /// What addresses mean to the debugger, through a vCPU.
    pub fn space(&self, vcpu: u32) -> Space {
        if self.is_physical {
            return Space::Physical;
        }
        self.regime(vcpu).map_or(Space::Physical, Space::Virtual)
    }

    /// Reads memory as the debugger sees it; how many bytes are good.
    pub fn read(&self, vcpu: u32, address: u64, buffer: &mut [u8]) -> usize {
        let space = self.space(vcpu);
        let state = self.engine.state();
        memory::read(self.machine.memory(), &space, Some(&state.table), GuestVirt(address), buffer)
    }

    /// Writes memory; whether all of it was.
    pub fn write(&mut self, vcpu: u32, address: u64, bytes: &[u8]) -> bool {
        let space = self.space(vcpu);
        let mut state = self.engine.state();
        let table = Some(&mut state.table);
        memory::write(self.machine.memory(), &space, table, GuestVirt(address), bytes) == bytes.len()
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
        let space = self.space(self.current);
        let memory = self.machine.memory();
        let place = self.engine.place(kind, memory, &space, address);
        let mut state = self.engine.state();
        state.table.remove(memory, kind, address, length);
        let hits = state.table.former_hits(kind, address, length);
        let breakpoint = Breakpoint { kind, address, length, place, conditions, commands, hits };
        state.table.insert(memory, breakpoint)?;
        if let Err(error) = self.engine.make_room(&mut state, memory, &space) {
            state.table.remove(memory, kind, address, length);
            return Err(error.into());
        }
        Ok(())
    }

    /// Removes a breakpoint; whether it was there.
    pub fn remove(&mut self, kind: Kind, address: u64, length: u64) -> bool {
        let mut state = self.engine.state();
        let was_there = state.table.remove(self.machine.memory(), kind, GuestVirt(address), length);
        // Fewer wants than before always fit.
        self.engine.reallocate(&mut state).is_ok() && was_there
    }

    /// Gives commands that take long, and the machine, what they ask whether they are still wanted.
    pub fn set_cancel(&mut self, cancel: &Cancel) {
        self.cancel = cancel.clone();
        self.machine.set_cancel(cancel);
    }

    /// Attaches: from now on vCPUs stop for this session.
    pub fn attach(&mut self) {
        self.engine.state().is_attached = true;
        self.machine.pause();
        // What happened while nobody was attached is nobody's stop.
        self.pending.clear();
        self.reported.fill(None);
        self.current = 0;
        self.is_physical = false;
        self.registers.describe_as(self.described);
    }

    /// Detaches: planted instructions go, and the guest runs on.
    pub fn detach(&mut self) {
        self.machine.pause();
        {
            let mut state = self.engine.state();
            state.table.clear(self.machine.memory());
            self.engine.reallocate(&mut state).ok();
            state.forget();
            state.is_attached = false;
            state.take_output();
        }
        self.machine.disarm();
        let arming = crate::arming::Arming::off(self.isa());
        let order = Order { action: Action::Run, arming, steps_off: false };
        if let Err(error) = self.machine.resume(vec![order; self.machine.vcpus() as usize]) {
            log::warn!("the guest cannot run on without its debugger: {error}");
        }
    }

    /// Gives each vCPU its order. A stop that is still to be reported is reported instead, by
    /// [`Self::next_stop`].
    fn run(&mut self) -> Result<(), TargetError> {
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
        self.engine.refresh(self.machine.memory(), || self.space_for_breakpoints());
        let default = if self.is_locked { Action::Stay } else { Action::Run };
        let mut orders = Vec::new();
        {
            let mut state = self.engine.state();
            let actions: Vec<Action> = self.named.iter().map(|named| named.unwrap_or(default)).collect();
            state.begin(&actions);
            for (vcpu, action) in (0..).zip(actions) {
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

    /// The linear program counter of a vCPU that stands still.
    fn pc(&self, vcpu: u32) -> Option<u64> {
        let file = self.machine.registers(vcpu, &[Bank::General]).ok()?;
        Some(self.machine.code(vcpu).ok()?.linear(file.pc()?))
    }

    /// Breakpoints that wait for their page look through the vCPU that is debugged.
    fn space_for_breakpoints(&self) -> Space {
        self.regime(self.current).map_or(Space::Physical, Space::Virtual)
    }

    /// Whether a vCPU is still where its breakpoint was reported, and the breakpoint is too: by
    /// this name of its place or by another.
    fn stands_at_reported(&self, vcpu: u32) -> bool {
        let Some(reported) = self.reported[vcpu as usize] else { return false };
        let pc = self.pc(vcpu);
        let state = self.engine.state();
        let is_asked_for = || {
            let mut breakpoints = state.table.iter();
            breakpoints.any(|breakpoint| {
                breakpoint.kind.access().is_none() && breakpoint.address == GuestVirt(reported)
            })
        };
        let is_planted = || {
            let memory = self.machine.memory();
            let mapping = self.regime(vcpu).ok()?.translate(memory, GuestVirt(reported)).ok()?;
            Some(state.table.is_planted(memory, mapping.address))
        };
        pc == Some(reported) && (is_asked_for() || is_planted().unwrap_or(false))
    }

    /// What there is to report, all vCPUs standing still; `None` while the target runs on.
    pub fn next_stop(&mut self) -> Option<Stop> {
        if self.pending.is_empty() {
            match self.machine.next_event()? {
                Event::Ended(ended) => return Some(Stop::Ended(ended)),
                Event::Stopped { vcpu, reason, .. } => self.pending.push((vcpu, reason)),
            }
        }
        self.machine.pause();
        while let Some(event) = self.machine.next_event() {
            match event {
                Event::Ended(ended) => return Some(Stop::Ended(ended)),
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

    /// Stops the target for the debugger, and what to report.
    pub fn interrupt(&mut self) -> Stop {
        self.machine.pause();
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

/// Something to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A vCPU stopped, and all stand still.
    Vcpu(u32, StopReason),
    /// The guest is over.
    Ended(Ended),
}

impl Stop {
    /// As gdbstub reports it.
    pub fn reason(&self) -> MultiThreadStopReason<u64> {
        match self {
            Stop::Ended(ended) => MultiThreadStopReason::Exited(ended.code),
            Stop::Vcpu(vcpu, reason) => {
                let tid = tid(*vcpu);
                let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
                match reason {
                    StopReason::Breakpoint => MultiThreadStopReason::SwBreak(tid),
                    StopReason::HardwareBreakpoint => MultiThreadStopReason::HwBreak(tid),
                    StopReason::Watchpoint { address, access } => MultiThreadStopReason::Watch {
                        tid,
                        kind: match access {
                            Access::Read => WatchKind::Read,
                            Access::Write => WatchKind::Write,
                            Access::Any => WatchKind::ReadWrite,
                        },
                        addr: *address,
                    },
                    StopReason::Step | StopReason::Hypercall(_) | StopReason::Refused(_) => {
                        signal(Signal::SIGTRAP)
                    }
                    StopReason::Interrupt => signal(Signal::SIGINT),
                    StopReason::Fatal(_) => signal(Signal::SIGABRT),
                }
            }
        }
    }
}

/// gdbstub's idea of an architecture: ours is a value of the session.
#[derive(Debug)]
pub enum AnyArch {}

/// Bytes of a `g` packet; `None` for a register that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterBytes(Vec<Option<u8>>);

impl gdbstub::arch::Registers for RegisterBytes {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(*byte));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.iter().copied().map(Some).collect();
        Ok(())
    }
}

/// A register by its row.
#[derive(Clone, Copy, Debug)]
pub struct RegisterNumber(usize);

impl gdbstub::arch::RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((RegisterNumber(id), None))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl RegisterNumber {
    /// The register of a row.
    pub fn new(row: usize) -> RegisterNumber {
        RegisterNumber(row)
    }
}

impl gdbstub::arch::Arch for AnyArch {
    type Usize = u64;
    type Registers = RegisterBytes;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;
}

impl<M: Machine> Target for Session<M> {
    type Arch = AnyArch;
    type Error = TargetError;

    fn base_ops(&mut self) -> BaseOps<'_, AnyArch, TargetError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_memory_map(&mut self) -> Option<MemoryMapOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    /// Run-length encoding saves little on loopback, and some clients read it wrong.
    fn use_rle(&self) -> bool {
        false
    }
}

/// The lower half of a register as all of it.
fn whole(value: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = value.to_vec();
    bytes.resize(size, 0);
    bytes
}

/// Makes gdbstub's error of an errno.
fn refuse<T>(code: u8) -> Result<T, StubError<TargetError>> {
    Err(StubError::Errno(code))
}

impl<M: Machine> MultiThreadBase for Session<M> {
    fn read_registers(&mut self, registers: &mut RegisterBytes, tid: Tid) -> TargetResult<(), Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        let banks = [Bank::General, Bank::System];
        let Ok(file) = self.machine.registers(vcpu, &banks) else { return refuse(errno::EIO) };
        registers.0.clear();
        for row in self.registers.general() {
            let size = self.registers.size(row);
            match file.bytes(row) {
                Some(bytes) => registers.0.extend(bytes.into_iter().take(size).map(Some)),
                None => registers.0.extend(vec![None; size]),
            }
        }
        Ok(())
    }

    fn write_registers(&mut self, registers: &RegisterBytes, tid: Tid) -> TargetResult<(), Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        let mut file = RegisterFile::new(self.isa());
        let bytes: Vec<u8> = registers.0.iter().map(|byte| byte.unwrap_or(0)).collect();
        let mut at = 0;
        for row in self.registers.general() {
            let Some(value) = bytes.get(at..at + self.registers.size(row)) else { break };
            file.set_bytes(row, &whole(value, table(self.isa())[row].bytes()));
            at += value.len();
        }
        self.machine.set_registers(vcpu, &file).or_else(|_| refuse(errno::EIO))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        match self.read(vcpu, start, data) {
            0 if !data.is_empty() => refuse(errno::EFAULT),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        if self.write(vcpu, start, data) { Ok(()) } else { refuse(errno::EFAULT) }
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), TargetError> {
        (0..self.machine.vcpus()).for_each(|vcpu| thread_is_active(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl<M: Machine> SingleRegisterAccess<Tid> for Session<M> {
    fn read_register(
        &mut self,
        tid: Tid,
        register: RegisterNumber,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        let row = register.0;
        if !self.registers.contains(row) {
            return refuse(errno::EINVAL);
        }
        let bank = table(self.isa())[row].bank();
        let Ok(file) = self.machine.registers(vcpu, &[bank]) else { return refuse(errno::EIO) };
        let Some(mut bytes) = file.bytes(row) else { return refuse(errno::EIO) };
        bytes.truncate(self.registers.size(row));
        let Some(place) = buffer.get_mut(..bytes.len()) else { return refuse(errno::EINVAL) };
        place.copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_register(&mut self, tid: Tid, register: RegisterNumber, value: &[u8]) -> TargetResult<(), Self> {
        let Some(vcpu) = self.vcpu(tid) else { return refuse(errno::ESRCH) };
        let row = register.0;
        if !self.registers.contains(row) || value.len() != self.registers.size(row) {
            return refuse(errno::EINVAL);
        }
        let mut file = RegisterFile::new(self.isa());
        file.set_bytes(row, &whole(value, table(self.isa())[row].bytes()));
        self.machine.set_registers(vcpu, &file).or_else(|_| refuse(errno::EIO))
    }
}

impl<M: Machine> ThreadExtraInfo for Session<M> {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, TargetError> {
        let Some(vcpu) = self.vcpu(tid) else { return Ok(0) };
        let text = format!("CPU#{vcpu} [{}]", self.machine.state(vcpu).name());
        let length = text.len().min(buffer.len());
        buffer[..length].copy_from_slice(&text.as_bytes()[..length]);
        Ok(length)
    }
}

impl<M: Machine> MultiThreadResume for Session<M> {
    fn resume(&mut self) -> Result<(), TargetError> {
        self.run()
    }

    fn clear_resume_actions(&mut self) -> Result<(), TargetError> {
        self.named.fill(None);
        self.is_locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), TargetError> {
        self.name(tid, Action::Run);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        self.machine.host().single_step.then_some(self as _)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        self.machine.host().single_step.then_some(self as _)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl<M: Machine> Session<M> {
    /// The first action that names a thread counts (GDB manual, "vCont"); a thread that is
    /// not there is left out.
    fn name(&mut self, tid: Tid, action: Action) {
        if let Some(vcpu) = self.vcpu(tid) {
            self.named[vcpu as usize].get_or_insert(action);
        }
    }
}

impl<M: Machine> MultiThreadSingleStep for Session<M> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), TargetError> {
        self.name(tid, Action::Step);
        Ok(())
    }
}

impl<M: Machine> MultiThreadRangeStepping for Session<M> {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), TargetError> {
        self.name(tid, Action::StepRange(start, end));
        Ok(())
    }
}

impl<M: Machine> MultiThreadSchedulerLocking for Session<M> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), TargetError> {
        self.is_locked = true;
        Ok(())
    }
}

impl<M: Machine> Breakpoints for Session<M> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

// The packets themselves are served in `front`, with their conditions; gdbstub asks for these
// to know which stops it may report.
impl<M: Machine> SwBreakpoint for Session<M> {
    fn add_sw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        Ok(self.insert(Kind::Software, address, kind as u64, Vec::new(), Vec::new()).is_ok())
    }

    fn remove_sw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(Kind::Software, address, kind as u64))
    }
}

impl<M: Machine> HwBreakpoint for Session<M> {
    fn add_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        Ok(self.insert(Kind::Hardware, address, kind as u64, Vec::new(), Vec::new()).is_ok())
    }

    fn remove_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        Ok(self.remove(Kind::Hardware, address, kind as u64))
    }
}

fn watch_kind(kind: WatchKind) -> Kind {
    match kind {
        WatchKind::Write => Kind::Write,
        WatchKind::Read => Kind::Read,
        WatchKind::ReadWrite => Kind::Access,
    }
}

impl<M: Machine> HwWatchpoint for Session<M> {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.insert(watch_kind(kind), address, length, Vec::new(), Vec::new()).is_ok())
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.remove(watch_kind(kind), address, length))
    }
}

/// Copies the part of `text` that an `qXfer` packet asks for.
fn transfer(text: &str, offset: u64, length: usize, buffer: &mut [u8]) -> usize {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let part = &text.as_bytes()[start..];
    let count = part.len().min(length).min(buffer.len());
    buffer[..count].copy_from_slice(&part[..count]);
    count
}

impl<M: Machine> TargetDescriptionXmlOverride for Session<M> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return refuse(errno::EINVAL);
        }
        Ok(transfer(&self.registers.xml(), offset, length, buffer))
    }
}

impl<M: Machine> MemoryMap for Session<M> {
    /// All of the address space is RAM to gdb: where a guest maps its memory is known only
    /// to its page tables, and gdb refuses what the map leaves out.
    fn memory_map_xml(&self, offset: u64, length: usize, buffer: &mut [u8]) -> TargetResult<usize, Self> {
        let map = "<?xml version=\"1.0\"?><!DOCTYPE memory-map PUBLIC \"+//IDN gnu.org//DTD GDB Memory Map V1.0//EN\" \
                   \"http://sourceware.org/gdb/gdb-memory-map.dtd\"><memory-map>\
                   <memory type=\"ram\" start=\"0x0\" length=\"0x8000000000000000\"/>\
                   <memory type=\"ram\" start=\"0x8000000000000000\" length=\"0x8000000000000000\"/></memory-map>";
        Ok(transfer(map, offset, length, buffer))
    }
}

impl<M: Machine> MonitorCmd for Session<M> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), TargetError> {
        let text = monitor::run(self, &String::from_utf8_lossy(command));
        out.write_raw(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breakpoint::{PATCHED, Place};
    use crate::fake::Still;
    use arch::GuestPhys;

    #[test]
    fn a_breakpoint_that_could_be_planted_gives_up_its_register_for_others() {
        for (isa, nop) in [(Isa::X86_64, &[0x66, 0x90][..]), (Isa::Aarch64, &[0x1f, 0x20, 0x03, 0xd5])] {
            let machine = Still::new(isa, 1, 1 << 16).unwrap();
            machine.memory().write(GuestPhys(0x1000), nop);
            let host = machine.host().clone();
            let registers = if isa == Isa::X86_64 { host.watchpoints } else { host.breakpoints };
            let mut session = Session::new(machine, Arc::new(Engine::new(isa, host, 1)));
            session.insert(Kind::Software, 0x1000, 4, Vec::new(), Vec::new()).unwrap();
            let place =
                |session: &Session<Still>| session.engine.state().table.get(0).map(|first| first.place);
            assert_eq!(place(&session), Some(Place::Fallback(PATCHED)), "{isa}");
            for index in 0..registers as u64 {
                session.insert(Kind::Hardware, 0x2000 + 16 * index, 4, Vec::new(), Vec::new()).unwrap();
            }
            assert_eq!(place(&session), Some(Place::Planted(GuestPhys(0x1000))), "{isa}");
            let refused = session.insert(Kind::Hardware, 0x3000, 4, Vec::new(), Vec::new());
            assert!(refused.is_err(), "{isa}");
        }
    }
}
