//! What is mounted where a task sees it.
//!
//! Source: Linux, `fs/mount.h` (`struct mount`), `include/linux/fs_struct.h`, `include/linux/dcache.h`
//! (`struct dentry`), `fs/d_path.c`, which makes paths of them, and `fs/proc_namespace.c`, which tells user space.

use crate::list::{Ring, remark};
use crate::name;
use crate::reader::{NotThere, Reader};
use crate::types::{Field, TypeId, Types};
use std::collections::HashSet;

/// Something mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted, as whoever mounted it called it: a device as a rule.
    pub device: String,
    /// Where, seen from the task's root.
    pub path: String,
    /// The kind of its file system.
    pub kind: String,
    /// The options that all file systems have: `ro` or `rw` first, in the order of `/proc/mounts`. A file system's own are
    /// not among them.
    pub options: Vec<&'static str>,
}

/// What is mounted, each before what is mounted in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Each of them.
    pub all: Vec<Mount>,
    /// What of them could not be had, a line each.
    pub remarks: Vec<String>,
}

/// Mounts that are gone through at most: a namespace has 100,000 at most unless somebody says so
/// (`/proc/sys/fs/mount-max`).
const MOST: usize = 1 << 14;
/// Members of lists of what is mounted that are gone through at most, all together: each is in one list.
const MOST_MEMBERS: usize = 4 * MOST;
/// Names of folders that are gone through at most, for all paths together.
const MOST_NAMES: usize = 1 << 18;
/// Bytes of a path, at most (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;
/// Bytes of a name of a file, at most (`NAME_MAX`), and of a kind of file system or a device that is told.
const LONGEST_NAME: u64 = 255;

/// `SB_RDONLY`, and `MNT_READONLY` of a mount: what nobody writes to.
const SB_READ_ONLY: u64 = 1;
const READ_ONLY: u64 = 0x40;
/// Flags of a file system that `/proc/mounts` tells: `SB_SYNCHRONOUS`, `SB_DIRSYNC`, `SB_MANDLOCK` and `SB_LAZYTIME`.
const OF_FILE_SYSTEM: [(u64, &str); 4] =
    [(1 << 4, "sync"), (1 << 7, "dirsync"), (1 << 6, "mand"), (1 << 25, "lazytime")];
/// Flags of a mount (`include/linux/mount.h`) that it tells.
const OF_MOUNT: [(u64, &str); 7] = [
    (0x01, "nosuid"),
    (0x02, "nodev"),
    (0x04, "noexec"),
    (0x08, "noatime"),
    (0x10, "nodiratime"),
    (0x20, "relatime"),
    (0x80, "nosymfollow"),
];

/// How the kernel's mounts are made.
#[derive(Debug)]
pub struct MountLayout {
    /// Of a task: what it has of the file system; of that, its root.
    fs: Field,
    root_mount: Field,
    root_folder: Field,
    /// Where a mount has what file systems know of it.
    inner: Field,
    parent: Field,
    mountpoint: Field,
    children: Field,
    child: Field,
    device: Field,
    root: Field,
    file_system: Field,
    flags: Field,
    of_folder: Folder,
    kind: Field,
    file_system_flags: Field,
    kind_name: Field,
    /// What more a file system says of its kind, as `sshfs` of one that is `fuse`; before 5.5 and since `struct super_block`
    /// has it.
    subtype: Option<Field>,
}

/// How a folder's name is kept, `struct dentry`.
#[derive(Debug)]
struct Folder {
    parent: Field,
    name: Field,
    length: Field,
}

