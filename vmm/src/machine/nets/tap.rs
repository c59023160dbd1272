//! A tap interface of the host's (Linux `Documentation/networking/tuntap.rst`): frames with virtio's own header, so that
//! checksums and segments that one side leaves the other does.

use devices::virtio::net::{HEADER, LONGEST_PACKET, Sent, feature};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Requests and flags (`linux/if_tun.h`).
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const IFF_TAP: u16 = 2;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: u64 = 1;
const TUN_F_TSO4: u64 = 2;
const TUN_F_TSO6: u64 = 4;
const TUN_F_TSO_ECN: u64 = 8;
/// Bytes of an interface's name, with its end.
const NAME: usize = 16;

/// The most frames that are taken from an interface at once: it keeps 500 (`TUN_READQ_SIZE` of Linux's `drivers/net/tun.c`)
/// or 1000, as its `txqueuelen` says.
const MOST_KEPT: usize = 1024;

/// What a tap does of features, if it can leave anything out.
const FEATURES: u64 = feature::OF_LINKS;

/// An interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    features: u64,
}

/// `struct ifreq`, as far as it is needed (netdevice(7)).
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

impl Tap {
    /// Opens an interface, or makes it, where this process may.
    ///
    /// # Errors
    /// The host's.
    pub fn open(name: &str) -> io::Result<Tap> {
        let mut open = OpenOptions::new();
        open.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = open.open("/dev/net/tun")?;
        let mut request =
            Request { name: [0; NAME], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
        match request.name[..NAME - 1].get_mut(..name.len()) {
            Some(place) => place.copy_from_slice(name.as_bytes()),
            None => return Err(io::ErrorKind::InvalidInput.into()),
        }
        // SAFETY: the kernel reads and writes a structure of that kind, which lives during the call.
        checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
        let size = i32::try_from(HEADER).unwrap_or(0);
        // SAFETY: the kernel reads a number, which lives during the call.
        checked(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        let mut tap = Tap { file, features: 0 };
        // Old kernels cannot leave out all of it.
        if tap.leave_out(FEATURES).is_ok() {
            tap.features = FEATURES;
        }
        tap.leave_out(0)?;
        Ok(tap)
    }

    /// The guest takes what is left out by these features.
    fn leave_out(&self, features: u64) -> io::Result<()> {
        let bits = [
            (feature::GUEST_CSUM, TUN_F_CSUM),
            (feature::GUEST_TSO4, TUN_F_TSO4),
            (feature::GUEST_TSO6, TUN_F_TSO6),
            (feature::GUEST_ECN, TUN_F_TSO_ECN),
        ];
        // Nothing without checksums.
        let has_checksums = features & feature::GUEST_CSUM != 0;
        let taken = bits.iter().filter(|(feature, _)| has_checksums && features & feature != 0);
        let bits: u64 = taken.map(|(_, bit)| bit).sum();
        // SAFETY: the kernel takes a number.
        checked(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, bits) })
    }

    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn features(&self) -> u64 {
        self.features
    }

    pub fn begin(&mut self, features: u64) {
        if let Err(error) = self.leave_out(features & self.features) {
            devices::tell!(Warn, "the tap interface leaves nothing out: {error}");
        }
    }

    /// The guest's driver has gone: what comes for the next one it can take, whichever that is. What has come for this
    /// one is lost, as far as an interface keeps frames by default; where it was made to keep more, the rest still has
    /// what this driver agreed to.
    pub fn reset(&mut self) {
        self.begin(0);
        let mut packet = vec![0; LONGEST_PACKET];
        for _ in 0..MOST_KEPT {
            if self.receive(&mut packet).is_none() {
                break;
            }
        }
    }

    pub fn send(&mut self, packet: &[u8]) -> Sent {
        match (&self.file).write(packet) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::NoRoom,
            // One that the kernel refuses is lost, as while the interface is down.
            _ => Sent::Gone,
        }
    }

    pub fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        loop {
            match (&self.file).read(packet) {
                Ok(count) => return (count > HEADER).then_some(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    /// What was kept for one driver is not the next one's.
    #[test]
    fn a_driver_that_goes_takes_its_frames_with_it() {
        let (ours, kernel) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut tap = Tap { file: File::from(OwnedFd::from(ours)), features: 0 };
        let mut packet = vec![0; LONGEST_PACKET];
        for _ in 0..3 {
            kernel.send(&[1; HEADER + 60]).unwrap();
        }
        assert_eq!(tap.receive(&mut packet), Some(HEADER + 60));
        tap.reset();
        assert_eq!(tap.receive(&mut packet), None);
        kernel.send(&[1; HEADER + 61]).unwrap();
        assert_eq!(tap.receive(&mut packet), Some(HEADER + 61));
    }
}
