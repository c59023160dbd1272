//! The machine's devices, and what KVM and this process give them.

mod virtio;

use crate::error::Error;
use crate::machine::backends::Backends;
use crate::machine::config::{Config, VirtioTransport};
use crate::machine::guest_ram::GuestRam;
use arch::board::{Board, PciHost};
use devices::bus::Shared;
use devices::pci::bus::{PciBus, with_bridge};
use devices::platform;
use devices::platform::serial::Serial;
use devices::rack::{Console, Line, Rack, Resources};
use devices::ram::Ram;
use devices::virtio::Unplug;
use devices::virtio::console::Terminal;
use devices::virtio::mmio;
use devices::virtio::pace::Pace;
use kvm::{HOST_ISA, InterruptLine, Vm};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
pub use virtio::HostPort;
use virtio::Making;

/// An interrupt line of KVM's.
struct KvmLine(InterruptLine);

impl Line for KvmLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.trigger().map_err(io::Error::other)
    }

    fn set(&self, level: bool) -> io::Result<()> {
        self.0.set(level).map_err(io::Error::other)
    }
}

/// What devices are given.
struct Giver<'a> {
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    bus: Arc<PciBus>,
    console: Option<Console>,
}

impl Resources for Giver<'_> {
    fn line(&self, number: u32) -> Box<dyn Line> {
        Box::new(KvmLine(self.vm.interrupt(number)))
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::<GuestRam>::clone(self.ram)
    }

    fn time(&self) -> Box<dyn Fn() -> u64 + Send> {
        let time = self.vm.time();
        // A host that does not tell has said so before (`kvm::clock`).
        Box::new(move || time.now().unwrap_or_default())
    }

    fn pci(&self) -> Arc<PciBus> {
        Arc::clone(&self.bus)
    }

    fn console(&mut self) -> Console {
        let nobody = || Console { output: Box::new(io::sink()), drained: Box::new(|| Ok(())) };
        self.console.take().unwrap_or_else(nobody)
    }
}

/// What the guest's firmware is to tell of.
pub fn board(config: &Config) -> Board {
    let mut board =
        platform::board(HOST_ISA, &config.extras).expect("a test fits all devices of every machine");
    match config.transport {
        _ if config.virtio.is_empty() => {}
        VirtioTransport::Pci => board.set_pci(PciHost::new(HOST_ISA, config.memory.bytes())),
        VirtioTransport::Mmio => {
            let nodes = (0..config.virtio.len()).filter_map(|number| mmio::node(HOST_ISA, number));
            nodes.for_each(|node| board.add(node).expect("a test fits these beside all devices"));
        }
    }
    board
}

/// Devices that are made.
#[derive(Debug)]
pub struct Fitted {
    /// All of them, on their buses.
    pub rack: Rack,
    /// The console's.
    pub serial: Shared<Serial>,
    /// Those with something of the host's.
    pub virtio: VirtioDevices,
    /// The host's ends of ports.
    pub ports: Vec<HostPort>,
}

/// A guest's virtio devices.
#[derive(Default)]
pub struct VirtioDevices(Vec<Arc<Mutex<dyn Unplug>>>);

impl std::fmt::Debug for VirtioDevices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("VirtioDevices").field(&self.0.len()).finish()
    }
}

impl VirtioDevices {
    /// Takes them from the guest for good: what they have of the host is free for others when this returns `true`. If
    /// not, the host keeps the thread of one of them.
    #[must_use = "what is in use still may not be given to another device"]
    pub fn unplug(&self) -> bool {
        let mut all = true;
        for device in &self.0 {
            all &= device.lock().unwrap_or_else(PoisonError::into_inner).unplug();
        }
        all
    }
}

/// Makes the devices, with what theirs is of the host; the serial port among them is the console, and so is what a virtio
/// device has for a terminal, if one is to have it.
pub fn fit(
    config: &Config,
    backends: &Backends,
    vm: &Vm,
    (ram, pace): (&Arc<GuestRam>, &Pace),
    (console, terminal): (Console, Option<Arc<Terminal>>),
) -> Result<Fitted, Error> {
    let mut rack = Rack::new(HOST_ISA);
    let host = PciHost::new(HOST_ISA, config.memory.bytes());
    let mut making = Making::new(config, backends, vm, (ram, pace), terminal);
    let bus = match config.transport {
        VirtioTransport::Pci => virtio::pci(&host, &mut making)?,
        VirtioTransport::Mmio => Arc::new(with_bridge(&[])),
    };
    let mut giver = Giver { vm, ram, bus: Arc::clone(&bus), console: Some(console) };
    let serial = platform::fit(&mut rack, &mut giver, &config.extras);
    let serial = serial.expect("a test fits all devices of every machine");
    match config.transport {
        _ if config.virtio.is_empty() => {}
        VirtioTransport::Pci => {
            rack.set_pci(&host, &bus).expect("a test fits the bus beside all devices");
        }
        VirtioTransport::Mmio => virtio::mmio(&mut rack, &mut making)?,
    }
    let serial = serial.expect("every machine has a serial port");
    Ok(Fitted { rack, serial, virtio: VirtioDevices(making.devices), ports: making.host_ports })
}
