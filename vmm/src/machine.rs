//! A whole machine: memory, devices, vCPUs, and the guest in it.
//!
//! This is what an embedder drives: make a [`Machine`], [`resume`](Machine::resume) it, give
//! its console input, wait for its [`Outcome`]. The command line's event loop ([`crate::run`])
//! is one such driver.

mod debugged;

pub use debugged::Debugged;

use crate::boot::cmdline::Completion;
use crate::boot::kernel::Kernel;
use crate::boot::{self, BootConfig, Booted};
use crate::config::{Config, GuestClock, Trace};
use crate::debugger::{Attachment, Debugger, listen};
use crate::dump::Dumper;
use crate::error::Error;
use crate::guest_clock::Timekeeper;
use crate::guest_ram::GuestRam;
use crate::hypercalls::{FamilyName, LiveHypercalls, Parts};
use crate::outcome::Outcome;
use crate::output_queue::{OutputQueue, QueueEnd};
use crate::rack;
use crate::serve::{self, Exits, Shared};
use crate::vcpus::{Hold, Threads, Vcpus};
use arch::Isa;
use arch::x86::cpuid::Entry;
use devices::guest_log;
use devices::hypercall::xen::cpuid;
use devices::platform::serial::Serial;
use devices::rack::Console;
use kvm::{HOST_ISA, Host, HypercallSetup, Vcpu, Vm, VmConfig};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// A machine with a guest, whose vCPUs are paused until it is resumed. Threads may share it; those of its vCPUs
/// (on which its console's output is written) must not stop it, as they would wait for themselves.
#[derive(Debug)]
pub struct Machine {
    // The threads end before what they use goes: first the one that asks vCPUs.
    attachment: Attachment,
    dumper: Dumper,
    /// What [`Machine::pause`] has made.
    pause: Mutex<Pause>,
    vcpus: Arc<Vcpus>,
    waits: bool,
    outcomes: Mutex<Receiver<Outcome>>,
    wake: EventFd,
    serial: Arc<Mutex<Serial>>,
    input_wanted: EventFd,
    booted: Booted,
    hypercalls: Option<Arc<LiveHypercalls>>,
    shared: Arc<Shared>,
    _vm: Vm,
}

/// How far an embedder has gone with a guest.
#[derive(Debug)]
enum Pause {
    /// It has not let it run yet.
    NotStarted,
    /// It runs, as far as the embedder is concerned.
    Runs,
    /// It is held.
    Held { _hold: Hold, was_started: bool },
}

fn new_event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
}

fn clone_event(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::system("cannot duplicate an eventfd"))
}

impl Machine {
    /// Builds the machine and prepares its guest. The console's output goes to `output`, on a
    /// vCPU's thread.
    ///
    /// # Errors
    /// [`Error`] for everything that a host, a file or an option can be wrong about.
    pub fn new(config: &Config, output: Box<dyn Write + Send>) -> Result<Machine, Error> {
        Machine::build(config, output, None)
    }

    /// Builds a machine in which the guest begins again. A debugger that is attached to this one goes over to
    /// the other, with all that it has asked for; it is that debugger, if there is `--gdb`, who lets the new
    /// guest run. This one is to be dropped.
    ///
    /// # Errors
    /// As [`Machine::new`]; then this machine is as it was.
    pub fn again(&self, config: &Config, output: Box<dyn Write + Send>) -> Result<Machine, Error> {
        let vcpus = self.vcpus.count();
        if self.attachment.debugger().is_some() && config.cpus != vcpus {
            return Err(Error::Usage(format!(
                "a guest with a debugger begins again with as many vCPUs as it had: {vcpus}, not {}",
                config.cpus
            )));
        }
        // Its vCPUs that have not ended are not to meet what the debugger puts into the other one.
        let was_held = matches!(*self.how_far(), Pause::Held { .. });
        self.pause();
        let debugger = self.attachment.close();
        let again = Machine::build(config, output, debugger.as_ref());
        if again.is_err() {
            self.attachment.open(debugger);
        }
        if again.is_err() && !was_held {
            let mut pause = self.how_far();
            // What was held is let go; one that was never started waits on.
            *pause = match *pause {
                Pause::Held { was_started: false, .. } => Pause::NotStarted,
                _ => Pause::Runs,
            };
        }
        again
    }

