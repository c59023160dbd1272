//! Images of every kind, and what may not be one.

mod hostile;
mod random;

use crate::sample::Sample;
use crate::{Access, DiskError, Format, Image, Options};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vmm-disk-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path.canonicalize().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

pub fn open(path: &Path, access: Access) -> Result<Image, DiskError> {
    Image::open(&Options { path: path.to_path_buf(), format: None, access })
}

pub fn open_as(path: &Path, format: Format) -> Result<Image, DiskError> {
    Image::open(&Options { path: path.to_path_buf(), format: Some(format), access: Access::ReadWrite })
}

pub fn read(image: &Image, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; count];
    image.read(offset, &mut bytes)?;
    Ok(bytes)
}

/// A qcow2 image of a mebibyte whose clusters 1 and 3 have bytes.
pub fn qcow2() -> Vec<u8> {
    let clusters = vec![(1, vec![0x11; 1 << 16]), (3, vec![0x33; 1 << 16])];
    Sample { clusters, ..Sample::new(1 << 20) }.build().unwrap()
}

#[test]
fn a_format_is_what_both_name_and_bytes_say() {
    let folder = Folder::new();
    let raw = [7; 4096];
    for (name, bytes, wanted) in [
        ("a.img", &raw[..], Some(4096)),
        ("a", &raw, Some(4096)),
        ("a.qcow2", &qcow2(), Some(1 << 20)),
        ("a.QCOW2", &qcow2(), Some(1 << 20)),
        ("b.img", &qcow2(), None),
        ("b.qcow2", &raw, None),
        ("b", &qcow2(), None),
    ] {
        let image = open(&folder.write(name, bytes), Access::ReadWrite);
        match wanted {
            Some(size) => assert_eq!(image.unwrap().size(), size, "{name}"),
            None => assert!(image.unwrap_err().to_string().contains("say format="), "{name}"),
        }
    }
    // A user's word is enough, and one that is wrong is no word.
    let disguised = folder.write("c.img", &qcow2());
    assert_eq!(open_as(&disguised, Format::Raw).unwrap().size(), qcow2().len() as u64);
    assert_eq!(open_as(&disguised, Format::Qcow2).unwrap().size(), 1 << 20);
    let error = open_as(&folder.write("d.img", &raw), Format::Qcow2).unwrap_err();
    assert!(error.to_string().contains("it is no qcow2 image"), "{error}");
}

#[test]
fn only_files_and_block_devices_are_opened_and_nothing_waits() {
    let folder = Folder::new();
    let pipe = folder.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    for (path, says) in [
        (pipe, "a pipe"),
        (folder.path("socket"), "a socket"),
        (folder.path(""), "a folder"),
        ("/dev/null".into(), "a device of characters"),
        (folder.path("nothing"), "No such file"),
        (folder.write("empty", b""), "truncate -s"),
    ] {
        for access in [Access::ReadOnly, Access::ReadWrite, Access::Snapshot] {
            let error = open(&path, access).unwrap_err().to_string();
            assert!(error.contains(says), "{}: {error}", path.display());
        }
    }
}

#[test]
fn a_raw_image_is_its_file() {
    let folder = Folder::new();
    let path = folder.write("a", &[1; 3 * 512 + 100]);
    let image = open(&path, Access::ReadWrite).unwrap();
    assert_eq!((image.size(), image.is_writable()), (4 * 512, true));
    // Zeros follow what is there of the last sector.
    assert_eq!(read(&image, 3 * 512, 512).unwrap(), [&[1; 100][..], &[0; 412]].concat());
    image.write(512, &[2; 512]).unwrap();
    image.write_zeroes(1024, 512, true).unwrap();
    image.flush().unwrap();
    let file = fs::read(&path).unwrap();
    assert_eq!(file, [&[1; 512][..], &[2; 512], &[0; 512], &[1; 100]].concat());
    for (offset, count) in [(4 * 512, 1), (u64::MAX, 1), (0, 5 * 512)] {
        assert!(read(&image, offset, count).is_err());
        assert!(image.write(offset, &vec![0; count]).is_err());
        assert!(image.discard(offset, count as u64).is_err());
        assert!(image.write_zeroes(offset, count as u64, false).is_err());
    }
    // Shorter than it was: no zeros.
    File::options().write(true).open(&path).unwrap().set_len(600).unwrap();
    assert!(read(&image, 0, 512).is_ok() && read(&image, 512, 512).is_err());
}

