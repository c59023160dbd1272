//! QEMU's `pc-testdev`, which KVM's own tests (kvm-unit-tests) are written for: interrupt lines that a guest
//! raises itself, registers and memory that keep what is written, and a way to have the host forget a page.
//! The other half of what these tests need is
//! [`super::exit`]. Source: QEMU, `hw/misc/pc-testdev.c`.

use crate::End;
use crate::bus::Device;
use crate::rack::{Fitted, Line, Rack, Resources};
use crate::tell;
use arch::board::{BoardError, Node};
use arch::{GuestPhys, Isa};

/// Ports of the lines: one each.
const LINES: u32 = 24;
/// Ports of a register.
const REGISTER_SIZE: u64 = 4;
/// Size of the memory, bytes.
const MEMORY_SIZE: u64 = 0x1_0000;

/// Fits all of its parts.
///
/// # Errors
/// [`BoardError`].
pub fn fit(rack: &mut Rack, resources: &mut dyn Resources) -> Result<(), BoardError> {
    rack.add::<Lines>(resources)?;
    rack.add::<Flush>(resources)?;
    rack.add::<Register>(resources)?;
    rack.add::<Memory>(resources)?;
    Ok(())
}

/// Interrupt lines: a byte written to a port is the level of the line that has its number. What is wider goes to
/// several.
pub struct Lines {
    set: Box<dyn FnMut(u32, bool) + Send>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// Lines that `set` gives a level to.
    pub fn new(set: impl FnMut(u32, bool) + Send + 'static) -> Lines {
        Lines { set: Box::new(set) }
    }
}

impl Fitted for Lines {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("test-lines").ports(0x2000, LINES.into()))
    }

    fn make(_: &Node, resources: &mut dyn Resources) -> Lines {
        let lines: Vec<Box<dyn Line>> = (0..LINES).map(|number| resources.line(number)).collect();
        Lines::new(move |number, level| {
            let Some(line) = usize::try_from(number).ok().and_then(|number| lines.get(number)) else {
                return;
            };
            if let Err(error) = line.set(level) {
                tell!(Warn, "the test device's interrupt is lost: {error}");
            }
        })
    }
}

impl Device for Lines {
    fn name(&self) -> &'static str {
        "test device's lines"
    }

    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        for (line, level) in (offset..LINES.into()).zip(data) {
            (self.set)(u32::try_from(line).unwrap_or(u32::MAX), *level != 0);
        }
        None
    }
}

/// Bytes that keep what is written: a register, or memory.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
}

impl Kept {
    /// `size` bytes, of which all are zero.
    fn new(size: u64) -> Kept {
        Kept { bytes: vec![0; usize::try_from(size).unwrap_or(0)] }
    }

    /// As many bytes from `offset` on as an access has and as there are.
    fn part(&mut self, offset: u64, length: usize) -> &mut [u8] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(length).min(self.bytes.len());
        &mut self.bytes[start..end]
    }
}

impl Kept {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let part = self.part(offset, data.len());
        data[..part.len()].copy_from_slice(part);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let part = self.part(offset, data.len());
        let length = part.len();
        part.copy_from_slice(&data[..length]);
    }
}

/// A register at two places: by accesses of any width, and by bytes.
#[derive(Debug)]
pub struct Register(Kept);

impl Fitted for Register {
    fn node(isa: Isa) -> Option<Node> {
        let node = || Node::new("test-register").ports(0xe0, REGISTER_SIZE).ports(0xe8, REGISTER_SIZE);
        (isa == Isa::X86_64).then(node)
    }

    fn make(_: &Node, _: &mut dyn Resources) -> Register {
        Register(Kept::new(REGISTER_SIZE))
    }
}

impl Device for Register {
    fn name(&self) -> &'static str {
        "test device's register"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        self.0.write(offset, data);
        None
    }
}

/// Memory that is no RAM.
#[derive(Debug)]
pub struct Memory(Kept);

impl Fitted for Memory {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("test-memory").memory(0xff00_0000, MEMORY_SIZE))
    }

    fn make(_: &Node, _: &mut dyn Resources) -> Memory {
        Memory(Kept::new(MEMORY_SIZE))
    }
}

impl Device for Memory {
    fn name(&self) -> &'static str {
        "test device's memory"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        self.0.write(offset, data);
        None
    }
}

/// A register to which the guest writes the address of a page that the host is to forget: the next access comes
/// to KVM's notice again.
pub struct Flush {
    forget: Box<dyn Fn(u64) + Send>,
}

impl std::fmt::Debug for Flush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flush")
    }
}

impl Flush {
    /// A register that has `forget` called with guest-physical addresses of pages of 4 KiB, which need not be
    /// RAM.
    pub fn new(forget: impl Fn(u64) + Send + 'static) -> Flush {
        Flush { forget: Box::new(forget) }
    }
}

impl Fitted for Flush {
    fn node(isa: Isa) -> Option<Node> {
        (isa == Isa::X86_64).then(|| Node::new("test-flush").ports(0xe4, 4))
    }

    fn make(_: &Node, resources: &mut dyn Resources) -> Flush {
        let ram = resources.ram();
        Flush::new(move |page| ram.forget_mapping(GuestPhys(page)))
    }
}

impl Device for Flush {
    fn name(&self) -> &'static str {
        "test device's flush"
    }

    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        if let (0, &[a, b, c, d]) = (offset, data) {
            (self.forget)(u64::from(u32::from_le_bytes([a, b, c, d])) & !0xfff);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn bytes_written_to_ports_are_levels_of_lines() {
        let (sender, set) = channel();
        let mut lines = Lines::new(move |line, level| sender.send((line, level)).unwrap());
        for (offset, data) in [(14, &[1][..]), (0, &[0x80]), (22, &[1, 0, 1, 1]), (3, &[]), (u64::MAX, &[1])]
        {
            assert_eq!(lines.write(offset, data), None);
        }
        assert_eq!(set.try_iter().collect::<Vec<_>>(), [(14, true), (0, true), (22, true), (23, false)]);
    }

    #[test]
    fn registers_keep_what_is_written_by_any_width() {
        let mut register = Kept::new(REGISTER_SIZE);
        register.write(0, &[1, 2, 3, 4]);
        register.write(1, &[9, 8]);
        let mut data = [0xff; 4];
        register.read(0, &mut data);
        assert_eq!(data, [1, 9, 8, 4]);
        // What is beyond the end is nowhere.
        register.write(3, &[5, 6, 7, 8]);
        let mut data = [0xff; 8];
        register.read(2, &mut data);
        assert_eq!(data, [8, 5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        register.write(u64::MAX, &[1]);
        register.read(u64::MAX, &mut data);
    }

    #[test]
    fn whole_addresses_are_flushed_by_their_page() {
        let (sender, pages) = channel();
        let mut flush = Flush::new(move |page| sender.send(page).unwrap());
        flush.write(0, &[0x45, 0x23, 0x01, 0x00]);
        flush.write(0, &[0x45]);
        flush.write(1, &[0; 4]);
        assert_eq!(pages.try_iter().collect::<Vec<_>>(), [0x1_2000]);
    }
}
