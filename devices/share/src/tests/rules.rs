//! What no guest may do, whoever runs the monitor.

use super::*;
use crate::protocol::{
    CopyFileRangeIn, FallocateIn, GetxattrIn, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn, SetxattrIn,
    fattr,
};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A user that nobody is.
const NOBODY: u32 = 65534;

/// A folder with one of everything that matters, beside something that is not in it.
fn furnished() -> (Folder, PathBuf) {
    let outer = Folder::new();
    let inner = outer.join("shared");
    fs::create_dir_all(inner.join("d/e")).unwrap();
    fs::write(outer.join("secret"), "secret").unwrap();
    fs::write(inner.join("f"), "12345").unwrap();
    fs::write(inner.join("d/g"), "67").unwrap();
    symlink("../secret", inner.join("up")).unwrap();
    symlink(outer.join("secret"), inner.join("far")).unwrap();
    symlink("..", inner.join("above")).unwrap();
    symlink("f", inner.join("near")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, inner.join("fifo"), 0o666.into()).unwrap();
    drop(UnixListener::bind(inner.join("socket")).unwrap());
    (outer, inner)
}

/// As much of everything as there is in a folder: names, modes, contents.
fn picture(folder: &Path) -> Vec<(PathBuf, u32, u64, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_dir() => {
                all.extend(picture(&path));
                Vec::new()
            }
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            kind if kind.is_file() => fs::read(&path).unwrap(),
            _ => Vec::new(),
        };
        all.push((path, meta.mode(), meta.nlink(), content));
    }
    all.sort();
    all
}

/// Every operation that writes, in a way that is fine where writing is.
fn writes(client: &mut Client) -> Vec<(&'static str, Answer)> {
    let node = client.walk("f").unwrap().nodeid;
    let d = client.walk("d").unwrap().nodeid;
    let fh = client.open(node, RDONLY).unwrap().fh;
    let set = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
    let times = SetattrIn { valid: fattr::MTIME | fattr::MTIME_NOW, ..SetattrIn::default() };
    let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    let write = WriteIn { fh, size: 1, ..WriteIn::default() };
    let open = |flags: i32| OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
    let make = CreateIn { flags: RDWR.cast_unsigned(), mode: 0o600, ..CreateIn::default() };
    let range = CopyFileRangeIn { fh_in: fh, fh_out: fh, len: 1, ..CopyFileRangeIn::default() };
    let mknod = MknodIn { mode: 0o10_0600, ..MknodIn::default() };
    let (rename, rename2) = (RenameIn { newdir: d }, Rename2In { newdir: d, ..Rename2In::default() });
    let allocate = FallocateIn { fh, length: 1, ..FallocateIn::default() };
    let attribute = SetxattrIn { size: 1, flags: 0 };
    let mut answers = Vec::new();
    let mut ask = |what, operation, node, parts: &[&[u8]]| {
        answers.push((what, client.call(operation, node, parts)));
    };
    ask("write", Operation::Write, node, &[write.as_bytes(), b"x"]);
    ask("mode", Operation::Setattr, node, &[set.as_bytes()]);
    ask("times", Operation::Setattr, node, &[times.as_bytes()]);
    ask("open to write", Operation::Open, node, &[open(WRONLY).as_bytes()]);
    ask("open for both", Operation::Open, node, &[open(RDWR).as_bytes()]);
    ask("open and cut off", Operation::Open, node, &[open(RDONLY | TRUNC).as_bytes()]);
    ask("size", Operation::Setattr, node, &[size.as_bytes()]);
    ask("create", Operation::Create, ROOT, &[make.as_bytes(), b"new\0"]);
    ask("tmpfile", Operation::Tmpfile, ROOT, &[make.as_bytes(), b"/\0"]);
    ask("mknod", Operation::Mknod, ROOT, &[mknod.as_bytes(), b"node\0"]);
    ask("mkdir", Operation::Mkdir, ROOT, &[MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), b"dir\0"]);
    ask("symlink", Operation::Symlink, ROOT, &[b"sym\0text\0"]);
    ask("link", Operation::Link, ROOT, &[LinkIn { oldnodeid: node }.as_bytes(), b"hard\0"]);
    ask("fallocate", Operation::Fallocate, node, &[allocate.as_bytes()]);
    ask("copy", Operation::CopyFileRange, node, &[range.as_bytes()]);
    ask("setxattr", Operation::Setxattr, node, &[attribute.as_bytes(), b"user.a\0", b"x"]);
    ask("removexattr", Operation::Removexattr, node, &[b"user.a\0"]);
    ask("rename", Operation::Rename, ROOT, &[rename.as_bytes(), b"f\0h\0"]);
    ask("rename2", Operation::Rename2, ROOT, &[rename2.as_bytes(), b"near\0near\0"]);
    ask("rmdir", Operation::Rmdir, d, &[b"e\0"]);
    ask("unlink", Operation::Unlink, d, &[b"g\0"]);
    answers
}

