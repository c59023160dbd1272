//! What is written is read back; what is damaged is told; nothing panics.

use super::core::Core;
use super::write::{self, Subject, WriteError};
use super::*;
use crate::disassemble::OperatingMode;
use crate::fake::Ram;
use crate::linux::VmCoreInfo;
use crate::machine::{Action, Activity, Event, Machine, Order, StopReason, Tables};
use crate::ram::{Absence, Memory};
use crate::source::{OnDisk, Source};
use arch::address::PhysRange;
use arch::register::{Bank, RegisterFile, table};
use arch::{GuestPhys, GuestVirt, Isa};
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const SIZE: usize = 0xc0_0000;

/// A file of a test's own, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("vmm-dump-{process}-{name}-{number}"));
        fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Two vCPUs whose registers are all different.
fn some_cpus(isa: Isa) -> Vec<DumpedVcpu> {
    let cpu = |id: usize, activity| {
        let mut registers = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate() {
            let byte = u8::try_from((row * 2 + id) % 255 + 1).unwrap();
            registers.set_bytes(row, &vec![byte; register.bytes()]);
        }
        // No paging, no x87 register in use, 64-bit code.
        let fixed = [("cr0", 0x11), ("efer", 0), ("ftag", 0xffff), ("cs_ar", 0xa09b), ("SCTLR_EL1", 0)];
        for (name, value) in fixed {
            if arch::register::row(isa, name).is_some() {
                registers.set(name, value);
            }
        }
        DumpedVcpu { registers, mode: OperatingMode::Bits64, activity, is_earlier: id == 1 }
    };
    vec![cpu(0, Activity::Running), cpu(1, Activity::Halted)]
}

fn some_memory() -> Ram {
    let ram = Ram::new(SIZE);
    for at in (0x10_0000..0x18_0000).step_by(0x1800) {
        ram.write(GuestPhys(at), &at.to_le_bytes());
    }
    ram.write(GuestPhys(SIZE as u64 - 1), b"!");
    ram
}

fn dump_to(isa: Isa, path: &std::path::Path) -> Result<write::Summary, WriteError> {
    let (cpus, memory) = (some_cpus(isa), some_memory());
    write::to_file(&Subject { isa, cpus: &cpus, memory: &memory }, path, &mut |_| ControlFlow::Continue(()))
}

fn read_file(path: &std::path::Path) -> Contents {
    open(Arc::new(OnDisk::new(File::open(path).unwrap()).unwrap())).unwrap()
}

fn all_of(memory: &dyn Memory) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    assert_eq!(memory.read(GuestPhys(0), &mut bytes), SIZE);
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let scratch = Scratch::new("back");
    for isa in Isa::ALL {
        let path = scratch.file(isa.name());
        let summary = dump_to(isa, &path).unwrap();
        assert_eq!((summary.memory, summary.has_info), (SIZE as u64, false));
        assert!(summary.stored > 0x5_0000 && summary.stored < 0x10_0000, "{summary:?}");
        let contents = read_file(&path);
        assert_eq!((contents.isa, contents.remarks.len()), (isa, 1));
        let told = "vCPU 1 has the registers of when it last left the guest before a reset or a triple fault";
        assert!(contents.remarks[0].starts_with(told), "{:?}", contents.remarks);
        assert_eq!(contents.cpus, some_cpus(isa));
        // Pages of zeros take no room.
        use std::os::unix::fs::MetadataExt;
        let blocks = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(blocks < 2 * summary.stored, "{blocks}");
        let core = Core::new(contents, false).unwrap();
        assert_eq!(all_of(core.memory()), all_of(&some_memory()));
        let populated: u64 = core.memory().populated().iter().map(|range| range.size).sum();
        assert!(populated < SIZE as u64 / 2, "{populated:#x}");
    }
}

/// A dump in the three ways that names ask for.
fn dumps_of_each_kind(scratch: &Scratch) -> [Vec<u8>; 3] {
    ["core", "core.gz", "core.zst"].map(|name| {
        let path = scratch.file(name);
        dump_to(Isa::X86_64, &path).unwrap();
        fs::read(path).unwrap()
    })
}