    fn build(
        config: &Config,
        output: Box<dyn Write + Send>,
        former: Option<&Arc<Debugger>>,
    ) -> Result<Machine, Error> {
        check(config)?;
        let host = Host::open()?;
        let vm_config = VmConfig {
            vcpus: config.cpus,
            memory: config.memory.bytes(),
            cpu: config.cpu.clone(),
            hypercalls: setup(config),
        };
        let kernel = match &config.kernel {
            Some(path) => Kernel::open(path, HOST_ISA, vm_config.memory)?,
            None => Kernel::embedded(),
        };
        let (vm, vcpus) = Vm::new(&host, &vm_config)?;
        let waits = config.gdb.as_ref().is_some_and(|gdb| gdb.waits);
        let cmdline = Completion::of(&kernel, config.cmdline_exact, waits).line(config.cmdline.as_deref());
        let booted = prepare(&vm, &kernel, config, &cmdline)?;
        tell(&kernel, &booted, config, &cmdline);
        if let Some(boot_vcpu) = vcpus.first() {
            boot_vcpu.set_boot_state(&booted.state)?;
        }

        let input_wanted = new_event()?;
        let output = Arc::new(OutputQueue::new(output));
        let (sender, outcomes) = channel();
        let wake = new_event()?;
        let gdb = config.gdb.as_ref();
        if gdb.is_some() && config.guest_clock == GuestClock::Stop {
            // Found out once; the first stop is not to wait for it.
            kvm::probe::holds_counter().ok();
        }
        let listener = gdb.filter(|_| former.is_none()).map(listen).transpose()?;
        let ram = Arc::new(GuestRam::new(vm.memory()));
        let drained = clone_event(&input_wanted)?;
        let console = Console {
            output: Box::new(QueueEnd(Arc::clone(&output))),
            drained: Box::new(move || drained.write(1)),
        };
        let (rack, serial) = rack::fit(&config.extras(), &vm, &ram, console);
        let parts = Parts { vm: &vm, ram: &ram, serial: &serial, vcpus: config.cpus };
        let hypercalls = hypercalls(config, &parts)?;
        let shared = Arc::new(Shared {
            hypercalls: hypercalls.clone(),
            keeps_registers: config.dump_on.is_some(),
            output,
            ports: rack.ports,
            mmio: rack.mmio,
            memory: vm.memory().clone(),
            outcomes: sender,
            wake: clone_event(&wake)?,
            exits: Exits::new(config.cpus),
            wants_restart: AtomicBool::new(false),
            is_started: AtomicBool::new(false),
            told_of_end: Mutex::default(),
        });
        let vcpus = start(vcpus, config.guest_clock, &vm, &shared)?;
        let dumper = Dumper::new(&vcpus, vm.memory());
        let attachment = Attachment::new(&vcpus, vm.memory(), &ram, kernel.believed());
        if let (Some(listener), Some(gdb)) = (listener, gdb) {
            attachment.attach(listener, gdb)?;
        }
        if let Some(former) = former {
            attachment.take_over(former);
        }
        Ok(Machine {
            waits: waits || former.is_some(),
            attachment,
            dumper,
            pause: Mutex::new(Pause::NotStarted),
            vcpus,
            outcomes: Mutex::new(outcomes),
            wake,
            serial,
            input_wanted,
            booted,
            hypercalls,
            shared,
            _vm: vm,
        })
    }

    /// The guest's hypercalls, if they come to us.
    pub fn hypercalls(&self) -> Option<&LiveHypercalls> {
        self.hypercalls.as_deref()
    }

