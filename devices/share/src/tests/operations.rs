//! Each operation, as an honest guest asks for it.

use super::*;
use crate::protocol::{
    BatchForgetIn, CopyFileRangeIn, FallocateIn, ForgetOne, FsyncIn, GetxattrIn, GetxattrOut, Kstatfs,
    LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, Rename2In, RenameIn, SetxattrIn, StatxIn, StatxOut, fattr,
    init,
};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

fn writable() -> (Folder, Client) {
    let folder = Folder::new();
    let client = Client::new(&folder, Access::ReadWrite);
    (folder, client)
}

#[test]
fn a_version_is_agreed_on() {
    let folder = Folder::new();
    let mut client = Client::silent(&folder, Access::ReadOnly, Limits::default());
    // Nothing before that.
    assert_eq!(client.look_up(ROOT, "a").unwrap_err(), Errno::IO);
    let newer: InitOut = front(&client.init(8, 0).unwrap());
    assert_eq!((newer.major, client.look_up(ROOT, "a").unwrap_err()), (7, Errno::IO));
    for (major, minor) in [(6, 99), (7, 30)] {
        assert_eq!(client.init(major, minor).unwrap_err(), Errno::PROTO);
    }
    for (minor, agreed) in [(31, 31), (37, 37), (41, 39)] {
        let out: InitOut = front(&client.init(7, minor).unwrap());
        assert_eq!((out.minor, out.max_pages, out.time_gran), (agreed, 256, 1));
        // No cache for writes, no locks, no ACLs.
        assert_eq!(out.flags & (1 << 16 | 1 << 1 | 1 << 10 | 1 << 20), 0);
        assert_ne!(out.flags & init::MAX_PAGES, 0);
    }
    assert_eq!(client.look_up(ROOT, "a").unwrap_err(), Errno::NOENT);
    client.call(Operation::Destroy, 0, &[]).unwrap();
    assert_eq!(client.look_up(ROOT, "a").unwrap_err(), Errno::IO);
}

