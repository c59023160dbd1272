//! A machine's virtio devices: which model each is, and where its transport puts it.

use super::KvmLine;
use crate::error::Error;
use crate::machine::config::{Config, VirtioDevice};
use crate::machine::guest_ram::GuestRam;
use crate::machine::{disks, nets, shares, vsocks};
use arch::address::PhysRange;
use arch::board::PciHost;
use devices::pci::bus::{PciBus, with_bridge};
use devices::pci::msix::{Message, Sender};
use devices::rack::Rack;
use devices::ram::Ram;
use devices::virtio::Model;
use devices::virtio::console::{self, Port};
use devices::virtio::entropy::{self, Entropy};
use devices::virtio::mmio::{self, VirtioMmio};
use devices::virtio::pace::Pace;
use devices::virtio::pci::{Bells, Connections, VirtioFunction};
use kvm::{BellRinger, HOST_ISA, MessageSender, Vm};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// What devices are made with.
pub struct Making<'a> {
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    pace: &'a Pace,
    /// How many shared folders there are.
    shares: usize,
    /// Descriptors that networks may need.
    networks: usize,
    /// How many vCPUs.
    cpus: u32,
    /// The host's ends of ports.
    pub host_ports: Vec<HostPort>,
}

/// Puts a model where its transport has it.
trait Put {
    fn put(&mut self, model: impl Model + 'static) -> Result<(), Error>;
}

impl<'a> Making<'a> {
    /// For a machine's devices.
    ///
    /// # Errors
    /// [`Error::Usage`] for what they cannot be together.
    pub fn new(
        config: &Config,
        vm: &'a Vm,
        (ram, pace): (&'a Arc<GuestRam>, &'a Pace),
    ) -> Result<Making<'a>, Error> {
        let shares = shares::count(&config.virtio)?;
        let networks = nets::descriptors(&config.virtio);
        Ok(Making { vm, ram, pace, shares, networks, cpus: config.cpus, host_ports: Vec::new() })
    }

    /// Makes a device's model, and has it put.
    fn make(&mut self, wanted: &VirtioDevice, place: &mut impl Put) -> Result<(), Error> {
        match wanted {
            VirtioDevice::Entropy => place.put(Entropy::new(random()?)),
            VirtioDevice::Share(share) => place.put(shares::device(share, self.shares, self.networks)?),
            VirtioDevice::Net(net) => place.put(nets::device(net)?),
            VirtioDevice::Disk(disk) => place.put(disks::device(disk, self.cpus)?),
            VirtioDevice::Vsock(vsock) => place.put(vsocks::device(vsock)?),
            VirtioDevice::Ports(names) => place.put(ports(names, &mut self.host_ports)?),
        }
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
    fn put(&mut self, model: impl Model + 'static) -> Result<(), Error> {
        self.count += 1;
        // Bus 0, function 0.
        let requester = self.count << 3;
        let connections = Connections {
            ram: Arc::<GuestRam>::clone(self.ram),
            pace: self.pace.clone(),
            sender: Box::new(Messages(self.vm.messages(requester))),
            line: None,
            bells: Box::new(Doorbells { ringer: self.vm.bell_ringer(), placed: Vec::new() }),
        };
        let function = VirtioFunction::new(model, connections).map_err(cannot_make())?;
        match self.bus.add(Arc::new(Mutex::new(function))) {
            Some(_) => Ok(()),
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
/// [`Error`], also for a host that takes no messages.
pub fn pci(config: &Config, host: &PciHost, making: &mut Making<'_>) -> Result<Arc<PciBus>, Error> {
    let windows: Vec<PhysRange> = host.windows().collect();
    if !config.virtio.is_empty() && !making.vm.takes_messages() {
        return Err(Error::Usage(
            "this host's interrupt controller (GICv2) takes no messages, which virtio devices on PCI need: \
             --virtio mmio does without"
                .into(),
        ));
    }
    let bus = with_bridge(&windows);
    let mut place = OnPci { bus, vm: making.vm, ram: making.ram, pace: making.pace, count: 0 };
    for wanted in &config.virtio {
        making.make(wanted, &mut place)?;
    }
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
    fn put(&mut self, model: impl Model + 'static) -> Result<(), Error> {
        let node = mmio::node(HOST_ISA, self.count);
        let node = node.ok_or_else(|| {
            Error::Usage(format!("--virtio mmio: there is room for {} devices; PCI has more", mmio::MOST))
        })?;
        self.count += 1;
        let line = node.interrupts.first().map_or(0, |interrupt| interrupt.line);
        let line = Box::new(KvmLine(self.vm.interrupt(line)));
        let ram: Arc<dyn Ram> = Arc::<GuestRam>::clone(self.ram);
        let device = VirtioMmio::new(model, (ram, self.pace.clone()), line).map_err(cannot_make())?;
        let put = self.rack.put(&node, &Arc::new(Mutex::new(device)));
        put.expect("a test fits these beside all devices");
        Ok(())
    }
}

/// The devices that are asked for, each by registers in memory.
///
/// # Errors
/// [`Error`].
pub fn mmio(config: &Config, rack: &mut Rack, making: &mut Making<'_>) -> Result<(), Error> {
    let mut place = InMemory { rack, vm: making.vm, ram: making.ram, pace: making.pace, count: 0 };
    for wanted in &config.virtio {
        making.make(wanted, &mut place)?;
    }
    Ok(())
}

/// The host's end of a port, with its name.
pub type HostPort = (String, UnixStream);

/// A console device with nothing but named ports.
fn ports(names: &[String], host_ports: &mut Vec<HostPort>) -> Result<console::Console, Error> {
    let mut ports = Vec::new();
    for name in names {
        let (stream, host) = UnixStream::pair().map_err(Error::system("cannot make a port's sockets"))?;
        ports.push(Port { name: Some(name.clone()), stream });
        host_ports.push((name.clone(), host));
    }
    console::Console::new(ports).map_err(Error::system("cannot make a port's sockets"))
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
