//! What firmware tells a guest of its machine, byte for byte as it was when each file of `golden` was written:
//! device trees, ACPI tables, and the bytes that a PC's firmware leaves in low memory. A change of what guests are
//! told is meant, or it is none.
//!
//! `VMM_WRITE_GOLDEN=1 cargo test -p guest-devices --test firmware` writes the files anew; their differences are what
//! guests will notice.

use arch::Isa;
use arch::board::acpi;
use arch::board::device_tree::{DeviceTree, GicVersion};
use arch::x86::{bios_data_area, reset_vector};
use devices::platform::{Extra, board};
use std::path::Path;

/// Compares with a file, or writes it.
fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("VMM_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).unwrap();
        return;
    }
    let wanted = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let differs = bytes.iter().zip(&wanted).position(|(is, was)| is != was);
    assert!(
        differs.is_none() && bytes.len() == wanted.len(),
        "{name}: {} bytes instead of {}, which differ from byte {:?} on",
        bytes.len(),
        wanted.len(),
        differs.unwrap_or(bytes.len().min(wanted.len()))
    );
}

/// An aarch64 machine.
struct Machine {
    vcpus: u64,
    gic: GicVersion,
    pmu: bool,
    memory: u64,
    initrd: Option<(u64, u64)>,
    extras: &'static [Extra],
}

fn device_tree(machine: &Machine) -> Vec<u8> {
    let mpidrs: Vec<u64> = (0..machine.vcpus).map(|id| 0x8000_0000 | (id / 16) << 8 | (id % 16)).collect();
    DeviceTree {
        cmdline: "console=ttyS0 quiet",
        memory: machine.memory,
        mpidrs: &mpidrs,
        gic: machine.gic,
        has_its: false,
        pmu: machine.pmu,
        initrd: machine.initrd,
        board: &board(Isa::Aarch64, machine.extras).unwrap(),
        seed: &std::array::from_fn(|index| index.to_le_bytes()[0]),
    }
    .bytes()
    .unwrap()
}

const PLAIN: Machine = Machine {
    vcpus: 1,
    gic: GicVersion::V3,
    pmu: true,
    memory: 512 << 20,
    initrd: None,
    extras: &[Extra::Exit],
};

/// Every device that a guest is told of.
const ALL: &[Extra] = &[Extra::Exit, Extra::Pvpanic];

#[test]
fn device_trees() {
    let initrd = Some((0x4f00_0000, 0x12_3456));
    for (name, machine) in [
        ("plain.dtb", PLAIN),
        ("bare.dtb", Machine { extras: &[], pmu: false, ..PLAIN }),
        ("pvpanic.dtb", Machine { extras: &[Extra::Pvpanic], ..PLAIN }),
        ("all.dtb", Machine { vcpus: 4, extras: ALL, initrd, memory: 6 << 30, ..PLAIN }),
        ("many_vcpus.dtb", Machine { vcpus: 123, initrd, ..PLAIN }),
        ("gicv2.dtb", Machine { vcpus: 2, gic: GicVersion::V2, extras: ALL, initrd, ..PLAIN }),
        ("gicv2_8_vcpus.dtb", Machine { vcpus: 8, gic: GicVersion::V2, ..PLAIN }),
    ] {
        golden(name, &device_tree(&machine));
    }
}

#[test]
fn acpi_tables() {
    for (name, vcpus, extras) in [
        ("plain.acpi", 1, &[][..]),
        // A kernel finds them without being told.
        ("plain.acpi", 1, &[Extra::Exit, Extra::Test]),
        ("pvpanic.acpi", 1, &[Extra::Pvpanic]),
        ("4_vcpus.acpi", 4, &[Extra::Exit]),
        ("255_vcpus_pvpanic.acpi", 255, ALL),
    ] {
        golden(name, &acpi::tables(vcpus, &board(Isa::X86_64, extras).unwrap()));
    }
}

#[test]
fn low_memory_of_a_pc() {
    let board = board(Isa::X86_64, ALL).unwrap();
    golden("reset_vector", &reset_vector::code(&board).unwrap());
    let [(data, bytes), (extended, extended_bytes)] = bios_data_area::areas(&board);
    assert_eq!((data.0, extended.0), (0x400, 0x9_fc00));
    golden("bios_data_area", &bytes);
    golden("extended_bios_data_area", &extended_bytes);
}
