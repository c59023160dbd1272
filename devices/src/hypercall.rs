//! Hypercalls: the seam between how a call reaches the monitor and what it means.
//!
//! A *transport*, in `vmm`, knows how a call comes out of a guest on one architecture and host. It
//! makes a [`RawCall`] of it and a [`Caller`] of the vCPU. A [`Family`] knows what its calls mean:
//! it has a [`Table`], which decodes any of them ([`decode`]), and answers those it
//! can. [`Hypercalls`] stands between: it looks the call up, decodes it if somebody looks (a trace, a
//! debugger), has it answered, and tells.
//!
//! Memory of the guest is read through the caller's page walk, once for each structure: what is
//! shown is what was answered ([`Frame`]). A family never panics on what a guest sends.

pub mod decode;
pub mod kvm;
pub mod table;
pub mod trace;
pub mod xen;

use crate::End;
use arch::hypercall::Abi;
use decode::Decoded;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use table::{CallRow, Field, Kind, Op, Table};
use trace::{Count, Filter, Tracer};

/// Arguments that a call has at most.
pub const MOST_ARGUMENTS: usize = 6;

/// A call as its transport hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCall {
    /// How the caller passes arguments.
    pub abi: Abi,
    /// The call's number.
    pub number: u64,
    /// Argument registers; those that the call has no argument for mean nothing.
    pub arguments: [u64; MOST_ARGUMENTS],
}

/// The vCPU that made a call.
pub trait Caller {
    /// Its number.
    fn vcpu(&self) -> u32;

    /// Reads memory as it sees it; bytes read before the first that cannot be.
    fn read(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// Writes memory as it sees it; bytes written before the first that cannot be.
    fn write(&self, address: u64, bytes: &[u8]) -> usize;

    /// x86: its time-stamp counter.
    fn tsc(&self) -> Option<xen::time::Tsc> {
        None
    }
}

/// What a call does to the machine, besides its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The vCPU waits for an interrupt.
    Halt,
    /// The guest ends.
    End(End),
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the result register.
    pub result: i64,
    /// What else is to be done.
    pub effect: Effect,
}

impl From<i64> for Answer {
    fn from(result: i64) -> Answer {
        Answer { result, effect: Effect::None }
    }
}

/// A family of hypercalls.
pub trait Family: Send + Sync + std::fmt::Debug {
    /// Its name, for `--hypercalls`.
    fn name(&self) -> &'static str;

    /// Its calls.
    fn table(&self) -> &'static Table;

    /// Answers a call of the table.
    fn answer(&self, call: &mut Call<'_>) -> Answer;

    /// The result of a call that is not in the table.
    fn unknown(&self) -> i64;

    /// The name of an error that a call results in.
    fn error(&self, result: i64) -> Option<&'static str>;
}

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
    bytes: Vec<u8>,
    /// What the answer has written, as ranges of bytes.
    written: Vec<(usize, usize)>,
    /// Numbers that its pointers lead to, by address, as far as they have been read.
    pointed: RefCell<Vec<(u64, u64)>>,
}

