//! How a guest is made: its virtual machine, what boots in it, its devices, its vCPUs' threads, and who debugs it.

use super::{Guest, Stage};
use crate::boot::cmdline::Completion;
use crate::boot::kernel::Kernel;
use crate::boot::{self, BootConfig, Booted};
use crate::error::Error;
use crate::machine::backends::Backends;
use crate::machine::config::{Config, GuestClock, Trace, VirtioTransport};
use crate::machine::debugger::{Attachment, Known, listen};
use crate::machine::dumper::Dumper;
use crate::machine::guest_clock::Timekeeper;
use crate::machine::guest_ram::GuestRam;
use crate::machine::hypercalls::LiveHypercalls;
use crate::machine::hypercalls::family::Parts;
use crate::machine::output_queue::{OutputQueue, Pump, QueueEnd};
use crate::machine::rack::{self, Fitted};
use crate::machine::services::{Exits, Restarts, Services};
use crate::machine::vcpus::{Threads, Vcpus};
use crate::symbols;
use arch::Isa;
use arch::words::counted;
use arch::x86::cpuid::Entry;
use devices::hypercall::xen::cpuid;
use devices::platform::Extra;
use devices::rack::Console;
use devices::virtio::pace::Pace;
use kvm::{HOST_ISA, Host, HypercallSetup, Vcpu, Vm, VmConfig};
use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// Whether a debugger is listened for, if the configuration has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listens {
    /// It is.
    Yes,
    /// It is another guest that begins again, whose debugger comes along.
    No,
}

/// Builds a guest. Its devices have what is open of the host already, and what has to be opened for them.
pub(super) fn build(
    config: &Config,
    opened: &Backends,
    output: Box<dyn Write + Send>,
    listens: Listens,
) -> Result<Guest, Error> {
    check(config)?;
    let Loaded { vm, vcpus, kernel, booted } = load(config)?;
    let gdb = config.gdb.as_ref();
    if gdb.is_some() && config.guest_clock == GuestClock::Stop {
        // Found out once; the first stop is not to wait for it.
        kvm::probe::holds_counter().ok();
    }
    let gdb = gdb.filter(|_| listens == Listens::Yes);
    let symbols = symbols::of(&config.symbols, HOST_ISA, config.kernel.clone())?;
    let listener = gdb.map(listen).transpose()?;
    let (input_wanted, wake) = (new_event()?, new_event()?);
    let output = Arc::new(OutputQueue::new(output));
    let (sender, outcomes) = channel();
    let ram = Arc::new(GuestRam::new(vm.memory()));
    let (drained, taken) = (clone_event(&input_wanted)?, clone_event(&input_wanted)?);
    let console = Console {
        output: Box::new(QueueEnd(Arc::clone(&output))),
        drained: Box::new(move || drained.write(1)),
    };
    let terminal = config.has_virtio_console().then(|| output.terminal(Box::new(move || taken.write(1))));
    let terminal = terminal.transpose().map_err(Error::system("cannot make a console"))?;
    let pace = Pace::default();
    let backends = opened.opened_for(config)?;
    let fitted = rack::fit(config, &backends, &vm, (&ram, &pace), (console, terminal.clone()))?;
    let Fitted { rack, serial, virtio, ports } = fitted;
    let parts = Parts { vm: &vm, ram: &ram, serial: &serial, vcpus: config.cpus };
    let hypercalls = hypercalls(config, &parts)?;
    let services = Arc::new(Services {
        hypercalls: hypercalls.clone(),
        keeps_registers: config.keeps_registers,
        output,
        ports: rack.ports,
        mmio: rack.mmio,
        memory: vm.memory().clone(),
        outcomes: sender,
        wake: clone_event(&wake)?,
        exits: Exits::new(config.cpus),
        pace,
        wants_restart: AtomicBool::new(false),
        restarts: Restarts::default(),
        is_started: AtomicBool::new(false),
        told_of_end: Mutex::default(),
    });
    let vcpus = start(vcpus, config.guest_clock, &vm, &services)?;
    let pump = terminal.is_some().then(|| Pump::start(&services.output)).transpose();
    let pump = pump.map_err(Error::system("cannot start the console's thread"))?;
    let dumper = Dumper::new(&vcpus, vm.memory());
    let attachment =
        Attachment::new(&vcpus, vm.memory(), &ram, Known { believed: kernel.believed(), symbols });
    if let (Some(listener), Some(gdb)) = (listener, gdb) {
        attachment.attach(listener, gdb)?;
    }
    Ok(Guest {
        waits: gdb.is_some_and(|gdb| gdb.waits),
        attachment,
        dumper,
        stage: Mutex::new(Stage::NotStarted),
        vcpus,
        outcomes: Mutex::new(outcomes),
        wake,
        serial,
        terminal,
        _pump: pump,
        ports: Mutex::new(ports),
        input_wanted,
        booted,
        is_linux: kernel.is_linux(),
        hypercalls,
        services,
        virtio,
        has_lost_devices: AtomicBool::new(false),
        backends: Mutex::new(backends),
        _vm: vm,
    })
}

