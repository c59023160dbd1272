//! Hypercalls of a live guest: from an exit to a call, and back.
//!
//! `devices::hypercall` knows what calls mean; this module knows how they come out of a guest on
//! each architecture and host ([`Transport`]), and what the machine does for the families.

use crate::debugger::LiveMemory;
use crate::kvm::exit::HypercallExit;
use crate::kvm::{HOST_ISA, Interrupter, KvmError, Transport, Vcpu, Vm};
use arch::hypercall::{Abi, Rows, XEN_HVC, hvc_immediate};
use arch::register::row;
use arch::{GuestPhys, GuestVirt, Isa};
use debug::disassemble::Mode;
use debug::memory::{self, Space};
use debug::target::Memory;
use devices::bus::Device;
use devices::hypercall::table::Table;
use devices::hypercall::trace::Tracer;
use devices::hypercall::xen::time::Tsc;
use devices::hypercall::xen::{Platform, Xen, cpuid, errno};
use devices::hypercall::{Caller, Effect, Hypercalls, MOST_ARGUMENTS, RawCall, Shutdown};
use devices::serial::Serial;
use std::cell::OnceCell;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory};

/// Which family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyName {
    /// Xen's.
    Xen,
    /// KVM's own.
    Kvm,
}

impl FamilyName {
    /// Its calls.
    pub fn table(self) -> &'static Table {
        match self {
            FamilyName::Xen => devices::hypercall::xen::table(),
            FamilyName::Kvm => devices::hypercall::kvm::table(),
        }
    }

    /// As in `--hypercalls`.
    pub const fn name(self) -> &'static str {
        match self {
            FamilyName::Xen => "xen",
            FamilyName::Kvm => "kvm",
        }
    }
}

/// Hypercalls of one machine.
pub struct LiveHypercalls {
    calls: Hypercalls,
    family: FamilyName,
    transport: Transport,
    memory: LiveMemory,
    /// The registers of each caller's calls.
    rows: [Rows; Abi::ALL.len()],
    /// aarch64: where each vCPU's last call was.
    places: Vec<Mutex<Option<CallPlace>>>,
    timers: Option<Arc<Timers>>,
    timer_thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for LiveHypercalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveHypercalls").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// Where an `HVC` is, by a translation that holds as long as the tables' base does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CallPlace {
    pc: u64,
    base: u64,
    address: GuestPhys,
}

/// What is to be done with a vCPU after a call.
#[derive(Debug)]
pub enum Done {
    /// It goes on.
    GoOn,
    /// The guest ends.
    Ended(Shutdown),
    /// A debugger wants to see this call, which has not been answered.
    Caught(String),
}

