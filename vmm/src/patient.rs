//! Streams that wait where others have set them not to: whether one waits is a flag of what is open, which all who have been
//! given it share (open(2), `O_NONBLOCK`), as this process's standard streams are.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

/// One that waits.
#[derive(Debug)]
pub struct Patient<S>(pub S);

impl<S: AsFd> Patient<S> {
    /// Does something as soon as it can be done.
    fn when_it_can_be<T>(
        &mut self,
        events: PollFlags,
        mut doing: impl FnMut(&mut S) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match doing(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            match poll(&mut [PollFd::new(self.0.as_fd(), events)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<S: AsFd + Read> Read for Patient<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.when_it_can_be(PollFlags::POLLIN, |stream| stream.read(bytes))
    }
}

impl<S: AsFd + Write> Write for Patient<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.when_it_can_be(PollFlags::POLLOUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.when_it_can_be(PollFlags::POLLOUT, Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn what_others_have_set_not_to_wait_waits() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let all = vec![7; 4 << 20];
        let expected = all.clone();
        let other = thread::spawn(move || {
            let mut read = vec![0; expected.len()];
            theirs.read_exact(&mut read).unwrap();
            assert_eq!(read, expected);
            theirs.write_all(b"end").unwrap();
        });
        let mut ours = Patient(ours);
        ours.write_all(&all).unwrap();
        let mut said = [0; 3];
        ours.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"end");
        other.join().unwrap();
        assert_eq!(ours.read(&mut said).unwrap(), 0);
    }
}
