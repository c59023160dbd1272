use super::*;
use crate::boot::testing::{Scratch, Segment, Setting, board, elf, read, word};
use arch::Isa;
use arch::board::device_tree::GicVersion;

const AARCH64: u16 = 183;
const PLATFORM: Platform = Platform { gic: GicVersion::V3, mpidrs: &[0], its: false, pmu: true };
const MIB: u64 = 1 << 20;

fn boot(file: &[u8], setting: &Setting) -> Result<(Booted, u64, GuestMemory), BootError> {
    let (kernel, memory) = setting.open(Isa::Aarch64, file)?;
    let booted = prepare(&memory, &kernel, &setting.config(&board(Isa::Aarch64)), &PLATFORM)?;
    let State::Aarch64(state) = &booted.state else { panic!("the other architecture's") };
    let tree = state.x0;
    Ok((booted, tree, memory))
}

fn refused(file: &[u8], setting: &Setting) -> String {
    let error = boot(file, setting).map(|(booted, ..)| booted).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// An `Image` that needs `size` bytes.
fn image(size: u64) -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[16..24].copy_from_slice(&size.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// Where a tree says the initrd is: its start and end.
fn initrd(memory: &GuestMemory, tree: u64) -> (u64, u64) {
    let size = u32::from_be(u32::try_from(word(memory, tree + 4)).unwrap());
    let bytes = read(memory, tree, size as usize);
    let fdt = fdt::Fdt::new(&bytes).unwrap();
    let chosen = fdt.find_node("/chosen").unwrap();
    let at = |name| {
        let value = chosen.property(name).unwrap().value;
        u64::from_be_bytes(value.try_into().unwrap())
    };
    (at("linux,initrd-start"), at("linux,initrd-end"))
}

#[test]
fn the_device_tree_lies_above_kernel_and_initrd() {
    let files = [Scratch::new("small", &[1; 100]), Scratch::sparse("large", 100 * MIB)];
    for file in &files {
        let initrds = [file.0.clone()];
        let size = std::fs::metadata(&file.0).unwrap().len();
        let setting = Setting { initrds: &initrds, ..Setting::default() };
        let flat = Setting {
            load_address: Some(0x4008_0000),
            ..Setting { initrds: &initrds, ..Setting::default() }
        };
        let segment = Segment { at: 0x4000_0000, bytes: &[0; 16], memory: 32 * MIB };
        for (kernel, setting, entry, end) in [
            (image(32 * MIB), &setting, 0x4020_0000, 0x4220_0000),
            (elf(AARCH64, 0x4000_0008, &[segment], None), &setting, 0x4000_0008, 0x4200_0000),
            (vec![0x5a; 4096], &flat, 0x4008_0000, 0x4008_1000),
        ] {
            let (booted, tree, memory) = boot(&kernel, setting).unwrap();
            assert_eq!(booted.entry, GuestPhys(entry));
            let (start, last) = initrd(&memory, tree);
            assert!(start >= end && last - start == size && tree >= last, "{start:#x} {last:#x} {tree:#x}");
            assert!(
                tree.is_multiple_of(DEVICE_TREE_ALIGNMENT) && tree + 65536 >= 0x4000_0000 + setting.memory
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_told() {
    let small = Setting { memory: 4 * MIB, ..Setting::default() };
    let all = Segment { at: 0x4000_0000, bytes: &[0; 16], memory: 4 * MIB };
    assert!(refused(&elf(AARCH64, 0x4000_0000, &[all], None), &small).contains("device tree"));
    boot(&image(MIB), &small).unwrap();
    // Behind a kernel at the end of memory there is no room, but below it there is.
    let segment = || Segment { at: 0x4030_0000, bytes: &[0; 16], memory: MIB };
    let (_, tree, _) = boot(&elf(AARCH64, 0x4030_0000, &[segment()], None), &small).unwrap();
    assert!(tree < 0x4030_0000);
    let initrds = [Scratch::new("one", &[1; 100])];
    let with = Setting { initrds: &[initrds[0].0.clone()], ..small };
    assert!(refused(&elf(AARCH64, 0x4030_0000, &[segment()], None), &with).contains("more --memory"));
    let flat = Setting { load_address: Some(0x1000), ..Setting::default() };
    assert!(refused(&[0x5a; 64], &flat).contains("0x1000"));
    let huge = Scratch::sparse("huge", 40 << 30);
    let initrds = [huge.0.clone()];
    let setting = Setting { memory: 64 << 30, initrds: &initrds, ..Setting::default() };
    let error = refused(&image(MIB), &setting);
    assert!(error.contains("make it smaller") && !error.contains("more --memory"), "{error}");
}

#[test]
fn linux_gets_no_line_that_it_would_cut_off() {
    let long = "x".repeat(2048);
    let setting = Setting { cmdline: &long, ..Setting::default() };
    assert!(refused(&image(MIB), &setting).contains("takes 2047"));
    boot(&image(MIB), &Setting { cmdline: &long[1..], ..Setting::default() }).unwrap();
    let flat = Setting { load_address: Some(0x4008_0000), ..setting };
    boot(&[0x5a; 64], &flat).unwrap();
}

#[test]
fn a_string_for_a_module_is_refused() {
    let file = Scratch::new("initrd", &[1; 100]);
    let initrds = [format!("{} a=b", file.0.display()).into()];
    let error = refused(&image(MIB), &Setting { initrds: &initrds, ..Setting::default() });
    assert!(error.contains("'a=b'"), "{error}");
}
