//! Random work, compared with the same work by the host's own calls: what fsx does for one file, for a small tree.

use super::*;
use crate::protocol::{CopyFileRangeIn, FallocateIn, LinkIn, LseekIn, LseekOut, MkdirIn, Rename2In, fattr};
use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom};
use std::fs::File;
use std::os::unix::fs::{FileExt, symlink};

/// Numbers by xorshift64 (Marsaglia, "Xorshift RNGs"): the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn name(&mut self) -> String {
        ["a", "b", "c", "d", "e"][usize::try_from(self.below(5)).unwrap()].into()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let (length, byte) = (self.below(20_000), self.below(256));
        (0..length).map(|at| u8::try_from((at + byte) & 0xff).unwrap()).collect()
    }
}

/// A file that is open on both sides.
struct Pair {
    node: u64,
    fh: u64,
    file: File,
}

/// Both sides.
struct Both {
    random: Random,
    client: Client,
    mirror: Folder,
    open: Vec<Pair>,
}

type Result2<T> = (Result<T, Errno>, Result<T, Errno>);

fn host<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap())
}

impl Both {
    /// A folder, of those that are or may be there: its node, or why there is none; its place in the mirror.
    fn folder(&mut self) -> (Result<u64, Errno>, PathBuf) {
        let (mut node, mut path) = (Ok(ROOT), self.mirror.0.clone());
        for _ in 0..self.random.below(3) {
            let name = self.random.name();
            let entry = node.and_then(|node| self.client.look_up(node, &name));
            // A link, which the guest follows by itself, and this client does not.
            if entry.as_ref().is_ok_and(|entry| entry.attr.mode & 0o17_0000 == 0o12_0000) {
                continue;
            }
            node = entry.map(|entry| entry.nodeid);
            path.push(name);
        }
        (node, path)
    }

    fn by_name(&mut self) -> Result2<Vec<u8>> {
        let (node, folder) = self.folder();
        let name = self.random.name();
        let path = folder.join(&name);
        let client = &mut self.client;
        let empty = |answer: Answer| answer.map(|_| Vec::new());
        match self.random.below(9) {
            0 | 1 => {
                let create = |node| client.create(node, &name, RDWR, 0o644);
                let made = node.and_then(create);
                let file =
                    host(File::options().read(true).write(true).create(true).truncate(false).open(&path));
                // A link again.
                if made.as_ref().err() == Some(&Errno::LOOP) {
                    return (Ok(Vec::new()), Ok(Vec::new()));
                }
                match (made, file) {
                    (Ok((entry, out)), Ok(file)) => {
                        self.open.push(Pair { node: entry.nodeid, fh: out.fh, file });
                        (Ok(Vec::new()), Ok(Vec::new()))
                    }
                    (made, file) => (made.map(|_| Vec::new()), file.map(|_| Vec::new())),
                }
            }
            2 => {
                let make = MkdirIn { mode: 0o755, umask: 0 };
                let made = node
                    .and_then(|node| client.call(Operation::Mkdir, node, &[make.as_bytes(), &zeroed(&name)]));
                (empty(made), host(fs::create_dir(&path)).map(|()| Vec::new()))
            }
            3 => {
                let gone = node.and_then(|node| client.call(Operation::Unlink, node, &[&zeroed(&name)]));
                (empty(gone), rustix::fs::unlinkat(CWD, &path, AtFlags::empty()).map(|()| Vec::new()))
            }
            4 => {
                let gone = node.and_then(|node| client.call(Operation::Rmdir, node, &[&zeroed(&name)]));
                (empty(gone), rustix::fs::unlinkat(CWD, &path, AtFlags::REMOVEDIR).map(|()| Vec::new()))
            }
            5 => {
                // What it leads to is not there, so that whoever follows it on the mirror's side finds nothing either.
                let made = node.and_then(|node| {
                    client.call(Operation::Symlink, node, &[&zeroed(&name), b"nowhere/at/all\0"])
                });
                (empty(made), host(symlink("nowhere/at/all", &path)).map(|()| Vec::new()))
            }
            6 => looked_at(client, node, (&name, &path)),
            which => self.with_two_names(which == 7, (node, name), &path),
        }
    }