    fn how_far(&self) -> MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest run, as far as it was this machine's [`Self::pause`] that held it.
    pub fn resume(&self) {
        let mut pause = self.how_far();
        let was_started = match &*pause {
            Pause::NotStarted => false,
            Pause::Runs => return,
            Pause::Held { was_started, .. } => *was_started,
        };
        // What was held is let go.
        *pause = Pause::Runs;
        self.shared.is_started.store(true, Ordering::SeqCst);
        if !was_started {
            self.vcpus.resume();
        }
    }

    /// Lets the guest run, unless it waits for a debugger that will.
    pub fn start(&self) {
        self.shared.is_started.store(true, Ordering::SeqCst);
        // One that has left by now has not let it run, and one that leaves from here on does.
        match self.waits && self.attachment.debugger().is_some() {
            true => *self.how_far() = Pause::Runs,
            false => self.resume(),
        }
    }

    /// Tells an attached debugger how the guest has ended.
    pub fn tell_debugger(&self, outcome: &Outcome) {
        if let Some(link) = self.vcpus.link() {
            serve::tell_end(&link, outcome);
        }
    }

    /// Whether it is the debugger who wants the guest to begin again; asked once for each time.
    pub fn takes_restart(&self) -> bool {
        self.shared.wants_restart.swap(false, Ordering::Relaxed)
    }

    /// Tells a debugger that has asked for it that the guest does not begin again.
    pub fn cannot_restart(&self, why: &Error) {
        if let Some(debugger) = self.attachment.debugger() {
            debugger.cannot_begin_again(why.to_string());
        }
    }

    /// Its place for a debugger.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Stops the guest until [`Self::resume`]; returns when no vCPU is in it any more. Its time stands
    /// still meanwhile, if the configuration says so.
    pub fn pause(&self) {
        let mut pause = self.how_far();
        let was_started = match &*pause {
            Pause::NotStarted => false,
            Pause::Runs => true,
            Pause::Held { .. } => return,
        };
        *pause = Pause::Held { _hold: self.vcpus.hold(), was_started };
    }

    /// Stops the guest for as long as the result is there. Others may hold it at the same time.
    pub fn hold(&self) -> Hold {
        self.vcpus.hold()
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// What makes dumps of it.
    pub fn dumper(&self) -> &Dumper {
        &self.dumper
    }

    /// What the guest was started with.
    pub fn booted(&self) -> &Booted {
        &self.booted
    }

    /// Becomes readable when [`Self::outcome`] has something.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// How the guest ended, if a vCPU has said so and no other thread waits for it ([`Self::wait`]). Other
    /// vCPUs may be running still.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.outcomes.try_lock() {
            Ok(outcomes) => outcomes.try_recv().ok(),
            Err(TryLockError::Poisoned(outcomes)) => outcomes.into_inner().try_recv().ok(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until the guest ends, `limit` at most.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit).ok()
    }

    /// Gives the guest console input; answers how many bytes wait for it to read.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        serial.receive(bytes);
        let waiting = serial.pending();
        drop(serial);
        guest_log::deliver();
        waiting
    }

    /// Becomes readable when the guest has read all input that was waiting.
    pub fn input_wanted(&self) -> &EventFd {
        &self.input_wanted
    }
}

impl Drop for Machine {
    /// Whoever holds a clone of what is for the control socket does not keep the debugger.
    fn drop(&mut self) {
        drop(self.attachment.close());
    }
}

/// Starts the threads of the vCPUs.
fn start(vcpus: Vec<Vcpu>, clock: GuestClock, vm: &Vm, shared: &Arc<Shared>) -> Result<Arc<Vcpus>, Error> {
    let hypercalls = shared.hypercalls.as_ref();
    let timers = hypercalls.and_then(|hypercalls| hypercalls.timers()).cloned();
    let time = Timekeeper::new(clock, vm.clock(), timers);
    let threads = Threads::spawn(vcpus, shared, time).map_err(Error::system("cannot start vCPU threads"))?;
    if let Some(hypercalls) = hypercalls {
        hypercalls.introduce(threads.mailboxes());
    }
    Ok(Arc::new(Vcpus::new(threads)))
}

