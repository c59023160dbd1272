//! Kernels of every format through the loaders of both architectures.

use super::change;
use arch::Isa;
use arch::board::Board;
use arch::board::device_tree::GicVersion;
use kvm::{Platform, ram};
use std::path::Path;
use vmm::boot::aarch64;
use vmm::boot::kernel::Kernel;
use vmm::boot::{BootConfig, x86};

const MEMORY: u64 = 8 << 20;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// An ELF64 file with a segment at `at` and a note behind it.
fn elf(machine: u16, at: u64, text: &[u8]) -> Vec<u8> {
    let mut note = words(&[4, 4, 18]);
    note.extend(b"Xen\0");
    note.extend(words(&[u32::try_from(at).unwrap_or(0)]));
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, machine].map(u16::to_le_bytes).concat());
    file.extend(words(&[1]));
    file.extend([at, 64, 64].map(u64::to_le_bytes).concat());
    file.extend(words(&[0]));
    file.extend([64u16, 56, 2, 64, 1, 0].map(u16::to_le_bytes).concat());
    let (text_size, note_size) = (text.len() as u64, note.len() as u64);
    for [kind, offset, address, size, memory] in
        [[1, 176, at, text_size, text_size + 4096], [4, 176 + text_size, 0, note_size, note_size]]
    {
        file.extend([kind, offset, address, address, size, memory, 8].map(u64::to_le_bytes).concat());
    }
    file.extend(text);
    file.extend(note);
    file
}

/// A small kernel, by a number.
fn base(choice: u8) -> (Isa, Vec<u8>) {
    // Relocatable, with an entry of its own.
    let multiboot2 = |tags: &[u32]| {
        let length = 16 + 4 * u32::try_from(tags.len()).unwrap_or(0);
        let sum = 0xe852_50d6u32.wrapping_add(length);
        words(&[&[0xe852_50d6, 0, length, 0u32.wrapping_sub(sum)], tags].concat())
    };
    match choice % 6 {
        0 => (Isa::X86_64, elf(62, 0x10_0000, &multiboot2(&[10, 24, 0x10_0000, 0x40_0000, 4096, 1, 0, 8]))),
        1 => {
            let tags = [2, 24, 0x10_0000, 0x10_0000, 0, 0x10_4000, 3, 12, 0x10_0010, 0, 0, 8];
            (Isa::X86_64, multiboot2(&tags))
        }
        2 => (Isa::X86_64, elf(62, 0x10_0000, b"Linux version 6")),
        3 => {
            let mut file = vec![0u8; 2048];
            let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
            put(0x1f1, &[1, 0, 0, 64]);
            put(0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
            put(0x211, &[1]);
            put(0x230, &[0, 0, 0x20, 0, 1, 0, 3, 0, 0xff, 7]);
            put(0x25a, &[0x20]);
            put(0x261, &[0x10]);
            (Isa::X86_64, file)
        }
        4 => {
            let mut file = vec![0u8; 256];
            file[18] = 0x10;
            file[56..60].copy_from_slice(b"ARM\x64");
            (Isa::Aarch64, file)
        }
        _ => (Isa::Aarch64, elf(183, 0x4008_0000, &[0; 16])),
    }
}

/// A kernel, chosen by the first byte, with changes: it is loaded or refused.
pub fn kernels(data: &[u8]) {
    let (choice, changes) = data.split_first().unwrap_or((&0, &[]));
    let (isa, mut file) = base(*choice);
    change(&mut file, changes);
    let Ok(kernel) = Kernel::from_bytes(Path::new("kernel"), file, isa, MEMORY) else { return };
    // Without memory there is nothing to fuzz.
    let Ok(memory) = ram::map(isa, MEMORY) else { return };
    let board = Board::new(isa);
    let config = BootConfig {
        memory: MEMORY,
        vcpus: 1,
        cmdline: "quiet",
        cmdline_exact: false,
        initrds: &[],
        load_address: None,
        board: &board,
        seed: [0; 40],
    };
    // Whatever comes of it.
    match isa {
        Isa::X86_64 => drop(x86::prepare(&memory, &kernel, &config)),
        Isa::Aarch64 => {
            let platform = Platform { gic: GicVersion::V3, mpidrs: &[0], its: false, pmu: true };
            drop(aarch64::prepare(&memory, &kernel, &config, &platform));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_can_be_loaded() {
        for choice in 0..6 {
            let (isa, file) = base(choice);
            let kernel = Kernel::from_bytes(Path::new("kernel"), file, isa, MEMORY).unwrap();
            assert_ne!(kernel.format().name(), "flat binary", "{choice}");
            kernels(&[choice]);
        }
    }
}
