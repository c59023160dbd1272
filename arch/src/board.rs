//! What sits on a machine's buses, said once.
//!
//! A device describes itself by a [`Node`]: where its registers are, its interrupts, and what firmware calls it. A
//! [`Board`] is the list of them. Firmware's tables ([`acpi`], [`device_tree`]) are made by walking it, and so are
//! the buses (`devices::rack`), so a guest is told of what is there and of nothing else. What KVM emulates itself
//! (interrupt controllers, timers) is no node: the tables know it from the architecture's `layout`.

pub mod acpi;
pub mod device_tree;
mod pci;

use crate::Isa;
use crate::address::PhysRange;
use crate::layout::aarch64 as layout_aarch64;
use crate::layout::x86 as layout_x86;
pub use pci::PciHost;
use std::fmt;

/// What an address of a register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterSpace {
    /// x86: an I/O port.
    Ports,
    /// Guest-physical memory.
    Memory,
}

/// A range of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// What the addresses are.
    pub space: RegisterSpace,
    /// The first port or byte.
    pub start: u64,
    /// Ports or bytes.
    pub size: u64,
}

impl Registers {
    /// Whether a port or byte belongs to both.
    fn meets(&self, other: &Registers) -> bool {
        let end = |of: &Registers| of.start.saturating_add(of.size);
        self.space == other.space && self.start < end(other) && other.start < end(self)
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.space {
            RegisterSpace::Ports => "ports",
            RegisterSpace::Memory => "bytes of memory",
        };
        write!(f, "{} {what} from {:#x}", self.size, self.start)
    }
}

/// When an interrupt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// At each rising edge.
    Edge,
    /// As long as the line is high.
    Level,
}

/// An interrupt of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// A GSI on x86; an SPI on aarch64, counted from the first SPI.
    pub line: u32,
    /// When it is due.
    pub trigger: Trigger,
}

/// What a device tree says of a device, besides its registers and interrupts (Devicetree Specification 0.4, 2.3,
/// and the device's binding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeEntry {
    /// What drivers look for, the most particular first.
    pub compatible: &'static [&'static str],
    /// Properties that are a number.
    pub properties: Vec<(&'static str, u32)>,
    /// It is a PrimeCell, which has a clock of its bus (`arm/primecell.yaml`).
    pub is_primecell: bool,
}

/// What ACPI says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcpiEntry {
    /// It is in the namespace, with its registers and interrupts as resources.
    Device(AcpiDevice),
    /// Its registers are fixed hardware, named by the FADT: which, and where in the node's first range, bytes.
    Fixed(&'static [(FixedRegister, u64)]),
}

/// A device of the namespace (ACPI 6.5, 6.1 "Device Identification Objects").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiDevice {
    /// Its name, four characters.
    pub name: &'static str,
    /// `_HID`: an EISA identifier of seven characters (`PNP0501`), or an ACPI one of eight.
    pub hid: &'static str,
    /// `_UID`, where there may be several.
    pub uid: Option<u8>,
    /// `_STA`; without it a device is there and works.
    pub status: Option<u8>,
}

/// Registers that the FADT has places for (ACPI 6.5, 4.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedRegister {
    /// The sleep control register, a byte.
    SleepControl,
    /// The sleep status register, a byte.
    SleepStatus,
    /// The reset register, a byte, which resets by [`acpi::RESET_VALUE`].
    Reset,
    /// The power management timer, 4 bytes.
    Timer,
}

/// A device as firmware and buses know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is, generically: its node's name in a device tree.
    pub name: &'static str,
    /// Its registers.
    pub registers: Vec<Registers>,
    /// Its interrupts.
    pub interrupts: Vec<Interrupt>,
    /// The guest's console is here.
    pub is_console: bool,
    /// What a device tree says; one without is not in it.
    pub tree: Option<TreeEntry>,
    /// What ACPI says; one without is found by those who know where it is.
    pub acpi: Option<AcpiEntry>,
}

impl Node {
    /// A device without registers, of which nobody is told.
    pub const fn new(name: &'static str) -> Node {
        Node {
            name,
            registers: Vec::new(),
            interrupts: Vec::new(),
            is_console: false,
            tree: None,
            acpi: None,
        }
    }

    /// With so many ports from `start`.
    #[must_use]
    pub fn ports(mut self, start: u16, size: u64) -> Node {
        self.registers.push(Registers { space: RegisterSpace::Ports, start: start.into(), size });
        self
    }