fn tell(kernel: &Kernel, booted: &Booted, config: &Config, cmdline: &str) {
    log::info!(
        "{} {}, entered by {} at {}; {} vCPUs, {} MiB; command line: {cmdline}",
        kernel.format().name(),
        kernel.path().display(),
        booted.protocol,
        booted.entry,
        config.cpus,
        config.memory.bytes() >> 20,
    );
}

fn prepare(vm: &Vm, kernel: &Kernel, config: &Config, cmdline: &str) -> Result<Booted, Error> {
    let mut seed = [0; 40];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::system("cannot read /dev/urandom"))?;
    let board = rack::board(HOST_ISA, &config.extras());
    let boot = BootConfig {
        memory: config.memory.bytes(),
        vcpus: config.cpus,
        cmdline,
        cmdline_exact: config.cmdline_exact,
        initrds: &config.initrds,
        load_address: config.load_address,
        board: &board,
        seed,
    };
    Ok(match vm.platform() {
        None => boot::x86::prepare(vm.memory(), kernel, &boot)?,
        Some(platform) => boot::aarch64::prepare(vm.memory(), kernel, &boot, &platform)?,
    })
}

/// What is asked of KVM for the hypercalls that the user wants.
fn setup(config: &Config) -> Option<HypercallSetup> {
    let wanted = config.hypercalls.as_ref()?;
    if wanted.family == FamilyName::Kvm && HOST_ISA == Isa::Aarch64 {
        log::warn!("--hypercalls kvm: on aarch64 KVM answers its own calls itself, so none are seen");
        return None;
    }
    let leaves = |vcpu| {
        let leaves = cpuid::leaves(vcpu).into_iter();
        let entry = |leaf: cpuid::Leaf| {
            let [eax, ebx, ecx, edx] = leaf.registers;
            Entry { leaf: leaf.number, eax, ebx, ecx, edx, ..Entry::default() }
        };
        leaves.map(entry).collect()
    };
    Some(HypercallSetup {
        msr: cpuid::HYPERCALL_MSR,
        leaves,
        has_page: wanted.family == FamilyName::Xen,
        page_only: wanted.page_only,
    })
}

/// The guest's hypercalls, if this host hands them over.
fn hypercalls(config: &Config, parts: &Parts<'_>) -> Result<Option<Arc<LiveHypercalls>>, Error> {
    if let Some(why) = parts.vm.why_no_hypercalls() {
        log::warn!("--hypercalls: {why}");
    }
    let (Some(wanted), Some(transport)) = (&config.hypercalls, parts.vm.transport()) else { return Ok(None) };
    log::info!("hypercalls: {} by {}", wanted.family.name(), transport.name());
    let tracer = wanted.tracer().map_err(|source| wanted.cannot_open(source))?;
    // A debugger may ask for the times.
    let is_timed = wanted.trace != Trace::Off || wanted.summary || config.gdb.is_some();
    let live = LiveHypercalls::new(wanted.family, transport, (tracer, is_timed), parts);
    live.map(|live| Some(Arc::new(live))).map_err(Error::system("cannot start a thread for timers"))
}

/// Refuses what this architecture has not.
fn check(config: &Config) -> Result<(), Error> {
    match config.test_device && HOST_ISA == Isa::Aarch64 {
        true => Err(Error::Usage("--test-device: QEMU's pc-testdev is a device of x86_64 machines".into())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thread may wait for the guest's end while another holds it.
    #[test]
    fn threads_may_share_a_machine() {
        fn shared<T: Send + Sync>() {}
        shared::<Machine>();
        shared::<Hold>();
    }
}