#[test]
fn compressed_files_hold_the_same() {
    use std::io::Read;
    let scratch = Scratch::new("packed");
    let [plain, gz, zst] = dumps_of_each_kind(&scratch);
    assert!(gz.len() < plain.len() / 2 && zst.len() < plain.len() / 2, "{} {}", gz.len(), zst.len());
    // As the usual tools see them.
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(gz.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain);
    let (mut rest, mut unpacked) = (zst.as_slice(), Vec::new());
    while !rest.starts_with(&0x184d_2a5e_u32.to_le_bytes()) {
        let mut frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).unwrap();
        frame.read_to_end(&mut unpacked).unwrap();
    }
    assert!(unpacked == plain);
    let size = u32::from_le_bytes(rest[4..8].try_into().unwrap());
    assert_eq!(rest.len(), 8 + usize::try_from(size).unwrap(), "the last frame ends with the file");
    // As we do.
    for (bytes, name) in [(gz, "gzip"), (zst, "Zstandard")] {
        let packing = packing::Packing::of_file(&bytes).unwrap();
        let source = read::packed::Packed::new(Arc::new(bytes.clone()), packing).unwrap();
        let mut unpacked = vec![0; plain.len() + 1];
        assert_eq!(source.read_at(0, &mut unpacked).unwrap(), plain.len());
        assert!(unpacked[..plain.len()] == plain);
        for at in (0..plain.len()).step_by(100_003).chain([plain.len() - 1, plain.len()]) {
            let mut some = [0; 7];
            let count = source.read_at(at as u64, &mut some).unwrap();
            assert_eq!(some[..count], plain[at..(at + 7).min(plain.len())], "{at}");
        }
        let contents = open(Arc::new(bytes)).unwrap();
        assert_eq!(contents.format, format!("ELF core of vmm, compressed by {name}"));
        assert_eq!(all_of(Core::new(contents, false).unwrap().memory()), all_of(&some_memory()));
    }
}

#[test]
fn damaged_compressed_files() {
    let scratch = Scratch::new("damaged");
    let [_, gz, zst] = dumps_of_each_kind(&scratch);
    let told = |bytes: &[u8]| open(Arc::new(bytes.to_vec())).map(drop).map_err(|error| error.to_string());
    // Cut off: within the first member, between two, within the table.
    let first = usize::from(u16::from_le_bytes([gz[16], gz[17]])) + 1;
    for (bytes, message) in [
        (&gz[..first - 1], "the file ends within a gzip member, at offset 0x0"),
        (&gz[..first], "the file ends within a gzip member"),
        (&gz[..gz.len() - 1], "the file ends within a gzip member"),
        (&zst[..zst.len() - 1], "in one piece: unpack it first (zstd -d)"),
    ] {
        let error = told(bytes).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let with = |bytes: &[u8], at: usize, value: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        told(&bytes)
    };
    let (end, table) = (zst.len(), u32::from_le_bytes(zst[zst.len() - 9..][..4].try_into().unwrap()));
    let table = end - 9 - 8 * usize::try_from(table).unwrap();
    for (result, message) in [
        (with(&gz, 16, &[20, 0]), "a gzip member of 21 bytes, fewer than there can be"),
        (with(&gz, first, &[0]), "of another kind than the first"),
        (with(&gz, first - 1, &[1]), "more than there can be"),
        (with(&gz, 40, &[!gz[40]]), "a compressed block is damaged"),
        (with(&zst, 200, &[!zst[200]; 99]), "a compressed block is damaged"),
        (with(&zst, end - 9, &[255; 4]), "4294967295 Zstandard frames"),
        (with(&zst, end - 9, &[0, 0, 1, 0]), "a table of 65536 Zstandard frames"),
        (with(&zst, table - 1, &[1]), "does not begin like one"),
        (with(&zst, table, &[255; 4]), "a Zstandard frame of 0xffffffff bytes"),
        // It says that it unpacks to less, and to more.
        (with(&zst, table + 4, &[9, 0, 0, 0]), "a compressed block is damaged"),
        (with(&zst, table + 4, &[0, 0, 0, 1]), "a compressed block is damaged"),
    ] {
        let error = result.unwrap_err();
        assert!(error.contains(message), "{error:?} instead of {message:?}");
    }
    // One that holds itself, or another.
    let block = gz.len().min(packing::Packing::Gzip.block());
    let mut twice = packing::Packing::Gzip.pack(&gz[..block]).unwrap().bytes;
    twice.extend(packing::Packing::Gzip.end(&[]));
    assert_eq!(told(&twice).unwrap_err(), "compressed more than once: unpack it first");
}

