//! Dumps, whole and packed in every way.

use super::change;
use arch::register::note::{self, Note};
use arch::register::{RegisterFile, row};
use arch::{GuestPhys, Isa};
use debug::dump;
use debug::dump::core::Core;
use debug::dump::packing::Packing;
use debug::dump::read::unpack::unpack;
use debug::engine::Engine;
use debug::gdb::client::converse;
use debug::gdb::monitor;
use debug::gdb::packet::frame;
use debug::gdb::session::Session;
use debug::machine::Machine;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Opens a file as `vmm core` does, and asks everything of it.
fn ask(bytes: Vec<u8>) {
    let Ok(contents) = dump::open(Arc::new(bytes)) else { return };
    // Without descriptors there is nothing to fuzz.
    let Ok(core) = Core::new(contents, true) else { return };
    let mut bytes = [0; 100];
    for range in core.memory().ranges().iter().take(16) {
        for at in [range.start.0, range.start.0 + range.size / 2, range.start.0 + (range.size - 1)] {
            core.memory().read(GuestPhys(at), &mut bytes);
        }
    }
    let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
    let mut session = Session::new(core, Arc::new(engine));
    for line in [
        "info",
        "regs all",
        "threads",
        "linux",
        "dmesg",
        "translate 0xffffffff81000000",
        "translate 0 --table 0x1000",
        "read 0xffffffff81000000 100",
        "map 0 0x1000000",
        "mem",
        "info registers -a",
        "host",
    ] {
        monitor::run(&mut session, line);
    }
    converse(&mut session, &frame(b"vCont;c")).ok();
}

/// An ELF core of two pages and two vCPUs, with changes. The first byte's lowest bit chooses the
/// architecture.
pub fn cores(data: &[u8]) {
    ask(core(data));
}

/// The same without changes, compressed in three blocks, with changes to that. The second bit of the first
/// byte chooses how.
pub fn packed(data: &[u8]) {
    let (choice, changes) = data.split_first().unwrap_or((&0, &[]));
    let packing = if choice & 2 == 0 { Packing::Gzip } else { Packing::Zstandard };
    let (mut file, mut sizes) = (Vec::new(), Vec::new());
    for plain in core(&[*choice]).chunks(0x1c00) {
        let Ok(packed) = packing.pack(plain) else { return };
        file.extend(packed.bytes);
        sizes.extend(packed.sizes);
    }
    file.extend(packing.end(&sizes));
    change(&mut file, changes);
    ask(file);
}

fn core(data: &[u8]) -> Vec<u8> {
    let (choice, changes) = data.split_first().unwrap_or((&0, &[]));
    let isa = if choice & 1 == 0 { Isa::X86_64 } else { Isa::Aarch64 };
    let mut registers = RegisterFile::new(isa);
    for (name, value) in [("cr0", 0x8000_0011), ("cr4", 0x20), ("SCTLR_EL1", 1), ("TCR_EL1", 0x10_0010)] {
        if row(isa, name).is_some() {
            registers.set(name, value);
        }
    }
    let mut notes = Vec::new();
    let mut push = |name: &str, number: u32, value: &[u8]| {
        let sizes = [name.len() + 1, value.len()].map(|size| u32::try_from(size).unwrap_or(0));
        notes.extend([sizes[0], sizes[1], number].map(u32::to_le_bytes).concat());
        notes.extend(name.bytes().chain([0]));
        notes.resize(notes.len().next_multiple_of(4), 0);
        notes.extend(value);
        notes.resize(notes.len().next_multiple_of(4), 0);
    };
    for vcpu in 0..2 {
        for note in Note::ALL {
            if let Some(value) = note.build(&registers, vcpu, 64) {
                push(note.name(), note.number(), &value);
            }
        }
        push(note::ALL_NAME, note::ALL_NUMBER, &note::build_all(&registers, &[]));
    }
    push("VMCOREINFO", 0, b"OSRELEASE=6.12\nPAGESIZE=4096\nSYMBOL(prb)=10\nNUMBER(phys_base)=0\n");
    let pages = 0x3000u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend([4, note::machine_of_isa(isa)].map(u16::to_le_bytes).concat());
    file.resize(32, 0);
    file.extend(64u64.to_le_bytes());
    file.resize(52, 0);
    file.extend([64u16, 56, 3, 0, 0, 0].map(u16::to_le_bytes).concat());
    let size = notes.len() as u64;
    for [kind, offset, physical, in_file, size] in [
        [4, 0x100, 0, size, size],
        [1, pages, 0, 0x1000, 0x3000],
        [1, pages + 0x1000, 0x10000, 0x1000, 0x1000],
    ] {
        file.extend([kind, offset, 0, physical, in_file, size, 0].map(u64::to_le_bytes).concat());
    }
    file.resize(0x100, 0);
    file.extend(notes);
    file.resize(0x3000, 0);
    file.extend(data.iter().cycle().take(0x2000));
    file.resize(0x5000, 0);
    change(&mut file, changes);
    file
}

/// A compressed kdump of two pages, with changes: a number of eight bytes for each place. Bits of the
/// first byte choose the architecture, and whether it is flattened.
pub fn kdumps(data: &[u8]) {
    const PAGE: usize = 4096;
    let (choice, changes) = data.split_first().unwrap_or((&0, &[]));
    let mut file = b"KDUMP   \x06\x00\x00\x00".to_vec();
    file.resize(12 + 4 * 65, 0);
    file.extend(if choice & 1 == 0 { b"x86_64\0".as_slice() } else { b"aarch64\0" });
    file.resize(4 * PAGE, 0);
    for (at, value) in [(428, 4096), (432, 1), (436, 2), (PAGE + 96, 2)] {
        file[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    (file[2 * PAGE], file[3 * PAGE]) = (3, 3);
    for (at, size) in [(0x5000u64, 64u64), (0x5040, 64)] {
        file.extend([at, size].map(u64::to_le_bytes).concat());
        file.extend([0; 8]);
    }
    file.resize(0x5000, 0);
    // The pages are what is left of the input.
    file.extend(data.iter().cycle().take(128));
    change(&mut file, changes);
    if choice & 2 != 0 {
        let mut flattened = b"makedumpfile".to_vec();
        flattened.resize(PAGE, 0);
        for (at, piece) in (0u64..).step_by(0x1800).zip(file.chunks(0x1800)) {
            flattened.extend([at, piece.len() as u64].map(u64::to_be_bytes).concat());
            flattened.extend(piece);
        }
        flattened.extend([0xff; 16]);
        file = flattened;
    }
    ask(file);
}

/// What is compressed in one piece: by gzip, or by Zstandard if the first byte's lowest bit is set.
pub fn whole(data: &[u8]) {
    /// What mutations of small inputs may become.
    const MOST: u64 = 64 << 20;
    let (choice, data) = data.split_first().unwrap_or((&0, &[]));
    let packing = if choice & 1 == 0 { Packing::Gzip } else { Packing::Zstandard };
    let Ok(file) = nameless() else { return };
    let watch = &mut |_| match file.metadata() {
        Ok(metadata) if metadata.len() < MOST => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    // Whatever is in it.
    unpack(&data.to_vec(), packing, &file, watch).ok();
}

/// A file without a name.
fn nameless() -> io::Result<std::fs::File> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    Ok(open(&std::env::temp_dir(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}
