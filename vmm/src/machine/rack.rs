//! The machine's devices, and what KVM and this process give them.

use crate::error::Error;
use crate::machine::config::{Config, VirtioDevice};
use crate::machine::guest_ram::GuestRam;
use crate::machine::{disks, shares};
use arch::address::PhysRange;
use arch::board::{Board, PciHost};
use devices::bus::Shared;
use devices::pci::Function;
use devices::pci::bus::{PciBus, with_bridge};
use devices::pci::msix::{Message, Sender};
use devices::platform;
use devices::platform::serial::Serial;
use devices::rack::{Console, Line, Rack, Resources};
use devices::ram::Ram;
use devices::virtio::console::Port;
use devices::virtio::entropy::{self, Entropy};
use devices::virtio::pace::Pace;
use devices::virtio::pci::{Bells, Connections, VirtioFunction};
use devices::virtio::{self, Model};
use kvm::{BellRinger, HOST_ISA, InterruptLine, KvmError, MessageSender, Vm};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

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
    if !config.virtio.is_empty() {
        board.set_pci(PciHost::new(HOST_ISA, config.memory.bytes()));
    }
    board
}

/// Makes the devices; the serial port among them is the console.
pub fn fit(
    config: &Config,
    vm: &Vm,
    (ram, pace): (&Arc<GuestRam>, &Pace),
    console: Console,
) -> Result<(Rack, Shared<Serial>, Vec<HostPort>), Error> {
    let mut rack = Rack::new(HOST_ISA);
    let host = PciHost::new(HOST_ISA, config.memory.bytes());
    let mut ports = Vec::new();
    let bus = pci(config, &host, vm, (ram, pace), &mut ports)?;
    let mut giver = Giver { vm, ram, bus: Arc::clone(&bus), console: Some(console) };
    let serial = platform::fit(&mut rack, &mut giver, &config.extras);
    let serial = serial.expect("a test fits all devices of every machine");
    if !config.virtio.is_empty() {
        rack.set_pci(&host, &bus).expect("a test fits the bus beside all devices");
    }
    Ok((rack, serial.expect("every machine has a serial port"), ports))
}

/// The PCI bus, with the devices that are asked for.
fn pci(
    config: &Config,
    host: &PciHost,
    vm: &Vm,
    (ram, pace): (&Arc<GuestRam>, &Pace),
    ports: &mut Vec<HostPort>,
) -> Result<Arc<PciBus>, Error> {
    let windows: Vec<PhysRange> = host.windows().collect();
    let mut bus = with_bridge(&windows);
    if !config.virtio.is_empty() && !vm.takes_messages() {
        return Err(Error::Kvm(KvmError::Missing(
            "an interrupt translation service (GICv3), which virtio needs",
        )));
    }
    let shares = shares::count(&config.virtio)?;
    for (device, wanted) in (1u32..).zip(&config.virtio) {
        // Bus 0, function 0.
        let requester = device << 3;
        let connections = Connections {
            ram: Arc::<GuestRam>::clone(ram),
            pace: pace.clone(),
            sender: Box::new(Messages(vm.messages(requester))),
            line: None,
            bells: Box::new(Doorbells { ringer: vm.bell_ringer(), placed: Vec::new() }),
        };
        let others = Others { shares, cpus: config.cpus, ports };
        if bus.add(function(wanted, others, connections)?).is_none() {
            return Err(Error::Usage("more devices than a PCI bus has places for".into()));
        }
    }
    Ok(Arc::new(bus))
}

/// What a device is made by that is not its own.
struct Others<'a> {
    /// How many folders are shared.
    shares: usize,
    cpus: u32,
    /// Where the host's ends of ports go.
    ports: &'a mut Vec<HostPort>,
}

/// A device as a function.
fn function(
    wanted: &VirtioDevice,
    others: Others<'_>,
    connections: Connections,
) -> Result<Shared<dyn Function>, Error> {
    match wanted {
        VirtioDevice::Entropy => on_pci(Entropy::new(random()?), connections),
        VirtioDevice::Share(share) => on_pci(shares::device(share, others.shares)?, connections),
        VirtioDevice::Disk(disk) => on_pci(disks::device(disk, others.cpus)?, connections),
        VirtioDevice::Ports(names) => on_pci(ports(names, others.ports)?, connections),
    }
}

/// The host's end of a port, with its name.
pub type HostPort = (String, UnixStream);

/// A console device with nothing but named ports.
fn ports(names: &[String], host_ports: &mut Vec<HostPort>) -> Result<virtio::console::Console, Error> {
    let mut ports = Vec::new();
    for name in names {
        let (stream, host) = UnixStream::pair().map_err(Error::system("cannot make a port's sockets"))?;
        ports.push(Port { name: Some(name.clone()), stream });
        host_ports.push((name.clone(), host));
    }
    virtio::console::Console::new(ports).map_err(Error::system("cannot make a port's sockets"))
}

fn on_pci(model: impl Model + 'static, connections: Connections) -> Result<Shared<dyn Function>, Error> {
    let function = VirtioFunction::new(model, connections);
    Ok(Arc::new(Mutex::new(function.map_err(Error::system("cannot make a virtio device"))?)))
}

/// Random bytes of the host's.
fn random() -> Result<entropy::Source, Error> {
    let random = File::open("/dev/urandom").map_err(Error::system("cannot open /dev/urandom"))?;
    Ok(Arc::new(Mutex::new(move |bytes: &mut [u8]| {
        if let Err(error) = (&random).read_exact(bytes) {
            log::error!("/dev/urandom: {error}");
        }
    })))
}

/// Messages by KVM.
struct Messages(MessageSender);

impl Sender for Messages {
    fn send(&self, message: Message) -> io::Result<()> {
        self.0.send(message.address, message.data).map_err(io::Error::other)
    }
}

/// Bells that KVM rings.
struct Doorbells {
    ringer: BellRinger,
    /// Where each queue's is.
    placed: Vec<Option<u64>>,
}

impl Bells for Doorbells {
    fn place(&mut self, queue: u16, bell: &EventFd, at: Option<u64>) -> io::Result<()> {
        let index = usize::from(queue);
        if self.placed.len() <= index {
            self.placed.resize(index + 1, None);
        }
        if self.placed[index] == at {
            return Ok(());
        }
        if let Some(before) = self.placed[index].take() {
            self.ringer.take_away(bell, before).map_err(io::Error::other)?;
        }
        if let Some(at) = at {
            self.ringer.place(bell, at).map_err(io::Error::other)?;
            self.placed[index] = Some(at);
        }
        Ok(())
    }
}
