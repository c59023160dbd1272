//! A machine's devices, on their buses.
//!
//! A device says by [`Fitted`] what it is to firmware and where it is ([`Node`]), and how it is made of what the
//! machine gives it ([`Resources`]). A [`Rack`] makes it, notes it on the machine's [`Board`], and puts it on the bus
//! that its registers are on. So the guest finds what firmware tells it of, and nothing has to be said twice. Which
//! devices a machine has is [`crate::platform::fit`]'s.

use crate::bus::{Bus, Device, Overlap, Shared};
use crate::pci::bus::{Ecam, PciBus, Window, with_bridge};
use crate::ram::Ram;
use arch::Isa;
use arch::board::{Board, BoardError, Node, PciHost, RegisterSpace};
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// An interrupt line of a device.
pub trait Line: Send {
    /// Raises an edge.
    ///
    /// # Errors
    /// What the host says.
    fn pulse(&self) -> io::Result<()>;

    /// Gives it a level, for a device that leaves it at that.
    ///
    /// # Errors
    /// What the host says.
    fn set(&self, level: bool) -> io::Result<()>;
}

/// Where the guest's console goes to and comes from.
pub struct Console {
    /// What the guest prints. It should not wait: whoever else needs the port would wait for it, too.
    pub output: Box<dyn Write + Send>,
    /// Called when the guest has read so much that no input is pending any more: whoever feeds the port stops at
    /// some amount of pending input and goes on then.
    pub drained: Box<dyn Fn() -> io::Result<()> + Send>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

/// What a machine gives to its devices when they are made.
pub trait Resources {
    /// An interrupt line, by the number that the device's node has for it or the architecture's interrupt
    /// controller.
    fn line(&self, number: u32) -> Box<dyn Line>;

    /// The guest's RAM.
    fn ram(&self) -> Arc<dyn Ram>;

    /// What tells the guest's time, which stands still while the guest is held: nanoseconds since some moment.
    fn time(&self) -> Box<dyn Fn() -> u64 + Send>;

    /// The PCI bus; on a machine without functions it has its bridge alone.
    fn pci(&self) -> Arc<PciBus> {
        Arc::new(with_bridge(&[]))
    }

    /// The guest's console. There is one, so it is asked for once.
    fn console(&mut self) -> Console;
}

/// A device that a machine may have: what firmware is told of it, and how it is made. Its file is all that knows it,
/// besides one line of [`crate::platform::fit`].
pub trait Fitted: Device + Sized + 'static {
    /// What it is on a machine of an architecture; `None` where such machines have none.
    fn node(isa: Isa) -> Option<Node>;

    /// Makes it, as it is after power-on.
    fn make(node: &Node, resources: &mut dyn Resources) -> Self;
}

/// A machine's devices.
#[derive(Debug)]
pub struct Rack {
    /// What firmware is told of.
    pub board: Board,
    /// I/O ports.
    pub ports: Bus,
    /// Registers in memory.
    pub mmio: Bus,
}

impl Rack {
    /// Without devices.
    pub fn new(isa: Isa) -> Rack {
        Rack { board: Board::new(isa), ports: Bus::default(), mmio: Bus::default() }
    }

    /// Puts a PCI bus where its host is.
    ///
    /// # Errors
    /// [`Overlap`] when something is there already.
    pub fn set_pci(&mut self, host: &PciHost, bus: &Arc<PciBus>) -> Result<(), Overlap> {
        let ecam = Arc::new(Mutex::new(Ecam(Arc::clone(bus))));
        self.mmio.insert(host.ecam.start.0, host.ecam.size, ecam)?;
        for window in host.windows() {
            let device = Window { bus: Arc::clone(bus), start: window.start.0 };
            self.mmio.insert(window.start.0, window.size, Arc::new(Mutex::new(device)))?;
        }
        self.board.set_pci(host.clone());
        Ok(())
    }

