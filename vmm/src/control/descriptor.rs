//! Descriptors that go over a socket with what is said (unix(7), `SCM_RIGHTS`): what a guest's monitor may not open itself,
//! whoever asks opens for it.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Sends bytes, and a descriptor with the first of them.
///
/// # Errors
/// What the socket says.
pub fn send(mut stream: &UnixStream, bytes: &[u8], descriptor: impl AsFd) -> io::Result<()> {
    let raw = [descriptor.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, flags, None)?;
    stream.write_all(&bytes[sent..])
}

/// Receives bytes, and the descriptor that came with them, if one did; no more than one.
///
/// # Errors
/// What the socket says.
pub fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut pieces = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut descriptor = None;
    // What there was no room for the kernel has closed.
    for message in received.cmsgs().into_iter().flatten() {
        let ControlMessageOwned::ScmRights(all) = message else { continue };
        for raw in all {
            // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
            descriptor = Some(unsafe { OwnedFd::from_raw_fd(raw) });
        }
    }
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_descriptor_comes_with_the_first_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        send(&here, b"hello", &reader).unwrap();
        let mut bytes = [0; 3];
        let (count, descriptor) = receive(&there, &mut bytes).unwrap();
        assert_eq!((count, &bytes), (3, b"hel"));
        writer.write_all(b"x").unwrap();
        drop((writer, reader));
        let mut text = String::new();
        File::from(descriptor.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        let (count, descriptor) = receive(&there, &mut bytes).unwrap();
        assert!((count, descriptor.is_none()) == (2, true));
    }
}