    /// With registers in so many bytes of memory from `start`, guest-physical.
    #[must_use]
    pub fn memory(mut self, start: u64, size: u64) -> Node {
        self.registers.push(Registers { space: RegisterSpace::Memory, start, size });
        self
    }

    /// With an interrupt.
    #[must_use]
    pub fn interrupt(mut self, line: u32, trigger: Trigger) -> Node {
        self.interrupts.push(Interrupt { line, trigger });
        self
    }

    /// With the guest's console.
    #[must_use]
    pub fn console(mut self) -> Node {
        self.is_console = true;
        self
    }

    /// In device trees.
    #[must_use]
    pub fn tree(mut self, entry: TreeEntry) -> Node {
        self.tree = Some(entry);
        self
    }

    /// In ACPI's tables.
    #[must_use]
    pub fn acpi(mut self, entry: AcpiEntry) -> Node {
        self.acpi = Some(entry);
        self
    }
}

/// Why a device has no place on a board.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoardError {
    /// Its registers are others' already.
    #[error("the {node} has {registers}, where the {other} is")]
    Taken {
        /// The device.
        node: &'static str,
        /// Its registers.
        registers: Registers,
        /// Who has them.
        other: &'static str,
    },
    /// There are no registers on such a machine.
    #[error("the {node} has {registers}, where this machine has no devices")]
    OutOfPlace {
        /// The device.
        node: &'static str,
        /// Its registers.
        registers: Registers,
    },
    /// Its interrupt is another's already.
    #[error("the {node} has interrupt {line}, which is the {other}'s")]
    Interrupt {
        /// The device.
        node: &'static str,
        /// Its interrupt.
        line: u32,
        /// Who has it.
        other: &'static str,
    },
}

/// The devices of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    isa: Isa,
    nodes: Vec<Node>,
    pci: Option<PciHost>,
}

impl Board {
    /// A machine without devices.
    pub fn new(isa: Isa) -> Board {
        Board { isa, nodes: Vec::new(), pci: None }
    }

    /// Which architecture's machine it is.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// With a PCI bus.
    pub fn set_pci(&mut self, host: PciHost) {
        self.pci = Some(host);
    }

    /// Where its PCI bus is, if it has one.
    pub fn pci(&self) -> Option<&PciHost> {
        self.pci.as_ref()
    }

    /// Its devices, in the order in which firmware tells of them.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Puts a device on the board, behind the others.
    ///
    /// # Errors
    /// [`BoardError`]; then it is not on it.
    pub fn add(&mut self, node: Node) -> Result<(), BoardError> {
        for registers in &node.registers {
            let taken =
                self.nodes.iter().find(|other| other.registers.iter().any(|there| there.meets(registers)));
            if let Some(other) = taken {
                return Err(BoardError::Taken { node: node.name, registers: *registers, other: other.name });
            }
            let meets = |range: &PhysRange| {
                registers.meets(&Registers {
                    space: RegisterSpace::Memory,
                    start: range.start.0,
                    size: range.size,
                })
            };
            let is_pcis = |host: &PciHost| meets(&host.ecam) || host.windows().any(|window| meets(&window));
            if self.pci.as_ref().is_some_and(is_pcis) {
                return Err(BoardError::Taken { node: node.name, registers: *registers, other: "PCI bus" });
            }
            if !self.has_room_for(registers) {
                return Err(BoardError::OutOfPlace { node: node.name, registers: *registers });
            }
        }
        for Interrupt { line, .. } in &node.interrupts {
            let has_it = |other: &&Node| other.interrupts.iter().any(|there| there.line == *line);
            if let Some(other) = self.nodes.iter().find(has_it) {
                return Err(BoardError::Interrupt { node: node.name, line: *line, other: other.name });
            }
        }
        self.nodes.push(node);
        Ok(())
    }

    /// Whether registers lie where such a machine has devices of ours.
    fn has_room_for(&self, registers: &Registers) -> bool {
        const PORTS: u64 = 1 << 16;
        let Registers { space, start, size } = *registers;
        let Some(end) = start.checked_add(size).filter(|_| size > 0) else { return false };
        let is_clear = |taken: &PhysRange| end <= taken.start.0 || taken.end().0 <= start;
        let is_within = |range: PhysRange| range.start.0 <= start && end <= range.end().0;
        match (self.isa, space) {
            (Isa::X86_64, RegisterSpace::Ports) => end <= PORTS,
            (Isa::X86_64, RegisterSpace::Memory) => {
                is_within(layout_x86::DEVICES) && layout_x86::DEVICES_OF_KVM.iter().all(is_clear)
            }
            (Isa::Aarch64, RegisterSpace::Ports) => false,
            (Isa::Aarch64, RegisterSpace::Memory) => is_within(layout_aarch64::DEVICES),
        }
    }