impl Frame {
    fn read(
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

    fn number(&self, at: usize, size: usize) -> u64 {
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
    fn number_at(&self, caller: &dyn Caller, address: u64, size: usize) -> Result<u64, Fault> {
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

    fn is_written(&self, at: usize) -> bool {
        self.written.iter().any(|(start, end)| (*start..*end).contains(&at))
    }

    /// Puts what was written into the guest's memory.
    fn flush(&self, caller: &dyn Caller) -> Result<(), Fault> {
        for (start, end) in &self.written {
            let bytes = &self.bytes[*start..*end];
            if caller.write(self.address.wrapping_add(*start as u64), bytes) < bytes.len() {
                return Err(Fault);
            }
        }
        Ok(())
    }
}

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
    frames: Vec<(&'static str, usize, Result<Frame, Fault>)>,
    /// Characters that have been read, by argument; whether there are no more that can be.
    read_texts: Vec<(&'static str, Vec<u8>, bool)>,
    /// Characters that the answer has written, by argument.
    texts: Vec<(&'static str, Vec<u8>)>,
    /// Calls within this one, as far as they have been read and are shown.
    entries: Vec<Result<Entry<'a>, Fault>>,
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
    fn shown_entry(&mut self, index: usize) -> Result<&mut Entry<'a>, Fault> {
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
    fn kept(&self) -> usize {
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
    fn flush(&self) -> Result<(), Fault> {
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

/// A family with whoever looks at its calls.
#[derive(Debug)]
pub struct Hypercalls {
    family: Arc<dyn Family>,
    tracer: Tracer,
    /// The time that calls take is counted too, which costs some of it.
    is_timed: bool,
    /// A debugger looks at calls.
    is_caught: AtomicBool,
    /// At which.
    caught: Mutex<Filter>,
    /// Counts by place in the table, and behind them those of calls that are not in it.
    counts: Vec<Count>,
}

impl Hypercalls {
    /// A family and its trace. With `is_timed`, the time that calls take is counted.
    pub fn new(family: Arc<dyn Family>, tracer: Tracer, is_timed: bool) -> Hypercalls {
        // A table is parsed when it is first looked at, which is not to be in a guest's call.
        let counts = (0..=family.table().calls.len()).map(|_| Count::default()).collect();
        let (is_caught, caught) = (AtomicBool::new(false), Mutex::default());
        Hypercalls { family, tracer, is_timed, is_caught, caught, counts }
    }

    /// The family.
    pub fn family(&self) -> &dyn Family {
        &*self.family
    }

    /// The trace.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Has a debugger see these calls before they are answered, or none.
    pub fn catch(&self, which: Option<Filter>) {
        self.is_caught.store(which.is_some(), Ordering::Relaxed);
        *self.caught.lock().unwrap_or_else(PoisonError::into_inner) = which.unwrap_or_default();
    }

    /// Whether a debugger is to see any calls before they are answered.
    pub fn is_caught(&self) -> bool {
        self.is_caught.load(Ordering::Relaxed)
    }

    /// What a debugger is to see, in words.
    pub fn caught(&self) -> String {
        let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.is_caught(), caught.names()) {
            (false, _) => "no hypercall is caught".into(),
            (true, []) => "all hypercalls are caught".into(),
            (true, names) => format!("hypercalls that are caught: {}", names.join(" ")),
        }
    }

    /// Whether the family has a call or an operation of this name.
    pub fn has(&self, name: &str) -> bool {
        self.family.table().has(name)
    }

    /// Whether a debugger is to see this one.
    pub fn catches(&self, call: &Decoded) -> bool {
        let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_caught() && caught.has(call.name, call.op)
    }

    /// Decodes a call without answering it.
    pub fn look(&self, raw: RawCall, caller: &dyn Caller) -> Decoded {
        match Call::new(self.family.table(), raw, caller) {
            Some(mut call) => {
                let mut decoded = Decoded::of(&mut call);
                decoded.complete(&call, &*self.family, false);
                decoded
            }
            None => Decoded::unknown(raw.number),
        }
    }

    /// How many argument registers a call has, and whether the first is a sub-operation, of which no
    /// more than the lower half counts; `first` reads that half.
    pub fn argument_count(&self, number: u64, abi: Abi, first: impl FnOnce() -> u64) -> (usize, bool) {
        let Some(call) = self.family.table().call(number, abi) else { return (0, false) };
        match call.arguments.as_slice() {
            [Field { kind: Kind::Ops(_), .. }] => {
                (1 + call.op(first() & 0xffff_ffff).map_or(0, |op| op.arguments.len()), true)
            }
            arguments => (arguments.len(), false),
        }
    }

    /// Serves a call.
    pub fn serve(&self, raw: RawCall, caller: &dyn Caller) -> Answer {
        let begun = self.is_timed.then(Instant::now);
        let table = self.family.table();
        let place = table.place(raw.number, raw.abi);
        let count = place.map_or(self.counts.last(), |place| self.counts.get(place));
        let (answer, error) = match Call::new(table, raw, caller) {
            Some(mut call) => self.answer(&mut call, begun),
            None => {
                let result = self.family.unknown();
                let error = self.family.error(result);
                self.tracer.write(begun, &Decoded::unknown(raw.number), caller.vcpu(), result, error);
                (result.into(), error)
            }
        };
        if let Some(count) = count {
            count.add(begun.map(|begun| begun.elapsed()), error.is_some());
        }
        answer
    }

    fn answer(&self, call: &mut Call<'_>, begun: Option<Instant>) -> (Answer, Option<&'static str>) {
        // What is shown is what was there before the answer.
        let mut decoded = self.tracer.wants(call).then(|| Decoded::of(call));
        let mut answer = self.family.answer(call);
        if call.flush().is_err() {
            answer = xen::errno::EFAULT.into();
        }
        let error = self.family.error(answer.result);
        if let Some(decoded) = &mut decoded {
            decoded.complete(call, &*self.family, error.is_none());
            self.tracer.write(begun, decoded, call.caller.vcpu(), answer.result, error);
        }
        (answer, error)
    }

    /// Calls with their counts, as `strace -c` has them.
    pub fn summary(&self) -> String {
        let names = self.family.table().calls.iter().map(|call| call.name).chain(["hypercall"]);
        trace::summary(names.zip(&self.counts))
    }
}

#[cfg(test)]
mod tests;
