//! What is on a disk, as far as whoever mounts some of it has to know: partitions, and kinds of file systems.
//!
//! Who decides is the guest's kernel, which reads all of it once more and checks what is not looked at here (checksums,
//! overlaps). Crates that read partition tables write them, too, and trust what they read: they panic or read without
//! end where a table is wrong on purpose.

use crate::image::Image;
use std::io;

/// Bytes of a sector of our disks, which tables count in.
const SECTOR: u64 = 512;
/// Entries of a table that are looked at, and partitions within one.
const MOST_ENTRIES: u32 = 256;
const MOST_LOGICAL: u32 = 64;

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts them, from 1 on.
    pub number: u32,
    /// Where it begins, bytes.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Its type says that it is the root of a system for x86_64 or aarch64 (UAPI Group, Discoverable Partitions).
    pub is_root: bool,
}

/// Makes of a table of file systems the enumeration, their names, and where each has its magic number.
macro_rules! file_systems {
    ($($(#[$doc:meta])* $kind:ident $name:literal $is_read_only:literal: $at:literal $magic:expr;)*) => {
        /// A kind of file system.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FileSystem {
            $($(#[$doc])* $kind,)*
        }

        impl FileSystem {
            const ALL: &[(FileSystem, u64, &[u8])] = &[$((FileSystem::$kind, $at, $magic)),*];

            /// What Linux mounts it by, and its module's name.
            pub fn name(self) -> &'static str {
                match self {
                    $(FileSystem::$kind => $name,)*
                }
            }

            /// Whether nobody can write to it once it has been made.
            pub fn is_read_only(self) -> bool {
                match self {
                    $(FileSystem::$kind => $is_read_only,)*
                }
            }
        }
    };
}

file_systems! {
    /// And ext2 and ext3: fs/ext4/ext4.h, `struct ext4_super_block`.
    Ext4 "ext4" false: 0x438 &[0x53, 0xef];
    /// fs/xfs/libxfs/xfs_format.h, `XFS_SB_MAGIC`.
    Xfs "xfs" false: 0 b"XFSB";
    /// include/uapi/linux/btrfs_tree.h, `BTRFS_MAGIC`.
    Btrfs "btrfs" false: 0x10040 b"_BHRfS_M";
    /// include/linux/f2fs_fs.h, include/uapi/linux/magic.h.
    F2fs "f2fs" false: 0x400 &[0x10, 0x20, 0xf5, 0xf2];
    /// fs/squashfs/squashfs_fs.h.
    Squashfs "squashfs" true: 0 b"hsqs";
    /// fs/erofs/erofs_fs.h.
    Erofs "erofs" true: 0x400 &[0xe2, 0xe1, 0xf5, 0xe0];
}

impl Image {
    /// As much of these bytes as there is; the rest is zeros.
    fn peek<const COUNT: usize>(&self, at: u64) -> io::Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        match at.checked_add(COUNT as u64) {
            Some(end) if end <= self.size() => self.read(at, &mut bytes).map(|()| bytes),
            _ => Ok(bytes),
        }
    }

    /// The kind of the file system that begins here, bytes; none that is known.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn file_system(&self, start: u64) -> io::Result<Option<FileSystem>> {
        for (kind, at, magic) in FileSystem::ALL {
            let bytes: [u8; 8] = self.peek(start.saturating_add(*at))?;
            if bytes.starts_with(magic) {
                return Ok(Some(*kind));
            }
        }
        Ok(None)
    }

    /// The partitions, by a GUID partition table or a PC's; none where there is no table.
    ///
    /// # Errors
    /// As [`Image::read`].
    pub fn partitions(&self) -> io::Result<Vec<Partition>> {
        match Guid::find(self)? {
            Some(table) => table.partitions(self),
            None => pc(self),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight"))
}

/// A partition by its sectors, if it lies on the disk.
fn on_disk(image: &Image, number: u32, (first, count): (u64, u64), is_root: bool) -> Option<Partition> {
    let (start, size) = (first.checked_mul(SECTOR)?, count.checked_mul(SECTOR)?);
    let is_there = first > 0 && size > 0 && start.checked_add(size)? <= image.size();
    is_there.then_some(Partition { number, start, size, is_root })
}

/// A GUID partition table (UEFI Specification 2.10, 5.3).
struct Guid {
    entries: u64,
    count: u32,
    size: u64,
}

impl Guid {
    /// Types of roots: 4f68bce3-e8cd-4db1-96e7-fbcaf984b709 (x86-64), b921b045-1df0-41c3-af44-4c6f280d3fae (64-bit ARM).
    const ROOTS: [[u8; 16]; 2] = [
        [0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09],
        [0x45, 0xb0, 0x21, 0xb9, 0xf0, 0x1d, 0xc3, 0x41, 0xaf, 0x44, 0x4c, 0x6f, 0x28, 0x0d, 0x3f, 0xae],
    ];
    /// Bytes of an entry that are looked at.
    const ENTRY: usize = 48;

    /// By its header, in the second sector (5.3.2).
    fn find(image: &Image) -> io::Result<Option<Guid>> {
        let header: [u8; 92] = image.peek(SECTOR)?;
        let size = u64::from(u32_at(&header, 84));
        if !header.starts_with(b"EFI PART") || size < 128 {
            return Ok(None);
        }
        let entries = u64_at(&header, 72).saturating_mul(SECTOR);
        Ok(Some(Guid { entries, count: u32_at(&header, 80).min(MOST_ENTRIES), size }))
    }

    /// By its entries (5.3.3).
    fn partitions(&self, image: &Image) -> io::Result<Vec<Partition>> {
        let mut found = Vec::new();
        for index in 0..self.count {
            let at = self.entries.saturating_add(u64::from(index).saturating_mul(self.size));
            let entry: [u8; Self::ENTRY] = image.peek(at)?;
            let kind = &entry[..16];
            let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
            if kind.iter().all(|byte| *byte == 0) || last < first {
                continue;
            }
            let count = (last - first).saturating_add(1);
            let is_root = Self::ROOTS.iter().any(|root| root == kind);
            found.extend(on_disk(image, index + 1, (first, count), is_root));
        }
        Ok(found)
    }
}

/// A PC's partition table, with the chain of those within an extended partition, which count from 5 on
/// (block/partitions/msdos.c).
fn pc(image: &Image) -> io::Result<Vec<Partition>> {
    const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
    let mut found = Vec::new();
    let Some(first) = pc_entries(image, 0)? else { return Ok(found) };
    for (number, entry) in (1..).zip(first) {
        if !EXTENDED.contains(&entry.kind) {
            found.extend(on_disk(image, number, (entry.first, entry.count), false));
        }
    }
    let Some(extended) = first.iter().find(|entry| EXTENDED.contains(&entry.kind)) else { return Ok(found) };
    let (mut at, mut number) = (extended.first, 5);
    for _ in 0..MOST_LOGICAL {
        let Some(entries) = pc_entries(image, at)? else { break };
        // A link of the chain that has no partition has no number.
        for its in entries.iter().filter(|it| !EXTENDED.contains(&it.kind) && it.count > 0) {
            found.extend(on_disk(image, number, (at.saturating_add(its.first), its.count), false));
            number += 1;
        }
        let next = entries.iter().find(|it| EXTENDED.contains(&it.kind) && it.count > 0);
        let Some(next) = next else { break };
        at = extended.first.saturating_add(next.first);
    }
    Ok(found)
}

/// What an entry says, in sectors.
#[derive(Clone, Copy)]
struct PcEntry {
    kind: u8,
    first: u64,
    count: u64,
}

/// The four entries of a sector, if it ends as one that has them.
fn pc_entries(image: &Image, sector: u64) -> io::Result<Option<[PcEntry; 4]>> {
    let bytes: [u8; 512] = image.peek(sector.saturating_mul(SECTOR))?;
    if bytes[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let entry = |index: usize| {
        let entry = &bytes[446 + 16 * index..][..16];
        let (first, count) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 12)));
        // One without a type is none.
        PcEntry { kind: entry[4], first, count: if entry[4] == 0 { 0 } else { count } }
    };
    Ok(Some([entry(0), entry(1), entry(2), entry(3)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Options};
    use std::fs;
    use std::path::PathBuf;

    const SIZE: usize = 4 << 20;

    /// An image of these bytes, and its file's name.
    fn image(name: &str, bytes: &[u8]) -> (Image, PathBuf) {
        let path = std::env::temp_dir().join(format!("vmm-contents-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        let image = Image::open(&Options { path: path.clone(), format: None, access: Access::ReadOnly });
        (image.unwrap(), path)
    }

    fn pc_entry(bytes: &mut [u8], (sector, index): (usize, usize), kind: u8, (first, count): (u32, u32)) {
        let at = sector * 512 + 446 + 16 * index;
        bytes[at + 4] = kind;
        bytes[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        bytes[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn guid_table(bytes: &mut [u8], entries: &[(usize, [u8; 16], u64, u64)]) {
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        bytes[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        bytes[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        for (index, kind, first, last) in entries {
            let at = 1024 + 128 * index;
            bytes[at..at + 16].copy_from_slice(kind);
            bytes[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
            bytes[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
        }
    }

    fn numbers(found: &[Partition]) -> Vec<(u32, u64, bool)> {
        found.iter().map(|it| (it.number, it.start, it.is_root)).collect()
    }

    #[test]
    fn a_guid_table_as_debians_images_have_it() {
        let mut bytes = vec![0; SIZE];
        pc_entry(&mut bytes, (0, 0), 0xee, (1, u32::MAX));
        let far = (99, Guid::ROOTS[0], 2048, u64::MAX);
        guid_table(&mut bytes, &[(0, Guid::ROOTS[1], 2048, 4095), (14, [7; 16], 64, 127), far]);
        bytes[2048 * 512 + 0x438..][..2].copy_from_slice(&[0x53, 0xef]);
        let (image, path) = image("guid", &bytes);
        let found = image.partitions().unwrap();
        assert_eq!(numbers(&found), [(1, 1 << 20, true), (15, 64 * 512, false)]);
        assert_eq!(found[0].size, 1 << 20);
        assert_eq!(image.file_system(found[0].start).unwrap(), Some(FileSystem::Ext4));
        assert_eq!(image.file_system(found[1].start).unwrap(), None);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_pcs_table_with_a_chain_that_goes_in_a_circle() {
        let mut bytes = vec![0; SIZE];
        pc_entry(&mut bytes, (0, 1), 0x83, (8, 8));
        pc_entry(&mut bytes, (0, 2), 0x05, (100, 1000));
        pc_entry(&mut bytes, (100, 0), 0x83, (8, 16));
        pc_entry(&mut bytes, (100, 1), 0x05, (50, 100));
        // One whose partition has gone, and the next.
        pc_entry(&mut bytes, (150, 1), 0x05, (60, 100));
        pc_entry(&mut bytes, (160, 0), 0x83, (8, 16));
        let (image, path) = image("pc", &bytes);
        let found = image.partitions().unwrap();
        assert_eq!(numbers(&found), [(2, 8 * 512, false), (5, 108 * 512, false), (6, 168 * 512, false)]);
        pc_entry(&mut bytes, (160, 1), 0x05, (60, 100));
        fs::write(&path, &bytes).unwrap();
        // The first partition, and one of each link but the empty one.
        assert_eq!(image.partitions().unwrap().len(), usize::try_from(MOST_LOGICAL).unwrap());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn kinds_of_file_systems() {
        for (kind, at, magic) in FileSystem::ALL {
            let mut bytes = vec![0; SIZE];
            bytes[usize::try_from(*at).unwrap()..][..magic.len()].copy_from_slice(magic);
            let (image, path) = image(kind.name(), &bytes);
            assert_eq!(image.file_system(0).unwrap(), Some(*kind));
            assert_eq!(image.partitions().unwrap(), []);
            assert_eq!(image.file_system(u64::MAX).unwrap(), None);
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn wrong_tables_are_read_to_an_end() {
        let mut bytes = vec![0; SIZE];
        guid_table(
            &mut bytes,
            &[(0, [1; 16], 0, u64::MAX), (1, [1; 16], 9, 8), (2, [1; 16], u64::MAX, u64::MAX)],
        );
        bytes[512 + 72..512 + 88].fill(0xff);
        let (image, path) = image("wrong", &bytes);
        assert_eq!(image.partitions().unwrap(), []);
        bytes[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        assert_eq!(image.partitions().unwrap(), []);
        fs::remove_file(path).unwrap();
    }
}