impl MountLayout {
    /// By the kernel's types.
    ///
    /// # Errors
    /// What they do not have, in words.
    pub fn new(types: &Types) -> Result<MountLayout, String> {
        let field = |tag: &str, path: &str| -> Result<Field, String> {
            let of: Option<TypeId> = types.tagged(tag);
            of.and_then(|of| types.field(of, path))
                .ok_or_else(|| format!("the kernel's types do not have struct {tag}'s {path}"))
        };
        Ok(MountLayout {
            fs: field("task_struct", "fs")?,
            root_mount: field("fs_struct", "root.mnt")?,
            root_folder: field("fs_struct", "root.dentry")?,
            inner: field("mount", "mnt")?,
            parent: field("mount", "mnt_parent")?,
            mountpoint: field("mount", "mnt_mountpoint")?,
            children: field("mount", "mnt_mounts")?,
            child: field("mount", "mnt_child")?,
            device: field("mount", "mnt_devname")?,
            root: field("mount", "mnt.mnt_root")?,
            file_system: field("mount", "mnt.mnt_sb")?,
            flags: field("mount", "mnt.mnt_flags")?,
            of_folder: Folder {
                parent: field("dentry", "d_parent")?,
                name: field("dentry", "d_name.name")?,
                length: field("dentry", "d_name.len")?,
            },
            kind: field("super_block", "s_type")?,
            file_system_flags: field("super_block", "s_flags")?,
            kind_name: field("file_system_type", "name")?,
            subtype: field("super_block", "s_subtype").ok(),
        })
    }

    /// All that the task at an address can see. `go_on` is asked for each, and for each name in paths.
    ///
    /// # Errors
    /// Where not even the task's root is there; in words ([`Mounts::remarks`]), what of others cannot be had.
    pub fn mounts<E>(
        &self,
        task: u64,
        reader: &Reader<'_>,
        go_on: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Result<Mounts, MountError>, E> {
        let root = match self.root(task, reader) {
            Ok(root) => root,
            Err(error) => return Ok(Err(error)),
        };
        let mut walk = Walk { layout: self, reader, root, names: 0, found: Mounts::default() };
        let mut waiting = vec![(root.mount, "/".to_string())];
        // A root that is a folder in something mounted sees what is mounted below, and not that itself.
        let mut is_seen = walk.is_root(root.mount, root.folder);
        let mut seen = HashSet::from([root.mount]);
        let mut members = 0;
        while let Some((mount, path)) = waiting.pop() {
            go_on()?;
            if std::mem::replace(&mut is_seen, true) {
                walk.add(mount, &path);
            }
            let mut children = Vec::new();
            let mut ring = Ring::new(mount.wrapping_add(self.children.at));
            while let Some(node) = ring.next(reader, &mut walk.found.remarks) {
                go_on()?;
                let child = node.wrapping_sub(self.child.at);
                members += 1;
                // Lists that lie have the same members, of which each was seen.
                if seen.len() >= MOST || members > MOST_MEMBERS || walk.names >= MOST_NAMES {
                    // Whatever else was said.
                    walk.found.remarks.push(format!("there are more: {} were gone through", seen.len()));
                    return Ok(Ok(walk.found));
                }
                if seen.insert(child) {
                    match walk.path(child, mount, &path, go_on)? {
                        Ok(Some(path)) => children.push((child, path)),
                        // What is beside a root that is a folder.
                        Ok(None) => {}
                        Err(error) => walk.remark(format!("something mounted is left out: {error}")),
                    }
                }
            }
            waiting.extend(children.into_iter().rev());
        }
        Ok(Ok(walk.found))
    }

    fn root(&self, task: u64, reader: &Reader<'_>) -> Result<Root, MountError> {
        let fs = reader.field(task, self.fs)?;
        if fs == 0 {
            return Err(MountError::Ended);
        }
        let mount = reader.field(fs, self.root_mount)?.wrapping_sub(self.inner.at);
        let root = Root { mount, folder: reader.field(fs, self.root_folder)? };
        // The list of what is mounted in it is there.
        reader.address(mount.wrapping_add(self.children.at))?;
        Ok(root)
    }
}

/// Why nothing that is mounted is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The task has ended, and sees no file any more.
    #[error("the task has ended, and has no root any more")]
    Ended,
    /// The kernel's memory is not there.
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

/// A task's root: what is mounted, and the folder in it.
#[derive(Clone, Copy, Debug)]
struct Root {
    mount: u64,
    folder: u64,
}

struct Walk<'a> {
    layout: &'a MountLayout,
    reader: &'a Reader<'a>,
    root: Root,
    /// Names of folders so far.
    names: usize,
    found: Mounts,
}

/// Why there is no path.
#[derive(Debug, thiserror::Error)]
enum NoPath {
    #[error("its path is longer than {LONGEST_PATH} bytes, or a circle")]
    Endless,
    #[error("it is not below where the kernel has it")]
    Elsewhere,
    #[error(transparent)]
    NotThere(#[from] NotThere),
}

impl Walk<'_> {
    fn remark(&mut self, text: String) {
        remark(&mut self.found.remarks, text);
    }

