//! Interrupts of a function that are messages (MSI-X): a table in the function's registers says what to write where.
//!
//! PCIe 7.7.2 "MSI-X Capability and Table Structure". A vector that is masked is noted as pending, and sent when its
//! mask goes.

use super::config::Config;
use crate::tell;
use arch::bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// The capability's identifier.
const ID: u8 = 0x11;
/// Bits of the message control register.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// In an entry's vector control: masked.
const MASKED: u32 = 1;
/// Bytes of an entry: address, data, vector control.
const ENTRY: u64 = 16;
/// The most entries that a table may have.
const MOST: u16 = 2048;

/// A write that is an interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Guest-physical address.
    pub address: u64,
    /// What is written there.
    pub data: u32,
}

/// What sends messages of one function.
pub trait Sender: Send {
    /// Sends one.
    ///
    /// # Errors
    /// What the host says.
    fn send(&self, message: Message) -> io::Result<()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    message: Message,
    control: u32,
    is_pending: bool,
}

impl Entry {
    /// After a reset.
    const OFF: Entry = Entry { message: Message { address: 0, data: 0 }, control: MASKED, is_pending: false };
}

/// The state of a function's messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    control: u16,
}

/// Where the table and the pending bits are: behind which base address, and at which offsets, multiples of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The base address.
    pub bar: u8,
    /// Of the table.
    pub table: u32,
    /// Of the pending bits.
    pub pending: u32,
}

/// A function's messages.
pub struct Msix {
    state: MsixState,
    /// Of the message control register, in the configuration space.
    offset: usize,
    /// The function may write to memory, which is what messages are.
    is_bus_master: bool,
    sender: Box<dyn Sender>,
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Msix").field(&self.state).finish()
    }
}

impl Msix {
    /// With so many vectors, 1 to 2048, and the capability that says so.
    pub fn new(config: &mut Config, vectors: u16, place: Place, sender: Box<dyn Sender>) -> Msix {
        let vectors = vectors.clamp(1, MOST);
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((place.table | u32::from(place.bar)).to_le_bytes());
        body.extend((place.pending | u32::from(place.bar)).to_le_bytes());
        let id = config.add_capability(ID, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        let state = MsixState { entries: vec![Entry::OFF; vectors.into()], control: 0 };
        Msix { state, offset: id + 2, is_bus_master: false, sender }
    }

    /// Bytes of the table.
    pub fn table_size(vectors: u16) -> u64 {
        u64::from(vectors) * ENTRY
    }

    /// The guest has written to the configuration space.
    pub fn configured(&mut self, config: &Config) {
        let mut control = [0; 2];
        config.read(self.offset, &mut control);
        self.state.control = u16::from_le_bytes(control) & (ENABLE | FUNCTION_MASK);
        self.is_bus_master = config.is_bus_master();
        self.send_pending();
    }

    /// Messages are what the guest wants, not the line.
    pub fn is_enabled(&self) -> bool {
        self.state.control & ENABLE != 0
    }

    fn may_send(&self, entry: Entry) -> bool {
        self.state.control & (ENABLE | FUNCTION_MASK) == ENABLE
            && entry.control & MASKED == 0
            && self.is_bus_master
    }

    /// Sends what was pending, and is not masked any more.
    fn send_pending(&mut self) {
        for vector in 0..self.state.entries.len() {
            let entry = self.state.entries[vector];
            if entry.is_pending && self.may_send(entry) {
                self.state.entries[vector].is_pending = false;
                self.send(entry.message);
            }
        }
    }

    fn send(&self, message: Message) {
        if let Err(error) = self.sender.send(message) {
            // The guest wrote nonsense into the table.
            tell!(Debug, "a message to {:#x} arrives nowhere: {error}", message.address);
        }
    }

    /// An interrupt by a vector; one that the table has not got is none.
    pub fn interrupt(&mut self, vector: u16) {
        let Some(entry) = self.state.entries.get(usize::from(vector)).copied() else { return };
        if self.may_send(entry) {
            self.send(entry.message);
        } else if self.is_enabled() {
            self.state.entries[usize::from(vector)].is_pending = true;
        }
    }

    /// Whether the table has a vector.
    pub fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.state.entries.len()
    }

