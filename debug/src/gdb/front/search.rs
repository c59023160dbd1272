//! `qSearch:memory` and `qCRC`: packets that may go through all of a guest's memory.
//!
//! Both take time in proportion to what they go through, and ask the session's token every window
//! whether they are still wanted; what is broken off is answered with `EINTR`.
//!
//! Source: GDB manual, "General Query Packets".

use crate::gdb::answer::{Answer, errno, error, pair};
use crate::gdb::packet::{number, unescape};
use crate::gdb::session::Session;
use crate::machine::Machine;
use memchr::memmem;

/// Bytes that are looked at at a time.
const WINDOW: usize = 256 << 10;
/// The longest pattern, bytes; a packet carries no more.
const LONGEST_PATTERN: usize = crate::gdb::packet::LONGEST;

/// `qSearch:memory:address;length;pattern`.
pub(super) fn find<M: Machine>(session: &Session<M>, arguments: &[u8]) -> Answer {
    let mut parts = arguments.splitn(3, |byte| *byte == b';');
    let mut next = || parts.next();
    let (Some(Some(start)), Some(Some(length)), Some(pattern)) =
        (next().map(number), next().map(number), next().map(unescape))
    else {
        return error(errno::EINVAL);
    };
    if pattern.is_empty() || pattern.len() > LONGEST_PATTERN {
        return error(errno::EINVAL);
    }
    let finder = memmem::Finder::new(&pattern);
    // Windows overlap by the pattern's length less one.
    let mut window = vec![0; WINDOW + pattern.len() - 1];
    let mut offset = 0;
    while offset < length {
        if session.debuggee.cancel.check().is_err() {
            return error(errno::EINTR);
        }
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX).min(window.len());
        let Some(at) = start.checked_add(offset) else { break };
        let count = session.read(at, &mut window[..left]);
        if let Some(position) = finder.find(&window[..count]) {
            return Answer::Reply(format!("1,{:x}", at + position as u64).into_bytes());
        }
        if count < left {
            // Memory ends here; gdb says how far it got.
            return error(errno::EFAULT);
        }
        offset += WINDOW as u64;
    }
    Answer::Reply(b"0".to_vec())
}

/// `qCRC:address,length`: CRC-32 with polynomial 0x04c11db7, most significant bit first, from
/// all ones, not complemented.
pub(super) fn crc<M: Machine>(session: &Session<M>, arguments: &[u8]) -> Answer {
    let Some((start, length)) = pair(arguments) else { return error(errno::EINVAL) };
    let mut crc = Crc::default();
    let mut window = vec![0; WINDOW];
    let mut offset = 0;
    while offset < length {
        if session.debuggee.cancel.check().is_err() {
            return error(errno::EINTR);
        }
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX).min(WINDOW);
        let Some(at) = start.checked_add(offset) else { return error(errno::EFAULT) };
        if session.read(at, &mut window[..left]) < left {
            return error(errno::EFAULT);
        }
        crc.update(&mut window[..left]);
        offset += left as u64;
    }
    Answer::Reply(format!("C{:x}", crc.value()).into_bytes())
}

/// gdb's checksum. The usual CRC-32 is the same one with the bits of each byte, and of the result,
/// the other way round, and the result complemented; and for that one there is fast code.
#[derive(Default)]
struct Crc(crc32fast::Hasher);

impl Crc {
    /// Takes further bytes, and turns their bits round.
    fn update(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        self.0.update(bytes);
    }

    fn value(self) -> u32 {
        (!self.0.finalize()).reverse_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::engine::Engine;
    use crate::fake::Still;
    use arch::{GuestPhys, Isa};
    use std::sync::Arc;

    fn session(size: usize) -> Session<Still> {
        let machine = Still::new(Isa::X86_64, 1, size).unwrap();
        let engine = Engine::new(Isa::X86_64, machine.abilities().clone(), 1);
        Session::new(machine, Arc::new(engine))
    }

    fn reply(answer: Answer) -> String {
        match answer {
            Answer::Reply(reply) => String::from_utf8(reply).unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_checksum_is_gdbs() {
        // CRC-32/MPEG-2, the check value of the catalogue of parametrised CRC algorithms.
        let mut crc = Crc::default();
        crc.update(&mut b"12345".to_vec());
        crc.update(&mut b"6789".to_vec());
        assert_eq!(crc.value(), 0x0376_e6e7);
        let session = session(1 << 20);
        session.debuggee.machine.memory().write(GuestPhys(0x100), b"123456789");
        assert_eq!(reply(crc_of(&session, 0x100, 9)), "C376e6e7");
        assert_eq!(reply(crc_of(&session, 0xf_fff8, 9)), "E0e");
        assert_eq!(reply(crc_of(&session, 0, 0)), "Cffffffff");
    }

    fn crc_of(session: &Session<Still>, start: u64, length: u64) -> Answer {
        crc(session, format!("{start:x},{length:x}").as_bytes())
    }

    #[test]
    fn patterns_are_found_across_windows_and_to_the_last_byte() {
        let session = session(WINDOW * 3);
        let find = |arguments: &str| reply(find(&session, arguments.as_bytes()));
        for at in [0, 5, WINDOW as u64 - 2, WINDOW as u64 * 3 - 4] {
            session.debuggee.machine.memory().write(GuestPhys(at), b"abcd");
            assert_eq!(find(&format!("0;{:x};abcd", WINDOW * 3)), format!("1,{at:x}"));
            session.debuggee.machine.memory().write(GuestPhys(at), &[0; 4]);
        }
        assert_eq!(find(&format!("0;{:x};abcd", WINDOW * 3)), "0");
        assert_eq!(find("0;ffffffffffffffff;abcd"), "E0e");
        assert_eq!(find("0;10;"), "E16");
    }

    #[test]
    fn long_patterns_take_no_longer() {
        // A pattern that almost fits everywhere: quadratic, this would be 2^36 comparisons.
        let session = session(8 << 20);
        let pattern = [&vec![0; 64 << 10][..], b"x"].concat();
        let arguments = [b"0;800000;".to_vec(), crate::gdb::packet::escape(&pattern)].concat();
        assert_eq!(reply(find(&session, &arguments)), "0");
    }

    #[test]
    fn what_is_not_wanted_any_more_is_broken_off() {
        let mut session = session(1 << 20);
        let cancel = Cancel::never();
        session.debuggee.set_cancel(&cancel);
        cancel.cancel();
        assert_eq!(reply(find(&session, b"0;1000;x")), "E04");
        assert_eq!(reply(crc_of(&session, 0, 0x1000)), "E04");
    }
}
