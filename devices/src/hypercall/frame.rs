//! Structures in the guest's memory that a call leads to.

use super::caller::Caller;
use super::table::{Kind, Table};
use arch::hypercall::Abi;
use std::cell::RefCell;

/// The guest's memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// A structure in the guest's memory, as it was when it was read.
#[derive(Debug)]
pub struct Frame {
    /// Its name in the table.
    pub name: &'static str,
    /// Where it is.
    pub address: u64,
    abi: Abi,
    table: &'static Table,
    pub(super) bytes: Vec<u8>,
    /// What the answer has written, as ranges of bytes.
    written: Vec<(usize, usize)>,
    /// Numbers that its pointers lead to, by address, as far as they have been read.
    pointed: RefCell<Vec<(u64, u64)>>,
}

impl Frame {
    pub(super) fn read(
        table: &'static Table,
        abi: Abi,
        caller: &dyn Caller,
        name: &'static str,
        address: u64,
    ) -> Result<Frame, Fault> {
        let (size, _) = table.layout_of(name, abi);
        let mut bytes = vec![0; size];
        let is_read = table.fields(name).iter().any(|field| field.is_input && field.name != "_");
        if is_read && caller.read(address, &mut bytes) < size {
            return Err(Fault);
        }
        Ok(Frame { name, address, abi, table, bytes, written: Vec::new(), pointed: RefCell::default() })
    }

    fn place(&self, field: &str) -> Option<(usize, usize)> {
        let places = self.table.places(self.name, self.abi);
        places.into_iter().find(|(place, ..)| place.name == field).map(|(_, at, size, _)| (at, size))
    }

    /// The value of a field of up to eight bytes. A field that is not in the table is a mistake in
    /// the caller, found by its tests; in a release it is 0.
    pub fn get(&self, field: &str) -> u64 {
        let place = self.place(field);
        debug_assert!(place.is_some(), "{} has no {field}", self.name);
        place.map_or(0, |(at, size)| self.number(at, size))
    }

    pub(super) fn number(&self, at: usize, size: usize) -> u64 {
        let bytes = self.bytes.get(at..at + size.min(8)).unwrap_or(&[]);
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// One of the numbers that a field points to, read once.
    ///
    /// # Errors
    /// [`Fault`], also if it points to none.
    pub fn pointed(&self, caller: &dyn Caller, field: &str, index: u64) -> Result<u64, Fault> {
        let field = self.table.fields(self.name).iter().find(|known| known.name == field).ok_or(Fault)?;
        let Kind::Pointer { to: Some(to), .. } = &field.kind else { return Err(Fault) };
        let (size, _) = self.table.layout(to, self.abi);
        let address = self.get(field.name).wrapping_add(index.wrapping_mul(size as u64));
        self.number_at(caller, self.abi.cut(address), size)
    }

    /// A number of up to eight bytes that a pointer of this structure leads to, read once.
    pub(super) fn number_at(&self, caller: &dyn Caller, address: u64, size: usize) -> Result<u64, Fault> {
        let mut pointed = self.pointed.borrow_mut();
        if let Some((_, value)) = pointed.iter().find(|(known, _)| *known == address) {
            return Ok(*value);
        }
        let mut bytes = [0; 8];
        let size = size.min(bytes.len());
        if caller.read(address, &mut bytes[..size]) < size {
            return Err(Fault);
        }
        let value = u64::from_le_bytes(bytes);
        pointed.push((address, value));
        Ok(value)
    }

    /// Writes a field; its lower bytes if it is narrower than the value.
    pub fn set(&mut self, field: &str, value: u64) {
        self.set_bytes(field, &value.to_le_bytes());
    }

    /// Writes the bytes of a field, cut or filled with zeros.
    pub fn set_bytes(&mut self, field: &str, value: &[u8]) {
        let place = self.place(field);
        debug_assert!(place.is_some(), "{} has no {field}", self.name);
        let Some((at, size)) = place else { return };
        let count = size.min(value.len());
        self.bytes[at..at + size].fill(0);
        self.bytes[at..at + count].copy_from_slice(&value[..count]);
        self.written.push((at, at + size));
    }

    pub(super) fn is_written(&self, at: usize) -> bool {
        self.written.iter().any(|(start, end)| (*start..*end).contains(&at))
    }

    /// Puts what was written into the guest's memory.
    pub(super) fn flush(&self, caller: &dyn Caller) -> Result<(), Fault> {
        for (start, end) in &self.written {
            let bytes = &self.bytes[*start..*end];
            if caller.write(self.address.wrapping_add(*start as u64), bytes) < bytes.len() {
                return Err(Fault);
            }
        }
        Ok(())
    }
}