    fn with_two_names(
        &mut self,
        renames: bool,
        from: (Result<u64, Errno>, String),
        path: &Path,
    ) -> Result2<Vec<u8>> {
        let (newdir, folder) = self.folder();
        let name = self.random.name();
        let to = folder.join(&name);
        let flags = [RenameFlags::empty(), RenameFlags::NOREPLACE, RenameFlags::EXCHANGE];
        let flags = flags[usize::try_from(self.random.below(3)).unwrap()];
        // Which of two folders that are not there is complained about is anybody's choice.
        let is_nowhere = from.0.is_err() || newdir.is_err();
        let done = from.0.and_then(|node| {
            let newdir = newdir?;
            if renames {
                let rename = Rename2In { newdir, flags: flags.bits(), padding: 0 };
                let parts: [&[u8]; 3] = [rename.as_bytes(), &zeroed(&from.1), &zeroed(&name)];
                self.client.call(Operation::Rename2, node, &parts)
            } else {
                let oldnodeid = self.client.look_up(node, &from.1)?.nodeid;
                self.client.call(Operation::Link, newdir, &[LinkIn { oldnodeid }.as_bytes(), &zeroed(&name)])
            }
        });
        let mirrored = if renames {
            rustix::fs::renameat_with(CWD, path, CWD, &to, flags)
        } else {
            rustix::fs::linkat(CWD, path, CWD, &to, AtFlags::empty())
        };
        let same = |error| if is_nowhere { Errno::NOENT } else { error };
        (done.map(|_| Vec::new()).map_err(same), mirrored.map(|()| Vec::new()).map_err(same))
    }

    fn by_handle(&mut self) -> Result2<Vec<u8>> {
        if self.open.is_empty() {
            return (Ok(Vec::new()), Ok(Vec::new()));
        }
        let which = usize::try_from(self.random.below(self.open.len() as u64)).unwrap();
        let other = usize::try_from(self.random.below(self.open.len() as u64)).unwrap();
        let (at, onto) = (self.random.below(100_000), self.random.below(100_000));
        let Both { random, client, open, .. } = self;
        let (pair, other) = (&open[which], &open[other]);
        match random.below(8) {
            0 | 1 => {
                let bytes = random.bytes();
                let written = client.write(pair.fh, at, &bytes).map(|count| count.to_le_bytes().to_vec());
                let length = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
                (written, host(pair.file.write_all_at(&bytes, at)).map(|()| length))
            }
            2 => {
                let mut bytes = vec![0; 30_000];
                let count = host(pair.file.read_at(&mut bytes, at));
                (client.read(pair.fh, at, 30_000), count.map(|count| bytes[..count].to_vec()))
            }
            3 => {
                let set = SetattrIn { valid: fattr::SIZE, size: at, ..SetattrIn::default() };
                let set = client.setattr(pair.node, set).map(|out| out.attr.size.to_le_bytes().to_vec());
                (set, host(pair.file.set_len(at)).map(|()| at.to_le_bytes().to_vec()))
            }
            4..7 => ranges((random, client), (pair, other), (at, onto)),
            _ => {
                let pair = open.swap_remove(which);
                client.release(pair.fh);
                (Ok(Vec::new()), Ok(Vec::new()))
            }
        }
    }

    /// What a folder and those in it have, as each side tells it.
    fn compare(&mut self, node: u64, path: &Path) {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let size = 200 + u32::try_from(self.random.below(4000)).unwrap();
        let listed = self.client.names(node, true, size).unwrap();
        let listed: Vec<String> =
            listed.into_iter().map(|name| name.0).filter(|name| !name.starts_with('.')).collect();
        assert_eq!(listed, names, "{}", path.display());
        for name in names {
            let (entry, path) = (self.client.look_up(node, &name).unwrap(), path.join(&name));
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                self.compare(entry.nodeid, &path);
            } else if kind.is_symlink() {
                let text = self.client.call(Operation::Readlink, entry.nodeid, &[]).unwrap();
                assert_eq!(String::from_utf8(text).unwrap(), fs::read_link(&path).unwrap().to_str().unwrap());
            } else {
                let fh = self.client.open(entry.nodeid, RDONLY).unwrap().fh;
                assert!(
                    self.client.read(fh, 0, 1 << 20).unwrap() == fs::read(&path).unwrap(),
                    "{}",
                    path.display()
                );
                self.client.release(fh);
            }
            self.client.forget(entry.nodeid, 1);
        }
    }
}