/// A virtual machine, in whose memory everything is that the guest begins with.
struct Loaded {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    kernel: Kernel,
    booted: Booted,
}

fn load(config: &Config) -> Result<Loaded, Error> {
    let host = Host::open()?;
    let vm_config = VmConfig {
        vcpus: config.cpus,
        memory: config.memory.bytes(),
        cpu: config.cpu.clone(),
        hypercalls: setup(config),
        has_messages: !config.virtio.is_empty() && config.transport == VirtioTransport::Pci,
    };
    let kernel = match &config.kernel {
        Some(path) => Kernel::open(path, HOST_ISA, vm_config.memory)?,
        None => Kernel::embedded(),
    };
    let (vm, vcpus) = Vm::new(&host, &vm_config)?;
    // The same when it begins again, whoever debugs it by then.
    let is_debugged = config.waits_for_debugger();
    let completion = Completion::of(&kernel, config.cmdline_exact, is_debugged, config.has_virtio_console());
    let cmdline = completion.line(config.cmdline.as_deref());
    let booted = prepare(&vm, &kernel, config, &cmdline)?;
    tell(&kernel, &booted, config, &cmdline);
    if let Some(boot_vcpu) = vcpus.first() {
        boot_vcpu.set_boot_state(&booted.state)?;
    }
    Ok(Loaded { vm, vcpus, kernel, booted })
}

fn new_event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::system("cannot make an eventfd"))
}

fn clone_event(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::system("cannot duplicate an eventfd"))
}

/// Starts the threads of the vCPUs.
fn start(
    vcpus: Vec<Vcpu>,
    clock: GuestClock,
    vm: &Vm,
    services: &Arc<Services>,
) -> Result<Arc<Vcpus>, Error> {
    let hypercalls = services.hypercalls.as_ref();
    let timers = hypercalls.and_then(|hypercalls| hypercalls.timers()).cloned();
    let time = Timekeeper::new(clock, vm.clock(), timers);
    let threads =
        Threads::spawn(vcpus, services, time).map_err(Error::system("cannot start vCPU threads"))?;
    if let Some(hypercalls) = hypercalls {
        hypercalls.introduce(threads.mailboxes());
    }
    Ok(Arc::new(Vcpus::new(threads)))
}

fn tell(kernel: &Kernel, booted: &Booted, config: &Config, cmdline: &str) {
    log::info!(
        "{} {}, entered by {} at {}; {}, {} MiB; command line: {cmdline}",
        kernel.format().name(),
        kernel.path().display(),
        booted.protocol,
        booted.entry,
        counted(config.cpus, "vCPU"),
        config.memory.bytes() >> 20,
    );
}

fn prepare(vm: &Vm, kernel: &Kernel, config: &Config, cmdline: &str) -> Result<Booted, Error> {
    let mut seed = [0; 40];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut seed))
        .map_err(Error::system("cannot read /dev/urandom"))?;
    let board = rack::board(config);
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
    if HOST_ISA == Isa::Aarch64 && !wanted.family.is_seen_on_aarch64() {
        let family = wanted.family.name();
        log::warn!("--hypercalls {family}: on aarch64 KVM answers these calls itself, so none are seen");
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
        has_page: wanted.family.is_called_as_xen(),
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
    // A debugger that comes has them timed, too.
    let is_timed = wanted.trace != Trace::Off || wanted.summary;
    let live = LiveHypercalls::new(wanted.family, transport, (tracer, is_timed), parts);
    live.map(|live| Some(Arc::new(live))).map_err(Error::system("cannot start a thread for timers"))
}

/// Refuses what this architecture has not.
fn check(config: &Config) -> Result<(), Error> {
    match config.extras.contains(&Extra::Test) && HOST_ISA == Isa::Aarch64 {
        true => Err(Error::Usage("--test-device: QEMU's pc-testdev is a device of x86_64 machines".into())),
        false => Ok(()),
    }
}
