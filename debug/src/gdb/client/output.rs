//! What a client is sent.

use super::{Client, Goodbye};
use crate::gdb::answer::errno;
use crate::gdb::packet::{push_escaped, push_frame, push_hex};
use crate::gdb::session::Session;
use crate::machine::Machine;
use std::io::ErrorKind;

impl<M: Machine> Client<M> {
    /// Sends as much as the client takes.
    pub fn flush(&mut self) -> Result<(), Goodbye> {
        let mut sent = 0;
        let all = self.withheld.as_ref().map_or(self.out.len(), |withheld| withheld.from);
        let result = loop {
            if sent == all {
                break Ok(());
            }
            match self.stream.write(&self.out[sent..all]) {
                Ok(0) => break Err(Goodbye::Lost("it takes nothing any more")),
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    break Err(Goodbye::Lost("it has vanished"));
                }
                Err(_) => break Err(Goodbye::Lost("it has gone")),
            }
        };
        self.out.drain(..sent);
        if let Some(withheld) = &mut self.withheld {
            withheld.from -= sent;
        }
        result
    }

    pub(super) fn send(&mut self, data: &[u8]) {
        self.send_with(|packet| packet.extend(data));
    }

    /// Sends a packet whose data `push` appends.
    pub(super) fn send_with(&mut self, push: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        push_frame(&mut self.out, push);
        let packet = &self.out[start..];
        log::trace!(target: "debug::rsp", "-> {}", String::from_utf8_lossy(packet));
        if self.acknowledges {
            self.last = packet.to_vec();
        }
    }

    pub(super) fn send_error(&mut self, code: u8) {
        self.send(format!("E{code:02x}").as_bytes());
    }

    /// Sends memory, or an error where nothing of it is there.
    pub(super) fn send_memory(&mut self, session: &Session<M>, address: u64, length: usize, is_binary: bool) {
        let mut bytes = std::mem::take(&mut self.memory);
        bytes.resize(length, 0);
        let count = session.read(address, &mut bytes);
        if count == 0 && length > 0 {
            self.send_unreadable(session, address);
        } else {
            self.send_with(|packet| match is_binary {
                true => {
                    packet.push(b'b');
                    push_escaped(packet, &bytes[..count]);
                }
                false => push_hex(packet, &bytes[..count]),
            });
        }
        self.memory = bytes;
    }

    /// Says that memory cannot be read: in words where they are more than "nothing is mapped", and the
    /// debugger takes them (GDB manual, "error-message").
    pub(super) fn send_unreadable(&mut self, session: &Session<M>, address: u64) {
        match session.absence(address) {
            Some(why) if session.takes_words => self.send(format!("E.{why}").as_bytes()),
            _ => self.send_error(errno::EFAULT),
        }
    }

    pub(super) fn queue(&mut self, written: &[u8]) {
        log::trace!(target: "debug::rsp", "-> {}", String::from_utf8_lossy(written));
        if self.acknowledges {
            // Of several packets the last one is the answer.
            let start = written.iter().rposition(|byte| *byte == b'$').unwrap_or(0);
            self.last = written[start..].to_vec();
        }
        self.out.extend(written);
    }
}
