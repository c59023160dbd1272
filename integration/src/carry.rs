//! A debugger's connections, one after the other, from the machine that runs the tests into a nest.
//!
//! What leads there is a virtio port: a stream that does not say where one connection ends and the next begins, and what a
//! debugger sends that comes again at once would be taken for the last words of the one that has gone. So both ends say
//! it, and a connection is over when both have.

use crate::port;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes over the link.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    /// Somebody has connected.
    Open,
    /// What one end has said, not nothing.
    Bytes(Vec<u8>),
    /// One end says no more.
    Close,
}

impl Frame {
    /// Its kind, the number of its bytes (little-endian), and those.
    fn send(&self, link: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Frame::Open => (b'o', &[][..]),
            Frame::Bytes(bytes) => (b'b', &bytes[..]),
            Frame::Close => (b'c', &[][..]),
        };
        let count = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        link.write_all(&[&[kind][..], &count.to_le_bytes(), bytes].concat())
    }

    fn receive(link: &mut impl Read) -> io::Result<Frame> {
        let mut head = [0; 3];
        link.read_exact(&mut head)?;
        let mut bytes = vec![0; u16::from_le_bytes([head[1], head[2]]).into()];
        link.read_exact(&mut bytes)?;
        match head[0] {
            b'o' => Ok(Frame::Open),
            b'b' => Ok(Frame::Bytes(bytes)),
            b'c' => Ok(Frame::Close),
            kind => Err(io::Error::other(format!("no frame begins with byte {kind:#04x}"))),
        }
    }
}

/// Listens at `socket` for debuggers and carries what they say over the link, the socket of a nest's port, which may not be
/// there yet. It ends when the nest has.
///
/// # Errors
/// When nobody can listen there.
pub fn serve(socket: &Path, link: &Path) -> io::Result<JoinHandle<io::Result<()>>> {
    let listener = UnixListener::bind(socket)?;
    let link = link.to_path_buf();
    Ok(thread::spawn(move || {
        let mut link = port::connect(&link)?;
        loop {
            let ready = ready([&listener.as_fd(), &link.as_fd()], PollTimeout::NONE)?;
            if !ready[1].is_empty() {
                // Between connections the nest says nothing but its end.
                return Ok(());
            }
            if !ready[0].is_empty() {
                let (stream, _) = listener.accept()?;
                Frame::Open.send(&mut link)?;
                carry_one(&mut link.try_clone()?, link.try_clone()?, stream)?;
            }
        }
    }))
}

/// The end in the nest: each connection goes to `socket`, which may not be there yet, until `is_over` says so.
///
/// # Errors
/// When nobody is at the socket for half a minute, or the other end does not speak as this one.
pub fn connect(mut port: File, socket: &Path, is_over: &dyn Fn() -> bool) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(10);
    while !is_over() {
        let [found] = ready([&port.as_fd()], PollTimeout::try_from(LOOK).map_err(io::Error::other)?)?;
        if found.contains(PollFlags::POLLHUP) {
            // Its other end is not connected yet.
            thread::park_timeout(LOOK);
        } else if found.contains(PollFlags::POLLIN) {
            match Frame::receive(&mut port)? {
                Frame::Open => match port::connect_unless(socket, is_over)? {
                    Some(stream) => carry_one(&mut port.try_clone()?, port.try_clone()?, stream)?,
                    None => Frame::Close.send(&mut port)?,
                },
                frame => {
                    return Err(io::Error::other(format!("nobody has connected, and it says {frame:?}")));
                }
            }
        }
    }
    Ok(())
}

fn ready<const N: usize>(fds: [&dyn AsFd; N], timeout: PollTimeout) -> io::Result<[PollFlags; N]> {
    let mut fds = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty())))
}

/// Carries one connection to the end of both directions.
fn carry_one(
    from: &mut impl Read,
    mut to: impl Write + Send + 'static,
    mut stream: UnixStream,
) -> io::Result<()> {
    let mut said = stream.try_clone()?;
    let out = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = said.read(&mut buffer) {
            Frame::Bytes(buffer[..count].to_vec()).send(&mut to)?;
        }
        Frame::Close.send(&mut to)
    });
    let carried = loop {
        match Frame::receive(from) {
            // Of one that has gone its own end is told.
            Ok(Frame::Bytes(bytes)) => _ = stream.write_all(&bytes),
            Ok(Frame::Close) => break Ok(()),
            Ok(Frame::Open) => break Err(io::Error::other("another connection is within this one")),
            Err(error) => break Err(error),
        }
    };
    // One that is closed already cannot be closed again.
    stream.shutdown(Shutdown::Both).ok();
    let sent = out.join().map_err(|_| io::Error::other("carrying a connection has failed"))?;
    carried.and(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A server that is slow to close a connection gets nothing of the next one within it.
    #[test]
    fn who_comes_again_at_once_is_not_taken_for_the_one_before() {
        let [outside, link, inside] = ["outside", "link", "inside"].map(artifacts::socket);
        let (links, server) = (UnixListener::bind(&link).unwrap(), UnixListener::bind(&inside).unwrap());
        let carrying = serve(&outside, &link).unwrap();
        let port = File::from(OwnedFd::from(links.accept().unwrap().0));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let nest = scope.spawn(|| connect(port, &inside, &|| is_over.load(Ordering::SeqCst)));
            let mut words = [0; 2];
            let mut first = UnixStream::connect(&outside).unwrap();
            first.write_all(b"$D").unwrap();
            let (mut of_first, _) = server.accept().unwrap();
            of_first.read_exact(&mut words).unwrap();
            of_first.write_all(b"OK").unwrap();
            first.read_exact(&mut words).unwrap();
            drop(first);
            let mut second = UnixStream::connect(&outside).unwrap();
            second.write_all(b"+$").unwrap();
            let mut rest = Vec::new();
            of_first.read_to_end(&mut rest).unwrap();
            assert_eq!((words, rest), (*b"OK", vec![]));
            drop(of_first);
            let (mut of_second, _) = server.accept().unwrap();
            of_second.read_exact(&mut words).unwrap();
            assert_eq!(words, *b"+$");
            // Its end is told outside, too.
            drop(of_second);
            assert_eq!(second.read(&mut words).unwrap(), 0);
            is_over.store(true, Ordering::SeqCst);
            drop(second);
            nest.join().unwrap().unwrap();
        });
        carrying.join().unwrap().unwrap();
        [outside, link, inside].iter().for_each(|path| fs::remove_file(path).unwrap());
    }
}
