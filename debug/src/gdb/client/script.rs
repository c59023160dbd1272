//! Clients that send what a script says, for tests and fuzzing.

use super::{Client, Ready};
use crate::gdb::listener::{Peer, Stream};
use crate::gdb::session::Session;
use crate::machine::Machine;
use std::io;
use std::sync::Arc;

/// Serves one client that sends `input` a packet at a time and goes; what it is sent. For tests and
/// fuzzing: it stops where a real client would be waited for.
///
/// # Errors
/// When the system gives no more sockets.
pub fn converse<M: Machine>(session: &mut Session<M>, input: &[u8]) -> io::Result<Vec<u8>> {
    let mut steps = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        // To the end of a packet, so that a stop is told before the next one; and less than a
        // socket holds, so that nothing waits.
        let end = rest.iter().position(|byte| *byte == b'#').map_or(rest.len(), |at| at + 3);
        let (piece, after) = rest.split_at(end.min(rest.len()).min(16 << 10));
        rest = after;
        steps.push((piece, true));
    }
    misbehave(session, &steps).map(|(answer, _)| answer)
}

/// Serves one client that sends these pieces, and behind each reads what it was sent, or does not.
/// What it has read in the end, and how many bytes waited to be sent to it at most.
///
/// # Errors
/// When the system gives no more sockets.
pub fn misbehave<M: Machine>(
    session: &mut Session<M>,
    steps: &[(&[u8], bool)],
) -> io::Result<(Vec<u8>, usize)> {
    use std::io::{Read, Write};
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    session.attach();
    let peer = Peer::Unix { user: None, process: None };
    let mut client = Client::new(Stream::Unix(ours), peer, &[], Arc::new(|| false));
    client.arm(session);
    let (mut answer, mut most) = (Vec::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    let mut read = |theirs: &mut std::os::unix::net::UnixStream| {
        while let Ok(count @ 1..) = theirs.read(&mut buffer) {
            answer.extend(&buffer[..count]);
        }
    };
    for (piece, reads) in steps {
        // What the server does not read any more does not fit.
        theirs.write_all(piece).ok();
        let ready = Ready { input: client.wants_input(), knock: true, broken: false };
        let mut served = client.serve(session, ready);
        // What a turn had no time for comes in the next ones.
        while served.is_ok()
            && (client.is_waiting()
                || client.wants_input() && crate::gdb::readiness::is_readable(client.as_fd()))
        {
            served = client.serve(session, Ready { input: client.wants_input(), ..Ready::default() });
        }
        most = most.max(client.out.len());
        if *reads {
            read(&mut theirs);
        }
        if served.is_err() {
            break;
        }
    }
    // As the server does it.
    client.flush().ok();
    read(&mut theirs);
    session.detach();
    Ok((answer, most))
}
