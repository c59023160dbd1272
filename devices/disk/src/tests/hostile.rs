//! Images that are damaged, cut, or made to harm.

use super::{Folder, open, qcow2, read};
use crate::sample::Sample;
use crate::{Access, DiskError, Format, MOST_LAYERS, Qcow2Error};
use std::os::unix::fs::symlink;

/// The error of an image with these bytes changed.
fn refused(patches: &[(usize, &[u8])]) -> String {
    let folder = Folder::new();
    let mut bytes = qcow2();
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    let path = folder.write("a.qcow2", &bytes);
    let error = open(&path, Access::ReadWrite).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.len() < 400, "{error}");
    assert!(std::fs::read(&path).unwrap() == bytes, "it has been written to: {error}");
    error
}

#[test]
fn headers_that_lie() {
    for (at, patch, says) in [
        (4, &4u32.to_be_bytes()[..], "version 4"),
        (20, &8u32.to_be_bytes(), "less than 512 bytes"),
        (20, &40u32.to_be_bytes(), "more than 2 MiB"),
        (20, &u32::MAX.to_be_bytes(), "more than 2 MiB"),
        // An exabyte; no size; half a sector.
        (24, &(1u64 << 60).to_be_bytes(), "too short for the disk"),
        (24, &u64::MAX.to_be_bytes(), "no multiple of 512"),
        (24, &0u64.to_be_bytes(), "no multiple of 512"),
        (24, &100u64.to_be_bytes(), "no multiple of 512"),
        (32, &1u32.to_be_bytes(), "encrypted"),
        (32, &2u32.to_be_bytes(), "encrypted"),
        // Tables of gigabytes, of nothing, elsewhere.
        (36, &u32::MAX.to_be_bytes(), "more than 32 MiB"),
        (36, &0u32.to_be_bytes(), "too short"),
        (36, &(4u32 << 20).to_be_bytes(), "cut off"),
        (40, &(1u64 << 40).to_be_bytes(), "cut off"),
        (40, &(u64::MAX - 0xffff).to_be_bytes(), "cut off"),
        (40, &100u64.to_be_bytes(), "where a cluster does"),
        (40, &0u64.to_be_bytes(), "where a cluster does"),
        (48, &(1u64 << 40).to_be_bytes(), "cut off"),
        (48, &1u64.to_be_bytes(), "where a cluster does"),
        (56, &0u32.to_be_bytes(), "reference counts"),
        (56, &u32::MAX.to_be_bytes(), "reference counts"),
        (72, &1u64.to_be_bytes(), "qemu-img check"),
        (72, &2u64.to_be_bytes(), "qemu-img check"),
        (72, &4u64.to_be_bytes(), "another file"),
        (72, &8u64.to_be_bytes(), "compression"),
        (72, &16u64.to_be_bytes(), "extended_l2"),
        (72, &(1u64 << 63).to_be_bytes(), "feature 63"),
        (96, &7u32.to_be_bytes(), "64 bits"),
        (100, &0u32.to_be_bytes(), "header is shorter"),
        (100, &u32::MAX.to_be_bytes(), "header is shorter"),
    ] {
        let error = refused(&[(at, patch)]);
        assert!(error.contains(says), "{at}: {error}");
    }
}

#[test]
fn header_extensions_that_lie() {
    let extension = |kind: u32, size: u32| [kind.to_be_bytes(), size.to_be_bytes()].concat();
    for (kind, size, says) in [
        (0xe279_2aca, u32::MAX, "longer than the header"),
        (0x1234, 1 << 16, "longer than the header"),
        (0x6803_f857, 1, "end within one"),
        (0x0537_be77, 16, "encrypted"),
        (0x4441_5441, 8, "another file"),
    ] {
        let error = refused(&[(104, &extension(kind, size))]);
        assert!(error.contains(says), "{kind:#x}: {error}");
    }
}

#[test]
fn tables_that_lie() {
    const CLUSTER: usize = 1 << 16;
    // The first level's only table is in cluster 3, the second level's in 4, the disk's clusters 1 and 3 in 5 and 6.
    for (at, entry, says) in [
        (3 * CLUSTER, 1u64 << 40, "a table of the second level"),
        (3 * CLUSTER, (1 << 63) | 512, "where no cluster begins"),
        (4 * CLUSTER + 8, (1 << 63) | 7 << 16, "a cluster at 0x70000"),
        (4 * CLUSTER + 8, (1 << 63) | 0x5200, "where no cluster begins"),
        (4 * CLUSTER + 16, (1 << 62) | 1 << 40, "a compressed cluster"),
        // The table of reference counts is in cluster 1.
        (CLUSTER, 0, "no reference counts"),
        (CLUSTER, 1 << 40, "a block of reference counts"),
    ] {
        let error = refused(&[(at, &entry.to_be_bytes())]);
        assert!(error.contains(says), "{entry:#x}: {error}");
    }
}

/// Wherever it is cut, it is refused, or reads what was there.
#[test]
fn images_that_are_cut() {
    let folder = Folder::new();
    let whole = qcow2();
    for length in (0..whole.len()).step_by(8000).chain([1, 71, 72, 103, 104, 512]) {
        let path = folder.write("a.qcow2", &whole[..length]);
        match super::open_as(&path, Format::Qcow2) {
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            // Only the last cluster is not whole: what of it is there is read, and zeros behind it.
            Ok(image) => {
                assert!(length > 6 << 16, "{length:#x}");
                let bytes = read(&image, 3 << 16, 1 << 16).unwrap();
                let there = length - (6 << 16);
                assert!(bytes[..there].iter().all(|&byte| byte == 0x33), "{length:#x}");
                assert!(bytes[there..].iter().all(|&byte| byte == 0), "{length:#x}");
            }
        }
    }
}

