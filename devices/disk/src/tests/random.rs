//! What is done to an image at random gives what the same does to bytes in memory.

use super::{Folder, open, read};
use crate::sample::Sample;
use crate::{Access, Image};
use std::path::Path;

const SIZE: usize = 3 << 20;

/// Pseudo-random numbers (Vigna, "splitmix64").
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((value ^ value >> 31) % limit as u64).unwrap()
    }
}

/// Does something to both; what is discarded may be anything that image says, and is looked up.
fn step(image: &Image, bytes: &mut [u8], chance: &mut Chance) {
    let unit = [1, 512, 4096][chance.below(3)];
    let longest = [2048, 20_000, 300_000][chance.below(3)];
    let offset = chance.below(SIZE / unit) * unit;
    let count = (1 + chance.below(longest)).next_multiple_of(unit).min(SIZE - offset);
    let range = offset..offset + count;
    let at = offset as u64;
    match chance.below(10) {
        0..4 => {
            let value = u8::try_from(1 + chance.below(255)).unwrap();
            bytes[range].fill(value);
            image.write(at, &vec![value; count]).unwrap();
        }
        4..8 => assert_eq!(read(image, at, count).unwrap(), &bytes[range], "{offset:#x}, {count:#x}"),
        8 => {
            image.write_zeroes(at, count as u64, chance.below(2) == 0).unwrap();
            bytes[range].fill(0);
        }
        _ if chance.below(4) == 0 => image.flush().unwrap(),
        _ => {
            image.discard(at, count as u64).unwrap();
            let now = read(image, at, count).unwrap();
            bytes[range].copy_from_slice(&now);
        }
    }
}

fn run(path: &Path, access: Access, seed: u64) {
    let mut chance = Chance(seed);
    let mut image = open(path, access).unwrap();
    let mut bytes = read(&image, 0, SIZE).unwrap();
    for _ in 0..4 {
        for _ in 0..150 {
            step(&image, &mut bytes, &mut chance);
        }
        assert!(read(&image, 0, SIZE).unwrap() == bytes, "{}, {access:?}", path.display());
        if access == Access::ReadWrite {
            image.flush().unwrap();
            drop(image);
            image = open(path, access).unwrap();
            assert!(read(&image, 0, SIZE).unwrap() == bytes, "{} when opened again", path.display());
        }
    }
}

#[test]
fn random_work() {
    let folder = Folder::new();
    let pattern: Vec<u8> = (0..SIZE).map(|at| (at / 4096 % 251).to_le_bytes()[0]).collect();
    folder.write("base.img", &pattern[..SIZE - 5000]);
    let size = SIZE as u64;
    let mut paths = vec![folder.write("raw", &pattern)];
    for (name, version, cluster_bits, has_backing) in
        [("a", 3, 16, false), ("b", 3, 16, true), ("c", 3, 9, true), ("d", 2, 12, true), ("e", 3, 21, true)]
    {
        let backing = has_backing.then_some(("base.img", Some("raw")));
        let sample = Sample { version, cluster_bits, backing, ..Sample::new(size) };
        // A reference count's block is for so many clusters only; the library makes others.
        paths.push(folder.write(&format!("{name}.qcow2"), &sample.build().unwrap()));
    }
    for (path, seed) in paths.iter().zip(1..) {
        run(path, Access::ReadWrite, seed);
        run(path, Access::Snapshot, seed + 100);
    }
    // For a look with QEMU's own eyes: VMM_TEST_KEEP=FOLDER.
    if let Some(keep) = std::env::var_os("VMM_TEST_KEEP") {
        for path in &paths {
            std::fs::copy(path, Path::new(&keep).join(path.file_name().unwrap())).unwrap();
        }
        std::fs::copy(folder.path("base.img"), Path::new(&keep).join("base.img")).unwrap();
    }
}

/// Several at once, each in its own part.
#[test]
fn at_once() {
    let folder = Folder::new();
    let sample = Sample { cluster_bits: 12, ..Sample::new(8 << 20) };
    let path = folder.write("a.qcow2", &sample.build().unwrap());
    let raw = folder.write("raw", &[0; 8 << 20]);
    for (path, access) in [(&path, Access::ReadWrite), (&path, Access::Snapshot), (&raw, Access::Snapshot)] {
        let image = open(path, access).unwrap();
        std::thread::scope(|scope| {
            for part in 0..8u64 {
                let image = &image;
                scope.spawn(move || {
                    let mut chance = Chance(part);
                    let mut bytes = read(image, part << 20, 1 << 20).unwrap();
                    for round in 0..200 {
                        let offset = chance.below(2000) * 512;
                        let count = (1 + chance.below(40)) * 512;
                        let count = count.min((1 << 20) - offset);
                        let at = (part << 20) + offset as u64;
                        if round % 7 == 0 {
                            image.write_zeroes(at, count as u64, round % 2 == 0).unwrap();
                            bytes[offset..offset + count].fill(0);
                        } else {
                            let value = u8::try_from(round % 255 + 1).unwrap();
                            image.write(at, &vec![value; count]).unwrap();
                            bytes[offset..offset + count].fill(value);
                        }
                        if round % 50 == 0 {
                            image.flush().unwrap();
                        }
                        assert!(read(image, at, count).unwrap() == bytes[offset..offset + count]);
                    }
                    assert!(read(image, part << 20, 1 << 20).unwrap() == bytes);
                });
            }
        });
    }
}