#[test]
fn nothing_half_written_is_left() {
    let scratch = Scratch::new("half");
    let path = scratch.file("core");
    fs::write(&path, "before").unwrap();
    let (cpus, memory) = (some_cpus(Isa::X86_64), some_memory());
    let subject = Subject { isa: Isa::X86_64, cpus: &cpus, memory: &memory };
    let broken = write::to_file(&subject, &path, &mut |_| ControlFlow::Break(()));
    assert!(matches!(broken, Err(WriteError::Cancelled(_))));
    let missing = write::to_file(&subject, &scratch.file("no/such"), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(missing, Err(WriteError::Io { .. })));
    let folder = write::to_file(&subject, &scratch.0, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(folder, Err(WriteError::NoFile(_))));
    let full =
        write::to_file(&subject, std::path::Path::new("/dev/full"), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(full, Err(WriteError::NoFile(_))));
    assert_eq!(fs::read(&path).unwrap(), b"before");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
    // What a process that was killed has left is no trouble, and stays.
    let left = scratch.file(&format!("core.partial-{}-0", std::process::id()));
    fs::write(&left, "left").unwrap();
    write::to_file(&subject, &path, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"\x7fELF"));
    assert_eq!(fs::read(&left).unwrap(), b"left");
}

fn core(is_writable: bool) -> Core {
    let scratch = Scratch::new(if is_writable { "w" } else { "r" });
    let path = scratch.file("core");
    dump_to(Isa::X86_64, &path).unwrap();
    Core::new(read_file(&path), is_writable).unwrap()
}

#[test]
fn a_core_does_not_run() {
    let mut core = core(false);
    let order = |action| Order { action, arming: crate::arming::Arming::off(Isa::X86_64), steps_off: false };
    core.resume(vec![order(Action::Stay), order(Action::Step)]).unwrap();
    let Some(Event::Stopped { vcpu: 1, reason: StopReason::Refused(_), .. }) = core.next_event() else {
        panic!("it does not say that it does not run");
    };
    assert!(core.next_event().is_none());
    assert!(core.control(crate::machine::Control::Reset).is_err());
}

#[test]
fn changes_are_in_a_copy() {
    let place = GuestPhys(0x10_0ffc);
    let mut file = RegisterFile::new(Isa::X86_64);
    file.set("rip", 0x1234);
    let core_read = core(false);
    assert_eq!(core_read.memory().write(place, b"12345678"), 0);
    assert!(core_read.set_registers(0, &file).is_err());
    let core = core(true);
    let before = all_of(core.memory());
    assert_eq!(core.memory().write(place, b"12345678"), 8);
    assert_eq!(core.memory().write(GuestPhys(SIZE as u64 - 2), b"1234"), 2);
    core.set_registers(1, &file).unwrap();
    assert_eq!(core.registers(1, &[]).unwrap().pc(), Some(0x1234));
    assert_ne!(core.registers(0, &[]).unwrap().pc(), Some(0x1234));
    let after = all_of(core.memory());
    let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert_eq!((&after[0x10_0ffc..0x10_1004], changed <= 10), (&b"12345678"[..], true));
    assert_eq!(diff::compare(core.memory(), core_read.memory()).changed.len(), 2);
}