#[test]
fn what_is_there_is_found() {
    let (folder, mut client) = writable();
    fs::create_dir(folder.join("d")).unwrap();
    fs::write(folder.join("d/f"), "12345").unwrap();
    fs::hard_link(folder.join("d/f"), folder.join("g")).unwrap();
    symlink("/etc/passwd", folder.join("l")).unwrap();
    let file = client.walk("d/f").unwrap();
    let meta = fs::metadata(folder.join("d/f")).unwrap();
    assert_eq!((file.attr.ino, file.attr.size, file.attr.nlink), (meta.ino(), 5, 2));
    assert_eq!((file.attr.mode, file.attr.mtime.cast_signed()), (meta.mode(), meta.mtime()));
    // Another name of the same file is the same node.
    assert_eq!(client.walk("g").unwrap().nodeid, file.nodeid);
    let link = client.walk("l").unwrap();
    assert_eq!(client.call(Operation::Readlink, link.nodeid, &[]).unwrap(), b"/etc/passwd");
    assert_eq!(client.call(Operation::Readlink, file.nodeid, &[]).unwrap_err(), Errno::INVAL);
    assert_eq!(client.look_up(link.nodeid, "x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(client.look_up(file.nodeid, "x").unwrap_err(), Errno::NOTDIR);
    assert_eq!(client.walk("nothing").unwrap_err(), Errno::NOENT);
    assert_eq!(client.getattr(ROOT).unwrap().attr.mode, 0o4_0755);
    let stat: StatxOut =
        front(&client.call(Operation::Statx, file.nodeid, &[StatxIn::default().as_bytes()]).unwrap());
    assert_eq!((stat.stat.ino, stat.stat.size, u32::from(stat.stat.mode)), (meta.ino(), 5, meta.mode()));
    let fs: Kstatfs = front(&client.call(Operation::Statfs, file.nodeid, &[]).unwrap());
    assert!(fs.blocks > 0 && fs.namelen >= 255, "{fs:?}");
}

#[test]
fn files_are_read_and_written() {
    let (folder, mut client) = writable();
    let (entry, out) = client.create(ROOT, "f", RDWR, 0o640).unwrap();
    assert_eq!(fs::metadata(folder.join("f")).unwrap().mode(), 0o10_0640);
    let large: Vec<u8> = (0..700_000u32).flat_map(|number| number.to_le_bytes()).take(1 << 20).collect();
    assert_eq!(client.write(out.fh, 3, &large), Ok(1 << 20));
    assert_eq!(client.read(out.fh, 3, 1 << 20).unwrap(), large);
    // Up to the end, and beyond it.
    assert_eq!(client.read(out.fh, (1 << 20) - 2, 100).unwrap(), large[large.len() - 5..]);
    assert_eq!(client.read(out.fh, 1 << 40, 100).unwrap(), b"");
    assert_eq!(fs::read(folder.join("f")).unwrap()[3..], large);
    // What is opened anew begins at its beginning; O_TRUNC cuts off, also for reading alone.
    for flags in [RDWR | TRUNC, RDONLY | TRUNC] {
        client.write(out.fh, 0, b"abc").unwrap();
        let anew = client.open(entry.nodeid, flags).unwrap();
        assert_eq!(
            (client.read(anew.fh, 0, 9).unwrap(), client.getattr(entry.nodeid).unwrap().attr.size),
            (vec![], 0)
        );
        client.release(anew.fh);
    }
    // Appending is each write's own.
    fs::write(folder.join("f"), "0123").unwrap();
    let append =
        WriteIn { fh: out.fh, offset: 0, size: 2, flags: APPEND.cast_unsigned(), ..WriteIn::default() };
    client.call(Operation::Write, entry.nodeid, &[append.as_bytes(), b"45"]).unwrap();
    client.write(out.fh, 0, b"x").unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"x12345");
    for flags in [0, 1] {
        let sync = FsyncIn { fh: out.fh, fsync_flags: flags, padding: 0 };
        client.call(Operation::Fsync, entry.nodeid, &[sync.as_bytes()]).unwrap();
    }
    client.call(Operation::Syncfs, ROOT, &[&[0; 8]]).unwrap();
    client.release(out.fh);
    assert_eq!(client.read(out.fh, 0, 1).unwrap_err(), Errno::BADF);
    // An existing one by CREATE.
    assert_eq!(client.create(ROOT, "f", RDWR | EXCL, 0o600).unwrap_err(), Errno::EXIST);
    let (again, out) = client.create(ROOT, "f", RDWR | TRUNC, 0o600).unwrap();
    assert_eq!((again.nodeid, again.attr.size, again.attr.mode), (entry.nodeid, 0, 0o10_0640));
    client.release(out.fh);
}

#[test]
fn modes_sizes_and_times_are_set() {
    let (folder, mut client) = writable();
    fs::write(folder.join("f"), "12345").unwrap();
    let node = client.walk("f").unwrap().nodeid;
    let set = SetattrIn {
        valid: fattr::MODE | fattr::SIZE | fattr::MTIME | fattr::ATIME,
        mode: 0o10_0604,
        size: 3,
        mtime: 1_000_000_000,
        mtimensec: 7,
        atime: 5,
        ..SetattrIn::default()
    };
    let attr = client.setattr(node, set).unwrap().attr;
    assert_eq!(
        (attr.mode, attr.size, attr.mtime, attr.mtimensec, attr.atime),
        (0o10_0604, 3, 1_000_000_000, 7, 5)
    );
    let meta = fs::metadata(folder.join("f")).unwrap();
    assert_eq!((meta.mode(), meta.len(), meta.mtime(), meta.atime()), (0o10_0604, 3, 1_000_000_000, 5));
    // One alone, and now; before 1970.
    let set = SetattrIn { valid: fattr::MTIME | fattr::MTIME_NOW, ..SetattrIn::default() };
    let attr = client.setattr(node, set).unwrap().attr;
    assert!(attr.mtime > 1_000_000_000 && attr.atime == 5);
    let set = SetattrIn { valid: fattr::ATIME, atime: (-9i64).cast_unsigned(), ..SetattrIn::default() };
    assert_eq!(client.setattr(node, set).unwrap().attr.atime.cast_signed(), -9);
    // By a handle, when the file has no name any more.
    let fh = client.open(node, RDWR).unwrap().fh;
    client.call(Operation::Unlink, ROOT, &[&zeroed("f")]).unwrap();
    let set = SetattrIn { valid: fattr::SIZE | fattr::FH, fh, size: 9, ..SetattrIn::default() };
    assert_eq!(client.setattr(node, set).unwrap().attr.size, 9);
    assert_eq!(client.getattr(node).unwrap().attr.nlink, 0);
    let folder_size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    assert_eq!(client.setattr(ROOT, folder_size).unwrap_err(), Errno::ISDIR);
}

#[test]
fn folders_and_links_come_and_go() {
    let (folder, mut client) = writable();
    let mkdir = MkdirIn { mode: 0o4_0750, umask: 0 };
    let made: EntryOut = front(&client.call(Operation::Mkdir, ROOT, &[mkdir.as_bytes(), b"d\0"]).unwrap());
    assert_eq!((made.attr.mode, fs::metadata(folder.join("d")).unwrap().mode()), (0o4_0750, 0o4_0750));
    let again = client.call(Operation::Mkdir, ROOT, &[mkdir.as_bytes(), b"d\0"]);
    assert_eq!(again.unwrap_err(), Errno::EXIST);
    let mknod = MknodIn { mode: 0o10_0666, ..MknodIn::default() };
    let file: EntryOut =
        front(&client.call(Operation::Mknod, made.nodeid, &[mknod.as_bytes(), b"f\0"]).unwrap());
    // Whatever umask the monitor has.
    assert_eq!(fs::metadata(folder.join("d/f")).unwrap().mode(), 0o10_0666);
    let link = LinkIn { oldnodeid: file.nodeid };
    let linked: EntryOut = front(&client.call(Operation::Link, ROOT, &[link.as_bytes(), b"g\0"]).unwrap());
    assert_eq!((linked.nodeid, linked.attr.nlink), (file.nodeid, 2));
    let text = client.call(Operation::Symlink, ROOT, &[b"s\0", b"../../etc\0"]).unwrap();
    assert_eq!(front::<EntryOut>(&text).attr.mode & 0o17_0000, 0o12_0000);
    assert_eq!(fs::read_link(folder.join("s")).unwrap(), Path::new("../../etc"));
    // A link to a link.
    let link = LinkIn { oldnodeid: front::<EntryOut>(&text).nodeid };
    client.call(Operation::Link, ROOT, &[link.as_bytes(), b"t\0"]).unwrap();
    assert_eq!(fs::read_link(folder.join("t")).unwrap(), Path::new("../../etc"));
    assert_eq!(client.call(Operation::Rmdir, ROOT, &[b"d\0"]).unwrap_err(), Errno::NOTEMPTY);
    assert_eq!(client.call(Operation::Rmdir, ROOT, &[b"g\0"]).unwrap_err(), Errno::NOTDIR);
    client.call(Operation::Unlink, made.nodeid, &[b"f\0"]).unwrap();
    client.call(Operation::Rmdir, ROOT, &[b"d\0"]).unwrap();
    assert_eq!(client.getattr(file.nodeid).unwrap().attr.nlink, 1);
    assert_eq!(client.walk("d").unwrap_err(), Errno::NOENT);
}

#[test]
fn names_are_changed() {
    let (folder, mut client) = writable();
    fs::create_dir_all(folder.join("a/b")).unwrap();
    fs::write(folder.join("a/b/f"), "1").unwrap();
    fs::write(folder.join("g"), "2").unwrap();
    let (a, f, g) = (client.walk("a").unwrap(), client.walk("a/b/f").unwrap(), client.walk("g").unwrap());
    let to = RenameIn { newdir: ROOT };
    client.call(Operation::Rename, a.nodeid, &[to.as_bytes(), b"b\0c\0"]).unwrap();
    assert_eq!(fs::read(folder.join("c/f")).unwrap(), b"1");
    let two = |newdir, flags| Rename2In { newdir, flags, padding: 0 };
    let c = client.walk("c").unwrap();
    let rename = |client: &mut Client, flags, names: &[u8]| {
        client.call(Operation::Rename2, c.nodeid, &[two(ROOT, flags).as_bytes(), names])
    };
    assert_eq!(rename(&mut client, 1, b"f\0g\0").unwrap_err(), Errno::EXIST);
    // A whiteout is a device.
    assert_eq!(rename(&mut client, 4, b"f\0h\0").unwrap_err(), Errno::INVAL);
    rename(&mut client, 2, b"f\0g\0").unwrap();
    assert_eq!((client.walk("g").unwrap().nodeid, client.walk("c/f").unwrap().nodeid), (f.nodeid, g.nodeid));
    rename(&mut client, 0, b"f\0g\0").unwrap();
    // What was replaced is there as long as the guest knows it.
    assert_eq!(
        (client.walk("g").unwrap().nodeid, client.getattr(f.nodeid).unwrap().attr.nlink),
        (g.nodeid, 0)
    );
}

#[test]
fn nodes_are_found_again_after_all_descriptors_were_others() {
    let folder = Folder::new();
    let deep = folder.join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    let limits = Limits { nodes: 1000, descriptors: 16 };
    let mut client = Client::limited(&folder, Access::ReadWrite, limits);
    let nodes: Vec<(u64, u64)> = (0..100u64)
        .map(|number| {
            fs::write(deep.join(number.to_string()), vec![0; usize::try_from(number).unwrap()]).unwrap();
            (client.walk(&format!("a/b/c/{number}")).unwrap().nodeid, number)
        })
        .collect();
    assert!(client.server.load().2 <= 16, "{:?}", client.server.load());
    // The guest moves the folder that they are in.
    let a = client.walk("a").unwrap().nodeid;
    let to = RenameIn { newdir: ROOT };
    client.call(Operation::Rename, a, &[to.as_bytes(), b"b\0z\0"]).unwrap();
    for (node, size) in &nodes {
        assert_eq!(client.getattr(*node).unwrap().attr.size, *size);
    }
    // Somebody on the host puts another file in the place of one.
    fs::write(folder.join("other"), "?").unwrap();
    fs::rename(folder.join("other"), folder.join("z/c/5")).unwrap();
    for node in &nodes[50..] {
        client.getattr(node.0).unwrap();
    }
    assert_eq!(client.getattr(nodes[5].0).unwrap_err(), Errno::STALE);
    fs::remove_file(folder.join("z/c/6")).unwrap();
    assert_eq!(client.getattr(nodes[6].0).unwrap_err(), Errno::STALE);
    assert!(client.server.load().2 <= 16);
}

#[test]
fn what_is_forgotten_is_gone() {
    let (folder, mut client) = writable();
    for name in ["a", "b", "c"] {
        fs::write(folder.join(name), "").unwrap();
    }
    let a = client.walk("a").unwrap().nodeid;
    client.walk("a").unwrap();
    client.forget(a, 1);
    assert_eq!(client.server.load().0, 1);
    client.forget(a, 1);
    assert_eq!((client.server.load().0, client.getattr(a).unwrap_err()), (0, Errno::STALE));
    // More than there was, the root, nobody.
    let b = client.walk("b").unwrap().nodeid;
    for (node, count) in [(b, u64::MAX), (b, 1), (ROOT, 5), (0, 1), (u64::MAX, u64::MAX)] {
        client.forget(node, count);
    }
    let c = client.walk("c").unwrap().nodeid;
    let ones = [ForgetOne { nodeid: c, nlookup: 1 }, ForgetOne { nodeid: 999, nlookup: 1 }];
    // A count that is not so.
    let batch = BatchForgetIn { count: u32::MAX, dummy: 0 };
    client.call(Operation::BatchForget, 0, &[batch.as_bytes(), ones.as_bytes()]).unwrap();
    assert_eq!((client.server.load().0, client.server.load().2), (0, 0));
    client.getattr(ROOT).unwrap();
}

#[test]
fn folders_are_listed_in_pieces() {
    let (folder, mut client) = writable();
    fs::create_dir(folder.join("d")).unwrap();
    let mut wanted: Vec<String> =
        (0..300).map(|number| format!("d/{}{number}", "n".repeat(number % 100 + 1))).collect();
    for name in &wanted {
        fs::write(folder.join(name), "x").unwrap();
    }
    wanted = wanted.iter().map(|name| name[2..].to_string()).chain([".".into(), "..".into()]).collect();
    wanted.sort();
    let d = client.walk("d").unwrap().nodeid;
    for (plus, size) in [(false, 200), (false, 1 << 20), (true, 300), (true, 4096), (true, 1 << 20)] {
        let names = client.names(d, plus, size).unwrap();
        assert_eq!(names.iter().map(|name| name.0.clone()).collect::<Vec<_>>(), wanted, "{plus} {size}");
        for (name, kind, entry) in names {
            assert_eq!(kind, if name.starts_with('.') { 4 } else { 8 });
            if let Some(entry) = entry {
                assert_eq!((entry.nodeid != 0, entry.attr.size > 0), (kind == 8, kind == 8), "{name}");
                client.forget(entry.nodeid, 1);
            }
        }
    }
    // The folder itself is all that is left, whatever was listed.
    assert_eq!((client.server.load().0, client.server.load().1), (1, 0));
    let fh = client.opendir(d).unwrap().fh;
    let little = ReadIn { fh, size: 30, offset: 0, ..ReadIn::default() };
    assert_eq!(client.call(Operation::Readdirplus, d, &[little.as_bytes()]).unwrap_err(), Errno::INVAL);
    // Above the folder there is nothing: not even its number.
    let fh = client.opendir(ROOT).unwrap().fh;
    let all = ReadIn { fh, size: 4096, ..ReadIn::default() };
    let bytes = client.call(Operation::Readdir, ROOT, &[all.as_bytes()]).unwrap();
    let above = fs::metadata(folder.join("..")).unwrap().ino();
    assert!(!bytes.windows(8).any(|window| window == above.to_le_bytes()));
}

#[test]
fn holes_are_found_and_made() {
    let (folder, mut client) = writable();
    let (entry, out) = client.create(ROOT, "f", RDWR, 0o600).unwrap();
    client.write(out.fh, 0, &[1; 1 << 20]).unwrap();
    let punch = FallocateIn { fh: out.fh, offset: 1 << 16, length: 1 << 19, mode: 3, padding: 0 };
    client.call(Operation::Fallocate, entry.nodeid, &[punch.as_bytes()]).unwrap();
    let seek = |client: &mut Client, whence, offset| {
        let seek = LseekIn { fh: out.fh, offset, whence, padding: 0 };
        client
            .call(Operation::Lseek, entry.nodeid, &[seek.as_bytes()])
            .map(|bytes| front::<LseekOut>(&bytes).offset)
    };
    assert_eq!(seek(&mut client, 4, 0), Ok(1 << 16));
    assert_eq!(seek(&mut client, 3, 1 << 16), Ok((1 << 16) + (1 << 19)));
    assert_eq!(seek(&mut client, 3, 1 << 20), Err(Errno::NXIO));
    for (whence, offset) in [(0, 0), (2, 0), (99, 0), (3, u64::MAX)] {
        assert_eq!(seek(&mut client, whence, offset), Err(Errno::INVAL));
    }
    let more = FallocateIn { mode: 0, offset: 1 << 20, length: 100, ..punch };
    client.call(Operation::Fallocate, entry.nodeid, &[more.as_bytes()]).unwrap();
    assert_eq!(fs::metadata(folder.join("f")).unwrap().len(), (1 << 20) + 100);
    for mode in [8, 32, 0x80, u32::MAX] {
        let other = FallocateIn { mode, ..punch };
        let answer = client.call(Operation::Fallocate, entry.nodeid, &[other.as_bytes()]);
        assert_eq!(answer.unwrap_err(), Errno::OPNOTSUPP, "{mode}");
    }
    let (to, copy) = client.create(ROOT, "g", RDWR, 0o600).unwrap();
    let range = CopyFileRangeIn {
        fh_in: out.fh,
        off_in: 10,
        nodeid_out: to.nodeid,
        fh_out: copy.fh,
        off_out: 5,
        len: 1000,
        flags: 0,
    };
    let copied = client.call(Operation::CopyFileRange, entry.nodeid, &[range.as_bytes()]).unwrap();
    assert_eq!(front::<WriteOut>(&copied).size, 1000);
    assert_eq!(fs::read(folder.join("g")).unwrap()[5..], [1; 1000]);
    let range = CopyFileRangeIn { off_in: u64::MAX, ..range };
    let answer = client.call(Operation::CopyFileRange, entry.nodeid, &[range.as_bytes()]);
    assert_eq!(answer.unwrap_err(), Errno::INVAL);
}

#[test]
fn files_without_a_name_get_one() {
    let (folder, mut client) = writable();
    let make = CreateIn { flags: RDWR.cast_unsigned(), mode: 0o10_0600, ..CreateIn::default() };
    let bytes = client.call(Operation::Tmpfile, ROOT, &[make.as_bytes(), b"/\0"]).unwrap();
    let (entry, out): (EntryOut, OpenOut) = (front(&bytes), front(&bytes[128..]));
    client.write(out.fh, 0, b"abc").unwrap();
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.nlink, 0);
    let link = LinkIn { oldnodeid: entry.nodeid };
    let linked: EntryOut = front(&client.call(Operation::Link, ROOT, &[link.as_bytes(), b"f\0"]).unwrap());
    assert_eq!((linked.nodeid, fs::read(folder.join("f")).unwrap()), (entry.nodeid, b"abc".to_vec()));
    client.release(out.fh);
    assert_eq!(client.getattr(entry.nodeid).unwrap().attr.size, 3);
}

