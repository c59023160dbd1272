//! The device tree that describes the machine to an aarch64 guest.
//!
//! Sources: Devicetree Specification 0.4; Linux `Documentation/devicetree/bindings`:
//! `arm/psci.yaml`, `interrupt-controller/arm,gic.yaml` and `arm,gic-v3.yaml`,
//! `timer/arm,arch_timer.yaml`, `arm/pmu.yaml`, `arm/primecell.yaml`, `pci/host-generic-pci.yaml`,
//! `pci/pci-msi.txt`. Devices' bindings are where the devices are.

use super::{Board, Node, PciHost, RegisterSpace, TreeEntry, Trigger};
pub use crate::aarch64::gic::GicVersion;
use crate::address::PhysRange;
use crate::layout::aarch64 as layout;
use vm_fdt::{Error, FdtWriter};

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_ITS: u32 = 3;
const IRQ_SPI: u32 = 0;
const IRQ_PPI: u32 = 1;
const IRQ_EDGE_RISING: u32 = 1;
const IRQ_LEVEL_HIGH: u32 = 4;
const IRQ_LEVEL_LOW: u32 = 8;
/// Frequency of the clock that PrimeCells' bus claims to have, Hz.
const APB_CLOCK_HZ: u32 = 24_000_000;

/// What goes into the tree.
#[derive(Clone, Debug)]
pub struct DeviceTree<'a> {
    /// The command line.
    pub cmdline: &'a str,
    /// Memory, bytes.
    pub memory: u64,
    /// `MPIDR_EL1` affinity fields of each vCPU, as the architecture lays them out.
    pub mpidrs: &'a [u64],
    /// Which interrupt controller there is.
    pub gic: GicVersion,
    /// Whether it has an interrupt translation service (GICv3 only), which messages need.
    pub has_its: bool,
    /// Whether vCPUs have performance monitors.
    pub pmu: bool,
    /// Guest-physical start and size in bytes of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// The devices that there are.
    pub board: &'a Board,
    /// Random bytes for the guest: where its kernel goes, and its first entropy.
    pub seed: &'a Seed,
}

/// Random bytes: `kaslr-seed` takes the first eight, `rng-seed` the rest.
pub type Seed = [u8; 40];

/// The affinity fields of `MPIDR_EL1` (Arm ARM, DDI 0487): Aff3 and Aff2..Aff0.
pub const MPIDR_AFFINITY: u64 = 0x00ff_00ff_ffff;