/// An ELF core by hand: its segments as type, offset, virtual and physical address, file and memory size.
fn elf_of(machine: u16, segments: &[[u64; 6]], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    bytes.resize(16, 0);
    bytes.extend([4, machine].map(u16::to_le_bytes).concat());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend([0, 64, 0].map(u64::to_le_bytes).concat());
    bytes.extend(0u32.to_le_bytes());
    let count = u16::try_from(segments.len()).unwrap();
    bytes.extend([64, 56, count, 0, 0, 0].map(u16::to_le_bytes).concat());
    for [kind, offset, start, physical, in_file, size] in segments {
        bytes.extend(u32::try_from(*kind).unwrap().to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        bytes.extend([*offset, *start, *physical, *in_file, *size, 0].map(u64::to_le_bytes).concat());
    }
    bytes.resize(0x1000, 0);
    bytes.extend(rest);
    bytes
}

fn told(bytes: Vec<u8>) -> String {
    open(Arc::new(bytes)).unwrap_err().to_string()
}

#[test]
fn segments_that_overlap_wrap_or_are_cut_off() {
    let page = |byte| vec![byte; 0x1000];
    let rest = [page(1), page(2), page(3)].concat();
    // The second lies half over the first; of the third the file has only the beginning, and says so.
    let load = |offset, physical, in_file, size| [1, offset, 0, physical, in_file, size];
    let segments = [
        load(0x1000, 0x8000, 0x1000, 0x1000),
        load(0x2000, 0x8800, 0x1000, 0x1000),
        load(0x3000, 0xa000, 0x800, 0x2000),
    ];
    let contents = open(Arc::new(elf_of(62, &segments, &rest))).unwrap();
    let ranges: Vec<(u64, u64)> =
        contents.image.ranges().iter().map(|range| (range.start.0, range.size)).collect();
    assert_eq!(ranges, [(0x8000, 0x1800), (0xa000, 0x2000)]);
    assert!(contents.remarks[0].starts_with("0x1800 bytes of memory were left out, as makedumpfile -E does"));
    let mut bytes = vec![9; 0x4000];
    assert_eq!(contents.image.read(0x8000, &mut bytes), 0x1800);
    assert!(
        bytes[..0x1000].iter().all(|byte| *byte == 1) && bytes[0x1000..0x1800].iter().all(|byte| *byte == 2)
    );
    assert_eq!((contents.image.read(0xa7fe, &mut bytes[..4]), &bytes[..2]), (2, &[3, 3][..]));
    assert!(matches!(contents.image.absence(0xa800), Some(Absence::LeftOut(_))));
    assert_eq!((contents.image.absence(0xa7ff), contents.image.absence(0x9800)), (None, None));
    assert_eq!((contents.image.read(0x9800, &mut bytes), contents.image.read(u64::MAX, &mut bytes)), (0, 0));
    // Cut off: what is missing is not there, and that is said.
    let mut short = elf_of(62, &segments, &rest);
    short.truncate(0x2800);
    let contents = open(Arc::new(short)).unwrap();
    assert_eq!(contents.remarks[0], "the file is cut off: 0x1000 bytes of memory are missing");
    assert_eq!((contents.image.read(0x9000, &mut bytes), contents.image.read(0xa000, &mut bytes)), (0, 0));
    for at in [0x9000, 0xa000] {
        assert_eq!(contents.image.absence(at), Some(Absence::CutOff));
    }
    for (segments, text) in [
        (vec![load(0x1000, u64::MAX - 0xfff, 0x1000, 0x2000)], "past the end of all memory"),
        (vec![load(u64::MAX, 0, 2, 2)], "past the end of all memory"),
        (vec![], "a core without memory"),
        (vec![[4, 0x1000, 0, 0, 1 << 40, 0]], "bytes of notes, more than"),
        // Each of them would do, and all have the same bytes.
        (vec![[4, 0x1000, 0, 0, 33 << 20, 0]; 2], "69206016 bytes of notes, more than"),
        (
            (0..9).map(|at| load(0, at << 20, 0x1000, 0x1000)).collect(),
            "the same bytes of the file at several physical addresses",
        ),
    ] {
        let message = told(elf_of(62, &segments, &rest));
        assert!(message.contains(text) && message.contains("at offset 0x"), "{message}");
    }
}

#[test]
fn files_that_are_something_else() {
    let good = elf_of(62, &[[1, 0x1000, 0, 0, 0x10, 0x10]], &[7; 16]);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        told(bytes)
    };
    for (message, text) in [
        (told(Vec::new()), "neither an ELF core nor a compressed kdump"),
        (told(b"hello, this is text".to_vec()), "neither an ELF core"),
        (told(b"\xfd7zXZ\0\0\0".to_vec()), "compressed by xz, which is not read: unpack it first (xz -dk)"),
        (told(b"BZh91AY".to_vec()), "by bzip2"),
        (
            told([&b"\x1f\x8b\x08\0"[..], &[9; 99]].concat()),
            "by gzip in one piece: unpack it first (gunzip -k)",
        ),
        (told(b"\x28\xb5\x2f\xfd".to_vec()), "in one piece: unpack it first (zstd -d)"),
        (told(good[..40].to_vec()), "the file ends within the ELF header, at offset 0x0"),
        (told(good[..100].to_vec()), "the file ends within the program headers, at offset 0x40"),
        (with(4, &[1]), "32 bits"),
        (with(5, &[2]), "big-endian"),
        (with(16, &[2]), "no core"),
        (with(18, &[243]), "machine 243"),
        (with(54, &[32]), "program headers of 32 bytes"),
        (with(56, &[0xff, 0xff]), "core without memory"),
        (with(32, &[0xff; 8]), "program headers"),
    ] {
        assert!(message.contains(text) && !message.contains('\n'), "{text:?} is not in {message:?}");
    }
}

