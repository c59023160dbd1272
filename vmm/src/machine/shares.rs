//! Folders of the host's that a guest is given: the server of each behind its device.

use crate::error::Error;
use crate::machine::config::{LONGEST_TAG, ShareConfig, VirtioDevice};
use devices::tell;
use devices::virtio::fs::{Files, Fs};
use devices::virtio::queue::Buffer;
use share::{Access, Limits, MOST_WRITTEN, Reply, Server, State};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A folder that is served.
#[derive(Debug)]
pub struct Shared(Server);

/// A guest's memory, as the server has replies in it.
struct Memory<'a>(&'a Buffer);

impl Reply for Memory<'_> {
    fn room(&self) -> usize {
        usize::try_from(self.0.size()).unwrap_or(usize::MAX)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.write(offset as u64, bytes);
    }
}

impl Files for Shared {
    type State = State;

    fn longest_request(&self) -> usize {
        /// A header and a structure, or names and an attribute's value.
        const REST: usize = 4096;
        MOST_WRITTEN as usize + REST
    }

    fn answer(&mut self, request: &[u8], reply: &Buffer) -> Option<usize> {
        self.0.serve(request, &mut Memory(reply))
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn save(&self) -> State {
        self.0.save()
    }

    fn restore(&mut self, state: State) -> Result<(), String> {
        match self.0.restore(state)? {
            0 => {}
            lost => {
                tell!(Warn, "a shared folder: {lost} files that the guest had open are not there any more")
            }
        }
        Ok(())
    }
}

/// Whether the guest finds each of the shares among devices by its tag.
///
/// # Errors
/// [`Error::Usage`]: a tag that the guest could not find.
pub fn check(devices: &[VirtioDevice]) -> Result<(), Error> {
    let mut tags = Vec::new();
    for device in devices {
        let VirtioDevice::Share(share) = device else { continue };
        let tag = &share.tag;
        if tag.is_empty() || tag.len() > LONGEST_TAG {
            return Err(Error::Usage(format!(
                "--share: the tag '{tag}' has {} bytes, and may have 1 to {LONGEST_TAG}: give it one behind a comma, for \
                 example tag=work",
                tag.len()
            )));
        }
        if tags.contains(&tag) {
            return Err(Error::Usage(format!(
                "--share: two folders have the tag '{tag}': give one of them another behind a comma, for example \
                 tag={tag:.30}2"
            )));
        }
        tags.push(tag);
    }
    Ok(())
}

/// A folder that is open, and the name by which the guest mounts it.
#[derive(Clone, Debug)]
pub struct OpenShare {
    files: Arc<Mutex<Shared>>,
    tag: String,
}

/// Opens a folder, which is served with so many descriptors at most.
///
/// # Errors
/// [`Error::Share`].
pub fn open(config: &ShareConfig, descriptors: usize) -> Result<OpenShare, Error> {
    let access = if config.is_writable { Access::ReadWrite } else { Access::ReadOnly };
    let limits = Limits { descriptors, ..Limits::default() };
    let failed = |folder: &Path| {
        let folder = folder.to_path_buf();
        move |source| Error::Share { folder, source }
    };
    let mut server = Server::new(&config.folder, access, limits).map_err(failed(&config.folder))?;
    for place in &config.covered {
        server.cover(place).map_err(failed(&config.folder.join(place)))?;
    }
    Ok(OpenShare { files: Arc::new(Mutex::new(Shared(server))), tag: config.tag.clone() })
}

impl OpenShare {
    /// A device for it.
    ///
    /// # Errors
    /// [`Error::Usage`]: the guest could not find it by its tag.
    pub fn device(&self) -> Result<Fs<Shared>, Error> {
        Fs::new(&self.tag, Arc::clone(&self.files))
            .ok_or_else(|| Error::Usage(format!("--share: no tag: '{}'", self.tag)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found() {
        let share = |tag: &str| {
            let (folder, covered) = ("/".into(), Vec::new());
            VirtioDevice::Share(ShareConfig { folder, tag: tag.into(), is_writable: false, covered })
        };
        check(&[share("a"), VirtioDevice::Entropy, share(&"b".repeat(36))]).unwrap();
        for (devices, says) in [
            (vec![share("")], "0 bytes"),
            (vec![share(&"b".repeat(37))], "37 bytes"),
            (vec![share("a"), share("b"), share("a")], "two folders have the tag 'a'"),
        ] {
            let error = check(&devices).unwrap_err();
            assert!(error.to_string().contains(says) && error.to_string().contains("tag="), "{error}");
            assert_eq!(error.code(), 2);
        }
    }
}
