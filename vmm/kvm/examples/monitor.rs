//! Another monitor: two vCPUs, a serial port and memory of its own, on kvm-ioctls, with all of gdb.
//!
//! `monitor GUEST ADDRESS` has the debugger on a thread of its own, with `--loop` behind in the event loop that this
//! monitor has anyway, with `--alone` on the thread of its only vCPU. The guest is a flat file, entered at its first
//! byte by all vCPUs, each of which finds its number in RSI or X0. gdb connects at ADDRESS at any time, and leaves at any
//! time. A byte on standard input ends it.

use arch::GuestPhys;
use debug::engine::Engine;
use debug::gdb::endpoint::{Admission, Endpoint, ListeningSocket};
use debug::live::debugger::{Debugger, Options, Polled, Status, Target};
use debug::live::gate::Kick;
use debug::live::inbox::{Inbox, Post, Round, Serve, inbox};
use debug::live::runner::{Exit, Runner, Turn};
use debug::live::times::Times;
use debug::live::vcpus::{Monitor, Task, Vcpus};
use debug::machine::{Ended, Event};
use debug::ram::Memory;
use debug::socket::Audience;
use kvm::exit::VcpuExit;
use kvm::kick::Kicker;
use kvm::ram::LiveMemory;
use kvm::{BootState, HOST_ISA, Vcpu, kick, probe};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Failure = Box<dyn Error + Send + Sync>;

/// Bytes of RAM.
const MEMORY: usize = 16 << 20;

/// One vCPU's thread, as others see it.
struct Thread {
    post: Post<Vcpu>,
    kicker: Kicker,
}

/// What a debugger needs of this monitor.
struct Threads {
    threads: Vec<Thread>,
    is_over: AtomicBool,
}

impl Monitor for Threads {
    type Vcpu = Vcpu;

    fn vcpus(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    fn post(&self, vcpu: u32, task: Task<Vcpu>) {
        if self.threads[vcpu as usize].post.leave(task) {
            self.kick(vcpu);
        }
    }

    fn kick(&self, vcpu: u32) {
        self.threads[vcpu as usize].kicker.kick();
    }

    fn kick_among_vcpus(&self) -> Kick {
        let kickers: Vec<_> = self.threads.iter().map(|thread| thread.kicker.clone()).collect();
        Box::new(move |vcpu| kickers[vcpu as usize].kick())
    }

    fn quit(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// A vCPU and its thread's end of what is posted to it.
struct Runnable {
    vcpu: Vcpu,
    runner: Runner,
    inbox: Inbox<Vcpu>,
    kicker: Kicker,
}

/// Serves a guest: it has a serial port. One that cannot go on stands still, and its debugger may look at it.
struct Serial(Weak<Vcpus<Threads>>);

impl Serve<Vcpu> for Serial {
    fn enter(&mut self, vcpu: &mut Vcpu, turn: Turn<'_>) -> Exit {
        let served = vcpu.take(turn, |exit, _| match exit {
            VcpuExit::Interrupted => Exit::Interrupted,
            VcpuExit::PortWrite { port: 0x3f8, data, .. }
            | VcpuExit::MmioWrite { address: 0x900_0000, data } => {
                let result = io::stdout().write_all(data).and_then(|()| io::stdout().flush());
                result.map_or_else(|error| Exit::End { fatal: Some(error.to_string()) }, |()| Exit::Served)
            }
            exit => exit.trap().map_or(Exit::End { fatal: Some(format!("no {exit:?} here")) }, Exit::Trap),
        });
        served.unwrap_or_else(|error| Exit::End { fatal: Some(error.to_string()) })
    }

    fn ended(&mut self, _: &Vcpu, why: Option<String>) {
        let Some(vcpus) = self.0.upgrade() else { return };
        let ended = Ended { code: 1, text: why.unwrap_or_else(|| "the guest has ended".into()) };
        eprintln!("{}", ended.text);
        vcpus.link().iter().for_each(|link| link.tell(Event::Ended(ended.clone())));
        vcpus.monitor().quit();
    }
}

#[cfg(target_arch = "x86_64")]
mod native {
    use super::*;
    use arch::x86::boot_state::{BootState as State, Protocol};

    pub const RAM: u64 = 0;
    pub const ENTRY: u64 = 0x10_0000;

    pub fn make_vcpu(kvm: &Kvm, vm: &VmFd, id: u32, ram: &dyn Memory) -> Result<Vcpu, Failure> {
        let fd = vm.create_vcpu(id.into())?;
        fd.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
        let state = State { rsi: id.into(), ..State::new(Protocol::Linux64, ENTRY) };
        state.tables().iter().for_each(|(place, bytes)| _ = ram.write(*place, bytes));
        let vcpu = Vcpu::adopt(kvm, id, fd);
        vcpu.set_boot_state(&BootState::X86(state))?;
        Ok(vcpu)
    }
}

#[cfg(target_arch = "aarch64")]
mod native {
    use super::*;
    use arch::aarch64::boot_state::BootState as State;

    pub const RAM: u64 = 0x4000_0000;
    pub const ENTRY: u64 = RAM + 0x20_0000;

    pub fn make_vcpu(kvm: &Kvm, vm: &VmFd, id: u32, _: &dyn Memory) -> Result<Vcpu, Failure> {
        let fd = vm.create_vcpu(id.into())?;
        let mut target = kvm_bindings::kvm_vcpu_init::default();
        vm.get_preferred_target(&mut target)?;
        fd.vcpu_init(&target)?;
        let vcpu = Vcpu::adopt(kvm, id, fd);
        vcpu.set_boot_state(&BootState::Aarch64(State { x0: id.into(), ..State::new(ENTRY, GuestPhys(0)) }))?;
        Ok(vcpu)
    }
}

/// A machine with the guest in it.
struct Machine {
    _vm: VmFd,
    memory: GuestMemoryMmap,
    vcpus: Arc<Vcpus<Threads>>,
    runnables: Vec<Runnable>,
}

/// Makes it, with this many vCPUs.
fn make(kvm: &Kvm, guest: &[u8], vcpus: u32) -> Result<Machine, Failure> {
    let vm = kvm.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(native::RAM), MEMORY)])?;
    let slot = kvm_userspace_memory_region {
        guest_phys_addr: native::RAM,
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(native::RAM))? as u64,
        ..Default::default()
    };
    // SAFETY: the caller keeps the mapping as long as the VM.
    unsafe { vm.set_user_memory_region(slot)? };
    let ram = LiveMemory(memory.clone());
    if ram.write(GuestPhys(native::ENTRY), guest) < guest.len() {
        return Err("the guest is larger than its memory".into());
    }
    let (mut threads, mut runnables) = (Vec::new(), Vec::new());
    for id in 0..vcpus {
        let vcpu = native::make_vcpu(kvm, &vm, id, &ram)?;
        let (post, inbox) = inbox();
        let kicker = Kicker::default();
        threads.push(Thread { post, kicker: kicker.clone() });
        let runner = Runner::new(HOST_ISA, Arc::new(Times::default()));
        runnables.push(Runnable { vcpu, runner, inbox, kicker });
    }
    let threads = Threads { threads, is_over: AtomicBool::new(false) };
    Ok(Machine { _vm: vm, memory, vcpus: Arc::new(Vcpus::new(threads)), runnables })
}

