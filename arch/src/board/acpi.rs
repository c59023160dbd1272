//! The ACPI tables of an x86 guest: hardware-reduced, so there is no legacy power block.
//!
//! Source: ACPI Specification 6.5: sections 4.8.3.7 (sleep control and status registers),
//! 5.2.9 (FADT), 5.2.12 (MADT). A guest powers off by writing `S5` to the sleep control
//! register and resets by writing the reset value to the reset register; `devices` has the
//! other side. Which devices there are, and where, is the board's.

use super::{AcpiDevice, AcpiEntry, Board, FixedRegister, Node, PciHost, RegisterSpace, Registers, Trigger};
use crate::address::PhysRange;
use crate::layout::x86 as layout;
pub use crate::layout::x86::MAX_VCPUS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};

const OEM_ID: [u8; 6] = *b"VMM   ";
const OEM_TABLE_ID: [u8; 8] = *b"VMM     ";
const OEM_REVISION: u32 = 1;

/// The value of `SLP_TYPx` for soft-off, as the `_S5` object gives it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// `SLP_EN` in the sleep control register.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// What a guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// All tables, RSDP first, to be written at [`layout::ACPI_TABLES`] as one block of bytes,
/// for a guest with `vcpus` vCPUs (at most [`MAX_VCPUS`]) and the devices of `board`.
pub fn tables(vcpus: u32, board: &Board) -> Vec<u8> {
    let base = layout::ACPI_TABLES.0;
    let dsdt = dsdt(board);
    let dsdt_at = base + (Rsdp::len() as u64).next_multiple_of(16);
    let fadt_at = (dsdt_at + dsdt.len() as u64).next_multiple_of(16);
    let fadt = bytes_of(&fadt(dsdt_at, board));
    let madt_at = (fadt_at + fadt.len() as u64).next_multiple_of(16);
    let madt = bytes_of(&madt(vcpus));
    let xsdt_at = (madt_at + madt.len() as u64).next_multiple_of(16);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);
    let mcfg = board.pci().map(mcfg);
    let mcfg_at = (xsdt_at + (36 + 8 * (2 + u64::from(mcfg.is_some())))).next_multiple_of(16);
    if mcfg.is_some() {
        xsdt.add_entry(mcfg_at);
    }

    let mut block = Vec::new();
    let tables = [
        (base, bytes_of(&Rsdp::new(OEM_ID, xsdt_at))),
        (dsdt_at, dsdt),
        (fadt_at, fadt),
        (madt_at, madt),
        (xsdt_at, bytes_of(&xsdt)),
    ];
    for (at, table) in tables.into_iter().chain(mcfg.map(|table| (mcfg_at, table))) {
        let offset = usize::try_from(at - base).expect("tables lie within 128 KiB");
        block.resize(offset, 0);
        block.extend(table);
    }
    debug_assert!(block.len() as u64 <= layout::ACPI_TABLES_SIZE);
    block
}

/// Size of the RSDP, bytes (ACPI 6.5, table 5.3).
pub const RSDP_SIZE: usize = 36;

/// The RSDP at the start of a block of [`tables`].
pub fn rsdp(tables: &[u8]) -> [u8; RSDP_SIZE] {
    crate::bytes::array_at(tables, 0).unwrap_or([0; RSDP_SIZE])
}

/// The generic address of a register that is accessed as a whole: a byte, or the timer's 32 bits.
fn address(register: Registers) -> GAS {
    let space = match register.space {
        RegisterSpace::Ports => AddressSpace::SystemIo,
        RegisterSpace::Memory => AddressSpace::SystemMemory,
    };
    let (bits, access) = match register.size {
        4 => (32, AccessSize::DwordAccess),
        _ => (8, AccessSize::ByteAccess),
    };
    GAS::new(space, bits, 0, access, register.start)
}

