//! Where exceptions and software interrupts lead, in every mode of the processor.
//!
//! Source: Intel SDM vol. 3, "Interrupt and Exception Handling": "IDT Descriptors", "64-Bit Mode IDT",
//! "Flag Usage By Exception- or Interrupt-Handler Procedure", "64-Bit Mode Stack Frame"; "Real-Address Mode
//! Operation", "Interrupt and Exception Handling".

use super::{Look, Processor, Protection};

/// #NP.
const NOT_PRESENT: u8 = 11;
/// #GP.
const GENERAL_PROTECTION: u8 = 13;

/// A handler, at the moment when it is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Its first instruction, linear.
    pub address: u64,
    /// Where it finds the saved flags, bytes from its stack pointer.
    pub flags: u64,
    /// How many bytes they have: 2, 4 or 8.
    pub flags_size: u64,
}

/// What becomes of an interrupt that an instruction makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is delivered.
    To(Handler),
    /// It cannot be, and this exception comes instead.
    Faults(u8),
    /// Where it leads cannot be told: a task, or memory that cannot be read.
    Unknown,
}

/// Whether an exception pushes an error code (Intel SDM vol. 3, "Exception and Interrupt Vectors").
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

impl Processor {
    /// The handler of an exception.
    pub fn handler(&self, look: &dyn Look, vector: u8) -> Option<Handler> {
        match self.deliver(look, vector, false) {
            Delivery::To(handler) => Some(handler),
            Delivery::Faults(_) | Delivery::Unknown => None,
        }
    }

    /// Where `INT n`, `INT3` and `INTO` lead: their gate must be one that the caller may use.
    pub fn software_interrupt(&self, look: &dyn Look, vector: u8) -> Delivery {
        self.deliver(look, vector, true)
    }

    fn deliver(&self, look: &dyn Look, vector: u8, by_software: bool) -> Delivery {
        match self.protection {
            Protection::Real => self.real_mode(look, vector),
            Protection::Protected | Protection::Virtual8086 => self.protected_mode(look, vector, by_software),
            Protection::Long => self.long_mode(look, vector, by_software),
        }
    }

    /// A gate's bytes; `None` where the table is too short or not mapped.
    fn gate<const SIZE: usize>(&self, look: &dyn Look, vector: u8) -> Result<[u8; SIZE], Delivery> {
        let offset = u64::from(vector) * SIZE as u64;
        if offset + SIZE as u64 - 1 > self.idt.limit {
            return Err(Delivery::Faults(GENERAL_PROTECTION));
        }
        let mut gate = [0; SIZE];
        match look.memory(self.idt.base.wrapping_add(offset), &mut gate) {
            true => Ok(gate),
            false => Err(Delivery::Unknown),
        }
    }

    fn real_mode(&self, look: &dyn Look, vector: u8) -> Delivery {
        match self.gate::<4>(look, vector) {
            Ok([o0, o1, s0, s1]) => {
                let (offset, segment) = (u16::from_le_bytes([o0, o1]), u16::from_le_bytes([s0, s1]));
                let address = (u64::from(segment) << 4) + u64::from(offset);
                Delivery::To(Handler { address, flags: 4, flags_size: 2 })
            }
            Err(other) => other,
        }
    }

    /// What a gate's byte of attributes forbids, in the order in which the processor looks.
    fn refusal(&self, attributes: u8, is_gate: bool, by_software: bool) -> Option<u8> {
        const PRESENT: u8 = 1 << 7;
        if !is_gate || by_software && attributes >> 5 & 3 < self.privilege {
            return Some(GENERAL_PROTECTION);
        }
        (attributes & PRESENT == 0).then_some(NOT_PRESENT)
    }

    fn protected_mode(&self, look: &dyn Look, vector: u8, by_software: bool) -> Delivery {
        let gate = match self.gate::<8>(look, vector) {
            Ok(gate) => gate,
            Err(other) => return other,
        };
        let kind = gate[5] & 0x1f;
        if let Some(vector) = self.refusal(gate[5], matches!(kind, 0x5..=0x7 | 0xe | 0xf), by_software) {
            return Delivery::Faults(vector);
        }
        let word = |at: usize| u64::from(gate[at]) | u64::from(gate[at + 1]) << 8;
        let (size, offset) = match kind {
            0x5 => return Delivery::Unknown,
            0x6 | 0x7 => (2, word(0)),
            _ => (4, word(0) | word(6) << 16),
        };
        let Some(base) = self.segment_base(look, gate[2], gate[3]) else { return Delivery::Unknown };
        let error = if has_error_code(vector) && !by_software { size } else { 0 };
        let address = base.wrapping_add(offset) & 0xffff_ffff;
        Delivery::To(Handler { address, flags: 2 * size + error, flags_size: size })
    }

    /// The base of a code segment that a gate names, from the global table.
    fn segment_base(&self, look: &dyn Look, low: u8, high: u8) -> Option<u64> {
        const LOCAL: u16 = 1 << 2;
        let selector = u16::from_le_bytes([low, high]);
        let offset = u64::from(selector & !7);
        if selector & LOCAL != 0 || offset + 7 > self.gdt.limit {
            return None;
        }
        let mut descriptor = [0; 8];
        look.memory(self.gdt.base.wrapping_add(offset), &mut descriptor).then(|| {
            u64::from(descriptor[2])
                | u64::from(descriptor[3]) << 8
                | u64::from(descriptor[4]) << 16
                | u64::from(descriptor[7]) << 24
        })
    }

    fn long_mode(&self, look: &dyn Look, vector: u8, by_software: bool) -> Delivery {
        let gate = match self.gate::<16>(look, vector) {
            Ok(gate) => gate,
            Err(other) => return other,
        };
        if let Some(vector) = self.refusal(gate[5], matches!(gate[5] & 0x1f, 0xe | 0xf), by_software) {
            return Delivery::Faults(vector);
        }
        let word = |at: usize| u64::from(gate[at]) | u64::from(gate[at + 1]) << 8;
        let address = word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48;
        let error = if has_error_code(vector) && !by_software { 8 } else { 0 };
        Delivery::To(Handler { address, flags: 16 + error, flags_size: 8 })
    }
}