#[test]
fn attributes_are_the_users_alone() {
    let (folder, mut client) = writable();
    fs::write(folder.join("f"), "").unwrap();
    let node = client.walk("f").unwrap().nodeid;
    let set = |client: &mut Client, name: &str, value: &[u8], flags| {
        let set = SetxattrIn { size: u32::try_from(value.len()).unwrap(), flags };
        client.call(Operation::Setxattr, node, &[set.as_bytes(), &zeroed(name), value]).map(drop)
    };
    let get = |client: &mut Client, name: &str, size| {
        client.call(Operation::Getxattr, node, &[GetxattrIn { size, padding: 0 }.as_bytes(), &zeroed(name)])
    };
    set(&mut client, "user.a", b"value", 0).unwrap();
    assert_eq!(front::<GetxattrOut>(&get(&mut client, "user.a", 0).unwrap()).size, 5);
    assert_eq!(get(&mut client, "user.a", 5).unwrap(), b"value");
    assert_eq!(get(&mut client, "user.a", 4).unwrap_err(), Errno::RANGE);
    assert_eq!(get(&mut client, "user.b", 4).unwrap_err(), Errno::NODATA);
    assert_eq!(set(&mut client, "user.a", b"", 1), Err(Errno::EXIST));
    assert_eq!(set(&mut client, "user.b", b"", 2), Err(Errno::NODATA));
    assert_eq!(set(&mut client, "user.b", b"", 3 | 1 << 9), Err(Errno::INVAL));
    for (name, seen) in [
        ("security.capability", Errno::NODATA),
        ("trusted.a", Errno::NODATA),
        ("system.posix_acl_access", Errno::OPNOTSUPP),
        ("user.", Errno::NODATA),
        ("", Errno::NODATA),
        ("USER.a", Errno::NODATA),
    ] {
        assert_eq!(set(&mut client, name, b"\x01\0\0\x02", 0), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(get(&mut client, name, 100).unwrap_err(), seen, "{name}");
        let removed = client.call(Operation::Removexattr, node, &[&zeroed(name)]);
        assert_eq!(removed.unwrap_err(), Errno::OPNOTSUPP);
    }
    if is_root() {
        // What the host has of these is not shown either.
        rustix::fs::setxattr(folder.join("f"), "trusted.secret", b"x", rustix::fs::XattrFlags::empty())
            .unwrap();
        assert_eq!(get(&mut client, "trusted.secret", 100).unwrap_err(), Errno::NODATA);
    }
    let list = GetxattrIn { size: 1000, padding: 0 };
    assert_eq!(client.call(Operation::Listxattr, node, &[list.as_bytes()]).unwrap(), b"user.a\0");
    client.call(Operation::Removexattr, node, &[b"user.a\0"]).unwrap();
    assert_eq!(client.call(Operation::Listxattr, node, &[list.as_bytes()]).unwrap(), b"");
    // A link has none.
    symlink("f", folder.join("l")).unwrap();
    let link = client.walk("l").unwrap().nodeid;
    assert_eq!(client.call(Operation::Listxattr, link, &[list.as_bytes()]).unwrap(), b"");
}

#[test]
fn what_the_guest_keeps_of_a_file_is_good_until_it_changes() {
    const KEEP: u32 = 2;
    let (folder, mut client) = writable();
    fs::write(folder.join("f"), "1").unwrap();
    let node = client.walk("f").unwrap().nodeid;
    let keeps = |client: &mut Client| {
        let out = client.open(node, RDONLY).unwrap();
        client.release(out.fh);
        out.open_flags & KEEP != 0
    };
    // It has just changed: another change might be of the same time.
    assert_eq!((keeps(&mut client), keeps(&mut client)), (false, false));
    let later = || i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap() + 100;
    client.server.set_clock(later);
    assert_eq!((keeps(&mut client), keeps(&mut client)), (false, true));
    fs::File::options().write(true).open(folder.join("f")).unwrap().write_all_at(b"2", 0).unwrap();
    assert!(!keeps(&mut client));
}

#[test]
fn it_goes_on_from_a_saved_state() {
    let folder = Folder::new();
    fs::create_dir_all(folder.join("a/b")).unwrap();
    fs::write(folder.join("a/b/f"), "12345").unwrap();
    fs::write(folder.join("gone"), "x").unwrap();
    let mut client = Client::new(&folder, Access::ReadWrite);
    let (file, gone) = (client.walk("a/b/f").unwrap().nodeid, client.walk("gone").unwrap().nodeid);
    let (fh, lost) = (client.open(file, RDWR).unwrap().fh, client.open(gone, RDONLY).unwrap().fh);
    let dir = client.opendir(ROOT).unwrap().fh;
    client.call(Operation::Unlink, ROOT, &[b"gone\0"]).unwrap();
    let saved = client.server.save();
    let mut other = Client::silent(&folder, Access::ReadWrite, Limits { nodes: 10, descriptors: 20 });
    assert_eq!(other.server.restore(saved.clone()), Ok(1));
    assert_eq!(other.read(fh, 1, 3).unwrap(), b"234");
    other.write(fh, 0, b"x").unwrap();
    assert_eq!(other.getattr(file).unwrap().attr.size, 5);
    let read = ReadIn { fh: dir, size: 4096, ..ReadIn::default() };
    assert!(!other.call(Operation::Readdir, ROOT, &[read.as_bytes()]).unwrap().is_empty());
    assert_eq!(
        (other.read(lost, 0, 1).unwrap_err(), other.getattr(gone).unwrap_err()),
        (Errno::BADF, Errno::STALE)
    );
    // What the guest has got stays what it is, and new numbers are new.
    assert_eq!(other.walk("a/b/f").unwrap().nodeid, file);
    assert!(other.opendir(ROOT).unwrap().fh > dir);
    // The first one, in which nothing has been done since, says the same again.
    assert_eq!(client.server.restore(saved.clone()), Ok(1));
    client.open(file, RDWR).unwrap();
    let mut little = Client::silent(&folder, Access::ReadWrite, Limits { nodes: 2, descriptors: 20 });
    assert!(little.server.restore(saved.clone()).unwrap_err().contains("files are known"));
    let mut little = Client::silent(&folder, Access::ReadWrite, Limits { nodes: 10, descriptors: 4 });
    assert!(little.server.restore(saved.clone()).unwrap_err().contains("files are open"));
    // What was open to write is not, where nothing may be written.
    let mut reader = Client::silent(&folder, Access::ReadOnly, Limits { nodes: 10, descriptors: 20 });
    assert_eq!((reader.server.restore(saved), reader.read(fh, 0, 1).unwrap_err()), (Ok(2), Errno::BADF));
}
