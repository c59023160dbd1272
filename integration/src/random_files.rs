//! Random work on files in two folders, one of which is known to be right: whatever is done has to come to the same in
//! both. What fsx does for one file, for a small tree, and by a program that knows nothing of where the folders are.

use crate::context::Chance;
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What something came to.
type Came = Result<Vec<u8>, Errno>;

/// The word by which `case` does this: `case --random-files DIR OTHER SEED STEPS`.
pub const WORD: &str = "--random-files";

/// One of both sides.
struct Side {
    folder: PathBuf,
    open: Vec<File>,
}

/// What is to be done.
#[derive(Clone, Debug)]
enum Step {
    Open(PathBuf),
    Close(usize),
    Write(usize, u64, Vec<u8>),
    Append(PathBuf, Vec<u8>),
    Map(usize, u64, Vec<u8>),
    Read(usize, u64, usize),
    Cut(usize, u64),
    Sync(usize),
    Allocate(usize, u32, u64, u64),
    Seek(usize, u64, bool),
    Folder(PathBuf),
    Link(PathBuf),
    HardLink(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    RemoveFolder(PathBuf),
    Look(PathBuf),
    List(PathBuf),
}

fn path(chance: &mut Chance) -> PathBuf {
    let depth = 1 + chance.below(3);
    (0..depth).map(|_| ["a", "b", "c", "d"][usize::try_from(chance.below(4)).unwrap_or(0)]).collect()
}

fn bytes(chance: &mut Chance) -> Vec<u8> {
    let (length, first) = (1 + chance.below(20_000), chance.below(256));
    (0..length).map(|at| (at + first).to_le_bytes()[0]).collect()
}

/// The next step, with so many files open.
fn step(chance: &mut Chance, open: usize) -> Step {
    let at = chance.below(60_000);
    let which = |chance: &mut Chance| usize::try_from(chance.below(open as u64)).unwrap_or(0);
    if open == 0 || chance.below(3) == 0 {
        return match chance.below(12) {
            0..3 => Step::Open(path(chance)),
            3 => Step::Append(path(chance), bytes(chance)),
            4 => Step::Folder(path(chance)),
            5 => Step::Link(path(chance)),
            6 => Step::HardLink(path(chance), path(chance)),
            7 => Step::Rename(path(chance), path(chance)),
            8 => Step::Unlink(path(chance)),
            9 => Step::RemoveFolder(path(chance)),
            10 => Step::Look(path(chance)),
            _ => Step::List(path(chance)),
        };
    }
    match chance.below(11) {
        0 if open > 3 => Step::Close(which(chance)),
        0..4 => Step::Write(which(chance), at, bytes(chance)),
        4 => Step::Map(which(chance), at, bytes(chance)),
        5..7 => Step::Read(which(chance), at, 30_000),
        7 => Step::Cut(which(chance), at),
        8 => Step::Sync(which(chance)),
        9 => {
            let mode = [0, 1, 3][usize::try_from(chance.below(3)).unwrap_or(0)];
            Step::Allocate(which(chance), mode, at, 1 + chance.below(40_000))
        }
        _ => Step::Seek(which(chance), at, chance.below(2) == 0),
    }
}

impl Side {
    fn carry_out(&mut self, step: &Step) -> Came {
        let done = |result: io::Result<()>| came(result.map(|()| Vec::new()));
        let at = |path: &PathBuf| self.folder.join(path);
        match step {
            Step::Open(path) => {
                let file = File::options().read(true).write(true).create(true).truncate(false).open(at(path));
                done(file.map(|file| self.open.push(file)))
            }
            Step::Append(path, bytes) => {
                let file = File::options().append(true).create(true).open(at(path));
                done(file.and_then(|mut file| io::Write::write_all(&mut file, bytes)))
            }
            Step::Folder(path) => done(fs::create_dir(at(path))),
            Step::Link(path) => done(symlink("nowhere", at(path))),
            Step::HardLink(from, to) => done(fs::hard_link(at(from), at(to))),
            Step::Rename(from, to) => done(fs::rename(at(from), at(to))),
            Step::Unlink(path) => done(fs::remove_file(at(path))),
            Step::RemoveFolder(path) => done(fs::remove_dir(at(path))),
            Step::Look(path) => came(fs::symlink_metadata(at(path)).map(|it| told(&it).into_bytes())),
            Step::List(path) => came(names(&at(path)).map(|names| names.join("/").into_bytes())),
            Step::Close(which) => {
                self.open.swap_remove(*which);
                Ok(Vec::new())
            }
            _ => self.by_handle(step),
        }
    }