#[test]
fn a_read_only_share_is_not_written_to() {
    let (outer, inner) = furnished();
    let before = picture(&outer);
    let mut client = Client::new(&inner, Access::ReadOnly);
    for (what, answer) in writes(&mut client) {
        assert_eq!(answer.unwrap_err(), Errno::ROFS, "{what}");
    }
    assert_eq!(picture(&outer), before);
    // It can be read, and what has nothing to sync syncs.
    let node = client.walk("f").unwrap().nodeid;
    let fh = client.open(node, RDONLY).unwrap().fh;
    assert_eq!(client.read(fh, 0, 9).unwrap(), b"12345");
    client.call(Operation::Syncfs, ROOT, &[&[0; 8]]).unwrap();
    // The same requests are fine otherwise, but for those that write by a handle for reading.
    let mut client = Client::new(&inner, Access::ReadWrite);
    let failed: Vec<_> =
        writes(&mut client).into_iter().filter(|(_, answer)| answer.is_err()).map(|(what, _)| what).collect();
    assert_eq!(failed, ["write", "fallocate", "copy"]);
}

#[test]
fn nothing_leads_out_of_the_folder() {
    let (outer, inner) = furnished();
    let mut client = Client::new(&inner, Access::ReadWrite);
    let d = client.walk("d").unwrap().nodeid;
    for name in ["..", ".", "", "/", "/etc", "../secret", "d/g", "d/../../secret", "..\u{0}"] {
        for parent in [ROOT, d] {
            assert_eq!(client.look_up(parent, name).unwrap_err(), Errno::INVAL, "{name}");
            let mkdir = MkdirIn { mode: 0o755, umask: 0 };
            for (operation, parts) in [
                (Operation::Mkdir, vec![mkdir.as_bytes().to_vec(), zeroed(name)]),
                (Operation::Unlink, vec![zeroed(name)]),
                (Operation::Rmdir, vec![zeroed(name)]),
                (Operation::Symlink, vec![zeroed(name), zeroed("text")]),
                (
                    Operation::Rename,
                    vec![RenameIn { newdir: d }.as_bytes().to_vec(), zeroed("f"), zeroed(name)],
                ),
                (
                    Operation::Rename,
                    vec![RenameIn { newdir: d }.as_bytes().to_vec(), zeroed(name), zeroed("f")],
                ),
                (Operation::Link, vec![LinkIn { oldnodeid: d }.as_bytes().to_vec(), zeroed(name)]),
            ] {
                let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                assert_eq!(
                    client.call(operation, parent, &parts).unwrap_err(),
                    Errno::INVAL,
                    "{operation:?} {name}"
                );
            }
            assert_eq!(client.create(parent, name, RDWR, 0o600).unwrap_err(), Errno::INVAL);
        }
    }
    // Links are text, whichever way they lead: nothing is looked up, made or opened through them.
    for name in ["up", "far", "above", "near"] {
        let link = client.walk(name).unwrap();
        assert_eq!(link.attr.mode & 0o17_0000, 0o12_0000, "{name}");
        assert_eq!(client.open(link.nodeid, RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(client.opendir(link.nodeid).unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.look_up(link.nodeid, "secret").unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.create(link.nodeid, "x", RDWR, 0o600).unwrap_err(), Errno::NOTDIR);
        assert_eq!(client.create(ROOT, name, RDWR | TRUNC, 0o600).unwrap_err(), Errno::LOOP);
        let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert_eq!(client.setattr(link.nodeid, size).unwrap_err(), Errno::ACCESS);
        let mode = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
        assert_eq!(client.setattr(link.nodeid, mode).unwrap_err(), Errno::OPNOTSUPP);
        // Its own times are set, and its own owner, not those of what it leads to.
        let (to, before) = (inner.join(name), fs::metadata(inner.join(name)).unwrap());
        let set = SetattrIn { valid: fattr::MTIME | fattr::UID, mtime: 77, uid: 0, ..SetattrIn::default() };
        client.setattr(link.nodeid, set).unwrap();
        assert_eq!(fs::symlink_metadata(&to).unwrap().mtime(), 77);
        let after = fs::metadata(&to).unwrap();
        let times = |meta: &fs::Metadata| (meta.mtime(), meta.ctime_nsec(), meta.uid());
        assert_eq!(times(&after), times(&before), "{name}");
    }
    // A folder that becomes a link to elsewhere behind the guest's back.
    let limits = Limits { nodes: 100, descriptors: 4 };
    let mut client = Client::limited(&inner, Access::ReadWrite, limits);
    let (d, g) = (client.walk("d").unwrap().nodeid, client.walk("d/g").unwrap().nodeid);
    client.walk("f").unwrap();
    fs::create_dir(outer.join("elsewhere")).unwrap();
    fs::write(outer.join("elsewhere/g"), "secret").unwrap();
    fs::rename(inner.join("d"), inner.join("old")).unwrap();
    symlink("../elsewhere", inner.join("d")).unwrap();
    assert_eq!(client.getattr(g).unwrap_err(), Errno::STALE);
    assert_eq!(client.look_up(d, "g").unwrap_err(), Errno::STALE);
    assert_eq!(fs::read(outer.join("secret")).unwrap(), b"secret");
}

#[test]
fn only_files_and_folders_are_opened() {
    let (_outer, inner) = furnished();
    let mut names = vec!["fifo", "socket"];
    if is_root() {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let mode = Mode::from_raw_mode(0o666);
        // The host's /dev/null and, if there is any, its first disk.
        mknodat(CWD, inner.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
        mknodat(CWD, inner.join("disk"), FileType::BlockDevice, mode, makedev(254, 0)).unwrap();
        names.extend(["null", "disk"]);
    }
    let mut client = Client::new(&inner, Access::ReadWrite);
    for name in names {
        let entry = client.walk(name).unwrap();
        assert_eq!(entry.attr.ino, fs::symlink_metadata(inner.join(name)).unwrap().ino(), "{name}");
        for flags in [RDONLY, WRONLY, RDWR, RDONLY | TRUNC] {
            // On the pipe this would wait for a writer or a reader.
            assert_eq!(client.open(entry.nodeid, flags).unwrap_err(), Errno::ACCESS, "{name} {flags}");
            assert_eq!(client.create(ROOT, name, flags, 0o600).unwrap_err(), Errno::ACCESS, "{name} {flags}");
        }
        assert_eq!(client.opendir(entry.nodeid).unwrap_err(), Errno::NOTDIR);
        let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
        assert_eq!(client.setattr(entry.nodeid, size).unwrap_err(), Errno::ACCESS);
        let mode = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
        let is_device = entry.attr.mode & 0o2_0000 != 0 && entry.attr.mode & 0o10_0000 == 0;
        assert_eq!(client.setattr(entry.nodeid, mode).err(), is_device.then_some(Errno::PERM), "{name}");
        let owner = SetattrIn { valid: fattr::UID, uid: 0, ..SetattrIn::default() };
        assert_eq!(client.setattr(entry.nodeid, owner).err(), is_device.then_some(Errno::PERM), "{name}");
    }
}

#[test]
fn nothing_but_files_folders_and_links_is_made() {
    let (_outer, inner) = furnished();
    let mut client = Client::new(&inner, Access::ReadWrite);
    for kind in [0o2_0000, 0o6_0000, 0o1_0000, 0o14_0000, 0o12_0000, 0o4_0000, 0, 0o17_0000] {
        let make = MknodIn { mode: kind | 0o666, rdev: 0x103, ..MknodIn::default() };
        let answer = client.call(Operation::Mknod, ROOT, &[make.as_bytes(), b"made\0"]);
        assert_eq!(answer.unwrap_err(), Errno::PERM, "{kind:o}");
        assert!(!inner.join("made").exists());
    }
}

#[test]
fn set_id_bits_are_dropped() {
    let (_outer, inner) = furnished();
    let mut client = Client::new(&inner, Access::ReadWrite);
    let mode = |name: &str| fs::metadata(inner.join(name)).unwrap().mode() & 0o7777;
    client.create(ROOT, "created", RDWR, 0o6755).unwrap();
    let make = MknodIn { mode: 0o10_6755, ..MknodIn::default() };
    client.call(Operation::Mknod, ROOT, &[make.as_bytes(), b"made\0"]).unwrap();
    let make = MkdirIn { mode: 0o7755, umask: 0 };
    client.call(Operation::Mkdir, ROOT, &[make.as_bytes(), b"dir\0"]).unwrap();
    assert_eq!((mode("created"), mode("made"), mode("dir")), (0o755, 0o755, 0o1755));
    for name in ["f", "d"] {
        let node = client.walk(name).unwrap().nodeid;
        let set = SetattrIn { valid: fattr::MODE, mode: 0o7711, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, set).unwrap().attr.mode & 0o7777, 0o1711, "{name}");
        assert_eq!(mode(name), 0o1711);
    }
    // Those that the host has set are seen, and are gone with whatever else the guest makes of the file.
    let node = client.walk("f").unwrap().nodeid;
    let fh = client.open(node, RDWR).unwrap().fh;
    let from = client.walk("d/g").unwrap().nodeid;
    let from = client.open(from, RDONLY).unwrap().fh;
    let allocate = FallocateIn { fh, length: 9, ..FallocateIn::default() };
    let range = CopyFileRangeIn { fh_in: from, fh_out: fh, len: 1, ..CopyFileRangeIn::default() };
    let size = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    type Change<'a> = &'a dyn Fn(&mut Client) -> bool;
    let changes: [(&str, Change<'_>); 6] = [
        ("write", &|client| client.write(fh, 0, b"x").is_ok()),
        ("fallocate", &|client| client.call(Operation::Fallocate, node, &[allocate.as_bytes()]).is_ok()),
        ("copy", &|client| client.call(Operation::CopyFileRange, node, &[range.as_bytes()]).is_ok()),
        ("size", &|client| client.setattr(node, size).is_ok()),
        ("open", &|client| client.open(node, RDWR | TRUNC).is_ok()),
        ("open to read", &|client| client.open(node, RDONLY | TRUNC).is_ok()),
    ];
    for (what, change) in changes {
        fs::set_permissions(inner.join("f"), fs::Permissions::from_mode(0o6755)).unwrap();
        assert_eq!(client.getattr(node).unwrap().attr.mode, 0o10_6755);
        assert!(change(&mut client), "{what}");
        assert_eq!(mode("f"), 0o755, "{what}");
    }
    if is_root() {
        fs::set_permissions(inner.join("f"), fs::Permissions::from_mode(0o4755)).unwrap();
        let set = SetattrIn { valid: fattr::UID, uid: 7, ..SetattrIn::default() };
        assert_eq!(client.setattr(node, set).unwrap().attr.mode, 0o10_0755);
    }
}

#[test]
fn roots_monitor_keeps_owners() {
    if !is_root() {
        // What another user's does is `an_ordinary_users_monitor`.
        return;
    }
    let (_outer, inner) = furnished();
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(inner.join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    let mut client = Client::new(&inner, Access::ReadWrite);
    chown(inner.join("f"), Some(5), Some(6)).unwrap();
    let entry = client.walk("f").unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (5, 6));
    client.owner = (1000, 100);
    client.create(ROOT, "created", RDWR, 0o600).unwrap();
    client.call(Operation::Mkdir, ROOT, &[MkdirIn { mode: 0o700, umask: 0 }.as_bytes(), b"dir\0"]).unwrap();
    client.call(Operation::Symlink, ROOT, &[b"sym\0", b"text\0"]).unwrap();
    for name in ["created", "dir", "sym"] {
        assert_eq!(owner(name), (1000, 100), "{name}");
    }
    // A folder that gives its group to what is in it.
    fs::set_permissions(inner.join("d"), fs::Permissions::from_mode(0o2777)).unwrap();
    chown(inner.join("d"), Some(0), Some(77)).unwrap();
    fs::set_permissions(inner.join("d"), fs::Permissions::from_mode(0o2777)).unwrap();
    let d = client.walk("d").unwrap().nodeid;
    client.create(d, "created", RDWR, 0o600).unwrap();
    assert_eq!(owner("d/created"), (1000, 77));
    let set = SetattrIn { valid: fattr::GID, gid: 9, ..SetattrIn::default() };
    client.setattr(entry.nodeid, set).unwrap();
    assert_eq!(owner("f"), (5, 9));
    // Nobody, whom the host takes for "leave it as it is".
    client.owner = (u32::MAX, 0);
    assert_eq!(client.create(ROOT, "x", RDWR, 0o600).unwrap_err(), Errno::INVAL);
    assert!(!inner.join("x").exists());
    assert_eq!(rustix::process::geteuid().as_raw(), 0);
}

#[test]
#[ignore = "`ordinary_users_have_the_same_rules` has it run by an ordinary user"]
fn an_ordinary_users_monitor() {
    assert!(!is_root());
    let me = rustix::process::geteuid().as_raw();
    let (_outer, inner) = furnished();
    let mut client = Client::new(&inner, Access::ReadWrite);
    let entry = client.walk("f").unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (0, 0));
    client.owner = (1000, 100);
    let (made, _) = client.create(ROOT, "created", RDWR, 0o600).unwrap();
    assert_eq!((made.attr.uid, fs::metadata(inner.join("created")).unwrap().uid()), (0, me));
    for (valid, id, answer) in [
        (fattr::UID, 0, None),
        (fattr::GID, 0, None),
        (fattr::UID | fattr::GID, 0, None),
        (fattr::UID, 1000, Some(Errno::PERM)),
        (fattr::GID, me, Some(Errno::PERM)),
    ] {
        let set = SetattrIn { valid, uid: id, gid: id, ..SetattrIn::default() };
        assert_eq!(client.setattr(made.nodeid, set).err(), answer, "{valid} {id}");
    }
    // Others' files are theirs, and closed to the guest's root as they are to this user.
    let mut client = Client::new(Path::new("/etc"), Access::ReadWrite);
    let entry = client.walk("passwd").unwrap();
    assert_eq!((entry.attr.uid, client.open(entry.nodeid, RDONLY).err()), (0, None));
    assert_eq!(client.open(entry.nodeid, RDWR).unwrap_err(), Errno::ACCESS);
    let shadow = client.walk("shadow").unwrap().nodeid;
    assert_eq!(client.open(shadow, RDONLY).unwrap_err(), Errno::ACCESS);
    assert_eq!(client.create(ROOT, "made", RDWR, 0o600).unwrap_err(), Errno::ACCESS);
    a_read_only_share_is_not_written_to();
    nothing_leads_out_of_the_folder();
    only_files_and_folders_are_opened();
    nothing_but_files_folders_and_links_is_made();
    set_id_bits_are_dropped();
}

/// Runs a test of this program in another process: its path and the words that make it run alone.
fn alone(test: &str, folder: &Path) -> (PathBuf, Vec<String>) {
    // Where another user can get at it.
    let program = folder.join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let words = ["--ignored", "--exact", test].map(String::from).to_vec();
    (program, words)
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn ordinary_users_have_the_same_rules() {
    let folder = Folder::new();
    let (program, words) = alone("tests::rules::an_ordinary_users_monitor", &folder);
    let mut command = Command::new(program);
    command.args(words);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    succeeds(&mut command);
}

#[test]
fn mounts_are_not_crossed() {
    // Where /proc, and whatever else, is mounted below.
    let mut client = Client::new(Path::new("/"), Access::ReadOnly);
    let proc = client.walk("proc").unwrap();
    assert_eq!((proc.attr.mode, proc.attr.uid), (0o4_0555, 0));
    assert_eq!(client.look_up(proc.nodeid, "self").unwrap_err(), Errno::NOENT);
    let names = client.names(ROOT, true, 4096).unwrap();
    let (_, kind, entry) = names.into_iter().find(|name| name.0 == "proc").unwrap();
    let entry = entry.unwrap();
    assert_eq!((kind, entry.nodeid, entry.attr.ino), (4, proc.nodeid, proc.attr.ino));
    let inside: Vec<_> =
        client.names(proc.nodeid, true, 4096).unwrap().into_iter().map(|name| name.0).collect();
    assert_eq!(inside, [".", ".."]);
    // The folder itself may be a mount's root.
    Client::new(Path::new("/proc"), Access::ReadOnly).walk("self").unwrap();
}

#[test]
#[ignore = "`what_is_mounted_over_is_empty` runs it where it may mount"]
fn over_mounts() {
    let inner = PathBuf::from(std::env::var_os("SHARED").unwrap());
    assert_eq!(fs::read(inner.join("d/hidden")).unwrap(), b"hidden");
    assert_eq!(fs::read(inner.join("f")).unwrap(), b"hidden");
    let mut client = Client::new(&inner, Access::ReadWrite);
    let d = client.walk("d").unwrap();
    let f = client.walk("f").unwrap();
    assert_eq!((d.attr.mode, f.attr.mode, f.attr.size), (0o4_0555, 0o10_0444, 0));
    assert_eq!(
        (client.walk("f").unwrap().nodeid, client.getattr(f.nodeid).unwrap().attr.ino),
        (f.nodeid, f.attr.ino)
    );
    assert_eq!(client.look_up(d.nodeid, "hidden").unwrap_err(), Errno::NOENT);
    let fh = client.open(f.nodeid, RDONLY).unwrap().fh;
    assert_eq!(client.read(fh, 0, 100).unwrap(), b"");
    assert_eq!(client.write(fh, 0, b"x").unwrap_err(), Errno::ROFS);
    for flags in [WRONLY, RDWR, RDONLY | TRUNC] {
        assert_eq!(client.open(f.nodeid, flags).unwrap_err(), Errno::ROFS);
    }
    assert_eq!(client.create(ROOT, "f", RDWR, 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(client.create(d.nodeid, "x", RDWR, 0o600).unwrap_err(), Errno::ROFS);
    let mode = SetattrIn { valid: fattr::MODE, mode: 0o777, ..SetattrIn::default() };
    for node in [d.nodeid, f.nodeid] {
        assert_eq!(client.setattr(node, mode).unwrap_err(), Errno::ROFS);
        client.call(Operation::Statfs, node, &[]).unwrap();
        let list = GetxattrIn { size: 100, padding: 0 };
        assert_eq!(client.call(Operation::Listxattr, node, &[list.as_bytes()]).unwrap(), b"");
    }
    let to = RenameIn { newdir: ROOT };
    for (operation, parts) in [
        (Operation::Rmdir, vec![&b"d\0"[..]]),
        (Operation::Unlink, vec![b"f\0"]),
        (Operation::Rename, vec![to.as_bytes(), b"d\0z\0"]),
        (Operation::Rename, vec![to.as_bytes(), b"near\0f\0"]),
    ] {
        assert_eq!(client.call(operation, ROOT, &parts).unwrap_err(), Errno::BUSY, "{operation:?}");
    }
    client.forget(d.nodeid, 1);
    assert_eq!(client.getattr(d.nodeid).unwrap_err(), Errno::STALE);
    // A folder under which something is mounted while the guest has it in its hands.
    let g = client.walk("e/g").unwrap().nodeid;
    client.server.reset();
    client.init(7, 38).unwrap();
    assert_eq!(client.getattr(g).unwrap_err(), Errno::STALE);
}

#[test]
fn what_is_mounted_over_is_empty() {
    if !is_root() {
        // Without root there is nothing to mount; `mounts_are_not_crossed` is for everybody.
        return;
    }
    let (outer, inner) = furnished();
    fs::create_dir(inner.join("e")).unwrap();
    fs::write(inner.join("e/g"), "").unwrap();
    let (program, words) = alone("tests::rules::over_mounts", &outer);
    fs::create_dir(outer.join("mounted")).unwrap();
    fs::write(outer.join("mounted/hidden"), "hidden").unwrap();
    let script = "cd $SHARED && mount --bind ../mounted d && mount --bind ../mounted/hidden f && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--", "sh", "-c", script, "sh"]).arg(program).args(words).env("SHARED", &inner);
    succeeds(&mut command);
}

#[test]
fn what_is_covered_is_empty() {
    let (outer, inner) = furnished();
    fs::create_dir(inner.join("d/e/f")).unwrap();
    fs::write(inner.join("d/e/f/g"), "").unwrap();
    let mut client = Client::new(&inner, Access::ReadOnly);
    for place in ["d/e", "f", "later", "none/x"] {
        client.server.cover(Path::new(place)).unwrap();
    }
    let e = client.walk("d/e").unwrap();
    assert_eq!(e.attr.mode, 0o4_0555);
    assert_eq!(client.look_up(e.nodeid, "f").unwrap_err(), Errno::NOENT);
    let names = |client: &mut Client, node| {
        let names = client.names(node, true, 4096).unwrap();
        names.into_iter().map(|name| (name.0, name.2.map(|entry| entry.nodeid))).collect::<Vec<_>>()
    };
    let inside: Vec<_> = names(&mut client, e.nodeid).into_iter().map(|name| name.0).collect();
    assert_eq!(inside, [".", ".."]);
    let d = client.walk("d").unwrap().nodeid;
    assert!(names(&mut client, d).contains(&("e".into(), Some(e.nodeid))));
    // What has the same name elsewhere is not it.
    client.walk("d/g").unwrap();
    let f = client.walk("f").unwrap();
    assert_eq!((f.attr.mode, f.attr.size), (0o10_0444, 0));
    // A file system may say that a folder is another when something is made in it, as an overlay does.
    let moved = std::time::UNIX_EPOCH;
    fs::File::open(inner.join("d")).unwrap().set_modified(moved).unwrap();
    client.server.reset();
    client.init(7, 38).unwrap();
    assert_eq!(client.walk("d/e/f").unwrap_err(), Errno::NOENT);
    // And what comes later.
    assert_eq!(client.walk("later").unwrap_err(), Errno::NOENT);
    fs::create_dir(inner.join("later")).unwrap();
    fs::write(inner.join("later/x"), "").unwrap();
    fs::rename(inner.join("d/e"), inner.join("d/old")).unwrap();
    fs::create_dir(inner.join("d/e")).unwrap();
    fs::write(inner.join("d/e/x"), "").unwrap();
    for place in ["later/x", "d/e/x"] {
        assert_eq!(client.walk(place).unwrap_err(), Errno::NOENT, "{place}");
    }
    for wrong in ["", "..", "near/x", "../shared/d"] {
        assert!(client.server.cover(Path::new(wrong)).is_err(), "{wrong}");
    }
    let mut writable = Client::new(&inner, Access::ReadWrite);
    assert!(matches!(writable.server.cover(Path::new("d")), Err(crate::ShareError::Writable)));
    drop(outer);
}
