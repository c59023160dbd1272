//! A port that answers packets as a stub does, and does nothing for them.

use debug::gdb::packet::{Framer, Item, frame};
use debug::live::attention;
use std::io::{ErrorKind, Read, Write};
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

/// What has come, looked for awake and then asleep; nothing when the client has gone.
fn read(stream: &mut UnixStream, buffer: &mut [u8]) -> usize {
    stream.set_nonblocking(true).ok();
    let found = attention::poll(|| match stream.read(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        result => Some(result.unwrap_or(0)),
    });
    found.unwrap_or_else(|| {
        stream.set_nonblocking(false).ok();
        stream.read(buffer).unwrap_or(0)
    })
}

fn answer(mut stream: UnixStream) {
    let (mut framer, mut buffer, mut acknowledges) = (Framer::default(), [0; 4096], true);
    loop {
        let count = read(&mut stream, &mut buffer);
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