impl DeviceTree<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    /// When a string holds a zero byte, or the tree outgrows the format.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "vmm")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;

        self.chosen(&mut fdt)?;
        for range in layout::ram(self.memory) {
            let node = fdt.begin_node(&format!("memory@{:x}", range.start))?;
            fdt.property_string("device_type", "memory")?;
            fdt.property_array_u64("reg", &reg(range))?;
            fdt.end_node(node)?;
        }
        self.cpus(&mut fdt)?;
        self.interrupt_controller(&mut fdt)?;

        let timer = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        fdt.property_null("always-on")?;
        let flags = self.ppi_flags(IRQ_LEVEL_LOW);
        let interrupts: Vec<u32> =
            layout::TIMER_PPIS.into_iter().flat_map(|ppi| [IRQ_PPI, ppi, flags]).collect();
        fdt.property_array_u32("interrupts", &interrupts)?;
        fdt.end_node(timer)?;

        if self.pmu {
            let node = fdt.begin_node("pmu")?;
            fdt.property_string("compatible", "arm,armv8-pmuv3")?;
            let flags = self.ppi_flags(IRQ_LEVEL_HIGH);
            fdt.property_array_u32("interrupts", &[IRQ_PPI, layout::PMU_PPI, flags])?;
            fdt.end_node(node)?;
        }

        let psci = fdt.begin_node("psci")?;
        fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
        fdt.property_string("method", "hvc")?;
        fdt.end_node(psci)?;

        self.devices(&mut fdt)?;
        if let Some(host) = self.board.pci() {
            self.pci(&mut fdt, host)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    /// The board's devices, behind the clock that some of them have.
    fn devices(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let entries = || self.board.nodes().iter().filter_map(|node| Some((node, node.tree.as_ref()?)));
        if entries().any(|(_, entry)| entry.is_primecell) {
            let clock = fdt.begin_node("apb-pclk")?;
            fdt.property_string("compatible", "fixed-clock")?;
            fdt.property_u32("#clock-cells", 0)?;
            fdt.property_u32("clock-frequency", APB_CLOCK_HZ)?;
            fdt.property_string("clock-output-names", "clk24mhz")?;
            fdt.property_phandle(PHANDLE_CLOCK)?;
            fdt.end_node(clock)?;
        }
        entries().try_for_each(|(node, entry)| device(fdt, node, entry))
    }

    /// The PCI bus, whose functions' messages go to the controller's translation service. Where there is none, each
    /// device has a line of its own.
    fn pci(&self, fdt: &mut FdtWriter, host: &PciHost) -> Result<(), Error> {
        /// The space of an address on the bus (IEEE 1275's PCI binding, 2.2.1.1): memory of 32 bits, and of 64.
        const MEMORY_32: u32 = 0x0200_0000;
        const MEMORY_64: u32 = 0x0300_0000;
        let node = fdt.begin_node(&format!("pcie@{:x}", host.ecam.start))?;
        fdt.property_string("compatible", "pci-host-ecam-generic")?;
        fdt.property_string("device_type", "pci")?;
        fdt.property_u32("#address-cells", 3)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_array_u32("bus-range", &[0, 0])?;
        fdt.property_array_u64("reg", &reg(host.ecam))?;
        let words = |number: u64| [(number >> 32) as u32, (number & 0xffff_ffff) as u32];
        let spaces = std::iter::once((MEMORY_32, host.low)).chain(host.high.map(|high| (MEMORY_64, high)));
        let ranges: Vec<u32> = spaces
            .flat_map(|(space, range)| {
                let (at, size) = (words(range.start.0), words(range.size));
                [space, at[0], at[1], at[0], at[1], size[0], size[1]]
            })
            .collect();
        fdt.property_array_u32("ranges", &ranges)?;
        fdt.property_null("dma-coherent")?;
        if self.has_its {
            // Every function's number is its device's with the service.
            fdt.property_array_u32("msi-map", &[0, PHANDLE_ITS, 0, 0x1_0000])?;
        } else {
            /// Where an address on the bus has the device's number, and the first pin (PCI binding, 2.2.1.1, 2.2.2).
            const DEVICE_SHIFT: u32 = 11;
            const PIN: u32 = 1;
            fdt.property_u32("#interrupt-cells", 1)?;
            let devices = layout::PCI_DEVICES - 1;
            fdt.property_array_u32("interrupt-map-mask", &[devices << DEVICE_SHIFT, 0, 0, 7])?;
            // The controller's address has no cells.
            let line = |device: u32| {
                let spi = layout::PCI_FIRST_SPI + device;
                [device << DEVICE_SHIFT, 0, 0, PIN, PHANDLE_GIC, IRQ_SPI, spi, IRQ_LEVEL_HIGH]
            };
            let lines: Vec<u32> = (0..layout::PCI_DEVICES).flat_map(line).collect();
            fdt.property_array_u32("interrupt-map", &lines)?;
        }
        fdt.end_node(node)
    }

    /// The flags of a private interrupt: GICv2 bindings put a mask of CPUs into bits 8 to 15.
    fn ppi_flags(&self, level: u32) -> u32 {
        match self.gic {
            GicVersion::V2 => {
                let cpus = u32::try_from(self.mpidrs.len()).unwrap_or(8).min(8);
                ((1 << cpus) - 1) << 8 | level
            }
            GicVersion::V3 => level,
        }
    }

    fn chosen(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.cmdline)?;
        if let Some(console) = self.board.console() {
            fdt.property_string("stdout-path", &format!("/{}", name(console)))?;
        }
        let (kaslr, rng) = self.seed.split_at(8);
        fdt.property("kaslr-seed", kaslr)?;
        fdt.property("rng-seed", rng)?;
        if let Some((start, size)) = self.initrd {
            fdt.property_u64("linux,initrd-start", start)?;
            fdt.property_u64("linux,initrd-end", start.saturating_add(size))?;
        }
        fdt.end_node(chosen)
    }

    fn cpus(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for (index, mpidr) in self.mpidrs.iter().enumerate() {
            let cpu = fdt.begin_node(&format!("cpu@{index:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", mpidr & MPIDR_AFFINITY)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }

    fn interrupt_controller(&self, fdt: &mut FdtWriter) -> Result<(), Error> {
        let node = fdt.begin_node(&format!("intc@{:x}", layout::GIC_DISTRIBUTOR.start))?;
        let (compatible, second) = match self.gic {
            GicVersion::V2 => ("arm,cortex-a15-gic", layout::GIC_CPU_INTERFACE),
            GicVersion::V3 => {
                let size = self.mpidrs.len() as u64 * layout::GIC_REDISTRIBUTOR_SIZE;
                ("arm,gic-v3", PhysRange { start: layout::GIC_REDISTRIBUTORS, size })
            }
        };
        fdt.property_string("compatible", compatible)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        fdt.property_array_u64("reg", &[reg(layout::GIC_DISTRIBUTOR), reg(second)].concat())?;
        fdt.property_phandle(PHANDLE_GIC)?;
        if self.has_its {
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
            fdt.property_null("ranges")?;
            let its = fdt.begin_node(&format!("msi-controller@{:x}", layout::GIC_ITS.start))?;
            fdt.property_string("compatible", "arm,gic-v3-its")?;
            fdt.property_null("msi-controller")?;
            fdt.property_u32("#msi-cells", 1)?;
            fdt.property_array_u64("reg", &reg(layout::GIC_ITS))?;
            fdt.property_phandle(PHANDLE_ITS)?;
            fdt.end_node(its)?;
        }
        fdt.end_node(node)
    }
}

/// A device's registers in memory.
fn memory(node: &Node) -> impl Iterator<Item = PhysRange> {
    let registers = node.registers.iter().filter(|registers| registers.space == RegisterSpace::Memory);
    registers.map(|registers| PhysRange::new(registers.start, registers.size))
}

/// The name of a device's node (Devicetree Specification 0.4, 2.2.1).
fn name(node: &Node) -> String {
    match memory(node).next() {
        Some(range) => format!("{}@{:x}", node.name, range.start),
        None => node.name.to_string(),
    }
}

fn device(fdt: &mut FdtWriter, node: &Node, entry: &TreeEntry) -> Result<(), Error> {
    let begun = fdt.begin_node(&name(node))?;
    let compatible = entry.compatible.iter().map(|name| (*name).to_string()).collect();
    fdt.property_string_list("compatible", compatible)?;
    let registers: Vec<u64> = memory(node).flat_map(reg).collect();
    if !registers.is_empty() {
        fdt.property_array_u64("reg", &registers)?;
    }
    for (name, value) in &entry.properties {
        fdt.property_u32(name, *value)?;
    }
    let interrupts = node.interrupts.iter().flat_map(|interrupt| {
        let flags = match interrupt.trigger {
            Trigger::Edge => IRQ_EDGE_RISING,
            Trigger::Level => IRQ_LEVEL_HIGH,
        };
        [IRQ_SPI, interrupt.line, flags]
    });
    let interrupts: Vec<u32> = interrupts.collect();
    if !interrupts.is_empty() {
        fdt.property_array_u32("interrupts", &interrupts)?;
    }
    if entry.is_primecell {
        fdt.property_u32("clocks", PHANDLE_CLOCK)?;
        fdt.property_string("clock-names", "apb_pclk")?;
    }
    fdt.end_node(begun)
}

fn reg(range: PhysRange) -> [u64; 2] {
    [range.start.0, range.size]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn board() -> Board {
        let entry = |compatible, is_primecell| TreeEntry { compatible, is_primecell, properties: Vec::new() };
        let mut board = Board::new(Isa::Aarch64);
        for node in [
            Node::new("quiet").memory(0x0904_0000, 0x1000),
            Node::new("serial").memory(0x0900_0000, 0x1000).console().tree(entry(&["ns16550a"], false)),
            Node::new("rtc")
                .memory(0x0901_0000, 0x1000)
                .interrupt(1, Trigger::Level)
                .tree(entry(&["arm,pl031", "arm,primecell"], true)),
            Node::new("exit").memory(0x0902_0000, 4).tree(TreeEntry {
                compatible: &["vmm,exit-device"],
                properties: vec![("answer", 42)],
                is_primecell: false,
            }),
        ] {
            board.add(node).unwrap();
        }
        board
    }

    fn tree<'a>(board: &'a Board, mpidrs: &'a [u64], gic: GicVersion) -> DeviceTree<'a> {
        DeviceTree {
            cmdline: "console=ttyS0",
            memory: 6 << 30,
            mpidrs,
            gic,
            has_its: false,
            pmu: true,
            initrd: Some((0x4800_0000, 0x1234)),
            board,
            seed: &[7; 40],
        }
    }

    #[test]
    fn a_reader_finds_the_machine_in_it() {
        let mpidrs: Vec<u64> = (0..16).map(|id| 0x8000_0000 | id).collect();
        let board = board();
        let bytes = tree(&board, &mpidrs, GicVersion::V3).bytes().unwrap();
        let fdt = fdt::Fdt::new(&bytes).unwrap();
        assert_eq!(fdt.chosen().bootargs(), Some("console=ttyS0"));
        assert_eq!(fdt.chosen().stdout().map(|node| node.name), Some("serial@9000000"));
        assert_eq!(fdt.cpus().count(), 16);
        assert_eq!(fdt.cpus().nth(3).map(|cpu| cpu.ids().first()), Some(3));
        let memory = fdt.memory().regions().next().unwrap();
        assert_eq!((memory.starting_address as usize, memory.size), (0x4000_0000, Some(6 << 30)));
        let initrd_end = fdt.find_node("/chosen").unwrap().property("linux,initrd-end").unwrap();
        assert_eq!(initrd_end.value, 0x4800_1234u64.to_be_bytes());
        let chosen = fdt.find_node("/chosen").unwrap();
        assert_eq!(chosen.property("kaslr-seed").unwrap().value, [7; 8]);
        assert_eq!(chosen.property("rng-seed").unwrap().value, [7; 32]);
        for compatible in [
            "arm,gic-v3",
            "arm,armv8-timer",
            "arm,armv8-pmuv3",
            "arm,psci-0.2",
            "ns16550a",
            "arm,pl031",
            "fixed-clock",
        ] {
            assert!(fdt.find_compatible(&[compatible]).is_some(), "{compatible}");
        }
        let exit = fdt.find_compatible(&["vmm,exit-device"]).unwrap();
        assert_eq!(exit.reg().unwrap().next().unwrap().size, Some(4));
        assert_eq!(exit.property("answer").unwrap().value, 42u32.to_be_bytes());
        let clock = fdt.find_compatible(&["arm,pl031"]).unwrap();
        assert_eq!(clock.property("interrupts").unwrap().value, [0, 1, 4].map(u32::to_be_bytes).concat());
        assert_eq!(clock.property("clocks").unwrap().value, PHANDLE_CLOCK.to_be_bytes());
        // Of what says nothing for it nothing is in it.
        assert!(fdt.find_node("/quiet@9040000").is_none());
    }

    #[test]
    fn a_version_2_controller_has_its_cpu_interface_and_timer_mask() {
        let board = board();
        let bytes = tree(&board, &[0, 1], GicVersion::V2).bytes().unwrap();
        let fdt = fdt::Fdt::new(&bytes).unwrap();
        let gic = fdt.find_compatible(&["arm,cortex-a15-gic"]).unwrap();
        let interface = gic.reg().unwrap().nth(1).unwrap();
        assert_eq!(interface.starting_address as u64, layout::GIC_CPU_INTERFACE.start.0);
        let timer = fdt.find_node("/timer").unwrap().property("interrupts").unwrap();
        assert_eq!(timer.value[8..12], 0x308u32.to_be_bytes());
        let pmu = fdt.find_node("/pmu").unwrap().property("interrupts").unwrap();
        assert_eq!(pmu.value, [1u32, 7, 0x304].map(u32::to_be_bytes).concat());
    }

    #[test]
    fn functions_interrupt_by_messages_or_by_lines() {
        let mut board = Board::new(Isa::Aarch64);
        board.set_pci(PciHost::new(Isa::Aarch64, 6 << 30));
        for has_its in [false, true] {
            let bytes = DeviceTree { has_its, ..tree(&board, &[0], GicVersion::V3) }.bytes().unwrap();
            let fdt = fdt::Fdt::new(&bytes).unwrap();
            let pci = fdt.find_compatible(&["pci-host-ecam-generic"]).unwrap();
            assert_eq!(pci.property("msi-map").is_some(), has_its);
            let Some(map) = pci.property("interrupt-map") else {
                assert!(has_its);
                continue;
            };
            assert!(!has_its);
            let words: Vec<u32> =
                map.value.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
            let lines: Vec<&[u32]> = words.chunks(8).collect();
            assert_eq!(lines.len(), 32);
            assert_eq!(lines[3], [3 << 11, 0, 0, 1, PHANDLE_GIC, IRQ_SPI, 19, IRQ_LEVEL_HIGH]);
            assert_eq!(PciHost::line(Isa::Aarch64, 3), Some(19));
        }
    }

    #[test]
    fn what_is_not_there_has_no_node() {
        let board = Board::new(Isa::Aarch64);
        let bytes = DeviceTree { pmu: false, ..tree(&board, &[0], GicVersion::V3) }.bytes().unwrap();
        let fdt = fdt::Fdt::new(&bytes).unwrap();
        for compatible in ["ns16550a", "vmm,exit-device", "fixed-clock", "arm,armv8-pmuv3"] {
            assert!(fdt.find_compatible(&[compatible]).is_none(), "{compatible}");
        }
        assert!(fdt.find_node("/chosen").unwrap().property("stdout-path").is_none());
    }
}