    /// Whether a folder is where something mounted begins.
    fn is_root(&self, mount: u64, folder: u64) -> bool {
        self.reader.field(mount, self.layout.root) == Ok(folder)
    }

    /// Where something is mounted, by the path of what it is mounted in; `None` for what the task cannot see.
    fn path<E>(
        &mut self,
        mount: u64,
        parent: u64,
        of_parent: &str,
        go_on: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Result<Option<String>, NoPath>, E> {
        let (layout, reader) = (self.layout, self.reader);
        let ends = || -> Result<(u64, u64), NoPath> {
            if reader.field(mount, layout.parent)? != parent {
                return Err(NoPath::Elsewhere);
            }
            Ok((reader.field(mount, layout.mountpoint)?, reader.field(parent, layout.root)?))
        };
        let (mut folder, top) = match ends() {
            Ok((folder, top)) => (folder, top),
            Err(error) => return Ok(Err(error)),
        };
        let (mut names, mut length) = (Vec::new(), of_parent.len());
        let end = if parent == self.root.mount { self.root.folder } else { top };
        while folder != end {
            go_on()?;
            self.names += 1;
            let (name, above) = match self.name(folder) {
                Ok(name) => name,
                Err(error) => return Ok(Err(error.into())),
            };
            if folder == top || folder == above {
                return Ok(if end == top { Err(NoPath::Elsewhere) } else { Ok(None) });
            }
            length += name.len() + 1;
            if length > LONGEST_PATH || name.is_empty() || self.names > MOST_NAMES {
                return Ok(Err(NoPath::Endless));
            }
            names.push(name);
            folder = above;
        }
        let below: String = names.iter().rev().map(|name| format!("/{name}")).collect();
        let path = format!("{}{below}", of_parent.trim_end_matches('/'));
        Ok(Ok(Some(if path.is_empty() { "/".into() } else { path })))
    }

    /// A folder's name, and the one above it.
    fn name(&self, folder: u64) -> Result<(String, u64), NotThere> {
        let Folder { parent, name, length } = self.layout.of_folder;
        let length = self.reader.field(folder, length)?.min(LONGEST_NAME);
        let name = name::whole(self.reader, self.reader.field(folder, name)?, length)?;
        Ok((name, self.reader.field(folder, parent)?))
    }

    /// What is told of something mounted.
    fn add(&mut self, mount: u64, path: &str) {
        let (layout, reader) = (self.layout, self.reader);
        let described = || -> Result<Mount, NotThere> {
            let file_system = reader.field(mount, layout.file_system)?;
            let kind = reader.field(file_system, layout.kind)?;
            let (of_it, of_all) =
                (reader.field(mount, layout.flags)?, reader.field(file_system, layout.file_system_flags)?);
            let is_read_only = of_it & READ_ONLY != 0 || of_all & SB_READ_ONLY != 0;
            let words = |flags: u64, all: &'static [(u64, &'static str)]| {
                all.iter().filter(move |(flag, _)| flags & flag != 0).map(|(_, word)| *word)
            };
            let device = match reader.field(mount, layout.device)? {
                0 => "none".into(),
                name => name::at(reader, name, LONGEST_NAME)?,
            };
            let mut kind = name::at(reader, reader.field(kind, layout.kind_name)?, LONGEST_NAME)?;
            let subtype = layout.subtype.map_or(Ok(0), |subtype| reader.field(file_system, subtype))?;
            if subtype != 0 {
                let subtype = name::at(reader, subtype, LONGEST_NAME)?;
                if !subtype.is_empty() {
                    kind = format!("{kind}.{subtype}");
                }
            }
            Ok(Mount {
                device,
                path: path.to_string(),
                kind,
                options: std::iter::once(if is_read_only { "ro" } else { "rw" })
                    .chain(words(of_all, &OF_FILE_SYSTEM))
                    .chain(words(of_it, &OF_MOUNT))
                    .collect(),
            })
        };
        match described() {
            Ok(mount) => self.found.all.push(mount),
            Err(error) => self.remark(format!("what is mounted at {path} is left out: {error}")),
        }
    }
}

#[cfg(test)]
mod tests;