/// A compressed kdump by hand, of pages that are stored as they are.
fn kdump_of(machine: &str, pages: &[Option<&[u8]>], how: u32) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut bytes = b"KDUMP   ".to_vec();
    bytes.extend(6u32.to_le_bytes());
    bytes.resize(12 + 4 * 65, 0);
    bytes.extend(machine.as_bytes());
    bytes.resize(PAGE, 0);
    for (at, value) in [(428, PAGE), (432, 1), (436, 2)] {
        bytes[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
    }
    bytes.resize(2 * PAGE, 0);
    bytes[PAGE + 96..PAGE + 104].copy_from_slice(&(pages.len() as u64 + 1).to_le_bytes());
    let bits = |test: &dyn Fn(&Option<&[u8]>) -> bool| {
        let mut map = vec![0u8; PAGE];
        for (page, content) in pages.iter().enumerate() {
            map[page / 8] |= u8::from(test(content)) << (page % 8);
        }
        map
    };
    bytes.extend(bits(&|_| true));
    bytes.extend(bits(&|page| page.is_some()));
    let stored: Vec<&[u8]> = pages.iter().flatten().copied().collect();
    let mut at = bytes.len() + 24 * stored.len();
    for page in &stored {
        bytes.extend((at as u64).to_le_bytes());
        bytes.extend([u32::try_from(page.len()).unwrap(), how].map(u32::to_le_bytes).concat());
        bytes.extend([0; 8]);
        at += page.len();
    }
    stored.iter().for_each(|page| bytes.extend(*page));
    bytes
}

