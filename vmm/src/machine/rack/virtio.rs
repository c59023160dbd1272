//! A machine's virtio devices: which model each is, and where its transport puts it.

use super::KvmLine;
use crate::error::Error;
use crate::machine::backends::{Backend, Backends};
use crate::machine::config::{Config, ConsoleConfig};
use crate::machine::guest_ram::GuestRam;
use crate::machine::vsocks::OpenVsock;
use arch::address::PhysRange;
use arch::board::PciHost;
use devices::pci::bus::{PciBus, with_bridge};
use devices::pci::msix::{Message, Sender};
use devices::rack::{Line, Rack};
use devices::ram::Ram;
use devices::virtio::console::{Console, Port, Terminal};
use devices::virtio::entropy::Entropy;
use devices::virtio::mmio::{self, VirtioMmio};
use devices::virtio::pace::Pace;
use devices::virtio::pci::{Bells, Connections, VirtioFunction};
use devices::virtio::{Model, Unplug};
use kvm::{BellRinger, HOST_ISA, MessageSender, Vm};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// What devices are made with.
pub struct Making<'a> {
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    pace: &'a Pace,
    /// What they have of the host.
    backends: &'a Backends,
    /// How many vCPUs.
    cpus: u32,
    /// Those that are made.
    pub devices: Vec<Arc<Mutex<dyn Unplug>>>,
    /// The host's ends of ports.
    pub host_ports: Vec<HostPort>,
    /// What is the guest's console, if a virtio device is to be that and has not been made yet.
    terminal: Option<Arc<Terminal>>,
}

/// Puts a model where its transport has it; the device that it is then.
trait Put {
    fn put(&mut self, model: impl Model + 'static) -> Result<Arc<Mutex<dyn Unplug>>, Error>;
}

impl<'a> Making<'a> {
    /// For a machine's devices.
    pub fn new(
        config: &Config,
        backends: &'a Backends,
        vm: &'a Vm,
        (ram, pace): (&'a Arc<GuestRam>, &'a Pace),
        terminal: Option<Arc<Terminal>>,
    ) -> Making<'a> {
        let cpus = config.cpus;
        Making { vm, ram, pace, backends, cpus, devices: Vec::new(), host_ports: Vec::new(), terminal }
    }

    /// Makes all devices' models, and has them put.
    fn make(&mut self, place: &mut impl Put) -> Result<(), Error> {
        for backend in self.backends.iter() {
            let device = match backend {
                Backend::Entropy(source) => place.put(Entropy::new(Arc::clone(source))),
                Backend::Share(share) => place.put(share.device()?),
                Backend::Net(net) => place.put(net.device()),
                Backend::Disk(disk) => place.put(disk.device(self.cpus)?),
                Backend::Vsock(OpenVsock::Sockets(sockets)) => place.put(sockets.device()?),
                Backend::Vsock(OpenVsock::Kernel(kernel)) => place.put(kernel.device(self.vm.memory())?),
                Backend::Console(config) => place.put(self.console(config)?),
            };
            self.devices.push(device?);
        }
        Ok(())
    }

    /// A console device. Only one is the guest's console.
    fn console(&mut self, config: &ConsoleConfig) -> Result<Console, Error> {
        let failed = || Error::system("cannot make a port's sockets");
        let mut ports = Vec::new();
        for name in &config.ports {
            let (stream, host) = UnixStream::pair().map_err(failed())?;
            ports.push(Port { name: name.clone(), stream });
            self.host_ports.push((name.clone(), host));
        }
        let terminal = match config.is_console {
            false => None,
            true => Some(self.terminal.take().ok_or_else(|| {
                Error::Usage("a guest has one console, and two virtio devices are to be it".into())
            })?),
        };
        Console::new(terminal, ports).map_err(failed())
    }
}

/// On a PCI bus.
struct OnPci<'a> {
    bus: PciBus,
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    pace: &'a Pace,
    /// Devices on it.
    count: u32,
}

impl Put for OnPci<'_> {
    fn put(&mut self, model: impl Model + 'static) -> Result<Arc<Mutex<dyn Unplug>>, Error> {
        self.count += 1;
        // Bus 0, function 0.
        let requester = self.count << 3;
        let line = PciHost::line(HOST_ISA, self.count).filter(|_| !self.vm.takes_messages());
        let connections = Connections {
            ram: Arc::<GuestRam>::clone(self.ram),
            pace: self.pace.clone(),
            sender: Box::new(Messages(self.vm.messages(requester))),
            line: line.map(|line| Box::new(KvmLine(self.vm.interrupt(line))) as Box<dyn Line>),
            bells: Box::new(Doorbells { ringer: self.vm.bell_ringer(), placed: Vec::new() }),
        };
        let function = VirtioFunction::new(model, connections).map_err(cannot_make())?;
        let function = Arc::new(Mutex::new(function));
        match self.bus.add(Arc::<Mutex<VirtioFunction<_>>>::clone(&function)) {
            Some(_) => Ok(function),
            None => Err(Error::Usage("more devices than a PCI bus has places for".into())),
        }
    }
}

fn cannot_make() -> impl FnOnce(io::Error) -> Error {
    Error::system("cannot make a virtio device")
}

/// The PCI bus, with the devices that are asked for.
///
/// # Errors
/// [`Error`].
pub fn pci(host: &PciHost, making: &mut Making<'_>) -> Result<Arc<PciBus>, Error> {
    let windows: Vec<PhysRange> = host.windows().collect();
    let bus = with_bridge(&windows);
    let mut place = OnPci { bus, vm: making.vm, ram: making.ram, pace: making.pace, count: 0 };
    making.make(&mut place)?;
    Ok(Arc::new(place.bus))
}

/// By registers in memory.
struct InMemory<'a> {
    rack: &'a mut Rack,
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    pace: &'a Pace,
    count: usize,
}

impl Put for InMemory<'_> {
    fn put(&mut self, model: impl Model + 'static) -> Result<Arc<Mutex<dyn Unplug>>, Error> {
        let node = mmio::node(HOST_ISA, self.count);
        let node = node.ok_or_else(|| {
            Error::Usage(format!("--virtio mmio: there is room for {} devices; PCI has more", mmio::MOST))
        })?;
        self.count += 1;
        let line = node.interrupts.first().map_or(0, |interrupt| interrupt.line);
        let line = Box::new(KvmLine(self.vm.interrupt(line)));
        let ram: Arc<dyn Ram> = Arc::<GuestRam>::clone(self.ram);
        let device = VirtioMmio::new(model, (ram, self.pace.clone()), line).map_err(cannot_make())?;
        let device = Arc::new(Mutex::new(device));
        let put = self.rack.put(&node, &device);
        put.expect("a test fits these beside all devices");
        Ok(device)
    }
}

/// The devices that are asked for, each by registers in memory.
///
/// # Errors
/// [`Error`].
pub fn mmio(rack: &mut Rack, making: &mut Making<'_>) -> Result<(), Error> {
    let mut place = InMemory { rack, vm: making.vm, ram: making.ram, pace: making.pace, count: 0 };
    making.make(&mut place)
}

/// The host's end of a port, with its name.
pub type HostPort = (String, UnixStream);

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
