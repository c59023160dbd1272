//! A guest that keeps to nothing, and a host that takes the folder away.

use super::*;
use crate::protocol::{BatchForgetIn, LinkIn, LseekIn, MkdirIn, RenameIn};

fn client(folder: &Folder) -> Client {
    fs::create_dir(folder.join("d")).unwrap();
    fs::write(folder.join("f"), "12345").unwrap();
    Client::new(folder, Access::ReadWrite)
}

#[test]
fn requests_that_are_cut_off_are_answered() {
    let folder = Folder::new();
    let mut client = client(&folder);
    for number in 0..64 {
        for length in 0..120usize {
            for says in [length, length + 1, usize::MAX >> 32, 0] {
                let header = InHeader {
                    len: u32::try_from(says).unwrap(),
                    opcode: number,
                    unique: 9,
                    nodeid: ROOT,
                    ..InHeader::default()
                };
                let mut bytes = header.as_bytes().to_vec();
                bytes.resize(120, 0);
                let mut reply = vec![0; 256];
                if number == 26 && length >= 56 {
                    // A version of 0.
                    bytes[40] = 7;
                }
                client.server.serve(&bytes[..length], &mut reply);
                if number == 26 || number == 38 {
                    client.init(7, 38).unwrap();
                }
            }
        }
    }
    // Nobody to answer to, and no room for an answer.
    assert_eq!(client.server.serve(&[], &mut vec![0; 100]), None);
    assert_eq!(client.server.serve(&[0; 39], &mut vec![0; 100]), None);
    let header = InHeader { len: 40, opcode: 17, nodeid: ROOT, ..InHeader::default() };
    assert_eq!(client.server.serve(header.as_bytes(), &mut vec![0; 15]), None);
    assert_eq!(client.server.serve(header.as_bytes(), &mut vec![0; 16]), Some(16));
    assert_eq!(client.ask(Operation::Statfs, ROOT, &[], 79).unwrap_err(), Errno::INVAL);
    // What nobody knows.
    for opcode in [0, 7, 25, 34, 39, 64, 4096, u32::MAX] {
        let header = InHeader { len: 40, opcode, nodeid: ROOT, ..InHeader::default() };
        let mut reply = vec![0; 100];
        assert_eq!(client.server.serve(header.as_bytes(), &mut reply), Some(16));
        assert_eq!(front::<OutHeader>(&reply).error, -Errno::NOSYS.raw_os_error(), "{opcode}");
    }
}

#[test]
fn numbers_that_are_nothings_are_refused() {
    let folder = Folder::new();
    let mut client = client(&folder);
    let file = client.walk("f").unwrap().nodeid;
    let fh = client.open(file, RDWR).unwrap().fh;
    let dir = client.opendir(ROOT).unwrap().fh;
    for node in [0, 2 + file, 1 << 40, u64::MAX] {
        assert_eq!(client.look_up(node, "f").unwrap_err(), Errno::STALE);
        assert_eq!(client.getattr(node).unwrap_err(), Errno::STALE);
        assert_eq!(client.open(node, RDONLY).unwrap_err(), Errno::STALE);
        assert_eq!(client.opendir(node).unwrap_err(), Errno::STALE);
        let link = LinkIn { oldnodeid: node };
        assert_eq!(client.call(Operation::Link, ROOT, &[link.as_bytes(), b"x\0"]).unwrap_err(), Errno::STALE);
        let to = RenameIn { newdir: node };
        assert_eq!(
            client.call(Operation::Rename, ROOT, &[to.as_bytes(), b"f\0x\0"]).unwrap_err(),
            Errno::STALE
        );
    }
    for handle in [0, 1 + dir, u64::MAX] {
        assert_eq!(client.read(handle, 0, 1).unwrap_err(), Errno::BADF);
        assert_eq!(client.write(handle, 0, b"x").unwrap_err(), Errno::BADF);
    }
    // Handles of another kind.
    assert_eq!(client.read(dir, 0, 1).unwrap_err(), Errno::ISDIR);
    assert_eq!(client.write(dir, 0, b"x").unwrap_err(), Errno::ISDIR);
    let read = ReadIn { fh, size: 4096, ..ReadIn::default() };
    assert_eq!(client.call(Operation::Readdir, ROOT, &[read.as_bytes()]).unwrap_err(), Errno::NOTDIR);
    let seek = LseekIn { fh: dir, whence: 3, ..LseekIn::default() };
    assert_eq!(client.call(Operation::Lseek, ROOT, &[seek.as_bytes()]).unwrap_err(), Errno::INVAL);
    // Offsets that wrap.
    for offset in [u64::MAX, u64::MAX - 2, i64::MAX as u64 + 1] {
        assert_eq!(client.read(fh, offset, 1 << 20).unwrap_err(), Errno::INVAL, "{offset}");
        assert_eq!(client.write(fh, offset, b"abc").unwrap_err(), Errno::INVAL, "{offset}");
        let read = ReadIn { fh: dir, size: 4096, offset, ..ReadIn::default() };
        assert_eq!(client.call(Operation::Readdir, ROOT, &[read.as_bytes()]).unwrap_err(), Errno::INVAL);
    }
    // Sizes that are not there.
    let write = WriteIn { fh, size: 100, ..WriteIn::default() };
    assert_eq!(client.call(Operation::Write, file, &[write.as_bytes(), b"x"]).unwrap_err(), Errno::INVAL);
    let write = WriteIn { fh, size: u32::MAX, ..WriteIn::default() };
    assert_eq!(client.call(Operation::Write, file, &[write.as_bytes(), b"x"]).unwrap_err(), Errno::INVAL);
    assert_eq!(client.read(fh, 0, u32::MAX).unwrap(), b"12345");
    // More than is written at once.
    let write = WriteIn { fh, size: (1 << 20) + 1, ..WriteIn::default() };
    let answer = client.call(Operation::Write, file, &[write.as_bytes(), &vec![0; (1 << 20) + 1]]);
    assert_eq!(answer.unwrap_err(), Errno::INVAL);
    for length in [256, 4096, 100_000] {
        let name = "n".repeat(length);
        assert_eq!(client.look_up(ROOT, &name).unwrap_err(), Errno::NAMETOOLONG);
        assert_eq!(client.create(ROOT, &name, RDWR, 0o600).unwrap_err(), Errno::NAMETOOLONG);
        let mkdir = MkdirIn { mode: 0o755, umask: 0 };
        let made = client.call(Operation::Mkdir, ROOT, &[mkdir.as_bytes(), &zeroed(&name)]);
        assert_eq!(made.unwrap_err(), Errno::NAMETOOLONG);
    }
    let empty = BatchForgetIn { count: u32::MAX, dummy: 0 };
    client.call(Operation::BatchForget, 0, &[empty.as_bytes()]).unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"12345");
}