#[test]
fn compressed_pages_of_every_kind() {
    use std::io::Write;
    let page: Vec<u8> = (0..4096u32).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect();
    let zlib = |bytes: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let lzo = |bytes: &[u8]| lzokay_native::compress(bytes).unwrap();
    let snappy = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    let zstd =
        |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    type Compress<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let kinds: [(u32, Compress<'_>); 5] =
        [(0, &<[u8]>::to_vec), (1, &zlib), (2, &lzo), (4, &snappy), (0x20, &zstd)];
    for (how, compress) in kinds {
        let packed = compress(&page);
        let mut file = kdump_of("aarch64", &[Some(&packed), None, Some(&packed)], how);
        // Zeros were left out, and nothing else.
        file[4096 + 8] = 1;
        let contents = open(Arc::new(file)).unwrap();
        assert_eq!((contents.isa, contents.image.ranges()), (Isa::Aarch64, vec![PhysRange::new(0, 0x3000)]));
        let mut bytes = vec![9; 0x4000];
        assert_eq!(contents.image.read(0, &mut bytes), 0x3000, "{how}");
        assert!(bytes[..0x1000] == page && bytes[0x2000..0x3000] == page, "{how}");
        assert!(bytes[0x1000..0x2000].iter().all(|byte| *byte == 0));
        // Damage is a page that cannot be read.
        let damaged = kdump_of("aarch64", &[Some(&packed[..packed.len() / 2])], how);
        assert_eq!(open(Arc::new(damaged)).unwrap().image.read(0, &mut bytes), 0, "{how}");
    }
    // Pages that become more than a page.
    for (how, compress) in &kinds[1..] {
        let bomb = compress(&[0; 64 << 10]);
        assert!(bomb.len() <= 4096, "{how}");
        let contents = open(Arc::new(kdump_of("x86_64", &[Some(&bomb)], *how))).unwrap();
        assert_eq!(contents.image.read(0, &mut [0; 64]), 0, "{how}");
    }
}

#[test]
fn pages_that_are_not_there_are_no_zeros() {
    let file = kdump_of("x86_64", &[Some(&[7; 4096]), None, Some(&[8; 4096])], 0);
    let why = |file: &[u8], page: u64| {
        let contents = open(Arc::new(file.to_vec())).unwrap();
        let core = Core::new(contents, false).unwrap();
        let place = GuestPhys(page * 4096);
        let why = core.memory().absence(place).map(|why| why.to_string()).unwrap_or_default();
        assert_eq!(core.memory().read(place, &mut [0; 8]), if why.is_empty() { 8 } else { 0 });
        why
    };
    for (level, words) in [
        (0, "the page was never written: the dump is incomplete"),
        (1, ""),
        (17, "the page was left out of the dump, by makedumpfile -d 17 (pages of zeros, free pages)"),
        (
            31,
            "the page was left out of the dump, by makedumpfile -d 31 \
             (pages of zeros, page cache, private page cache, user data, free pages)",
        ),
    ] {
        let mut file = file.clone();
        file[4096 + 8] = level;
        assert_eq!((why(&file, 0).as_str(), why(&file, 1).as_str()), ("", words));
    }
    // The third page's descriptor was never written, its bytes were not, or they are damaged.
    let descriptor = 4 * 4096 + 24;
    let mut never = file.clone();
    never[descriptor..descriptor + 8].fill(0);
    assert!(why(&never, 2).contains("never written") && why(&never, 0).is_empty());
    let short = &file[..file.len() - 4096];
    assert_eq!(why(short, 2), Absence::CutOff.to_string());
    let mut damaged = file.clone();
    damaged[descriptor + 12] = 0x20;
    assert_eq!(why(&damaged, 2), Absence::Damaged.to_string());
    let mut incomplete = short.to_vec();
    incomplete[424] = 0x9;
    assert_eq!(why(&incomplete, 2), Absence::NotWritten.to_string());
    let remarks = open(Arc::new(incomplete)).unwrap().remarks;
    assert!(remarks[0].starts_with("the dump is incomplete"), "{remarks:?}");
    // gdb is told, and so is who asks for the walk; a debugger that does not know words gets a number.
    let mut level = file.clone();
    level[4096 + 8] = 31;
    let contents = open(Arc::new(level)).unwrap();
    let core = Core::new(contents, false).unwrap();
    let engine = crate::engine::Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
    let mut session = crate::gdb::session::Session::new(core, Arc::new(engine));
    session.debuggee.is_physical = true;
    for (features, answer) in
        [("", "$E0e#"), ("error-message+", "$E.0x1000: the page was left out of the dump, by")]
    {
        let packets = [format!("qSupported:{features}"), "m1000,8".into()];
        let input: Vec<u8> =
            packets.iter().flat_map(|packet| crate::gdb::packet::frame(packet.as_bytes())).collect();
        let said = crate::gdb::client::converse(&mut session, &input).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(answer), "{said}");
    }
}

/// A program looks at a dump by the same contexts as at a live guest.
#[test]
fn a_dump_for_a_program() {
    use crate::context::{Address, ContextState, Debuggee, Missing, Mode, ResumeError, Unable};
    // The second page was left out.
    let mut file = kdump_of("x86_64", &[Some(&[7; 4096]), None, Some(&[8; 4096])], 0);
    file[4096 + 8] = 31;
    let core = Core::new(open(Arc::new(file)).unwrap(), false).unwrap();
    let engine = crate::engine::Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
    let mut guest = Debuggee::new(core, Arc::new(engine));
    guest.attach();
    let (root, mut bytes) = (guest.root(), [0; 16]);
    assert!(matches!(guest.state(root), Ok(ContextState::Stopped(_))));
    for mode in [Mode::Run, Mode::StepInto, Mode::StepOut, Mode::UntilActive] {
        assert_eq!(guest.can(root, mode.clone()), Err(Unable::NeverRuns));
        let refused = guest.resume(root, mode.backwards());
        assert!(matches!(refused, Err(ResumeError::Unable(Unable::NeverRuns))), "{refused:?}");
    }
    let end = guest.read(root, Address::physical(0xffa), &mut bytes).unwrap_err();
    assert_eq!((end.good, &bytes[..6], end.address), (6, &[7; 6][..], Address::physical(0x1000)));
    assert!(matches!(end.missing, Missing::Absent(Absence::LeftOut(_))), "{end}");
    let end = guest.write(root, Address::physical(0), &bytes).unwrap_err();
    assert!(end.good == 0 && matches!(end.missing, Missing::ReadOnly(_)), "{end}");
    let end = guest.read(root, Address::port(0), &mut bytes).unwrap_err();
    assert_eq!(end.missing, Missing::Unable(Unable::NoPorts));
}

#[test]
fn a_dump_of_a_dump_says_what_it_has_not_got() {
    let scratch = Scratch::new("again");
    let mut filtered = kdump_of("x86_64", &[Some(&[7; 4096]), None, Some(&[8; 4096]), Some(&[9; 4096])], 0);
    filtered[4096 + 8] = 31;
    let damaged = 4 * 4096 + 24;
    filtered[damaged + 12] = 0x20;
    let core = Core::new(open(Arc::new(filtered)).unwrap(), false).unwrap();
    let subject = Subject { isa: Isa::X86_64, cpus: &[], memory: core.memory() };
    let path = scratch.file("core");
    let summary = write::to_file(&subject, &path, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((summary.memory, summary.stored, summary.missing), (0x4000, 0x2000, 0x2000));
    let copy = Core::new(read_file(&path), false).unwrap();
    let found = diff::compare(core.memory(), copy.memory());
    assert_eq!((found.changed, found.only_one), (Vec::new(), vec![PhysRange::new(0x1000, 0x2000)]));
}

#[test]
fn kdumps_that_lie() {
    let good = kdump_of("x86_64", &[Some(&[7; 4096])], 0);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        told(bytes)
    };
    for (message, text) in [
        (told(good[..300].to_vec()), "the file ends within the header"),
        (told(good[..5000].to_vec()), "the file ends within the first bitmap"),
        (told(kdump_of("s390x", &[], 0)), "machine \"s390x\""),
        (with(428, &[1, 0, 0, 0]), "pages of 1 bytes"),
        (with(436, &[0xff; 4]), "bitmaps of"),
        (with(4096 + 96, &[0xff; 8]), "bitmaps are too small"),
        (with(4096 + 12, &[1]), "--split"),
    ] {
        assert!(message.contains(text) && !message.contains('\n'), "{text:?} is not in {message:?}");
    }
    // QEMU does not say what machine it was; the first note does.
    let mut unnamed = kdump_of("Unknown", &[Some(&[7; 4096])], 0);
    for (at, value) in [(48, unnamed.len() as u64), (56, 12 + 8 + 392)] {
        unnamed[4096 + at..4096 + at + 8].copy_from_slice(&value.to_le_bytes());
    }
    unnamed.extend([5u32, 392, 1].map(u32::to_le_bytes).concat());
    unnamed.extend(b"CORE\0\0\0\0");
    unnamed.extend([1; 392]);
    let contents = open(Arc::new(unnamed)).unwrap();
    assert_eq!((contents.isa, contents.cpus.len()), (Isa::Aarch64, 1));
    assert_eq!(contents.cpus[0].registers.pc(), Some(0x0101_0101_0101_0101));
    // A page that is nowhere.
    let mut wild = good.clone();
    wild[4 * 4096..4 * 4096 + 8].fill(0xff);
    assert_eq!(open(Arc::new(wild)).unwrap().image.read(0, &mut [0; 8]), 0);
}

#[test]
fn a_vcpu_without_tables_is_read_by_another_ones() {
    for isa in Isa::ALL {
        let mut cpus = vec![DumpedVcpu::unknown(isa); 3];
        let values: &[(&str, u64)] = match isa {
            Isa::X86_64 => &[("cr0", 0x8000_0011), ("cr3", 0x1000), ("cr4", 0x20), ("efer", 0xd00)],
            Isa::Aarch64 => {
                &[("SCTLR_EL1", 1), ("TCR_EL1", 0x8010_0010), ("TTBR0_EL1", 0), ("TTBR1_EL1", 0x1000)]
            }
        };
        for cpu in &mut cpus[..2] {
            values.iter().for_each(|(name, value)| cpu.registers.set(name, *value));
        }
        // The first has paging off, the last tells nothing.
        for (name, value) in [("cr0", 0x10), ("cr3", 0), ("cr4", 0), ("efer", 0), ("SCTLR_EL1", 0)] {
            if arch::register::row(isa, name).is_some() {
                cpus[0].registers.set(name, value);
            }
        }
        let core = |cpus: &[DumpedVcpu]| {
            let image =
                read::raw::read(Arc::new(vec![0; 0x4000]), isa, 0, RegisterFile::new(isa)).unwrap().image;
            let (format, remarks) = (String::new(), Vec::new());
            let contents = Contents { format, isa, image, cpus: cpus.to_vec(), info: None, remarks };
            Core::new(contents, false).unwrap()
        };
        let all = core(&cpus);
        let tables: Vec<_> = (0..3).map(|vcpu| all.translation(vcpu).map(|it| it.1).ok()).collect();
        assert_eq!(tables, [Tables::Vcpu(1), Tables::Own, Tables::Vcpu(1)].map(Some), "{isa}");
        assert_eq!(all.regime(0).unwrap(), all.regime(1).unwrap());
        assert_eq!(
            all.remarks(),
            ["paging is off in vCPU 0, 2: there addresses are translated by vCPU 1's tables"]
        );
        // Where there are none, off is off, and nothing is nothing.
        cpus.remove(1);
        let none = core(&cpus);
        assert!(!none.regime(0).unwrap().is_on() && none.regime(1).is_err() && none.remarks().is_empty());
    }
}

#[test]
fn plain_memory_as_it_is_described() {
    let mut file = RegisterFile::new(Isa::Aarch64);
    file.set("pc", 0x4000_0004);
    let bytes: Vec<u8> = (0..200).collect();
    let contents = read::raw::read(Arc::new(bytes), Isa::Aarch64, 0x4000_0000, file).unwrap();
    let core = Core::new(contents, false).unwrap();
    let mut two = [0; 2];
    assert_eq!((core.memory().read(GuestPhys(0x4000_00c7), &mut two), two[0]), (1, 199));
    assert_eq!(core.memory().read(GuestPhys(0x3fff_ffff), &mut two), 0);
    assert_eq!(core.registers(0, &[]).unwrap().pc(), Some(0x4000_0004));
    let file = RegisterFile::new(Isa::Aarch64);
    assert!(read::raw::read(Arc::new(vec![0; 9]), Isa::Aarch64, u64::MAX - 4, file.clone()).is_err());
    assert!(read::raw::read(Arc::new(Vec::new()), Isa::Aarch64, 0, file).is_err());
}

#[test]
fn tables_by_the_kernels_description() {
    // A 4 KiB page at 0xffff_ffff_8100_0000 by four levels; the image is 16 MiB further on.
    let ram = Ram::new(0x20_0000);
    let word = |at: u64, value: u64| assert_eq!(ram.write(GuestPhys(at), &value.to_le_bytes()), 8);
    let at = 0xffff_ffff_8100_0000u64;
    for (table, shift, next) in
        [(0x1000, 39, 0x2003), (0x2000, 30, 0x3003), (0x3000, 21, 0x4003), (0x4000, 12, 0x5003)]
    {
        word(table + (at >> shift & 511) * 8, next);
    }
    let text = "OSRELEASE=6.12\nPAGESIZE=4096\nSYMBOL(init_top_pgt)=ffffffff81001000\n\
        NUMBER(phys_base)=-16777216\nNUMBER(pgtable_l5_enabled)=0\n";
    let info = VmCoreInfo::parse(text.as_bytes()).unwrap();
    let regime = crate::linux::translate::kernel_regime(Isa::X86_64, &info).unwrap();
    assert_eq!(regime.translate(&ram, GuestVirt(at + 8)).unwrap().address, GuestPhys(0x5008));
    // aarch64, 48 bits of addresses: the same place by its own tables.
    let ram = Ram::new(0x20_0000);
    let word = |at: u64, value: u64| assert_eq!(ram.write(GuestPhys(at), &value.to_le_bytes()), 8);
    let at = 0xffff_8000_8000_0000u64;
    for (table, shift, next) in
        [(0x1000, 39, 0x2003), (0x2000, 30, 0x3003), (0x3000, 21, 0x4003), (0x4000, 12, 0x5703)]
    {
        word(table + (at >> shift & 511) * 8, next);
    }
    let text = "OSRELEASE=6.12\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffff800080001000\n\
        NUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\nNUMBER(kimage_voffset)=0xffff800080000000\n";
    let info = VmCoreInfo::parse(text.as_bytes()).unwrap();
    let regime = crate::linux::translate::kernel_regime(Isa::Aarch64, &info).unwrap();
    assert_eq!(regime.translate(&ram, GuestVirt(at + 8)).unwrap().address, GuestPhys(0x5008));
    // Where a dump has no TCR_EL1, the kernel tells how wide authentication codes are, if it has any.
    for (mask, code) in [("0xffff000000000000", Some(0xff7f_0000_0000_0000)), ("0x0", None)] {
        let text = format!("{text}NUMBER(KERNELPACMASK)={mask}\n");
        let memory = Arc::new(vec![0u8; 4096]);
        let mut contents = read::raw::read(memory, Isa::Aarch64, 0, RegisterFile::new(Isa::Aarch64)).unwrap();
        contents.info = VmCoreInfo::parse(text.as_bytes());
        let file = Core::new(contents, false).unwrap().registers(0, &Bank::ALL).unwrap();
        assert_eq!(file.get("pauth_cmask_high"), code);
        assert_eq!(file.get("pauth_cmask"), code.map(|_| 0x007f_0000_0000_0000));
    }
    for lacks in ["SYMBOL", "kimage_voffset", "PAGESIZE"] {
        let text: String =
            text.lines().filter(|line| !line.contains(lacks)).map(|line| format!("{line}\n")).collect();
        let info = VmCoreInfo::parse(format!("{text}PAGESIZE=1\n").as_bytes()).unwrap();
        assert_eq!(crate::linux::translate::kernel_regime(Isa::Aarch64, &info), None, "{lacks}");
    }
}
