//! Folders of the host's that a guest is given: the server of each behind its device.

use crate::error::Error;
use crate::machine::config::{LONGEST_TAG, ShareConfig, VirtioDevice};
use devices::tell;
use devices::virtio::fs::{Files, Fs};
use devices::virtio::queue::Buffer;
use nix::sys::resource::{Resource, getrlimit};
use share::{Access, Limits, MOST_WRITTEN, Reply, Server, State};

/// A folder that is served.
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

/// How many shares there are among devices.
///
/// # Errors
/// [`Error::Usage`]: a tag that the guest could not find.
pub fn count(devices: &[VirtioDevice]) -> Result<usize, Error> {
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
    Ok(tags.len())
}

/// The device of a share, of so many that this process has, beside networks that may need so many descriptors.
///
/// # Errors
/// [`Error::Share`].
pub fn device(share: &ShareConfig, shares: usize, networks: usize) -> Result<Fs<Shared>, Error> {
    let access = if share.is_writable { Access::ReadWrite } else { Access::ReadOnly };
    let limits = Limits { descriptors: descriptors(shares, networks), ..Limits::default() };
    let server = Server::new(&share.folder, access, limits);
    let server = server.map_err(|source| Error::Share { folder: share.folder.clone(), source })?;
    Fs::new(&share.tag, Shared(server))
        .ok_or_else(|| Error::Usage(format!("--share: no tag: '{}'", share.tag)))
}

/// How many descriptors each of so many shares may have: those that this process has, without what networks and the rest
/// of it need.
fn descriptors(shares: usize, networks: usize) -> usize {
    const REST: usize = 256;
    const LEAST: usize = 64;
    const MOST: usize = 16 << 10;
    let all =
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(MOST));
    (all.saturating_sub(REST + networks) / shares.max(1)).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found() {
        let share = |tag: &str| {
            VirtioDevice::Share(ShareConfig { folder: "/".into(), tag: tag.into(), is_writable: false })
        };
        assert_eq!(count(&[share("a"), VirtioDevice::Entropy, share(&"b".repeat(36))]).unwrap(), 2);
        for (devices, says) in [
            (vec![share("")], "0 bytes"),
            (vec![share(&"b".repeat(37))], "37 bytes"),
            (vec![share("a"), share("b"), share("a")], "two folders have the tag 'a'"),
        ] {
            let error = count(&devices).unwrap_err();
            assert!(error.to_string().contains(says) && error.to_string().contains("tag="), "{error}");
            assert_eq!(error.code(), 2);
        }
    }
}
