//! Initial RAM file systems: newc archives that are made in memory (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use cpio::newc::{Builder, ModeFileType, trailer};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// An archive that is being filled.
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Initramfs {
    fn entry(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let builder = Builder::new(path).ino(self.entries).mode(mode).set_mode_file_type(kind).nlink(1);
        let mut writer = builder.write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// When the archive cannot hold it.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, ModeFileType::Directory, 0o755, &[])
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// When the archive cannot hold it: it has room for 4 GiB less one byte.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, ModeFileType::Regular, 0o755, content)
    }

    /// Adds a file of this machine's.
    ///
    /// # Errors
    /// When it cannot be read, with its path, or the archive cannot hold it.
    pub fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        let content = fs::read(from).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot read {}: {error}", from.display()))
        })?;
        self.file(path, &content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When the archive cannot hold it.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    /// The whole archive.
    ///
    /// # Errors
    /// When the archive cannot be closed.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.bytes)
    }
}
