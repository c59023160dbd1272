//! Hypercalls of a live guest: from an exit to a call, and back.
//!
//! `devices::hypercall` knows what calls mean; this module knows how they come out of a guest on
//! each architecture and host ([`Transport`]), and what the machine does for the families.

mod platform;
mod timers;

use crate::machine::guest_ram::GuestRam;
use crate::machine::mailbox::Mailbox;
use arch::hypercall::{Abi, Rows, XEN_HVC, hvc_immediate};
use arch::register::row;
use arch::{End, GuestPhys, GuestVirt, Isa};
use debug::disassemble::Mode;
use debug::machine::Memory;
use debug::memory::{self, Space};
use devices::hypercall::table::Table;
use devices::hypercall::trace::Tracer;
use devices::hypercall::xen::{Xen, cpuid, errno};
use devices::hypercall::{Caller, Effect, Hypercalls, MOST_ARGUMENTS, RawCall, Tsc};
use devices::platform::serial::Serial;
use kvm::exit::HypercallExit;
use kvm::{HOST_ISA, KvmError, Transport, Vcpu, Vm};
use platform::{KvmDelivery, LivePlatform};
use std::cell::OnceCell;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use timers::Clock;
pub use timers::Timers;

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
    ram: GuestRam,
    /// The registers of each caller's calls.
    rows: [Rows; Abi::ALL.len()],
    /// aarch64: where each vCPU's last call was.
    places: Vec<Mutex<Option<CallPlace>>>,
    timers: Option<Arc<Timers>>,
    timer_thread: Mutex<Option<JoinHandle<()>>>,
    delivery: Option<Arc<KvmDelivery>>,
}

/// What of a machine the families need.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Its virtual machine.
    pub vm: &'a Vm,
    /// Its RAM.
    pub ram: &'a GuestRam,
    /// Its serial port, which is the console.
    pub serial: &'a Arc<Mutex<Serial>>,
    /// How many vCPUs it has.
    pub vcpus: u32,
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
    Ended(End),
    /// A debugger wants to see this call, which has not been answered.
    Caught(String),
}

impl LiveHypercalls {
    /// A family's calls over a transport, of a machine.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        family: FamilyName,
        transport: Transport,
        (tracer, is_timed): (Tracer, bool),
        parts: &Parts<'_>,
    ) -> std::io::Result<LiveHypercalls> {
        let Parts { vm, ram, serial, vcpus } = *parts;
        let events = vm.xen_events().filter(|_| family == FamilyName::Xen);
        let delivery = events.clone().map(|events| Arc::new(KvmDelivery::new(events, vcpus)));
        let (calls, timers, thread) = match family {
            FamilyName::Kvm => {
                (Hypercalls::new(Arc::new(devices::hypercall::kvm::Kvm), tracer, is_timed), None, None)
            }
            FamilyName::Xen => {
                let clock =
                    events.map_or_else(|| Clock::Since(Instant::now(), timers::Held::default()), Clock::Kvm);
                let timers = Arc::new(Timers::new(vcpus, clock));
                let platform = LivePlatform {
                    ram: ram.clone(),
                    serial: Arc::clone(serial),
                    interrupter: vm.interrupter(),
                    vcpus,
                    timers: Arc::clone(&timers),
                    delivery: delivery.clone(),
                };
                let xen = Arc::new(Xen::new(Box::new(platform)));
                let (weak, its_timers) = (Arc::downgrade(&xen), Arc::clone(&timers));
                let (ram, interrupter) = (ram.clone(), vm.interrupter());
                let thread = std::thread::Builder::new()
                    .name("xen-timers".into())
                    .spawn(move || its_timers.run(&weak, &ram, &interrupter))?;
                (Hypercalls::new(xen, tracer, is_timed), Some(timers), Some(thread))
            }
        };
        let rows = Abi::ALL.map(|abi| match family {
            FamilyName::Xen => arch::hypercall::xen(abi).rows(abi.isa()),
            FamilyName::Kvm => arch::hypercall::kvm(abi).rows(abi.isa()),
        });
        let places = (0..vcpus).map(|_| Mutex::default()).collect();
        let (timer_thread, ram) = (Mutex::new(thread), ram.clone());
        Ok(LiveHypercalls { calls, family, transport, ram, rows, places, timers, timer_thread, delivery })
    }

    /// The vCPUs' threads have been started; none has run its guest.
    pub fn introduce(&self, mailboxes: Vec<Mailbox>) {
        if let Some(delivery) = &self.delivery {
            delivery.introduce(mailboxes);
        }
    }

    /// The guest's timers, if its family has any.
    pub fn timers(&self) -> Option<&Arc<Timers>> {
        self.timers.as_ref()
    }

    /// Whether calls look at registers, so that KVM had better hand them over with each exit.
    pub fn looks_at_registers(&self) -> bool {
        !matches!(self.transport, Transport::XenExit { .. }) || self.family != FamilyName::Xen
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
        self.ram.write(GuestPhys(value), &page) == page.len()
    }

    /// Serves a call of `vcpu`, or shows it to a debugger if `may_catch`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn serve(&self, vcpu: &mut Vcpu, exit: HypercallExit, may_catch: bool) -> Result<Done, KvmError> {
        let Some(raw) = self.raw_call(vcpu, exit)? else {
            return refuse_smccc(vcpu).map(|()| Done::GoOn);
        };
        let caller = GuestCaller { vcpu, ram: &self.ram, space: OnceCell::new() };
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
            Effect::End(end) => Done::Ended(end),
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
            None => match Space::Virtual(vcpu.regime()?).locate(&self.ram, GuestVirt(pc)) {
                Ok((address, _)) => {
                    *place = Some(CallPlace { pc, base, address });
                    address
                }
                Err(_) => return Ok(None),
            },
        };
        let mut bytes = [0; 4];
        let count = self.ram.read(address, &mut bytes);
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
            // It is written, so there is nothing more to serve.
            vcpu.finish_access()?;
            let rows: Vec<(usize, u64)> = number.into_iter().chain([(pc_row, pc)]).collect();
            vcpu.set_rows(&rows)
        }
    }
}

/// The vCPU that made a call.
struct GuestCaller<'a> {
    vcpu: &'a Vcpu,
    ram: &'a GuestRam,
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
        self.space().map_or(0, |space| memory::read(self.ram, space, None, GuestVirt(address), bytes))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.space().map_or(0, |space| memory::write(self.ram, space, None, GuestVirt(address), bytes))
    }

    fn tsc(&self) -> Option<Tsc> {
        let (value, khz) = self.vcpu.tsc()?;
        Some(Tsc { value, khz })
    }
}
