//! `m`, `x`, `M` and `X`: memory, with lengths that are checked.

use crate::gdb::answer::{Answer, errno, error, ok, pair};
use crate::gdb::packet::{LONGEST, from_hex, unescape};
use crate::gdb::resume::Refused;
use crate::gdb::session::{OVERLOADED, Session};
use crate::machine::Machine;

/// Bytes that one reply carries, in hexadecimal.
pub(super) const MOST_BYTES: u64 = (LONGEST as u64 - 16) / 2;

/// `maddress,length` and `xaddress,length`.
pub(super) fn read_memory(arguments: &[u8], is_binary: bool) -> Answer {
    match pair(arguments) {
        Some((address, length)) => Answer::Memory {
            address,
            length: usize::try_from(length.min(MOST_BYTES)).unwrap_or(0),
            is_binary,
        },
        None => error(errno::EINVAL),
    }
}

/// `Xaddress,length:data`, escaped, and `Maddress,length:data`, in hexadecimal. gdb tries `X` with no data to see
/// whether it is served.
pub(super) fn write_memory<M: Machine>(
    session: &mut Session<M>,
    arguments: &[u8],
    is_binary: bool,
) -> Answer {
    let Some(colon) = arguments.iter().position(|byte| *byte == b':') else { return error(errno::EINVAL) };
    let data = &arguments[colon + 1..];
    let bytes = if is_binary { Some(unescape(data)) } else { from_hex(data) };
    match (pair(&arguments[..colon]), bytes) {
        (Some((address, length)), Some(bytes)) if length == bytes.len() as u64 => {
            match session.write(address, &bytes) {
                true => ok(),
                false if session.takes_words && session.is_overloaded() => Refused::Words(OVERLOADED).into(),
                false => error(errno::EFAULT),
            }
        }
        _ => error(errno::EINVAL),
    }
}