fn over(name: &str, format: Option<&str>) -> Vec<u8> {
    Sample { backing: Some((name, format)), ..Sample::new(1 << 20) }.build().unwrap()
}

#[test]
fn backing_files_that_may_not_be() {
    let folder = Folder::new();
    let secret = folder.write("secret", &[0x5e; 4096]);
    folder.write("images/fine", &[1; 4096]);
    symlink(&secret, folder.path("images/far")).unwrap();
    symlink("../secret", folder.path("images/up")).unwrap();
    symlink("fine", folder.path("images/near")).unwrap();
    nix::unistd::mkfifo(&folder.path("images/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let absolute = secret.to_str().unwrap();
    for (name, format, says) in [
        ("../secret", Some("raw"), "not below the image's folder"),
        ("far", Some("raw"), "not below the image's folder"),
        ("up", Some("raw"), "not below the image's folder"),
        (absolute, Some("raw"), "not below the image's folder"),
        ("/proc/self/fd/0", Some("raw"), "not below the image's folder"),
        ("pipe", Some("raw"), "a pipe"),
        ("nothing", Some("raw"), "No such file"),
        ("fine", None, "qemu-img rebase"),
        ("fine", Some("vmdk"), "'vmdk'"),
        ("fine", Some("qcow2"), "it is no qcow2 image"),
        ("json:{\"driver\":\"raw\"}", Some("raw"), "nothing else is opened"),
        ("nbd://localhost/x", Some("raw"), "nothing else is opened"),
        ("http://localhost/x", Some("raw"), "nothing else is opened"),
        ("file:fine", Some("raw"), "nothing else is opened"),
        ("fi\nne", Some("raw"), "signs"),
    ] {
        let path = folder.write("images/a.qcow2", &over(name, format));
        for access in [Access::ReadWrite, Access::Snapshot, Access::ReadOnly] {
            let error = open(&path, access).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{name}: {error}");
        }
    }
    let path = folder.write("images/a.qcow2", &over("near", Some("raw")));
    assert_eq!(read(&open(&path, Access::ReadWrite).unwrap(), 0, 512).unwrap(), [1; 512]);
    // As a user names it, links lead anywhere, and the folder is that of the image itself.
    symlink("images/a.qcow2", folder.path("link.qcow2")).unwrap();
    let linked = open(&folder.path("link.qcow2"), Access::ReadOnly).unwrap();
    assert_eq!(read(&linked, 0, 512).unwrap(), [1; 512]);
}

#[test]
fn chains_have_an_end() {
    let folder = Folder::new();
    let deep = |error: DiskError| match error {
        DiskError::Backing { source, .. } => {
            assert!(matches!(*source, DiskError::Qcow2(Qcow2Error::Deep(MOST_LAYERS))), "{source}")
        }
        other => panic!("{other}"),
    };
    let path = folder.write("itself.qcow2", &over("itself.qcow2", Some("qcow2")));
    deep(open(&path, Access::ReadOnly).unwrap_err());
    let path = folder.write("b.qcow2", &over("c.qcow2", Some("qcow2")));
    folder.write("c.qcow2", &over("b.qcow2", Some("qcow2")));
    deep(open(&path, Access::ReadOnly).unwrap_err());
    folder.write("0.qcow2", &Sample::new(1 << 20).build().unwrap());
    for number in 1..=MOST_LAYERS {
        let name = format!("{}.qcow2", number - 1);
        let path = folder.write(&format!("{number}.qcow2"), &over(&name, Some("qcow2")));
        match open(&path, Access::ReadOnly) {
            Ok(image) => assert!(number < MOST_LAYERS && read(&image, 0, 512).unwrap() == [0; 512]),
            Err(error) => {
                assert_eq!(number, MOST_LAYERS);
                deep(error);
            }
        }
    }
}

/// Bytes that are changed at random: refused or not, nothing panics, and nothing is read from elsewhere.
#[test]
fn damaged_at_random() {
    let folder = Folder::new();
    let whole = qcow2();
    let mut state = 1u64;
    let mut chance = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % limit
    };
    let places = [
        0..120,
        1 << 16..(1 << 16) + 16,
        2 << 16..(2 << 16) + 32,
        3 << 16..(3 << 16) + 16,
        4 << 16..(4 << 16) + 64,
    ];
    let mut opened = 0;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..=chance(3) {
            let place = places[chance(places.len())].clone();
            bytes[place.start + chance(place.len())] = u8::try_from(chance(256)).unwrap();
        }
        let Ok(image) = super::open_as(&folder.write("a", &bytes), Format::Qcow2) else { continue };
        opened += 1;
        for at in (0..16u64).map(|number| number << 16) {
            read(&image, at, 4096).ok();
            image.write(at + 4096, &[1; 4096]).ok();
            image.write_zeroes(at, 65536, at % 3 == 0).ok();
            image.discard(at, 65536).ok();
        }
        image.flush().ok();
    }
    assert!(opened > 40, "{opened}");
}
