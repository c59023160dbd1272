//! A program under test: its output is collected, waited for and kept; it is ended, by its
//! own id, when the value goes.

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that a thread collects, and a way to wait for them.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    state: Arc<(Mutex<Captured>, Condvar)>,
}

#[derive(Debug, Default)]
struct Captured {
    bytes: Vec<u8>,
    is_over: bool,
}

impl Capture {
    fn collect(&self, mut from: impl Read + Send + 'static) {
        let capture = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match from.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // A pseudo-terminal whose other end is closed is an error.
                    Ok(0) | Err(_) => break,
                    Ok(count) => count,
                };
                capture.update(|captured| captured.bytes.extend(&buffer[..count]));
            }
            capture.update(|captured| captured.is_over = true);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Captured)) {
        let (captured, changed) = &*self.state;
        change(&mut captured.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// All bytes so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }

    /// All bytes so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `pattern` stands behind byte `from`; answers where it ends. `None` when the
    /// output is over or the time is.
    fn wait_for(&self, from: usize, pattern: &[u8], limit: Duration) -> Option<usize> {
        let deadline = Instant::now() + limit;
        let (captured, changed) = &*self.state;
        let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let found = captured.bytes[from..].windows(pattern.len()).position(|window| window == pattern);
            if let Some(position) = found {
                return Some(from + position + pattern.len());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if captured.is_over || left.is_zero() {
                return None;
            }
            captured = changed.wait_timeout(captured, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there is no more to come.
    fn wait_for_end(&self, limit: Duration) {
        let (captured, changed) = &*self.state;
        let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        let result = changed.wait_timeout_while(captured, limit, |captured| !captured.is_over);
        drop(result.unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a program's standard input, output and error are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// Three pipes.
    Pipes,
    /// One terminal.
    Terminal,
}

/// A program that runs.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    input: Option<File>,
    /// Standard output, or all that appears on the terminal.
    pub output: Capture,
    /// Standard error; empty with a terminal.
    pub errors: Capture,
    seen: usize,
    /// The terminal's other end, to look at its settings.
    terminal: Option<OwnedFd>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, wiring: Wiring) -> io::Result<Process> {
        let (output, errors) = (Capture::default(), Capture::default());
        let name = name.to_string();
        match wiring {
            Wiring::Pipes => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn()?;
                let input = child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin)));
                output.collect(child.stdout.take().expect("it is piped"));
                errors.collect(child.stderr.take().expect("it is piped"));
                Ok(Process { name, child, input, output, errors, seen: 0, terminal: None })
            }
            Wiring::Terminal => {
                let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
                let pty = openpty(Some(&size), None)?;
                let end = || -> io::Result<Stdio> { Ok(pty.slave.try_clone()?.into()) };
                command.stdin(end()?).stdout(end()?).stderr(end()?);
                let child = command.spawn()?;
                drop(command);
                output.collect(File::from(pty.master.try_clone()?));
                errors.update(|captured| captured.is_over = true);
                let input = Some(File::from(pty.master));
                Ok(Process { name, child, input, output, errors, seen: 0, terminal: Some(pty.slave) })
            }
        }
    }

    /// Waits until `pattern` is printed, behind what was expected before.
    ///
    /// # Errors
    /// What was printed instead, when the time or the output is over.
    pub fn expect(&mut self, pattern: &str, limit: Duration) -> Result<(), String> {
        match self.output.wait_for(self.seen, pattern.as_bytes(), limit) {
            Some(end) => {
                self.seen = end;
                Ok(())
            }
            None => Err(format!(
                "{}: no {pattern:?} within {limit:?}; the output ends with:\n{}\n{}",
                self.name,
                tail(&self.output.text()),
                tail(&self.errors.text())
            )),
        }
    }

    /// Waits until `pattern` is among what was said on standard error.
    ///
    /// # Errors
    /// What was said instead, when the time or the output is over.
    pub fn expect_error(&self, pattern: &str, limit: Duration) -> Result<(), String> {
        match self.errors.wait_for(0, pattern.as_bytes(), limit) {
            Some(_) => Ok(()),
            None => Err(format!(
                "{}: no {pattern:?} within {limit:?}; it says:\n{}",
                self.name,
                tail(&self.errors.text())
            )),
        }
    }

    /// Types `text`.
    ///
    /// # Errors
    /// When the input is closed.
    pub fn send(&mut self, text: &str) -> Result<(), String> {
        self.send_bytes(text.as_bytes())
    }

    /// Types what is no text.
    ///
    /// # Errors
    /// When the input is closed.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let input = self.input.as_mut().ok_or("the input is closed")?;
        input.write_all(bytes).map_err(|error| format!("{}: cannot type: {error}", self.name))
    }

    /// Closes the input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The terminal, where it has one.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Has its terminal have another size, and tells it.
    ///
    /// # Errors
    /// When it has none.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), String> {
        let terminal = self.terminal().ok_or("there is no terminal")?;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads a structure of that kind (ioctl_tty(2)).
        let result =
            unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
        if result != 0 {
            return Err("the terminal cannot be given a size".into());
        }
        self.signal(Signal::SIGWINCH)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), signal).map_err(|error| format!("{}: cannot signal: {error}", self.name))
    }

    /// Waits for the end and answers with the exit code.
    ///
    /// # Errors
    /// When it is still running after `limit`, or was ended by a signal.
    pub fn wait(&mut self, limit: Duration) -> Result<i32, String> {
        let status = self.wait_status(limit)?;
        status.code().ok_or_else(|| format!("{}: ended by signal {:?}", self.name, status.signal()))
    }

    /// Waits for the end, however it comes.
    ///
    /// # Errors
    /// When it is still running after `limit`.
    pub fn wait_status(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                if self.terminal.is_none() {
                    self.output.wait_for_end(Duration::from_secs(5));
                    self.errors.wait_for_end(Duration::from_secs(5));
                }
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "{}: still running after {limit:?}; the output ends with:\n{}\n{}",
                    self.name,
                    tail(&self.output.text()),
                    tail(&self.errors.text())
                ));
            }
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and need not be.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
