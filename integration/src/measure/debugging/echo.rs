//! A port that answers packets as a stub does, and does nothing for them.

use debug::gdb::packet::{Framer, Item, frame};
use debug::patience::Patience;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

/// The stop of a step, as long as ours.
const STOP: &[u8] = b"T05thread:p01.01;10:0000000000000000;07:0000000000000000;06:0000000000000000;";

/// Opens the port; the thread behind it ends with its client.
///
/// # Errors
/// What the system says.
pub fn serve(path: &Path) -> Result<PathBuf, String> {
    // Of another monitor's turn.
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            answer(stream);
        }
    });
    Ok(path.to_path_buf())
}

/// Waits until something has come, or the client has gone: looks for it awake, and then asleep.
fn wait(stream: &UnixStream, patience: &Patience) {
    let look = |timeout| {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0).then_some(())
    };
    patience.wait(|| look(PollTimeout::ZERO), || look(PollTimeout::NONE));
}

fn answer(mut stream: UnixStream) {
    let (mut framer, mut buffer, mut acknowledges) = (Framer::default(), [0; 4096], true);
    let patience = Patience::default();
    loop {
        wait(&stream, &patience);
        let count = stream.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            return;
        }
        let mut answers = Vec::new();
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
                _ if data.starts_with(b"vCont") => answers.extend(frame(STOP)),
                _ => answers.extend(frame(b"")),
            }
        });
        if stream.write_all(&answers).is_err() {
            return;
        }
    }
}
