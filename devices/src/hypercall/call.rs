//! A call that has been looked up, and what has been read of it: once, so that what is shown is what was answered.

use super::caller::{Caller, MOST_ARGUMENTS, RawCall};
use super::frame::{Fault, Frame};
use super::table::{CallRow, Field, Kind, Op, Table};
use arch::hypercall::Abi;

/// A call that has been looked up, with what has been read of its arguments.
pub struct Call<'a> {
    /// The table it was looked up in.
    pub table: &'static Table,
    /// Its row.
    pub row: &'static CallRow,
    /// Its sub-operation, if it has one and that is known.
    pub op: Option<&'static Op>,
    /// As it came.
    pub raw: RawCall,
    /// Who made it.
    pub caller: &'a dyn Caller,
    /// Arguments with their values.
    arguments: [Option<(&'static Field, u64)>; MOST_ARGUMENTS],
    /// Structures that have been read: argument, element.
    pub(super) frames: Vec<(&'static str, usize, Result<Frame, Fault>)>,
    /// Characters that have been read, by argument; whether there are no more that can be.
    read_texts: Vec<(&'static str, Vec<u8>, bool)>,
    /// Characters that the answer has written, by argument.
    pub(super) texts: Vec<(&'static str, Vec<u8>)>,
    /// Calls within this one, as far as they have been read and are shown.
    pub(super) entries: Vec<Result<Entry<'a>, Fault>>,
}

/// A call within a call.
#[derive(Debug)]
pub struct Entry<'a> {
    /// As it stands in memory.
    pub raw: RawCall,
    /// Looked up; `None` if it is in no table.
    pub call: Option<Call<'a>>,
    /// What it has resulted in.
    pub result: Option<i64>,
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("name", &self.row.name).field("raw", &self.raw).finish_non_exhaustive()
    }
}

impl<'a> Call<'a> {
    /// Looks a call up; `None` if the table has none of this number for this caller.
    pub fn new(table: &'static Table, raw: RawCall, caller: &'a dyn Caller) -> Option<Call<'a>> {
        let row = table.call(raw.number, raw.abi)?;
        let mut call = Call {
            table,
            row,
            op: None,
            raw,
            caller,
            arguments: [None; MOST_ARGUMENTS],
            frames: Vec::new(),
            texts: Vec::new(),
            read_texts: Vec::new(),
            entries: Vec::new(),
        };
        let mut registers = raw.arguments.iter().map(|value| raw.abi.cut(*value));
        for field in &row.arguments {
            call.take(field, &mut registers);
            if let Kind::Ops(_) = field.kind {
                let number = call.arguments().last().map_or(0, |(_, value)| value);
                call.op = row.op(number);
                for field in call.op.map_or(&[][..], |op| &op.arguments) {
                    call.take(field, &mut registers);
                }
            }
        }
        Some(call)
    }

    /// Takes an argument out of the registers. Where a word has 32 bits, a wider number is in two.
    fn take(&mut self, field: &'static Field, registers: &mut dyn Iterator<Item = u64>) {
        let (size, _) = self.table.layout(&field.kind, self.raw.abi);
        let low = registers.next().unwrap_or(0);
        let is_number = matches!(field.kind, Kind::Integer { .. });
        let value = match (is_number, size) {
            (true, 8) if self.raw.abi.word() == 4 => low | registers.next().unwrap_or(0) << 32,
            (true, 4) => low & 0xffff_ffff,
            (true, 2) => low & 0xffff,
            _ => low,
        };
        // Sub-operations are of type int.
        let value = if matches!(field.kind, Kind::Ops(_)) { value & 0xffff_ffff } else { value };
        if let Some(place) = self.arguments.iter_mut().find(|place| place.is_none()) {
            *place = Some((field, value));
        }
    }

    /// Its sub-operation's name, and that with its table's.
    pub fn op_names(&self) -> Option<(&'static str, &'static str)> {
        self.op.map(|op| (op.label, op.name.as_str()))
    }

    /// Arguments with their values, in order.
    pub fn arguments(&self) -> impl Iterator<Item = (&'static Field, u64)> {
        self.arguments.into_iter().flatten()
    }

    /// An argument's value; 0 if the call has none of this name.
    pub fn argument(&self, name: &str) -> u64 {
        self.arguments().find(|(field, _)| field.name == name).map_or(0, |(_, value)| value)
    }

    /// The structure that an argument points to, read once.
    ///
    /// # Errors
    /// [`Fault`], also if it points to none.
    pub fn frame(&mut self, name: &str) -> Result<&mut Frame, Fault> {
        self.element(name, 0)
    }

    /// One of the structures that an argument points to.
    ///
    /// # Errors
    /// [`Fault`], also if it points to none.
    pub fn element(&mut self, name: &str, index: usize) -> Result<&mut Frame, Fault> {
        let known = |frame: &(&str, usize, _)| frame.0 == name && frame.1 == index;
        let at = match self.frames.iter().position(known) {
            Some(at) => at,
            None => {
                let (field, address) = self.arguments().find(|(field, _)| field.name == name).ok_or(Fault)?;
                let Kind::Pointer { to: Some(to), .. } = &field.kind else { return Err(Fault) };
                let Kind::Struct(structure) = **to else { return Err(Fault) };
                let (size, _) = self.table.layout_of(structure, self.raw.abi);
                let address = self.raw.abi.cut(address.wrapping_add((index * size) as u64));
                let frame = Frame::read(self.table, self.raw.abi, self.caller, structure, address);
                self.frames.push((field.name, index, frame));
                self.frames.len() - 1
            }
        };
        self.frames[at].2.as_mut().map_err(|fault| *fault)
    }

    /// Up to so many of the characters that an argument points to, each read once; fewer if the rest
    /// cannot be.
    pub fn text(&mut self, name: &str, most: usize) -> &[u8] {
        let Some((field, address)) = self.arguments().find(|(field, _)| field.name == name) else {
            return &[];
        };
        let at = match self.read_texts.iter().position(|(read, ..)| *read == name) {
            Some(at) => at,
            None => {
                self.read_texts.push((field.name, Vec::new(), false));
                self.read_texts.len() - 1
            }
        };
        let (_, bytes, is_ended) = &mut self.read_texts[at];
        let had = bytes.len();
        if had < most && !*is_ended {
            bytes.resize(most, 0);
            let address = self.raw.abi.cut(address.wrapping_add(had as u64));
            let read = self.caller.read(address, &mut bytes[had..]).min(most - had);
            bytes.truncate(had + read);
            *is_ended = had + read < most;
        }
        &bytes[..bytes.len().min(most)]
    }

    /// Reads a call within this one.
    fn read_entry(&self, index: usize) -> Result<Entry<'a>, Fault> {
        let is_list = |field: &Field| matches!(field.kind, Kind::Calls(_));
        let (_, list) = self.arguments().find(|(field, _)| is_list(field)).ok_or(Fault)?;
        let raw = multicall_entry(self.raw.abi, self.caller, list, index as u64)?;
        Ok(Entry { raw, call: Call::new(self.table, raw, self.caller), result: None })
    }

    /// A call within this one that is shown, read once.
    ///
    /// # Errors
    /// [`Fault`], also if it has none.
    pub(super) fn shown_entry(&mut self, index: usize) -> Result<&mut Entry<'a>, Fault> {
        while self.entries.len() <= index {
            let entry = self.read_entry(self.entries.len());
            self.entries.push(entry);
        }
        self.entries[index].as_mut().map_err(|fault| *fault)
    }

    /// Takes a call within this one, to answer it: as it was read for whoever looks, or read now.
    ///
    /// # Errors
    /// [`Fault`], also if it has none.
    pub fn take_entry(&mut self, index: usize) -> Result<Entry<'a>, Fault> {
        match self.entries.get_mut(index) {
            Some(entry) => std::mem::replace(entry, Err(Fault)),
            None => self.read_entry(index),
        }
    }

    /// Puts it back with its result, for whoever looks. Of one that nobody looks at nothing is kept, and of
    /// the others no more than is shown: a guest may have as many as it likes.
    pub fn put_entry(&mut self, index: usize, mut entry: Entry<'a>) {
        if let Some(place) = self.entries.get_mut(index) {
            if let Some(call) = &mut entry.call {
                call.read_texts = Vec::new();
            }
            *place = Ok(entry);
        }
    }

    /// Bytes that it keeps of the guest's memory.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let texts: usize = self.read_texts.iter().map(|(_, text, _)| text.capacity()).sum();
        let frames = self.frames.iter().filter_map(|(_, _, frame)| frame.as_ref().ok());
        let frames: usize = frames.map(|frame| frame.bytes.capacity()).sum();
        let calls = self.entries.iter().flatten().filter_map(|entry| entry.call.as_ref());
        texts + frames + self.entries.len() * size_of::<Entry<'_>>() + calls.map(Call::kept).sum::<usize>()
    }

    /// Writes characters to where an argument points.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn write_text(&mut self, name: &str, text: &[u8]) -> Result<(), Fault> {
        let (field, address) = self.arguments().find(|(field, _)| field.name == name).ok_or(Fault)?;
        let written = self.caller.write(address, text);
        self.texts.push((field.name, text[..written.min(text.len())].to_vec()));
        if written < text.len() { Err(Fault) } else { Ok(()) }
    }

    /// Puts what the answer has written into the guest's memory.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn flush(&self) -> Result<(), Fault> {
        self.frames
            .iter()
            .filter_map(|(_, _, frame)| frame.as_ref().ok())
            .try_for_each(|frame| frame.flush(self.caller))
    }
}

/// An entry of a multicall: operation, result and arguments, a word each, eight in all.
///
/// # Errors
/// [`Fault`].
fn multicall_entry(abi: Abi, caller: &dyn Caller, list: u64, index: u64) -> Result<RawCall, Fault> {
    let word = abi.word();
    let address = abi.cut(list.wrapping_add(index * 8 * word as u64));
    let mut bytes = vec![0; 8 * word];
    if caller.read(address, &mut bytes) < bytes.len() {
        return Err(Fault);
    }
    let value = |at: usize| {
        bytes[at * word..(at + 1) * word].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let mut arguments = [0; MOST_ARGUMENTS];
    for (at, argument) in arguments.iter_mut().enumerate() {
        *argument = value(at + 2);
    }
    Ok(RawCall { abi, number: value(0), arguments })
}