#[test]
fn nodes_and_handles_have_an_end() {
    let folder = Folder::new();
    for number in 0..40 {
        fs::write(folder.join(number.to_string()), "x").unwrap();
    }
    let mut client = Client::limited(&folder, Access::ReadWrite, Limits { nodes: 30, descriptors: 16 });
    let nodes: Vec<u64> = (0..30).map(|number| client.walk(&number.to_string()).unwrap().nodeid).collect();
    assert_eq!(client.walk("30").unwrap_err(), Errno::NFILE);
    client.walk("29").unwrap();
    // What is listed and has no room is looked up by the guest itself.
    let names = client.names(ROOT, true, 1 << 16).unwrap();
    assert_eq!(names.iter().filter(|name| name.2.is_some_and(|entry| entry.nodeid != 0)).count(), 30);
    // Nothing is left of what could not be known.
    assert_eq!(client.create(ROOT, "new", RDWR, 0o600).unwrap_err(), Errno::NFILE);
    assert!(!folder.join("new").exists());
    let handles: Vec<_> =
        nodes.iter().map(|node| client.open(*node, RDONLY)).take_while(Result::is_ok).collect();
    assert_eq!((handles.len(), client.open(nodes[20], RDONLY).unwrap_err()), (8, Errno::NFILE));
    // All names taken away, with descriptors for some alone.
    for number in 0..30 {
        client.call(Operation::Unlink, ROOT, &[&zeroed(&number.to_string())]).unwrap();
    }
    let (_, _, descriptors) = client.server.load();
    assert!(descriptors <= 16, "{descriptors}");
    let alive = nodes.iter().filter(|node| client.getattr(**node).is_ok()).count();
    assert!((8..=16).contains(&alive), "{alive}");
    for node in &nodes {
        client.forget(*node, u64::MAX);
    }
    client.server.reset();
    assert_eq!(client.server.load(), (0, 0, 0));
}

#[test]
fn a_folder_that_vanishes_is_an_error() {
    let folder = Folder::new();
    let shared = folder.join("shared");
    fs::create_dir_all(shared.join("d")).unwrap();
    fs::write(shared.join("d/f"), "1").unwrap();
    let mut client = Client::limited(&shared, Access::ReadWrite, Limits { nodes: 100, descriptors: 8 });
    let f = client.walk("d/f").unwrap().nodeid;
    let fh = client.open(f, RDWR).unwrap().fh;
    fs::remove_dir_all(&shared).unwrap();
    assert_eq!(client.walk("d").unwrap_err(), Errno::NOENT);
    assert_eq!(client.create(ROOT, "x", RDWR, 0o600).unwrap_err(), Errno::NOENT);
    assert_eq!(client.names(ROOT, true, 4096).unwrap_err(), Errno::NOENT);
    // What is open is, as for any process.
    assert_eq!(client.read(fh, 0, 9).unwrap(), b"1");
    assert_eq!(client.getattr(f).unwrap().attr.nlink, 0);
    // Another folder of the same name is not this one.
    fs::create_dir_all(shared.join("d")).unwrap();
    assert_eq!(client.walk("d").unwrap_err(), Errno::NOENT);
}

#[test]
fn what_cannot_be_shared_is_said() {
    let folder = Folder::new();
    fs::write(folder.join("f"), "").unwrap();
    for (name, says) in [("f", "Not a directory"), ("nothing", "No such file")] {
        let error =
            Server::new(&folder.join(name), Access::ReadOnly, Limits::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