fn fadt(dsdt_at: u64, board: &Board) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_at)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::Wbinvd);
    if let Some(register) = board.fixed(FixedRegister::Reset) {
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = address(register);
        fadt.reset_value = RESET_VALUE;
    }
    if let Some(register) = board.fixed(FixedRegister::SleepControl) {
        fadt.sleep_control_reg = address(register);
    }
    if let Some(register) = board.fixed(FixedRegister::SleepStatus) {
        fadt.sleep_status_reg = address(register);
    }
    // Hardware-reduced ACPI needs no timer, and may have one: Linux takes it from the wide field, other kernels
    // from the narrow one, which is for ports.
    if let Some(register) = board.fixed(FixedRegister::Timer) {
        fadt.x_pm_tmr_blk = address(register);
        if let (RegisterSpace::Ports, Ok(port)) = (register.space, u32::try_from(register.start)) {
            fadt.pm_tmr_blk = port.into();
            fadt.pm_tmr_len = 4;
        }
    }
    // IAPC_BOOT_ARCH: no VGA (bit 2), no MSI (bit 3), no ASPM (bit 4). The keyboard controller
    // is not announced (bit 1): it is there for its reset line only.
    let no_msi = if board.pci().is_some() { 0 } else { 1 << 3 };
    fadt.iapc_boot_arch = (1 << 2 | no_msi | 1 << 4).into();
    fadt.finalize()
}

/// Where configuration spaces are (PCI Firmware Specification 3.3, 4.1.2).
fn mcfg(host: &PciHost) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(host.ecam.start.0, 0, 0, 0);
    bytes_of(&mcfg)
}

/// The host bridge of PCI Express (PCI Firmware Specification 3.3, 4), and what its configuration spaces take: Linux
/// believes in those only when a device has them.
fn pci(host: &PciHost) -> Vec<Vec<u8>> {
    let last = |range: PhysRange| range.end().0 - 1;
    let no_cache = aml::AddressSpaceCacheable::NotCacheable;
    let bus = aml::AddressSpace::new_bus_number(0u16, 0u16);
    let low = match (u32::try_from(host.low.start.0), u32::try_from(last(host.low))) {
        (Ok(first), Ok(last)) => Some(aml::AddressSpace::new_memory(no_cache, true, first, last, None)),
        _ => None,
    };
    let high =
        host.high.map(|high| aml::AddressSpace::new_memory(no_cache, true, high.start.0, last(high), None));
    let mut resources: Vec<&dyn Aml> = vec![&bus];
    resources.extend(low.as_ref().map(|range| range as &dyn Aml));
    resources.extend(high.as_ref().map(|range| range as &dyn Aml));
    let named = |name: &str, value: &dyn Aml| aml::Name::new(name.into(), value);
    let bridge = [
        named("_HID", &aml::EISAName::new("PNP0A08")),
        named("_CID", &aml::EISAName::new("PNP0A03")),
        named("_SEG", &aml::ZERO),
        named("_UID", &aml::ZERO),
        named("_CRS", &aml::ResourceTemplate::new(resources)),
    ];
    let ecam = aml::Memory32Fixed::new(
        true,
        u32::try_from(host.ecam.start.0).unwrap_or(0),
        u32::try_from(host.ecam.size).unwrap_or(0),
    );
    let reserved = [
        named("_HID", &aml::EISAName::new("PNP0C02")),
        named("_UID", &aml::ZERO),
        named("_CRS", &aml::ResourceTemplate::new(vec![&ecam])),
    ];
    let device = |name: &str, objects: &[aml::Name]| {
        let objects = objects.iter().map(|object| object as &dyn Aml).collect();
        bytes_of(&aml::Device::new(name.into(), objects))
    };
    vec![device("PCI0", &bridge), device("MRES", &reserved)]
}

fn madt(vcpus: u32) -> MADT {
    let apic_address = u32::try_from(layout::LOCAL_APIC).expect("below 4 GiB");
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(apic_address));
    for id in 0..vcpus.min(MAX_VCPUS) {
        let id = u8::try_from(id).expect("limited above");
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, u32::try_from(layout::IO_APIC).expect("below 4 GiB"), 0));
    madt
}

