//! A port that answers packets as a stub does, and does nothing for them, or a bare step.

use crate::process::{Process, Wiring};
use debug::gdb::packet::{Framer, Item, frame};
use debug::patience::Patience;
use kvm::probe::BareSteps;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// The stop of a step, as long as ours.
const STOP: &[u8] = b"T05thread:p01.01;10:0000000000000000;07:0000000000000000;06:0000000000000000;";

/// The word for a process that answers and steps: `WORD SOCKET`.
pub const WORD: &str = "--stepping-echo";

fn listen(path: &Path) -> Result<UnixListener, String> {
    // Of another monitor's turn.
    std::fs::remove_file(path).ok();
    UnixListener::bind(path).map_err(|error| error.to_string())
}

/// Opens the port; the thread behind it ends with its client.
///
/// # Errors
/// What the system says.
pub fn serve(path: &Path) -> Result<PathBuf, String> {
    let listener = listen(path)?;
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            answer(stream, || Ok(())).ok();
        }
    });
    Ok(path.to_path_buf())
}

/// Has another process serve one client, which it does a bare step for with each `vCont`.
///
/// # Errors
/// What the system says.
pub fn serve_steps(path: &Path) -> Result<Process, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(WORD).arg(path);
    Process::start("a stepping echo", command, Wiring::Pipes).map_err(|error| error.to_string())
}

/// That process.
///
/// # Errors
/// What the system says, or KVM.
pub fn carry_out(path: &Path) -> Result<(), String> {
    let mut guest = BareSteps::new()?;
    let (stream, _) = listen(path)?.accept().map_err(|error| error.to_string())?;
    answer(stream, || guest.step())
}

/// Waits until something has come, or the client has gone: looks for it awake, and then asleep.
fn wait(stream: &UnixStream, patience: &Patience) {
    let look = |timeout| {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0).then_some(())
    };
    patience.wait(|| look(PollTimeout::ZERO), || look(PollTimeout::NONE));
}

/// Answers until the client has gone, or a step fails: then it is let go.
fn answer(mut stream: UnixStream, mut step: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let (mut framer, mut buffer, mut acknowledges) = (Framer::default(), [0; 4096], true);
    let patience = Patience::default();
    loop {
        wait(&stream, &patience);
        let count = stream.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        let (mut answers, mut failed) = (Vec::new(), None);
        framer.feed(&buffer[..count], |item| {
            let Item::Packet(data) = item else { return };
            if acknowledges {
                answers.push(b'+');
            }
            match &data[..] {
                b"QStartNoAckMode" => {
                    acknowledges = false;
                    answers.extend(frame(b"OK"));
                }
                _ if data.starts_with(b"vCont;") => {
                    failed = failed.take().or(step().err());
                    answers.extend(frame(STOP));
                }
                _ => answers.extend(frame(b"")),
            }
        });
        if let Some(failed) = failed {
            return Err(failed);
        }
        if stream.write_all(&answers).is_err() {
            return Ok(());
        }
    }
}