impl LiveHypercalls {
    /// A family's calls over a transport of `vm`, whose serial port is the console.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        family: FamilyName,
        transport: Transport,
        tracer: Tracer,
        is_timed: bool,
        vcpus: u32,
        vm: &Vm,
        serial: &Arc<Mutex<Serial>>,
    ) -> std::io::Result<LiveHypercalls> {
        let live = LiveMemory(vm.memory().clone());
        let (calls, timers, thread) = match family {
            FamilyName::Kvm => {
                (Hypercalls::new(Arc::new(devices::hypercall::kvm::Kvm), tracer, is_timed), None, None)
            }
            FamilyName::Xen => {
                let timers = Arc::new(Timers::new(vcpus));
                let platform = LivePlatform {
                    memory: LiveMemory(vm.memory().clone()),
                    serial: Arc::clone(serial),
                    interrupter: vm.interrupter(),
                    vcpus,
                    timers: Arc::clone(&timers),
                };
                let xen = Arc::new(Xen::new(Box::new(platform)));
                let (weak, its_timers) = (Arc::downgrade(&xen), Arc::clone(&timers));
                let (memory, interrupter) = (LiveMemory(vm.memory().clone()), vm.interrupter());
                let thread = std::thread::Builder::new()
                    .name("xen-timers".into())
                    .spawn(move || its_timers.run(&weak, &memory, &interrupter))?;
                (Hypercalls::new(xen, tracer, is_timed), Some(timers), Some(thread))
            }
        };
        let rows = Abi::ALL.map(|abi| match family {
            FamilyName::Xen => arch::hypercall::xen(abi).rows(abi.isa()),
            FamilyName::Kvm => arch::hypercall::kvm(abi).rows(abi.isa()),
        });
        let places = (0..vcpus).map(|_| Mutex::default()).collect();
        let timer_thread = Mutex::new(thread);
        Ok(LiveHypercalls { calls, family, transport, memory: live, rows, places, timers, timer_thread })
    }

    /// Whether calls look at registers, so that KVM had better hand them over with each exit.
    pub fn looks_at_registers(&self) -> bool {
        self.transport != Transport::XenExit || self.family != FamilyName::Xen
    }

    /// The calls.
    pub fn calls(&self) -> &Hypercalls {
        &self.calls
    }

    /// Whether a write to a port is a hypercall.
    pub fn is_port(&self, port: u16) -> bool {
        matches!(self.transport, Transport::Page { port: ours } if u16::from(ours) == port)
    }

    /// The guest writes an MSR that was kept for us; whether it may.
    pub fn write_msr(&self, index: u32, value: u64) -> bool {
        const PAGE: u64 = 4096;
        // The lower bits say which of the pages; there is one.
        let Transport::Page { port } = self.transport else { return false };
        if index != cpuid::HYPERCALL_MSR || !value.is_multiple_of(PAGE) {
            return false;
        }
        let page = cpuid::page(port);
        self.memory.write(GuestPhys(value), &page) == page.len()
    }

    /// Serves a call of `vcpu`, or shows it to a debugger if `may_catch`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn serve(&self, vcpu: &mut Vcpu, exit: HypercallExit, may_catch: bool) -> Result<Done, KvmError> {
        let Some(raw) = self.raw_call(vcpu, exit)? else {
            return refuse_smccc(vcpu).map(|()| Done::GoOn);
        };
        let caller = GuestCaller { vcpu, memory: &self.memory, space: OnceCell::new() };
        if may_catch && self.calls.is_caught() {
            let seen = self.calls.look(raw, &caller);
            if self.calls.catches(&seen) {
                let text = seen.text();
                rewind(vcpu, exit)?;
                return Ok(Done::Caught(text));
            }
        }
        let answer =
            if is_privileged(vcpu, exit) { self.calls.serve(raw, &caller) } else { errno::EPERM.into() };
        self.put_result(vcpu, exit, raw.abi, answer.result)?;
        Ok(match answer.effect {
            Effect::None => Done::GoOn,
            Effect::Halt => {
                vcpu.halt()?;
                Done::GoOn
            }
            Effect::Shutdown(reason) => Done::Ended(reason),
        })
    }

    /// The call behind an exit; `None` for an SMCCC call, which is not ours.
    fn raw_call(&self, vcpu: &Vcpu, exit: HypercallExit) -> Result<Option<RawCall>, KvmError> {
        let abi = match exit {
            HypercallExit::Xen { is_long, number, arguments, .. } => {
                let abi = if is_long { Abi::X86_64 } else { Abi::X86_32 };
                if self.family == FamilyName::Xen {
                    return Ok(Some(RawCall { abi, number, arguments }));
                }
                // KVM has taken Xen's registers.
                abi
            }
            HypercallExit::Port if vcpu.code()?.mode == Mode::Bits64 => Abi::X86_64,
            HypercallExit::Port => Abi::X86_32,
            HypercallExit::Smccc { is_smc, .. } => {
                if is_smc || self.family == FamilyName::Kvm || self.immediate(vcpu)? != Some(XEN_HVC) {
                    return Ok(None);
                }
                Abi::Aarch64
            }
        };
        let rows = &self.rows[abi as usize];
        let value = |row: usize| vcpu.register(row).unwrap_or(0);
        let number = abi.cut(value(rows.number));
        let mut arguments = [0; MOST_ARGUMENTS];
        let known = match exit {
            HypercallExit::Smccc { function, .. } => Some(u64::from(function)),
            _ => None,
        };
        let first = || known.unwrap_or_else(|| rows.arguments.first().map_or(0, |row| value(*row)));
        let (count, is_op) = match abi.word() {
            // A 64-bit argument of 32-bit code is in two registers.
            4 => (MOST_ARGUMENTS, false),
            _ => self.calls.argument_count(number, abi, first),
        };
        for (index, (argument, row)) in arguments.iter_mut().zip(&rows.arguments).take(count).enumerate() {
            *argument = known.filter(|_| is_op && index == 0).unwrap_or_else(|| value(*row));
        }
        Ok(Some(RawCall { abi, number, arguments }))
    }

    /// aarch64: the immediate of the `HVC` in front of the program counter. Where it is in memory is
    /// known from the last time, unless the tables have changed; what it is is looked at each time.
    fn immediate(&self, vcpu: &Vcpu) -> Result<Option<u16>, KvmError> {
        let (pc, base) = vcpu.pc_and_base()?;
        let pc = pc.wrapping_sub(4);
        let Some(place) = self.places.get(vcpu.id() as usize) else { return Ok(None) };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let known = place.filter(|place| place.pc == pc && place.base == base).map(|place| place.address);
        let address = match known {
            Some(address) => address,
            None => match Space::Virtual(vcpu.regime()?).locate(&self.memory, GuestVirt(pc)) {
                Ok((address, _)) => {
                    *place = Some(CallPlace { pc, base, address });
                    address
                }
                Err(_) => return Ok(None),
            },
        };
        let mut bytes = [0; 4];
        let count = self.memory.read(address, &mut bytes);
        Ok(if count == 4 { hvc_immediate(u32::from_le_bytes(bytes)) } else { None })
    }

    fn put_result(
        &self,
        vcpu: &mut Vcpu,
        exit: HypercallExit,
        abi: Abi,
        result: i64,
    ) -> Result<(), KvmError> {
        let value = abi.cut(result.cast_unsigned());
        match exit {
            HypercallExit::Xen { .. } => {
                vcpu.set_hypercall_result(value);
                Ok(())
            }
            HypercallExit::Port | HypercallExit::Smccc { .. } => {
                vcpu.set_rows(&[(self.rows[abi as usize].result, value)])
            }
        }
    }
}