    /// The device that the guest's console is.
    pub fn console(&self) -> Option<&Node> {
        self.nodes.iter().find(|node| node.is_console)
    }

    /// Where a register of fixed hardware is, with the size of a byte, or of the timer.
    pub fn fixed(&self, wanted: FixedRegister) -> Option<Registers> {
        self.nodes.iter().find_map(|node| {
            let Some(AcpiEntry::Fixed(list)) = &node.acpi else { return None };
            let (_, offset) = list.iter().find(|(register, _)| *register == wanted)?;
            let Registers { space, start, .. } = *node.registers.first()?;
            let size = if wanted == FixedRegister::Timer { 4 } else { 1 };
            Some(Registers { space, start: start + offset, size })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_to_nobody_else() {
        let mut board = Board::new(Isa::X86_64);
        board.add(Node::new("first").ports(0x100, 0x10).interrupt(4, Trigger::Edge)).unwrap();
        for (start, size, fits) in
            [(0x10f, 1, false), (0xf0, 0x11, false), (0xf0, 0x40, false), (0x110, 1, true)]
        {
            let mut board = board.clone();
            assert_eq!(board.add(Node::new("second").ports(start, size)).is_ok(), fits, "{start:#x}");
            assert_eq!(board.nodes().len(), 1 + usize::from(fits));
        }
        let error = board.add(Node::new("second").ports(0xff, 2)).unwrap_err();
        assert_eq!(error.to_string(), "the second has 2 ports from 0xff, where the first is");
        let error = board.add(Node::new("second").interrupt(4, Trigger::Level)).unwrap_err();
        assert_eq!(error.to_string(), "the second has interrupt 4, which is the first's");
        // The same numbers mean something else in memory.
        board.add(Node::new("second").memory(0xd000_0100, 0x10)).unwrap();
        assert!(board.add(Node::new("third").memory(0xd000_0108, 1)).is_err());
    }

    #[test]
    fn devices_are_where_a_machine_has_them() {
        let fits = |isa, node| Board::new(isa).add(node).is_ok();
        for (start, size, x86, aarch64) in [
            (0x0900_0000, 0x1000, false, true),
            (0x0900_0000, 0, false, false),
            (0x0fff_ffff, 2, false, false),
            (0x4000_0000, 4, false, false),
            (0x0800_0000, 4, false, false),
            (0xc000_0000, 4, true, false),
            (0xffff_ffff, 1, true, false),
            (0xffff_ffff, 2, false, false),
            (0xfec0_0800, 4, false, false),
            (0xfee0_0fff, 1, false, false),
            (0xfffb_f000, 1, false, false),
            (0x1_0000_0000, 1, false, false),
            (u64::MAX, 1, false, false),
        ] {
            assert_eq!(fits(Isa::X86_64, Node::new("it").memory(start, size)), x86, "{start:#x}");
            assert_eq!(fits(Isa::Aarch64, Node::new("it").memory(start, size)), aarch64, "{start:#x}");
        }
        assert!(fits(Isa::X86_64, Node::new("it").ports(0xffff, 1)));
        assert!(!fits(Isa::X86_64, Node::new("it").ports(0xffff, 2)));
        assert!(!fits(Isa::Aarch64, Node::new("it").ports(0x3f8, 8)));
    }

    #[test]
    fn fixed_registers_are_found_by_what_they_are() {
        let mut board = Board::new(Isa::X86_64);
        assert_eq!(board.fixed(FixedRegister::Reset), None);
        let list = &[(FixedRegister::SleepControl, 0), (FixedRegister::Reset, 2), (FixedRegister::Timer, 4)];
        board.add(Node::new("power").ports(0x600, 8).acpi(AcpiEntry::Fixed(list))).unwrap();
        let at = |register| board.fixed(register).map(|there| (there.start, there.size));
        assert_eq!(at(FixedRegister::Reset), Some((0x602, 1)));
        assert_eq!(at(FixedRegister::Timer), Some((0x604, 4)));
        assert_eq!(at(FixedRegister::SleepStatus), None);
    }
}
