//! A disk image that has a job's root in it: which of its partitions, and by what file system.

use disk::{Access, DiskError, FileSystem, Format, Image, Options, Partition};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What archives begin with: cpio's own (cpio(5)), and what they are packed by (`Documentation/x86/boot.rst`, "payload").
const ARCHIVES: [&[u8]; 8] = [
    b"0707",
    &[0x1f, 0x8b],
    b"BZh",
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x5d, 0, 0],
    &[0x89, b'L', b'Z', b'O'],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

/// An image, as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootImage {
    /// Its file.
    pub disk: Options,
    /// The partition; found where none is named.
    pub partition: Option<u32>,
}

/// What of an image is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition; none: all of the disk.
    pub partition: Option<u32>,
    /// The file system.
    pub kind: FileSystem,
}

/// An image without a root.
#[derive(Debug, thiserror::Error)]
pub enum RootImageError {
    /// The image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Reading it.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// No such partition.
    #[error("there is no partition {number}: it has {there}")]
    NoPartition {
        /// What was asked for.
        number: u32,
        /// What there is.
        there: String,
    },
    /// A file system that is none of ours.
    #[error("{0} has none of the file systems {names}", names = names())]
    NoFileSystem(String),
    /// More than one could be the root.
    #[error("which partition? It has {0}: write for example --root IMAGE:1")]
    Which(String),
}

fn names() -> String {
    let kinds = [
        FileSystem::Ext4,
        FileSystem::Xfs,
        FileSystem::Btrfs,
        FileSystem::F2fs,
        FileSystem::Squashfs,
        FileSystem::Erofs,
    ];
    kinds.map(FileSystem::name).join(", ")
}

fn listed(partitions: &[Partition]) -> String {
    let one = |it: &Partition| format!("{} ({} MiB)", it.number, it.size >> 20);
    match partitions {
        [] => "none".into(),
        all => all.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

impl RootImage {
    /// As it is written: `IMAGE[,format=raw|qcow2][:PARTITION]`. `None` if that is no file or block device.
    pub fn named(text: &Path) -> Option<RootImage> {
        let is_disk =
            |path: &Path| path.metadata().is_ok_and(|it| it.is_file() || it.file_type().is_block_device());
        let image = |path: &Path, partition, format| {
            let disk = Options { path: path.into(), format, access: Access::ReadOnly };
            is_disk(path).then_some(RootImage { disk, partition })
        };
        if let Some(image) = image(text, None, None) {
            return Some(image);
        }
        let text = text.to_str()?;
        let (text, partition) = match text.rsplit_once(':') {
            Some((path, number)) => (path, Some(number.parse().ok().filter(|it| *it > 0)?)),
            None => (text, None),
        };
        let formats = [(",format=raw", Format::Raw), (",format=qcow2", Format::Qcow2)];
        let format = formats.into_iter().find_map(|(word, format)| Some((text.strip_suffix(word)?, format)));
        match format {
            Some((path, format)) => image(&PathBuf::from(path), partition, Some(format)),
            None => image(&PathBuf::from(text), partition, None),
        }
    }

    /// Whether it is an archive instead.
    pub fn is_archive(&self) -> bool {
        let mut beginning = [0; 8];
        let read = File::open(&self.disk.path).and_then(|mut file| file.read(&mut beginning));
        read.is_ok() && ARCHIVES.iter().any(|magic| beginning.starts_with(magic))
    }

    /// Finds the root: what is named; all of the disk, if it has a file system; the partition whose type says so; the
    /// only one with a file system.
    ///
    /// # Errors
    /// [`RootImageError`].
    pub fn find(&self) -> Result<Found, RootImageError> {
        let image = Image::open(&self.disk)?;
        let partitions = image.partitions()?;
        if let Some(number) = self.partition {
            let partition = partitions.iter().find(|it| it.number == number);
            let there = || RootImageError::NoPartition { number, there: listed(&partitions) };
            let kind = image.file_system(partition.ok_or_else(there)?.start)?;
            let kind = kind.ok_or_else(|| RootImageError::NoFileSystem(format!("partition {number}")))?;
            return Ok(Found { partition: Some(number), kind });
        }
        if let Some(kind) = image.file_system(0)? {
            return Ok(Found { partition: None, kind });
        }
        let mut candidates = Vec::new();
        for partition in &partitions {
            if let Some(kind) = image.file_system(partition.start)? {
                candidates.push((partition, Found { partition: Some(partition.number), kind }));
            }
        }
        let root = candidates.iter().find(|(partition, _)| partition.is_root);
        match (root, &candidates[..]) {
            (Some((_, found)), _) | (None, [(_, found)]) => Ok(*found),
            (None, []) => Err(RootImageError::NoFileSystem("it".into())),
            (None, [_, _, ..]) => Err(RootImageError::Which(listed(&partitions))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn how_an_image_is_named() {
        let folder = std::env::temp_dir().join(format!("vmm-root-image-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [image, odd] = ["disk.img", "disk:1"].map(|name| folder.join(name));
        fs::write(&image, vec![0; 4096]).unwrap();
        fs::write(&odd, b"070701").unwrap();
        let named = |text: &str| RootImage::named(&folder.join(text));
        let is = |text: &str| named(text).map(|it| (it.disk.path, it.disk.format, it.partition));
        assert_eq!(is("disk.img"), Some((image.clone(), None, None)));
        assert_eq!(is("disk.img:3"), Some((image.clone(), None, Some(3))));
        assert_eq!(is("disk.img,format=raw:3"), Some((image.clone(), Some(Format::Raw), Some(3))));
        assert_eq!(is("disk:1"), Some((odd, None, None)));
        for wrong in ["disk.img:0", "disk.img:x", "other", ".", "disk.img,format=vdi"] {
            assert_eq!(is(wrong), None, "{wrong}");
        }
        assert!(named("disk:1").unwrap().is_archive() && !named("disk.img").unwrap().is_archive());
        let error = named("disk.img").unwrap().find().unwrap_err().to_string();
        assert_eq!(error, "it has none of the file systems ext4, xfs, btrfs, f2fs, squashfs, erofs");
        let error = named("disk.img:2").unwrap().find().unwrap_err().to_string();
        assert_eq!(error, "there is no partition 2: it has none");
        fs::remove_dir_all(folder).unwrap();
    }
}