    /// The 32 bits of the table at an offset that is a multiple of 4; ones beyond it.
    fn word(&self, offset: u64) -> u32 {
        let entry = usize::try_from(offset / ENTRY).ok().and_then(|index| self.state.entries.get(index));
        let Some(entry) = entry else { return u32::MAX };
        let address = entry.message.address.to_le_bytes();
        match offset % ENTRY {
            0 => bytes::u32_at(&address, 0).unwrap_or(0),
            4 => bytes::u32_at(&address, 4).unwrap_or(0),
            8 => entry.message.data,
            _ => entry.control,
        }
    }

    /// Reads from the table: 4 or 8 bytes, aligned, as PCIe has it; other reads see ones.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        if matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64) {
            for (index, part) in (0..).zip(data.chunks_mut(4)) {
                part.copy_from_slice(&self.word(offset.saturating_add(4 * index)).to_le_bytes());
            }
        }
    }

    /// Writes to it likewise; other writes do nothing.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        for (index, part) in (0..).zip(data.chunks(4)) {
            let at = offset.saturating_add(4 * index);
            let index = usize::try_from(at / ENTRY).ok();
            let entry = index.and_then(|index| self.state.entries.get_mut(index));
            let (Some(entry), Some(word)) = (entry, bytes::u32_at(part, 0)) else { continue };
            let Message { address, data } = &mut entry.message;
            match at % ENTRY {
                // The two lowest bits are zero.
                0 => *address = *address & !0xffff_ffff | u64::from(word & !0b11),
                4 => *address = *address & 0xffff_ffff | u64::from(word) << 32,
                8 => *data = word,
                _ => entry.control = word & MASKED,
            }
        }
        self.send_pending();
    }

    /// Reads pending bits, 64 to a word.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            let at = usize::try_from(offset.saturating_add(index)).ok();
            let first = at.and_then(|at| at.checked_mul(8));
            let bit = |bit: usize| {
                let entry = first.and_then(|first| self.state.entries.get(first + bit));
                u8::from(entry.is_some_and(|entry| entry.is_pending)) << bit
            };
            *byte = (0..8).map(bit).sum();
        }
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        self.state.entries.fill(Entry::OFF);
        self.state.control = 0;
        self.is_bus_master = false;
    }

    /// The state, for whoever puts it back by [`Self::restore`].
    pub fn save(&self) -> MsixState {
        self.state.clone()
    }

    /// Whether a state is of as many vectors.
    pub fn fits(&self, state: &MsixState) -> bool {
        state.entries.len() == self.state.entries.len()
    }

    /// Puts a state back; `false` and nothing is done if that is of another number of vectors.
    pub fn restore(&mut self, state: MsixState) -> bool {
        let fits = self.fits(&state);
        if fits {
            self.state = state;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::Identity;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Debug, Default)]
    struct Sent(Arc<Mutex<Vec<Message>>>);

    impl Sender for Sent {
        fn send(&self, message: Message) -> io::Result<()> {
            self.0.lock().unwrap().push(message);
            Ok(())
        }
    }

    const CONTROL: usize = 0x42;

    struct Function {
        config: Config,
        msix: Msix,
        sent: Sent,
    }

    impl Function {
        fn new() -> Function {
            let (sent, identity) = (
                Sent::default(),
                Identity {
                    vendor: 1,
                    device: 2,
                    revision: 0,
                    class: [0; 3],
                    subsystem_vendor: 0,
                    subsystem: 0,
                },
            );
            let mut config = Config::new(identity);
            let place = Place { bar: 2, table: 0x1000, pending: 0x2000 };
            let msix = Msix::new(&mut config, 3, place, Box::new(sent.clone()));
            Function { config, msix, sent }
        }

        fn configure(&mut self, offset: usize, value: u16) {
            self.config.write(offset, &value.to_le_bytes());
            self.msix.configured(&self.config);
        }

        fn write(&mut self, offset: u64, words: &[u32]) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.msix.write_table(offset, &bytes);
        }

        fn interrupt(&mut self, vector: u16) {
            self.msix.interrupt(vector);
        }

        fn sent(&self) -> Vec<u32> {
            self.sent.0.lock().unwrap().drain(..).map(|message| message.data).collect()
        }

        fn pending(&self) -> u64 {
            let mut bits = [0xff; 8];
            self.msix.read_pending(0, &mut bits);
            u64::from_le_bytes(bits)
        }
    }

    #[test]
    fn the_capability_tells_where_the_table_is() {
        let function = Function::new();
        let mut body = [0xff; 12];
        function.config.read(0x40, &mut body);
        assert_eq!(body, [0x11, 0, 2, 0, 2, 0x10, 0, 0, 2, 0x20, 0, 0]);
        assert!(function.msix.has(2) && !function.msix.has(3));
    }

    #[test]
    fn a_message_is_sent_when_nothing_masks_it() {
        let mut function = Function::new();
        function.write(0, &[0xfee0_0003, 1]);
        function.write(8, &[0x41, 0]);
        let mut entry = [0; 8];
        function.msix.read_table(0, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1_fee0_0000);
        // Off: lost, as a line would have told.
        function.interrupt(0);
        assert_eq!((function.sent(), function.pending()), (vec![], 0));
        // On, but not a bus master yet; then the whole function is masked, then only one vector.
        function.configure(CONTROL, ENABLE);
        function.interrupt(0);
        assert_eq!((function.sent(), function.pending()), (vec![], 1));
        function.configure(CONTROL, ENABLE | FUNCTION_MASK);
        function.configure(4, 4);
        function.interrupt(1);
        assert_eq!((function.sent(), function.pending()), (vec![], 3));
        function.configure(CONTROL, ENABLE);
        assert_eq!((function.sent(), function.pending()), (vec![0x41], 2));
        function.interrupt(0);
        assert_eq!(function.sent(), [0x41]);
        function.write(ENTRY + 8, &[0x42, 0]);
        assert_eq!((function.sent(), function.pending()), (vec![0x42], 0));
        // There is no such vector.
        function.interrupt(3);
        function.interrupt(u16::MAX);
        assert_eq!((function.sent(), function.pending()), (vec![], 0));
        function.msix.reset();
        function.interrupt(0);
        assert!(!function.msix.is_enabled() && function.sent().is_empty());
    }

    #[test]
    fn what_a_guest_does_wrong_does_nothing() {
        let mut function = Function::new();
        let before = function.msix.save();
        for (offset, length) in
            [(0, 1), (2, 4), (4, 8), (0, 16), (3 * ENTRY, 4), (u64::MAX - 3, 4), (u64::MAX - 7, 8)]
        {
            function.msix.write_table(offset, &vec![0; length]);
            let mut data = vec![0xff; length];
            function.msix.read_table(offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff), "{offset} {length}");
            function.msix.read_pending(offset, &mut data);
        }
        assert_eq!(function.msix.save(), before);
    }

    #[test]
    fn a_state_is_put_back_as_it_was() {
        let mut function = Function::new();
        function.configure(CONTROL, ENABLE);
        function.write(0, &[0x1000, 0]);
        function.interrupt(2);
        let state = function.msix.save();
        let mut other = Function::new();
        assert!(other.msix.restore(state.clone()) && other.msix.save() == state && other.pending() == 4);
        let short = MsixState { entries: Vec::new(), ..state.clone() };
        assert!(!other.msix.restore(short) && other.msix.save() == state);
    }
}
