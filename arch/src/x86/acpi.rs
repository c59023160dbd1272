//! The ACPI tables of an x86 guest: hardware-reduced, so there is no legacy power block.
//!
//! Source: ACPI Specification 6.5: sections 4.8.3.7 (sleep control and status registers),
//! 5.2.9 (FADT), 5.2.12 (MADT). A guest powers off by writing `S5` to the sleep control
//! register and resets by writing the reset value to the reset register; `devices` has the
//! other side.

use super::layout;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::GAS;
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
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
/// Offsets from [`layout::ACPI_POWER_PORT`].
pub const SLEEP_CONTROL_OFFSET: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS_OFFSET: u16 = 1;
/// Offset of the reset register.
pub const RESET_OFFSET: u16 = 2;

/// xAPIC identifiers are eight bits and 255 is broadcast; more vCPUs would need x2APIC
/// entries.
pub const MAX_VCPUS: u32 = 255;

/// All tables, RSDP first, to be written at [`layout::ACPI_TABLES`] as one block of bytes,
/// for a guest with `vcpus` vCPUs (at most [`MAX_VCPUS`]), and a device that takes its panics.
pub fn tables(vcpus: u32, has_pvpanic: bool) -> Vec<u8> {
    let base = layout::ACPI_TABLES.0;
    let dsdt = dsdt(has_pvpanic);
    let dsdt_at = base + (Rsdp::len() as u64).next_multiple_of(16);
    let fadt_at = (dsdt_at + dsdt.len() as u64).next_multiple_of(16);
    let fadt = bytes_of(&fadt(dsdt_at));
    let madt_at = (fadt_at + fadt.len() as u64).next_multiple_of(16);
    let madt = bytes_of(&madt(vcpus));
    let xsdt_at = (madt_at + madt.len() as u64).next_multiple_of(16);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_at);
    xsdt.add_entry(madt_at);

    let mut block = Vec::new();
    for (at, table) in [
        (base, bytes_of(&Rsdp::new(OEM_ID, xsdt_at))),
        (dsdt_at, dsdt),
        (fadt_at, fadt),
        (madt_at, madt),
        (xsdt_at, bytes_of(&xsdt)),
    ] {
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

/// A generic address of one byte-wide I/O port.
fn port(offset: u16) -> GAS {
    GAS::new(
        acpi_tables::gas::AddressSpace::SystemIo,
        8,
        0,
        acpi_tables::gas::AccessSize::ByteAccess,
        u64::from(layout::ACPI_POWER_PORT + offset),
    )
}

fn fadt(dsdt_at: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_at)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::Wbinvd);
    fadt.reset_reg = port(RESET_OFFSET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = port(SLEEP_STATUS_OFFSET);
    // Hardware-reduced ACPI needs no timer, and may have one: Linux takes it from the wide field, other kernels
    // from the narrow one.
    let mut timer = port(0);
    (timer.address, timer.register_bit_width) = (u64::from(layout::ACPI_TIMER_PORT).into(), 32);
    timer.access_size = acpi_tables::gas::AccessSize::DwordAccess;
    fadt.x_pm_tmr_blk = timer;
    fadt.pm_tmr_blk = u32::from(layout::ACPI_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    // IAPC_BOOT_ARCH: no VGA (bit 2), no MSI (bit 3), no ASPM (bit 4). The keyboard controller
    // is not announced (bit 1): it is there for its reset line only.
    fadt.iapc_boot_arch = (1 << 2 | 1 << 3 | 1 << 4).into();
    fadt.finalize()
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

/// The differentiated description: soft-off, COM1, the CMOS clock, and the device for panics.
fn dsdt(has_pvpanic: bool) -> Vec<u8> {
    let zero = aml::ZERO;
    let soft_off = aml::Package::new(vec![&SLEEP_TYPE_S5, &zero, &zero, &zero]);
    let sleep = aml::Name::new("_S5_".into(), &soft_off);

    let serial_id = aml::EISAName::new("PNP0501");
    let serial_hid = aml::Name::new("_HID".into(), &serial_id);
    let serial_uid = aml::Name::new("_UID".into(), &zero);
    let serial_ports = aml::IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    let serial_interrupt = aml::Interrupt::new(true, true, false, false, layout::COM1_IRQ);
    let serial_template = aml::ResourceTemplate::new(vec![&serial_ports, &serial_interrupt]);
    let serial_resources = aml::Name::new("_CRS".into(), &serial_template);
    let serial = aml::Device::new("COM1".into(), vec![&serial_hid, &serial_uid, &serial_resources]);

    let clock_id = aml::EISAName::new("PNP0B00");
    let clock_hid = aml::Name::new("_HID".into(), &clock_id);
    let clock_ports = aml::IO::new(layout::RTC_PORT, layout::RTC_PORT, 1, 2);
    let clock_template = aml::ResourceTemplate::new(vec![&clock_ports]);
    let clock_resources = aml::Name::new("_CRS".into(), &clock_template);
    let clock = aml::Device::new("RTC_".into(), vec![&clock_hid, &clock_resources]);

    // As QEMU has it: there, enabled, shown and working (ACPI 6.5, 6.3.7 "_STA").
    let panic_hid = aml::Name::new("_HID".into(), &"QEMU0001");
    let panic_ports = aml::IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    let panic_template = aml::ResourceTemplate::new(vec![&panic_ports]);
    let panic_resources = aml::Name::new("_CRS".into(), &panic_template);
    let panic_state = aml::Name::new("_STA".into(), &0xfu8);
    let panic = aml::Device::new("PEVT".into(), vec![&panic_hid, &panic_state, &panic_resources]);

    let mut devices: Vec<&dyn Aml> = vec![&serial, &clock];
    if has_pvpanic {
        devices.push(&panic);
    }
    let bus = aml::Scope::new("\\_SB_".into(), devices);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&bytes_of(&bus));
    table.append_slice(&bytes_of(&sleep));
    table.as_slice().to_vec()
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
    use crate::bytes::{u32_at, u64_at};

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
        let block = tables(16, true);
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
        let block = tables(MAX_VCPUS, true);
        let named = |block: &[u8]| block.windows(8).any(|bytes| bytes == b"QEMU0001");
        assert!(named(&block) && !named(&tables(MAX_VCPUS, false)));
        assert!(block.len() as u64 <= layout::ACPI_TABLES_SIZE);
        let madt = bytes_of(&madt(3));
        let processors = madt[44..].chunks(8).filter(|entry| entry.starts_with(&[0, 8])).count();
        assert_eq!(processors, 3);
    }
}