    /// Puts a device where its node says, and notes that on the board.
    ///
    /// # Errors
    /// [`BoardError`], for a device whose place is taken.
    pub fn put<D: Device + 'static>(&mut self, node: &Node, device: &Shared<D>) -> Result<(), BoardError> {
        self.board.add(node.clone())?;
        for registers in &node.registers {
            let bus = match registers.space {
                RegisterSpace::Ports => &mut self.ports,
                RegisterSpace::Memory => &mut self.mmio,
            };
            let put = bus.insert(registers.start, registers.size, Arc::<Mutex<D>>::clone(device));
            // The board has looked.
            put.map_err(|_| BoardError::OutOfPlace { node: node.name, registers: *registers })?;
        }
        Ok(())
    }

    /// Adds a device, if such machines have it. One with several ranges of registers has the same in each.
    ///
    /// # Errors
    /// [`BoardError`], for a device whose place is taken.
    pub fn add<D: Fitted>(&mut self, resources: &mut dyn Resources) -> Result<Option<Shared<D>>, BoardError> {
        let Some(node) = D::node(self.board.isa()) else { return Ok(None) };
        let device = Arc::new(Mutex::new(D::make(&node, resources)));
        self.put(&node, &device)?;
        Ok(Some(device))
    }
}

/// A machine that gives its devices nothing: no interrupt arrives, no time passes, there is no RAM. For a board whose
/// devices nobody uses, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl Line for Unconnected {
    fn pulse(&self) -> io::Result<()> {
        Ok(())
    }

    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Ram for Unconnected {
    fn ranges(&self) -> Vec<arch::address::PhysRange> {
        Vec::new()
    }

    fn read(&self, _: arch::GuestPhys, _: &mut [u8]) -> usize {
        0
    }

    fn write(&self, _: arch::GuestPhys, _: &[u8]) -> usize {
        0
    }

    fn update(&self, _: arch::GuestPhys, _: usize, _: u64, _: u64) -> Option<u64> {
        None
    }

    fn shared(&self, _: arch::GuestPhys, _: usize) -> Option<vm_memory::VolatileSlice<'_>> {
        None
    }

    fn forget_mapping(&self, _: arch::GuestPhys) {}
}

impl Resources for Unconnected {
    fn line(&self, _: u32) -> Box<dyn Line> {
        Box::new(Unconnected)
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::new(Unconnected)
    }

    fn time(&self) -> Box<dyn Fn() -> u64 + Send> {
        Box::new(|| 0)
    }

    fn console(&mut self) -> Console {
        Console { output: Box::new(io::sink()), drained: Box::new(|| Ok(())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::End;

    /// A device that is told apart by where it is read.
    struct Probe;

    impl Device for Probe {
        fn name(&self) -> &'static str {
            "probe"
        }

        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }

        fn write(&mut self, _: u64, _: &[u8]) -> Option<End> {
            Some(End::Reset)
        }
    }

    impl Fitted for Probe {
        fn node(isa: Isa) -> Option<Node> {
            (isa == Isa::X86_64)
                .then(|| Node::new("probe").ports(0x10, 4).ports(0x20, 4).memory(0xd000_0000, 4))
        }

        fn make(node: &Node, _: &mut dyn Resources) -> Probe {
            assert_eq!(node.registers.len(), 3);
            Probe
        }
    }

    #[test]
    fn a_device_is_on_the_board_and_at_each_of_its_places() {
        let mut rack = Rack::new(Isa::X86_64);
        assert!(rack.add::<Probe>(&mut Unconnected).unwrap().is_some());
        assert_eq!(rack.board.nodes().len(), 1);
        let mut data = [0xff];
        assert!(rack.ports.read(0x12, &mut data) && data == [2]);
        assert!(rack.ports.read(0x21, &mut data) && data == [1]);
        assert!(rack.mmio.read(0xd000_0003, &mut data) && data == [3]);
        assert!(!rack.ports.read(0x14, &mut data) && !rack.mmio.read(0x12, &mut data));
        // A second one is refused, and the first is as it was.
        assert!(rack.add::<Probe>(&mut Unconnected).is_err());
        assert_eq!((rack.board.nodes().len(), rack.ports.write(0x10, &[1])), (1, Ok(Some(End::Reset))));
        let mut rack = Rack::new(Isa::Aarch64);
        assert!(rack.add::<Probe>(&mut Unconnected).unwrap().is_none());
        assert!(rack.board.nodes().is_empty() && !rack.ports.read(0x12, &mut data));
    }
}
