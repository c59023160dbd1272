//! What becomes of a packet, and how it is refused.

use super::packet::number;
use crate::machine::Action;

/// Errors that a client sees as `E` and a number, as errno has them.
pub mod errno {
    /// No such process, here: vCPU.
    pub const ESRCH: u8 = 3;
    /// Interrupted.
    pub const EINTR: u8 = 4;
    /// I/O.
    pub const EIO: u8 = 5;
    /// Bad address.
    pub const EFAULT: u8 = 14;
    /// Invalid argument.
    pub const EINVAL: u8 = 22;
    /// No space: debug registers are used up.
    pub const ENOSPC: u8 = 28;
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This is the reply.
    Reply(Vec<u8>),
    /// The reply is memory, which may be much: it is encoded where it is sent.
    Memory {
        /// First byte, as the debugger sees addresses.
        address: u64,
        /// Bytes that one reply can carry, at most.
        length: usize,
        /// In binary, escaped, behind a `b`; else in hexadecimal.
        is_binary: bool,
    },
    /// gdbstub answers it.
    PassOn,
    /// The reply, and then the debugger wants the guest to end.
    Kill(Vec<u8>),
    /// The reply, and then the debugger lets go of the guest.
    Detach(Vec<u8>),
    /// The guest is to begin again; what `vRun` answers, or nothing.
    Restart(bool),
    /// The debugger wants the guest that it has let go.
    Attach,
    /// The target is to be interrupted, after the reply.
    Interrupt(Vec<u8>),
    /// What was to be resumed is a task that sleeps: nothing runs. The user is told so in words, and the reply is that
    /// the thread of this id has stopped.
    Stay {
        /// The words, a line.
        words: String,
        /// The thread-id.
        thread: String,
    },
    /// The target is to be resumed; the reply is the next stop. An action for each vCPU.
    Resume(Vec<Action>),
    /// The reply, and from then on nothing is acknowledged.
    NoAcknowledgements,
}

/// Refused, by an errno.
pub(super) fn error(code: u8) -> Answer {
    Answer::Reply(format!("E{code:02x}").into_bytes())
}

/// Done.
pub(super) fn ok() -> Answer {
    Answer::Reply(b"OK".to_vec())
}

/// Two numbers with a comma between them.
pub(super) fn pair(arguments: &[u8]) -> Option<(u64, u64)> {
    let comma = arguments.iter().position(|byte| *byte == b',')?;
    Some((number(&arguments[..comma])?, number(&arguments[comma + 1..])?))
}