/// What each side says of something.
fn looked_at(client: &mut Client, node: Result<u64, Errno>, (name, path): (&str, &Path)) -> Result2<Vec<u8>> {
    let entry = node.and_then(|node| client.look_up(node, name));
    let stat = host(fs::symlink_metadata(path));
    let told = |mode: u32, size: u64, links: u32| format!("{mode:o} {size} {links}").into_bytes();
    use std::os::unix::fs::MetadataExt;
    let size = |mode: u32, size| if mode & 0o17_0000 == 0o4_0000 { 0 } else { size };
    (
        entry.map(|entry| told(entry.attr.mode, size(entry.attr.mode, entry.attr.size), entry.attr.nlink)),
        stat.map(|stat| {
            told(stat.mode(), size(stat.mode(), stat.size()), u32::try_from(stat.nlink()).unwrap())
        }),
    )
}

/// What is done to ranges of files: room, copies, holes.
fn ranges(
    (random, client): (&mut Random, &mut Client),
    (pair, other): (&Pair, &Pair),
    (at, onto): (u64, u64),
) -> Result2<Vec<u8>> {
    let nothing = |answer: Answer| answer.map(|_| Vec::new());
    match random.below(3) {
        0 => {
            let mode = [0, 1, 3, 16, 17][usize::try_from(random.below(5)).unwrap()];
            let length = onto + 1;
            let allocate = FallocateIn { fh: pair.fh, offset: at, length, mode, padding: 0 };
            let allocated = client.call(Operation::Fallocate, pair.node, &[allocate.as_bytes()]);
            let flags = FallocateFlags::from_bits_retain(mode);
            (nothing(allocated), rustix::fs::fallocate(&pair.file, flags, at, length).map(|()| Vec::new()))
        }
        1 => {
            let range = CopyFileRangeIn {
                fh_in: pair.fh,
                off_in: at,
                nodeid_out: other.node,
                fh_out: other.fh,
                off_out: onto,
                len: 5000,
                flags: 0,
            };
            let copied = client.call(Operation::CopyFileRange, pair.node, &[range.as_bytes()]);
            let (mut from, mut to) = (at, onto);
            let mirrored =
                rustix::fs::copy_file_range(&pair.file, Some(&mut from), &other.file, Some(&mut to), 5000);
            (
                copied.map(|out| front::<WriteOut>(&out).size.to_le_bytes().to_vec()),
                mirrored.map(|count| u32::try_from(count).unwrap().to_le_bytes().to_vec()),
            )
        }
        _ => {
            let (whence, to) =
                [(3, SeekFrom::Data(at)), (4, SeekFrom::Hole(at))][usize::try_from(random.below(2)).unwrap()];
            let seek = LseekIn { fh: pair.fh, offset: at, whence, padding: 0 };
            let found = client.call(Operation::Lseek, pair.node, &[seek.as_bytes()]);
            (
                found.map(|out| front::<LseekOut>(&out).offset.to_le_bytes().to_vec()),
                rustix::fs::seek(&pair.file, to).map(|offset| offset.to_le_bytes().to_vec()),
            )
        }
    }
}

fn work(seed: u64, steps: u32) {
    let folder = Folder::new();
    // Few descriptors, so that most of what is used has to be found again.
    let limits = Limits { nodes: 10_000, descriptors: 40 };
    let client = Client::limited(&folder, Access::ReadWrite, limits);
    let mut both = Both { random: Random(seed), client, mirror: Folder::new(), open: Vec::new() };
    for step in 0..steps {
        if both.open.len() > 15 {
            let pair = both.open.swap_remove(0);
            both.client.release(pair.fh);
        }
        let (one, other) = if both.random.below(3) == 0 { both.by_name() } else { both.by_handle() };
        assert!(one == other, "seed {seed}, step {step}: {one:?} here, {other:?} on the host");
    }
    let path = both.mirror.0.clone();
    both.compare(ROOT, &path);
    assert!(both.client.server.load().2 <= 40);
}

#[test]
fn random_work_is_done_as_the_host_does_it() {
    for seed in 1..=8 {
        work(seed, 2000);
    }
}

#[test]
#[ignore = "long: `SEED=7 cargo test -p guest-share -- --ignored long_random` goes on for a minute"]
fn long_random_work() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let begin = std::time::Instant::now();
    for seed in seed.. {
        work(seed, 5000);
        if begin.elapsed().as_secs() >= 60 {
            break;
        }
    }
}