#[test]
fn what_is_only_read_is_not_written() {
    let folder = Folder::new();
    for (name, bytes) in [("a", vec![1; 4096]), ("a.qcow2", qcow2())] {
        let path = folder.write(name, &bytes);
        let image = open(&path, Access::ReadOnly).unwrap();
        assert!(!image.is_writable());
        assert!(image.write(0, &[0; 512]).is_err() && image.write_zeroes(0, 512, true).is_err());
        assert!(image.discard(0, 512).is_err());
        image.flush().unwrap();
        drop(image);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn a_snapshot_leaves_the_image_alone_and_many_share_it() {
    let folder = Folder::new();
    let base = folder.write("base.img", &[5; 1 << 20]);
    let over = Sample { backing: Some(("base.img", Some("raw"))), ..Sample::new(1 << 20) };
    let over = folder.write("over.qcow2", &over.build().unwrap());
    for path in [&base, &over] {
        let before = fs::read(path).unwrap();
        let (first, second) = (open(path, Access::Snapshot).unwrap(), open(path, Access::Snapshot).unwrap());
        first.write(1000, &[1; 5000]).unwrap();
        second.write(1000, &[2; 24]).unwrap();
        first.write_zeroes(512 << 10, 100, true).unwrap();
        let wanted = [&[5; 1000][..], &[1; 5000], &[5; 2192]].concat();
        assert_eq!(read(&first, 0, 8192).unwrap(), wanted);
        assert_eq!(read(&second, 0, 2048).unwrap(), [&[5; 1000][..], &[2; 24], &[5; 1024]].concat());
        assert_eq!(read(&first, 512 << 10, 4096).unwrap(), [&[0; 100][..], &[5; 3996]].concat());
        // What was written is gone; what was not is as it was.
        first.discard(0, 512 << 10).unwrap();
        assert_eq!(read(&first, 0, 12288).unwrap(), [&[0; 8192][..], &[5; 4096]].concat());
        drop((first, second));
        assert_eq!(fs::read(path).unwrap(), before);
        assert_eq!(read(&open(path, Access::Snapshot).unwrap(), 0, 4096).unwrap(), [5; 4096]);
    }
}

/// A disk without room below an overlay: the write fails, and all else is as it was.
#[test]
fn a_full_disk_under_an_overlay_loses_nothing() {
    let folder = Folder::new();
    let path = folder.write("base.img", &[5; 1 << 20]);
    let medium = crate::file::Medium::open(&path, false).unwrap();
    // Takes no byte: ENOSPC at each write, as a full disk.
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let overlay = crate::overlay::Overlay::with(Box::new(crate::raw::Raw::new(medium)), full);
    use crate::layer::Layer;
    for (offset, count) in [(0, 4096), (512, 512), (4096, 8192)] {
        let error = overlay.write(offset, &vec![1; count]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut bytes = vec![0; count];
        overlay.read(offset, &mut bytes).unwrap();
        assert_eq!(bytes, vec![5; count]);
    }
}

#[test]
fn what_is_written_is_locked() {
    let folder = Folder::new();
    let path = folder.write("a", &[0; 4096]);
    let writer = open(&path, Access::ReadWrite).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly, Access::Snapshot] {
        let error = open(&path, access).unwrap_err();
        assert!(matches!(error, DiskError::InUse(_)), "{error}");
    }
    drop(writer);
    let readers = [Access::ReadOnly, Access::Snapshot, Access::ReadOnly].map(|it| open(&path, it).unwrap());
    let error = open(&path, Access::ReadWrite).unwrap_err();
    assert!(error.to_string().starts_with("another process uses it"), "{error}");
    drop(readers);
    open(&path, Access::ReadWrite).unwrap();
    // So is what is below.
    let over = Sample { backing: Some(("a", Some("raw"))), ..Sample::new(4096) }.build().unwrap();
    let over = open(&folder.write("over.qcow2", &over), Access::ReadWrite).unwrap();
    assert!(open(&path, Access::ReadWrite).is_err());
    drop(over);
    open(&path, Access::ReadWrite).unwrap();
}

#[test]
fn an_image_has_what_is_below_it() {
    let folder = Folder::new();
    folder.write("deep/base.img", &[9; 200 << 10]);
    let middle = Sample {
        version: 2,
        backing: Some(("base.img", Some("raw"))),
        clusters: vec![(2, vec![2; 1 << 16])],
        ..Sample::new(512 << 10)
    };
    folder.write("deep/middle.qcow2", &middle.build().unwrap());
    let name = folder.path("deep/middle.qcow2");
    let top = Sample {
        cluster_bits: 12,
        backing: Some((name.to_str().unwrap(), Some("qcow2"))),
        clusters: vec![(1, vec![1; 4096])],
        ..Sample::new(1 << 20)
    };
    let path = folder.write("top.qcow2", &top.build().unwrap());
    let below = ["deep/base.img", "deep/middle.qcow2"].map(|name| fs::read(folder.path(name)).unwrap());
    let check = |image: &Image| {
        for (offset, wanted) in
            [(0, 9), (4096, 1), (8192, 9), (128 << 10, 2), (196 << 10, 9), (200 << 10, 0), (600 << 10, 0)]
        {
            assert_eq!(read(image, offset, 4096).unwrap(), [wanted; 4096], "{offset:#x}");
        }
    };
    let image = open(&path, Access::ReadWrite).unwrap();
    check(&image);
    image.write((128 << 10) + 100, &[7; 1000]).unwrap();
    image.flush().unwrap();
    drop(image);
    let image = open(&path, Access::ReadOnly).unwrap();
    let wanted = [&[2; 100][..], &[7; 1000], &[2; 2996]].concat();
    assert_eq!(read(&image, 128 << 10, 4096).unwrap(), wanted);
    drop(image);
    assert_eq!(
        below,
        ["deep/base.img", "deep/middle.qcow2"].map(|name| fs::read(folder.path(name)).unwrap())
    );
}

/// Makes a file shorter; how long it was.
fn cut(path: &Path, by: u64) -> u64 {
    let file = File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - by).unwrap();
    length
}

/// An image that changes while it is open: an error of reads of what is gone, and of no others, and of all writes,
/// which would make zeros of it.
#[test]
fn an_image_that_is_cut_later() {
    let folder = Folder::new();
    for (name, bytes, kept, gone) in
        [("a.qcow2", qcow2(), 1u64 << 16, 3u64 << 16), ("a.img", vec![0x11; 4 << 16], 1 << 16, 3 << 16)]
    {
        let path = folder.write(name, &bytes);
        let image = open(&path, Access::ReadWrite).unwrap();
        read(&image, gone, 512).unwrap();
        let length = cut(&path, 1 << 16);
        let check = || {
            assert_eq!(read(&image, gone, 512).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{name}");
            assert_eq!(read(&image, kept, 512).unwrap(), [0x11; 512], "{name}");
            for offset in [kept, gone, gone + (1 << 15)] {
                assert!(image.write(offset, &[1; 512]).is_err(), "{name}");
                assert!(image.write_zeroes(offset, 512, false).is_err(), "{name}");
                assert!(image.discard(offset, 1 << 16).is_err(), "{name}");
            }
            assert!(image.file().is_none(), "{name}");
        };
        check();
        assert_eq!(fs::metadata(&path).unwrap().len(), length - (1 << 16));
        // Somebody makes it as long as it was: what is there is not what was there.
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        check();
        assert!(open(&path, Access::ReadOnly).is_err());
    }
}

/// What it is over is looked at likewise.
#[test]
fn a_backing_file_that_is_cut_later() {
    let folder = Folder::new();
    for (name, format, bytes) in [("base.img", "raw", vec![0x33; 4 << 16]), ("base.qcow2", "qcow2", qcow2())]
    {
        let base = folder.write(name, &bytes);
        let over = Sample { backing: Some((name, Some(format))), ..Sample::new(4 << 16) };
        let image = open(&folder.write("over.qcow2", &over.build().unwrap()), Access::ReadWrite).unwrap();
        assert_eq!(read(&image, 3 << 16, 512).unwrap(), [0x33; 512]);
        let length = cut(&base, 1 << 16);
        assert!(read(&image, 3 << 16, 512).is_err(), "{name}");
        File::options().write(true).open(&base).unwrap().set_len(length).unwrap();
        assert!(read(&image, 3 << 16, 512).is_err(), "{name}");
        // Its own is written as before.
        image.write(0, &[1; 1 << 16]).unwrap();
        assert_eq!(read(&image, 0, 512).unwrap(), [1; 512]);
    }
}

/// What is written makes an image longer, and that is no cut.
#[test]
fn an_image_that_grows_is_whole() {
    let folder = Folder::new();
    let path = folder.write("a.qcow2", &Sample::new(8 << 20).build().unwrap());
    let image = open(&path, Access::ReadWrite).unwrap();
    for at in [5u64 << 20, 1 << 20, 3 << 20] {
        image.write(at + 100, &[9; 100]).unwrap();
        image.write_zeroes(at + (1 << 18), 1 << 17, false).unwrap();
        image.flush().unwrap();
        assert_eq!(read(&image, at + 100, 100).unwrap(), [9; 100]);
    }
    cut(&path, 1 << 16);
    assert!(image.write(0, &[1; 512]).is_err());
}

/// As it is found after an end by force: what was flushed is in the file, not in tables that go with the process.
#[test]
fn what_is_flushed_is_in_the_file() {
    let folder = Folder::new();
    let sample = Sample::new(8 << 20).build().unwrap();
    for (name, bytes) in [("a.qcow2", sample), ("a.img", vec![0; 8 << 20])] {
        let path = folder.write(name, &bytes);
        let image = open(&path, Access::ReadWrite).unwrap();
        let copy = folder.path(&format!("copy-{name}"));
        for number in 0..20u64 {
            image.write(number * 300_000, &[1; 5000]).unwrap();
            image.flush().unwrap();
            fs::copy(&path, &copy).unwrap();
            let now = open(&copy, Access::ReadOnly).unwrap();
            for before in 0..=number {
                assert!(read(&now, before * 300_000, 5000).unwrap() == [1; 5000], "{before} of {number}");
            }
        }
    }
}

/// Compressed clusters are read, and written as plain ones.
#[test]
fn compressed_clusters() {
    use flate2::{Compression, write::DeflateEncoder};
    use std::io::Write;
    const CLUSTER: usize = 1 << 16;
    let folder = Folder::new();
    let content: Vec<u8> = (0..CLUSTER).map(|at| (at / 7 % 256).to_le_bytes()[0]).collect();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&content).unwrap();
    let packed = encoder.finish().unwrap();
    let mut bytes = qcow2();
    // The disk's cluster 1 is the file's 5; its entry the second of the table in 4.
    bytes[5 * CLUSTER..6 * CLUSTER].fill(0);
    bytes[5 * CLUSTER..5 * CLUSTER + packed.len()].copy_from_slice(&packed);
    let sectors = (packed.len() as u64).div_ceil(512) - 1;
    let entry = 1u64 << 62 | sectors << 54 | 5 << 16;
    bytes[4 * CLUSTER + 8..4 * CLUSTER + 16].copy_from_slice(&entry.to_be_bytes());
    let path = folder.write("a.qcow2", &bytes);
    let image = open(&path, Access::ReadWrite).unwrap();
    assert!(read(&image, 1 << 16, CLUSTER).unwrap() == content);
    image.write((1 << 16) + 100, &[9; 100]).unwrap();
    image.flush().unwrap();
    drop(image);
    let now = read(&open(&path, Access::ReadOnly).unwrap(), 1 << 16, CLUSTER).unwrap();
    assert!(now == [&content[..100], &[9; 100], &content[200..]].concat());
}