impl Drop for LiveHypercalls {
    fn drop(&mut self) {
        if let Some(timers) = &self.timers {
            timers.stop();
        }
        let thread = self.timer_thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of the guest's timers ended with a panic");
        }
        self.calls.tracer().flush();
    }
}

/// Calls are for kernels.
fn is_privileged(vcpu: &Vcpu, exit: HypercallExit) -> bool {
    match exit {
        HypercallExit::Xen { privilege, .. } => privilege == 0,
        HypercallExit::Port => vcpu.is_privileged(),
        // `HVC` is undefined at EL0.
        HypercallExit::Smccc { .. } => true,
    }
}

/// Answers an SMCCC call as KVM does one that it does not know: `NOT_SUPPORTED`, and nothing else
/// (Linux, `kvm_smccc_call_handler`).
fn refuse_smccc(vcpu: &Vcpu) -> Result<(), KvmError> {
    vcpu.set_rows(&[(0, u64::MAX), (1, 0), (2, 0), (3, 0)])
}

/// Puts the vCPU back to the call, as if it had not been made.
fn rewind(vcpu: &mut Vcpu, exit: HypercallExit) -> Result<(), KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    let pc_row = arch::register::pc_row(HOST_ISA);
    match HOST_ISA {
        // KVM has gone on behind the instruction.
        Isa::Aarch64 => vcpu.set_rows(&[(pc_row, pc.wrapping_sub(4))]),
        // It goes on when the guest is entered, which is made to happen now.
        Isa::X86_64 => {
            let number = row(Isa::X86_64, "rax").and_then(|row| Some((row, vcpu.register(row)?)));
            if let Some((_, number)) = number
                && matches!(exit, HypercallExit::Xen { .. })
            {
                vcpu.set_hypercall_result(number);
            }
            vcpu.complete_access();
            let rows: Vec<(usize, u64)> = number.into_iter().chain([(pc_row, pc)]).collect();
            vcpu.set_rows(&rows)
        }
    }
}

/// The vCPU that made a call.
struct GuestCaller<'a> {
    vcpu: &'a Vcpu,
    memory: &'a LiveMemory,
    space: OnceCell<Option<Space>>,
}

impl GuestCaller<'_> {
    fn space(&self) -> Option<&Space> {
        self.space.get_or_init(|| self.vcpu.regime().ok().map(Space::Virtual)).as_ref()
    }
}

impl Caller for GuestCaller<'_> {
    fn vcpu(&self) -> u32 {
        self.vcpu.id()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.space().map_or(0, |space| memory::read(self.memory, space, None, GuestVirt(address), bytes))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.space().map_or(0, |space| memory::write(self.memory, space, None, GuestVirt(address), bytes))
    }

    fn tsc(&self) -> Option<Tsc> {
        let (value, khz) = self.vcpu.tsc()?;
        Some(Tsc { value, khz })
    }
}

/// The machine, for Xen.
#[derive(Debug)]
struct LivePlatform {
    memory: LiveMemory,
    serial: Arc<Mutex<Serial>>,
    interrupter: Interrupter,
    vcpus: u32,
    timers: Arc<Timers>,
}

impl LivePlatform {
    fn serial(&self) -> MutexGuard<'_, Serial> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platform for LivePlatform {
    fn console_write(&self, bytes: &[u8]) {
        self.serial().print(bytes);
    }

    fn console_read(&self, bytes: &mut [u8]) -> usize {
        const DATA: u64 = 0;
        const LINE_STATUS: u64 = 5;
        let mut serial = self.serial();
        let mut count = 0;
        for byte in bytes {
            let mut status = [0];
            serial.read(LINE_STATUS, &mut status);
            if status[0] & 1 == 0 {
                break;
            }
            serial.read(DATA, std::slice::from_mut(byte));
            count += 1;
        }
        count
    }

    fn ram(&self) -> Vec<(u64, u64)> {
        self.memory.ranges().iter().map(|range| (range.start.0, range.size)).collect()
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.memory.write(GuestPhys(address), bytes)
    }