    fn by_handle(&mut self, step: &Step) -> Came {
        let done = |result: io::Result<()>| came(result.map(|()| Vec::new()));
        match step {
            Step::Write(which, at, bytes) => done(self.open[*which].write_all_at(bytes, *at)),
            Step::Map(which, at, bytes) => done(write_by_mapping(&self.open[*which], *at, bytes)),
            Step::Read(which, at, count) => {
                let mut bytes = vec![0; *count];
                came(self.open[*which].read_at(&mut bytes, *at).map(|count| bytes[..count].to_vec()))
            }
            Step::Cut(which, size) => done(self.open[*which].set_len(*size)),
            Step::Sync(which) => done(self.open[*which].sync_all()),
            Step::Allocate(which, mode, at, count) => {
                let mode = FallocateFlags::from_bits_retain(*mode);
                rustix::fs::fallocate(&self.open[*which], mode, *at, *count).map(|()| Vec::new())
            }
            Step::Seek(which, at, data) => {
                let to = if *data { SeekFrom::Data(*at) } else { SeekFrom::Hole(*at) };
                rustix::fs::seek(&self.open[*which], to).map(|offset| offset.to_le_bytes().to_vec())
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn came(result: io::Result<Vec<u8>>) -> Came {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Writes by a shared mapping, as much as lies within the file.
fn write_by_mapping(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let size = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let at = usize::try_from(at).unwrap_or(0);
    let Some(length) = NonZeroUsize::new(size).filter(|_| at < size) else { return Ok(()) };
    let count = bytes.len().min(size - at);
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: The mapping is new, and nobody else changes the file meanwhile: both folders are this program's own.
    unsafe {
        let mapped = mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0)?;
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapped.as_ptr().cast::<u8>().add(at), count);
        msync(mapped, size, MsFlags::MS_SYNC)?;
        munmap(mapped, size)?;
    }
    Ok(())
}

/// What is compared of a file.
fn told(meta: &fs::Metadata) -> String {
    let size = if meta.is_dir() { 0 } else { meta.len() };
    format!("{:o} {size} {}", meta.mode(), meta.nlink())
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = entries.map(name).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Compares two trees: names, kinds, modes, sizes, links and contents.
///
/// # Errors
/// What is different, or cannot be read.
pub fn compare(one: &Path, other: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} or {}: {error}", one.display(), other.display());
    let (here, there) = (names(one).map_err(failed)?, names(other).map_err(failed)?);
    if here != there {
        return Err(format!("{} has {here:?}, {} has {there:?}", one.display(), other.display()));
    }
    for name in here {
        let (one, other) = (one.join(&name), other.join(&name));
        let both = [&one, &other].map(|path| fs::symlink_metadata(path).map_err(failed));
        let [here, there] = both;
        let (here, there) = (here?, there?);
        if told(&here) != told(&there) {
            return Err(format!("{}: {} and {}", one.display(), told(&here), told(&there)));
        }
        if here.is_dir() {
            compare(&one, &other)?;
        } else if here.is_symlink() {
            let both = [&one, &other].map(|path| fs::read_link(path).ok());
            if both[0] != both[1] {
                return Err(format!("{} leads to {both:?}", one.display()));
            }
        } else if here.is_file() && fs::read(&one).map_err(failed)? != fs::read(&other).map_err(failed)? {
            return Err(format!("{} and {} are different", one.display(), other.display()));
        }
    }
    Ok(())
}

/// Does so many steps in both folders, which are made.
///
/// # Errors
/// The first step that came to something else.
pub fn work(one: &Path, other: &Path, mut chance: Chance, steps: u64) -> Result<(), String> {
    let mut sides = [one, other].map(|folder| Side { folder: folder.to_path_buf(), open: Vec::new() });
    for side in &sides {
        fs::create_dir_all(&side.folder).map_err(|error| format!("{}: {error}", side.folder.display()))?;
    }
    for number in 0..steps {
        if sides[0].open.len() > 10 {
            sides.iter_mut().for_each(|side| drop(side.open.swap_remove(0)));
        }
        let step = step(&mut chance, sides[0].open.len());
        let [here, there] = [0, 1].map(|side: usize| sides[side].carry_out(&step));
        if here != there {
            let text = format!("{step:?}");
            return Err(format!(
                "step {number}, {text:.200}: {:.200} and {:.200}",
                show(&here),
                show(&there)
            ));
        }
    }
    compare(one, other)
}

fn show(came: &Came) -> String {
    match came {
        Ok(bytes) => format!("{} bytes, {:?}", bytes.len(), String::from_utf8_lossy(bytes)),
        Err(error) => error.to_string(),
    }
}

/// Does what `case --random-files` is asked to.
///
/// # Errors
/// What is wrong with the words, or what came of it.
pub fn carry_out(words: &[&str]) -> Result<(), String> {
    let [one, other, seed, steps] = words else {
        return Err(format!("usage: case {WORD} DIR OTHER SEED STEPS"));
    };
    let (seed, steps) = (seed.parse().map_err(|_| "no seed")?, steps.parse().map_err(|_| "no steps")?);
    work(Path::new(one), Path::new(other), Chance::new(seed), steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_the_same_and_something_else_is_not() {
        let base = std::env::temp_dir().join(format!("vmm-random-files-{}", std::process::id()));
        let (one, other) = (base.join("one"), base.join("other"));
        work(&one, &other, Chance::new(3), 3000).unwrap();
        fs::write(one.join("x"), "1").unwrap();
        assert!(compare(&one, &other).is_err());
        fs::write(other.join("x"), "2").unwrap();
        assert!(compare(&one, &other).unwrap_err().contains("are different"));
        // What is there on one side alone shows at once.
        fs::remove_dir_all(&other).unwrap();
        assert!(work(&one, &other, Chance::new(3), 3000).is_err());
        fs::remove_dir_all(&base).unwrap();
    }
}