/// Whether standard input has something to say, which is that it is enough; waits for that or for the debugger.
fn wait(debugger: Option<&Polled<Threads>>, timeout: PollTimeout) -> Result<bool, Failure> {
    let stdin = io::stdin();
    let mut fds = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    fds.extend(debugger.map(|debugger| PollFd::new(debugger.as_fd(), PollFlags::POLLIN)));
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
        Err(error) => Err(error.into()),
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (guest, address, how) = match &arguments[..] {
        [guest, address] => (guest, address, ""),
        [guest, address, how] => (guest, address, how.as_str()),
        _ => return Err("usage: monitor GUEST ADDRESS [--loop|--alone]".into()),
    };
    let (guest, address) = (fs::read(guest)?, Endpoint::parse(address)?);
    let is_alone = how == "--alone";
    // Alone, a timer takes the thread out of the guest a hundred times a second, so that it looks for gdb.
    if is_alone {
        kick::use_signal(Signal::SIGALRM as i32)?;
    }
    let kvm = Kvm::new()?;
    let mut machine = make(&kvm, &guest, if is_alone { 1 } else { 2 })?;
    let vcpus = &machine.vcpus;
    vcpus.resume();
    let listener = ListeningSocket::bind(&address, Audience::Owner)?;
    eprintln!("gdb is waited for at {}", listener.address());
    let engine = Arc::new(Engine::new(HOST_ISA, probe::host_debug(), vcpus.count()));
    let target = Target { engine, memory: Box::new(LiveMemory(machine.memory.clone())) };
    let options = Options { name: "monitor".into(), ..Options::new(Admission::open()) };
    if is_alone {
        let debugger = Polled::attach(vcpus, target, listener, options)?;
        return alone(vcpus, &mut machine.runnables[0], debugger);
    }
    for mut it in machine.runnables {
        let mut serial = Serial(Arc::downgrade(vcpus));
        thread::spawn(move || {
            let _kicks = it.vcpu.accept_kicks_by(&it.kicker).expect("a vCPU can be kicked");
            it.inbox.live(&mut it.runner, &mut it.vcpu, &mut serial);
        });
    }
    let is_over = || vcpus.monitor().is_over.load(Ordering::SeqCst);
    if how == "--loop" {
        let mut debugger = Polled::attach(vcpus, target, listener, options)?;
        // Once more when it is over: gdb is told so.
        let (mut status, mut was_over) = (Status::Serving, false);
        while status == Status::Serving && !was_over {
            if wait(Some(&debugger), PollTimeout::NONE)? {
                debugger.leave();
            }
            was_over = is_over();
            status = debugger.process()?;
        }
    } else {
        let debugger = Debugger::attach(vcpus, target, listener, options)?;
        // Dropped, it takes nothing out of a guest that is over.
        while !is_over() {
            if wait(None, PollTimeout::from(100u8))? {
                debugger.leave();
                break;
            }
        }
    }
    Ok(())
}

/// The vCPU, the debugger and standard input on one thread.
fn alone(
    vcpus: &Arc<Vcpus<Threads>>,
    it: &mut Runnable,
    mut debugger: Polled<Threads>,
) -> Result<(), Failure> {
    let _kicks = it.vcpu.accept_kicks_by(&it.kicker)?;
    let signal = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGALRM, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, signal)?;
    timer.set(Expiration::Interval(Duration::from_millis(10).into()), TimerSetTimeFlags::empty())?;
    let (mut status, mut serial) = (Status::Serving, Serial(Arc::downgrade(vcpus)));
    let mut was_over = false;
    while status == Status::Serving && !was_over {
        let round = it.inbox.look(false, &mut it.runner, &mut it.vcpu, &mut serial);
        let runs = round == Round::GoesOn && it.runner.may_run();
        if runs {
            Inbox::run(&mut it.runner, &mut it.vcpu, &mut serial);
        }
        if wait(Some(&debugger), if runs { PollTimeout::ZERO } else { PollTimeout::from(10u8) })? {
            debugger.leave();
        }
        was_over = vcpus.monitor().is_over.load(Ordering::SeqCst);
        status = debugger.process()?;
    }
    Ok(())
}
