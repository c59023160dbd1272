//! The outside end of the guest's console: standard input and output, a file, a
//! pseudo-terminal, or nothing.
//!
//! [`Console::output`] is where the guest's output ends, written on a vCPU's thread (`output_queue.rs`).
//! Where the reader is slow it waits, but a signal to the thread ends the wait.

use crate::given_file;
use debug::threads;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::Builder;

/// Where the console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// Standard input and output.
    Stdio,
    /// Output to a file, no input.
    File(PathBuf),
    /// A new pseudo-terminal.
    Pty,
    /// Nowhere.
    None,
}

/// An opened console.
#[derive(Debug)]
pub struct Console {
    /// Where input comes from.
    pub input: Option<OwnedFd>,
    /// Whether a person types there: then the terminal goes raw and escape keys count.
    pub is_terminal: bool,
    /// The other end of a pseudo-terminal.
    pub pty_path: Option<String>,
    output: Option<Arc<File>>,
    output_is_pty: bool,
}

impl Console {
    /// Opens a console.
    ///
    /// # Errors
    /// Why the file or the pseudo-terminal cannot be opened.
    pub fn open(kind: &ConsoleKind) -> io::Result<Console> {
        let mut console =
            Console { input: None, is_terminal: false, pty_path: None, output: None, output_is_pty: false };
        match kind {
            ConsoleKind::None => {}
            ConsoleKind::Stdio => {
                let stdin = io::stdin();
                console.is_terminal = stdin.is_terminal();
                console.input = Some(stdin.as_fd().try_clone_to_owned()?);
                console.output = Some(Arc::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)));
            }
            ConsoleKind::File(path) => {
                let file = given_file::create(path)?;
                console.output = Some(Arc::new(file));
            }
            ConsoleKind::Pty => {
                let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
                grantpt(&master)?;
                unlockpt(&master)?;
                let path = ptsname_r(&master)?;
                // The other end starts raw, or it would echo the guest's output back as input.
                // Having had it open matters, too: only then does the kernel tell that nobody
                // has it open.
                let other =
                    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&path)?;
                let mut settings = tcgetattr(&other)?;
                cfmakeraw(&mut settings);
                tcsetattr(&other, SetArg::TCSANOW, &settings)?;
                drop(other);
                console.pty_path = Some(path);
                let master = OwnedFd::from(master);
                fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                console.input = Some(master.try_clone()?);
                console.output = Some(Arc::new(File::from(master)));
                console.output_is_pty = true;
            }
        }
        Ok(console)
    }

    /// Makes input one that epoll takes; a thread may be needed for that.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn prepare_input(&mut self) -> io::Result<()> {
        self.input = self.input.take().map(pollable).transpose()?;
        Ok(())
    }

    /// The end that the guest's serial port writes to.
    pub fn output(&self) -> Box<dyn Write + Send> {
        match &self.output {
            None => Box::new(io::sink()),
            Some(file) => Box::new(Output { file: Arc::clone(file), is_pty: self.output_is_pty }),
        }
    }
}

/// Makes an input that epoll takes: regular files and `/dev/null` it refuses, so those are
/// copied through a pipe by a thread that lives as long as the process.
fn pollable(input: OwnedFd) -> io::Result<OwnedFd> {
    let epoll = vmm_sys_util::epoll::Epoll::new()?;
    use std::os::fd::AsRawFd;
    use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};
    let event = EpollEvent::new(EventSet::IN, 0);
    if epoll.ctl(ControlOperation::Add, input.as_raw_fd(), event).is_ok() {
        return Ok(input);
    }
    let (reader, mut writer) = io::pipe()?;
    threads::start("input", Builder::new().name("console-input".into()), move || {
        if let Err(error) = io::copy(&mut File::from(input), &mut writer) {
            log::debug!("console input ends: {error}");
        }
    })?;
    Ok(reader.into())
}

/// Output of the guest.
struct Output {
    file: Arc<File>,
    is_pty: bool,
}

impl Output {
    /// Waits until something can be written, or will be refused; whether there is somebody to read it.
    fn wait(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        poll(&mut polled, PollTimeout::NONE)?;
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        Ok(!events.contains(PollFlags::POLLHUP))
    }
}

impl Write for Output {
    /// Waits until there is room for something. A signal to the thread ends that: `Interrupted`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.as_ref().write(bytes) {
                // A pseudo-terminal that nobody has open takes no more: what is written to it
                // is lost, as on a serial line without a cable.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait()? && self.is_pty {
                        return Ok(bytes.len());
                    }
                }
                Err(error) if self.is_pty && error.raw_os_error() == Some(libc::EIO) => {
                    return Ok(bytes.len());
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given_file::tests::Fifo;
    use std::io::Read;

    #[test]
    fn a_pseudo_terminal_carries_both_ways_and_never_blocks_without_a_reader() {
        let console = Console::open(&ConsoleKind::Pty).unwrap();
        let mut output = console.output();
        // Nobody has the other end open: far more than its buffer is taken.
        output.write_all(&[b'x'; 100_000]).unwrap();
        let mut other =
            File::options().read(true).write(true).open(console.pty_path.as_ref().unwrap()).unwrap();
        // What the buffer held is still there to be read, so this waits for the reader.
        let writer = std::thread::spawn(move || output.write_all(b"hello").unwrap());
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") {
            let mut byte = [0];
            other.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        writer.join().unwrap();
        other.write_all(b"abc").unwrap();
        let mut buffer = [0; 3];
        File::from(console.input.unwrap()).read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"abc");
    }

    #[test]
    fn regular_files_can_be_polled_through_a_pipe() {
        let path = std::env::temp_dir().join(format!("vmm-console-{}", std::process::id()));
        std::fs::write(&path, "input").unwrap();
        let mut input = File::from(pollable(File::open(&path).unwrap().into()).unwrap());
        std::fs::remove_file(path).unwrap();
        let mut text = String::new();
        input.read_to_string(&mut text).unwrap();
        assert_eq!(text, "input");
    }

    #[test]
    fn a_console_that_is_a_named_pipe_waits_for_no_reader() {
        let fifo = Fifo::new("console");
        let console = Console::open(&ConsoleKind::File(fifo.0.clone())).unwrap();
        console.output().write_all(b"text").unwrap();
        assert_eq!(fifo.read(4), b"text");
    }

    #[test]
    fn a_console_path_that_cannot_be_opened_is_an_error() {
        let kind = ConsoleKind::File("/no/such/directory/console".into());
        assert_eq!(Console::open(&kind).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