    fn update(&self, address: u64, size: usize, set: u64, clear: u64) -> Option<u64> {
        const ORDER: Ordering = Ordering::SeqCst;
        let slice = self.memory.0.get_slice(GuestAddress(address), size).ok()?;
        let low = |value: u64| value.to_le_bytes();
        match size {
            8 => {
                let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
                word.fetch_update(ORDER, ORDER, |old| Some(old & !clear | set)).ok()
            }
            4 => {
                let word = slice.get_atomic_ref::<AtomicU32>(0).ok()?;
                let part = |value| low(value).first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                word.fetch_update(ORDER, ORDER, |old| Some(old & !part(clear) | part(set)))
                    .ok()
                    .map(u64::from)
            }
            _ => {
                let word = slice.get_atomic_ref::<AtomicU8>(0).ok()?;
                let part = |value| low(value)[0];
                word.fetch_update(ORDER, ORDER, |old| Some(old & !part(clear) | part(set)))
                    .ok()
                    .map(u64::from)
            }
        }
    }

    fn vcpus(&self) -> u32 {
        self.vcpus
    }

    fn interrupt(&self, vcpu: u32, number: u32, pending: u64) {
        if let Err(error) = self.timers.raise(&self.interrupter, Line { vcpu, number, pending }) {
            log::warn!("an event for vCPU {vcpu} is lost: {error}");
        }
    }

    fn now(&self) -> u64 {
        self.timers.now()
    }

    fn wall(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn set_timer(&self, vcpu: u32, at: Option<u64>) {
        self.timers.set(vcpu, at);
    }
}

/// An interrupt that is up until the guest has seen to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    vcpu: u32,
    number: u32,
    /// The byte that the guest clears then, guest-physical.
    pending: u64,
}

/// How often lines that are up are looked at: until then, a guest that has seen to one is interrupted
/// for nothing.
const LOOK_AT_LINES: Duration = Duration::from_micros(50);

/// The guest's timers, one for each vCPU, and the thread that waits for them; it also lowers
/// interrupts.
#[derive(Debug)]
struct Timers {
    started: Instant,
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Debug)]
struct TimerState {
    /// Nanoseconds since the start.
    at: Vec<Option<u64>>,
    /// Interrupts that are up.
    lines: Vec<Line>,
    stopped: bool,
}

impl Timers {
    fn new(vcpus: u32) -> Timers {
        let state = TimerState { at: vec![None; vcpus as usize], lines: Vec::new(), stopped: false };
        Timers { started: Instant::now(), state: Mutex::new(state), changed: Condvar::new() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn state(&self) -> MutexGuard<'_, TimerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, vcpu: u32, at: Option<u64>) {
        if let Some(timer) = self.state().at.get_mut(vcpu as usize) {
            *timer = at;
        }
        self.changed.notify_one();
    }

    /// Raises an interrupt, and sees that it is lowered again. The lock is held meanwhile, or it could
    /// be lowered on account of the one before.
    fn raise(&self, interrupter: &Interrupter, line: Line) -> Result<(), KvmError> {
        let mut state = self.state();
        interrupter.interrupt(line.vcpu, line.number, true)?;
        if Interrupter::ARE_LEVELS {
            if !state.lines.contains(&line) {
                state.lines.push(line);
            }
            drop(state);
            self.changed.notify_one();
        }
        Ok(())
    }

    fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_one();
    }

    /// Waits for timers until it is told to stop.
    fn run(&self, xen: &Weak<Xen>, memory: &LiveMemory, interrupter: &Interrupter) {
        let mut state = self.state();
        while !state.stopped {
            state.lines.retain(|line| {
                let mut pending = [0];
                let is_up = memory.read(GuestPhys(line.pending), &mut pending) == 1 && pending[0] != 0;
                if !is_up && let Err(error) = interrupter.interrupt(line.vcpu, line.number, false) {
                    log::warn!("an interrupt of vCPU {} stays up: {error}", line.vcpu);
                }
                is_up
            });
            let now = self.now();
            let due = state.at.iter().position(|at| at.is_some_and(|at| at <= now));
            if let Some(vcpu) = due {
                state.at[vcpu] = None;
                drop(state);
                if let (Some(xen), Ok(vcpu)) = (xen.upgrade(), u32::try_from(vcpu)) {
                    xen.expire(vcpu);
                }
                state = self.state();
                continue;
            }
            let next = state.at.iter().flatten().min();
            // Without a timer it waits to be told.
            let mut wait = next.map_or(Duration::from_secs(3600), |at| Duration::from_nanos(at - now));
            if !state.lines.is_empty() {
                wait = wait.min(LOOK_AT_LINES);
            }
            state = match self.changed.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