/// The differentiated description: the board's devices, and soft-off.
fn dsdt(board: &Board) -> Vec<u8> {
    let mut devices: Vec<Vec<u8>> = board.nodes().iter().filter_map(device).collect();
    devices.extend(board.pci().map(pci).unwrap_or_default());
    let devices: Vec<Raw> = devices.into_iter().map(Raw).collect();
    let bus = aml::Scope::new("\\_SB_".into(), devices.iter().map(|device| device as &dyn Aml).collect());
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&bytes_of(&bus));
    if board.fixed(FixedRegister::SleepControl).is_some() {
        let zero = aml::ZERO;
        let soft_off = aml::Package::new(vec![&SLEEP_TYPE_S5, &zero, &zero, &zero]);
        table.append_slice(&bytes_of(&aml::Name::new("_S5_".into(), &soft_off)));
    }
    table.as_slice().to_vec()
}

/// What the namespace has of a device, if it is there.
fn device(node: &Node) -> Option<Vec<u8>> {
    let Some(AcpiEntry::Device(AcpiDevice { name, hid, uid, status })) = &node.acpi else { return None };
    let named = |name: &str, value: &dyn Aml| aml::Name::new(name.into(), value);
    let mut objects = vec![match hid.len() {
        7 => named("_HID", &aml::EISAName::new(hid)),
        _ => named("_HID", hid),
    }];
    objects.extend(uid.as_ref().map(|uid| named("_UID", uid)));
    objects.extend(status.as_ref().map(|status| named("_STA", status)));
    let resources: Vec<Raw> = resources(node).into_iter().map(Raw).collect();
    let resources: Vec<&dyn Aml> = resources.iter().map(|resource| resource as &dyn Aml).collect();
    objects.push(named("_CRS", &aml::ResourceTemplate::new(resources)));
    let objects = objects.iter().map(|object| object as &dyn Aml).collect();
    Some(bytes_of(&aml::Device::new((*name).into(), objects)))
}

/// The resources of a device: its registers, then its interrupts.
fn resources(node: &Node) -> Vec<Vec<u8>> {
    let registers = node.registers.iter().filter_map(|registers| {
        let Registers { space, start, size } = *registers;
        Some(match space {
            RegisterSpace::Ports => {
                let (port, count) = (u16::try_from(start).ok()?, u8::try_from(size).ok()?);
                bytes_of(&aml::IO::new(port, port, 1, count))
            }
            RegisterSpace::Memory => bytes_of(&aml::Memory32Fixed::new(
                true,
                u32::try_from(start).ok()?,
                u32::try_from(size).ok()?,
            )),
        })
    });
    let interrupts = node.interrupts.iter().map(|interrupt| {
        let is_edge = interrupt.trigger == Trigger::Edge;
        bytes_of(&aml::Interrupt::new(true, is_edge, false, false, interrupt.line))
    });
    registers.chain(interrupts).collect()
}

/// What has been made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

#[derive(Default)]
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes::default();
    aml.to_aml_bytes(&mut sink);
    sink.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::bytes::{u32_at, u64_at};

    const POWER: &[(FixedRegister, u64)] =
        &[(FixedRegister::SleepControl, 0), (FixedRegister::SleepStatus, 1), (FixedRegister::Reset, 2)];

    /// A board with what the FADT names, and one device.
    fn board() -> Board {
        let mut board = Board::new(Isa::X86_64);
        let device = AcpiDevice { name: "PEVT", hid: "QEMU0001", uid: None, status: Some(0xf) };
        for node in [
            Node::new("power").ports(0x600, 3).acpi(AcpiEntry::Fixed(POWER)),
            Node::new("timer").ports(0x608, 4).acpi(AcpiEntry::Fixed(&[(FixedRegister::Timer, 0)])),
            Node::new("panic").ports(0x505, 1).acpi(AcpiEntry::Device(device)),
        ] {
            board.add(node).unwrap();
        }
        board
    }

    fn checksum(table: &[u8]) -> u8 {
        table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    fn table_at(block: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_TABLES.0).unwrap();
        let length = u32_at(block, start + 4).unwrap() as usize;
        &block[start..start + length]
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let block = tables(16, &board());
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(checksum(&block[..20]), 0);
        assert_eq!(checksum(&block[..36]), 0);
        let xsdt = table_at(&block, u64_at(&block, 24).unwrap());
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut names = Vec::new();
        for entry in (36..xsdt.len()).step_by(8) {
            let table = table_at(&block, u64_at(xsdt, entry).unwrap());
            assert_eq!(checksum(table), 0);
            names.push(String::from_utf8_lossy(&table[..4]).into_owned());
            if &table[..4] == b"FACP" {
                let dsdt = table_at(&block, u64_at(table, 140).unwrap());
                assert_eq!((&dsdt[..4], checksum(dsdt)), (&b"DSDT"[..], 0));
                assert_eq!(u32_at(table, 112).unwrap() & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
                // Generic addresses: reset register at 116, sleep control at 244.
                assert_eq!(u64_at(table, 120), Some(0x602));
                assert_eq!(u64_at(table, 248), Some(0x600));
                // The timer: its port at 76, its length at 91, its generic address at 208.
                assert_eq!((u32_at(table, 76), table[91], u64_at(table, 212)), (Some(0x608), 4, Some(0x608)));
                assert_eq!(table[208..212], [1, 32, 0, 3]);
            }
        }
        assert_eq!(names, ["FACP", "APIC"]);
    }

    #[test]
    fn the_madt_lists_every_vcpu_and_the_room_suffices_for_all() {
        let block = tables(MAX_VCPUS, &board());
        let named = |block: &[u8]| block.windows(8).any(|bytes| bytes == b"QEMU0001");
        assert!(named(&block) && !named(&tables(MAX_VCPUS, &Board::new(Isa::X86_64))));
        assert!(block.len() as u64 <= layout::ACPI_TABLES_SIZE);
        let madt = bytes_of(&madt(3));
        let processors = madt[44..].chunks(8).filter(|entry| entry.starts_with(&[0, 8])).count();
        assert_eq!(processors, 3);
    }
    #[test]
    fn a_device_has_its_registers_and_interrupts_as_resources() {
        let entry = AcpiDevice { name: "DEV0", hid: "PNP0501", uid: Some(3), status: None };
        let node = Node::new("it").ports(0x3f8, 8).memory(0xd000_0000, 0x200).interrupt(5, Trigger::Level);
        let bytes = device(&node.acpi(AcpiEntry::Device(entry))).unwrap();
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        // ACPI 6.5, 6.4.2.5 (I/O port), 6.4.3.4 (32-bit fixed memory), 6.4.3.6 (extended interrupt).
        assert!(has(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]));
        assert!(has(&[0x86, 9, 0, 1, 0, 0, 0, 0xd0, 0, 2, 0, 0]));
        assert!(has(&[0x89, 6, 0, 1, 1, 5, 0, 0, 0]));
        assert!(has(b"_UID\x0a\x03") && has(&[0x0c, 0x41, 0xd0, 0x05, 0x01]));
        assert_eq!(device(&Node::new("it")), None);
    }

    #[test]
    fn what_is_not_there_is_not_named() {
        let block = tables(1, &Board::new(Isa::X86_64));
        let fadt = table_at(&block, u64_at(table_at(&block, u64_at(&block, 24).unwrap()), 36).unwrap());
        assert_eq!(&fadt[..4], b"FACP");
        // The reset register and its flag, the timer, the sleep registers.
        assert_eq!(u32_at(fadt, 112).unwrap() & 1 << 10, 0);
        assert_eq!((u64_at(fadt, 120), u32_at(fadt, 76), u64_at(fadt, 212)), (Some(0), Some(0), Some(0)));
        assert_eq!((u64_at(fadt, 248), u64_at(fadt, 260)), (Some(0), Some(0)));
        assert!(!block.windows(4).any(|window| window == b"_S5_"));
    }
}
