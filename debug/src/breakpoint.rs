//! The table of breakpoints.
//!
//! A breakpoint is keyed by its canonical place, the guest-physical address of its
//! instruction, and remembers the guest-virtual address it was asked for: two names of one
//! page are one place, with one planted instruction. A hit is looked up by translating the
//! program counter.
//!
//! While the debugger looks, memory never shows what was planted ([`Table::unmask`]), and a
//! write over it changes the saved original ([`Table::write_over`]). What serves the guest sees memory
//! likewise ([`Table::write_for_guest`]). On removal the original
//! returns only if the planted instruction is still there: a guest that patched its own text
//! wins.
//!
//! An address that does not translate yet waits on a debug register
//! ([`Table::waiting`]) until its page appears ([`Table::settle`]).
//!
//! A breakpoint is told by its [`Id`], which it keeps for as long as it is there, whatever comes and goes
//! beside it: what a debug register serves, what hits and what is counted go by it.

use crate::arming::Want;
use crate::expression::Expression;
use crate::target::{Access, Memory};
use arch::{GuestPhys, GuestVirt, Isa};
use std::collections::BTreeMap;

/// `int3` (Intel SDM vol. 2, "INT n/INTO/INT3/INT1").
pub const INT3: &[u8] = &[0xcc];
/// `BRK #0`, little-endian (Arm ARM (DDI 0487), "BRK").
pub const BRK_0: u32 = 0xd420_0000;

/// The instruction that is planted.
pub const fn planted_instruction(isa: Isa) -> &'static [u8] {
    const BRK: [u8; 4] = BRK_0.to_le_bytes();
    match isa {
        Isa::X86_64 => INT3,
        Isa::Aarch64 => &BRK,
    }
}

/// What a debugger can insert (GDB manual, "Packets", `Z0` to `Z4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A breakpoint; how is left to us.
    Software,
    /// A breakpoint on a debug register.
    Hardware,
    /// A watchpoint for stores.
    Write,
    /// For loads.
    Read,
    /// For both.
    Access,
}

impl Kind {
    /// The kind of `Z<digit>`.
    pub fn from_digit(digit: u8) -> Option<Kind> {
        Some(match digit {
            b'0' => Kind::Software,
            b'1' => Kind::Hardware,
            b'2' => Kind::Write,
            b'3' => Kind::Read,
            b'4' => Kind::Access,
            _ => return None,
        })
    }

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Software => "breakpoint",
            Kind::Hardware => "hardware breakpoint",
            Kind::Write => "watchpoint",
            Kind::Read => "read watchpoint",
            Kind::Access => "access watchpoint",
        }
    }

    /// What a watchpoint watches for; `None` for breakpoints.
    pub const fn access(self) -> Option<Access> {
        match self {
            Kind::Software | Kind::Hardware => None,
            Kind::Write => Some(Access::Write),
            Kind::Read => Some(Access::Read),
            Kind::Access => Some(Access::Any),
        }
    }
}

/// What a breakpoint is told by. None is given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

/// How a breakpoint is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An instruction is planted at a guest-physical address.
    Planted(GuestPhys),
    /// On a debug register, as was asked for.
    Register,
    /// On a debug register, and why.
    Fallback(&'static str),
    /// On a debug register, because the page cannot be executed: a processor that goes there refuses the fetch
    /// before it would execute what is planted. x86 looks at debug registers before that (Intel SDM vol. 3,
    /// "Priority Among Concurrent Events"); aarch64 looks at the page first (Arm ARM (DDI 0487), "Synchronous
    /// exception prioritization"), so that another one is on the vector that the abort goes to.
    NotExecutable {
        /// Its address.
        vector: Option<u64>,
    },
}

/// One breakpoint.
#[derive(Clone, Debug)]
pub struct Breakpoint {
    /// What was asked for.
    pub kind: Kind,
    /// Where, guest-virtual.
    pub address: GuestVirt,
    /// Bytes watched; for a breakpoint what the debugger calls its kind.
    pub length: u64,
    /// How it is noticed.
    pub place: Place,
    /// It stops only if one of these is not zero, or if there are none.
    pub conditions: Vec<Expression>,
    /// What is done at a hit instead of stopping (`dprintf`).
    pub commands: Vec<Expression>,
    /// How often it was hit, false conditions included.
    pub hits: u64,
}

/// What a planted instruction replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Planted {
    original: Vec<u8>,
    users: usize,
    /// There was no code when it was planted.
    awaits_code: bool,
    /// The instruction is out: lifted for a step, or out of the way of what was written for the guest. Memory is
    /// the guest's until it is planted again.
    is_out: bool,
}

/// Why a breakpoint cannot be inserted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// The same one is there already.
    #[error("there is one already")]
    Duplicate,
    /// Its memory cannot be written.
    #[error("{0} is not in RAM")]
    NotRam(GuestPhys),
}

/// All breakpoints of a target.
#[derive(Debug)]
pub struct Table {
    isa: Isa,
    /// In the order they were inserted.
    breakpoints: BTreeMap<Id, Breakpoint>,
    next: u64,
    planted: BTreeMap<GuestPhys, Planted>,
    /// What was removed, for a debugger that takes its breakpoints out at every stop: the
    /// user still wants to see them, and their hits.
    former: Vec<Breakpoint>,
}

/// Bytes of zeros that are no code: on x86 eight instructions that write to memory, on aarch64 four that
/// are undefined.
const NO_CODE: usize = 16;

/// Removed breakpoints that are remembered.
const MOST_FORMER: usize = 1024;

impl Table {
    /// A table without breakpoints.
    pub fn new(isa: Isa) -> Table {
        Table { isa, breakpoints: BTreeMap::new(), next: 0, planted: BTreeMap::new(), former: Vec::new() }
    }

    /// All breakpoints, in the order they were inserted.
    pub fn iter(&self) -> impl Iterator<Item = &Breakpoint> {
        self.breakpoints.values()
    }

    /// The same, with what each is told by.
    pub fn entries(&self) -> impl Iterator<Item = (Id, &Breakpoint)> {
        self.breakpoints.iter().map(|(id, breakpoint)| (*id, breakpoint))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.breakpoints.is_empty()
    }

    /// Whether an instruction is planted anywhere.
    pub fn has_planted(&self) -> bool {
        !self.planted.is_empty()
    }

    fn find(&self, kind: Kind, address: GuestVirt, length: u64) -> Option<Id> {
        let is_it = |breakpoint: &Breakpoint| {
            let same_length = kind.access().is_none() || breakpoint.length == length;
            breakpoint.kind == kind && breakpoint.address == address && same_length
        };
        self.breakpoints.iter().find(|(_, breakpoint)| is_it(breakpoint)).map(|(id, _)| *id)
    }

    /// Whether such a breakpoint is there.
    pub fn contains(&self, kind: Kind, address: GuestVirt, length: u64) -> bool {
        self.find(kind, address, length).is_some()
    }

    /// Inserts a breakpoint. [`Place::Planted`] writes the instruction.
    ///
    /// # Errors
    /// [`InsertError`].
    pub fn insert(&mut self, memory: &dyn Memory, breakpoint: Breakpoint) -> Result<Id, InsertError> {
        if self.find(breakpoint.kind, breakpoint.address, breakpoint.length).is_some() {
            return Err(InsertError::Duplicate);
        }
        let id = Id(self.next);
        self.insert_as(memory, id, breakpoint)?;
        self.next += 1;
        Ok(id)
    }

    fn insert_as(&mut self, memory: &dyn Memory, id: Id, breakpoint: Breakpoint) -> Result<(), InsertError> {
        if let Place::Planted(place) = breakpoint.place {
            self.plant(memory, place)?;
        }
        self.breakpoints.insert(id, breakpoint);
        Ok(())
    }

    /// Puts a breakpoint in the place of the one that is the same but for what it does, if there is
    /// one, under that one's id and with its hits; else inserts it. What was replaced is for
    /// [`Self::settle_change`], one way or the other: until then its instruction stays planted.
    ///
    /// # Errors
    /// [`InsertError`]; then nothing has changed.
    pub fn replace(&mut self, memory: &dyn Memory, breakpoint: Breakpoint) -> Result<Change, InsertError> {
        let Some(id) = self.find(breakpoint.kind, breakpoint.address, breakpoint.length) else {
            return self.insert(memory, breakpoint).map(|id| Change { id, before: None });
        };
        let before = self.breakpoints.get(&id).cloned();
        let hits = before.as_ref().map_or(0, |before| before.hits);
        self.insert_as(memory, id, Breakpoint { hits, ..breakpoint })?;
        Ok(Change { id, before })
    }

    /// Makes an end of [`Self::replace`]: what was replaced goes, or with `undo` it comes back as it
    /// was, and what replaced it goes.
    pub fn settle_change(&mut self, memory: &dyn Memory, change: Change, undo: bool) {
        let Change { id, before } = change;
        let gone = match (undo, before) {
            (false, before) => before,
            (true, Some(before)) => self.breakpoints.insert(id, before),
            (true, None) => self.breakpoints.remove(&id),
        };
        if let Some(Breakpoint { place: Place::Planted(place), .. }) = gone {
            self.uproot(memory, place);
        }
    }

    fn plant(&mut self, memory: &dyn Memory, place: GuestPhys) -> Result<(), InsertError> {
        if let Some(planted) = self.planted.get_mut(&place) {
            planted.users += 1;
            return Ok(());
        }
        let instruction = planted_instruction(self.isa);
        let mut original = vec![0; instruction.len()];
        let mut code = [0; NO_CODE];
        let count = memory.read(place, &mut code);
        if memory.read(place, &mut original) < original.len()
            || memory.write(place, instruction) < instruction.len()
        {
            return Err(InsertError::NotRam(place));
        }
        let awaits_code = code[..count].iter().all(|byte| *byte == 0);
        self.planted.insert(place, Planted { original, users: 1, awaits_code, is_out: false });
        Ok(())
    }

    /// Removes a breakpoint; whether it was there.
    pub fn remove(&mut self, memory: &dyn Memory, kind: Kind, address: GuestVirt, length: u64) -> bool {
        let found = self.find(kind, address, length).and_then(|id| self.breakpoints.remove(&id));
        let Some(breakpoint) = found else { return false };
        if let Place::Planted(place) = breakpoint.place {
            self.uproot(memory, place);
        }
        if self.former.len() == MOST_FORMER {
            self.former.remove(0);
        }
        self.former.push(breakpoint);
        true
    }

    /// Breakpoints that have been removed, the last one last.
    pub fn former(&self) -> impl Iterator<Item = &Breakpoint> {
        self.former.iter()
    }

    /// The hits that a breakpoint had when it was removed; it is not a former one any more.
    pub fn former_hits(&mut self, kind: Kind, address: GuestVirt, length: u64) -> u64 {
        let found = self
            .former
            .iter()
            .position(|former| former.kind == kind && former.address == address && former.length == length);
        found.map_or(0, |index| self.former.remove(index).hits)
    }

    fn uproot(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let Some(planted) = self.planted.get_mut(&place) else { return };
        planted.users -= 1;
        if planted.users == 0 {
            self.lift(memory, place);
            self.planted.remove(&place);
        }
    }

    /// Takes all breakpoints out without touching memory: it is another one by now. They are former ones then.
    pub fn uprooted(&mut self) -> Vec<Breakpoint> {
        self.planted.clear();
        let gone: Vec<Breakpoint> = std::mem::take(&mut self.breakpoints).into_values().collect();
        self.former.extend(gone.iter().cloned());
        let excess = self.former.len().saturating_sub(MOST_FORMER.max(gone.len()));
        self.former.drain(..excess);
        gone
    }

    /// Removes all breakpoints.
    pub fn clear(&mut self, memory: &dyn Memory) {
        self.breakpoints.clear();
        self.former.clear();
        let places: Vec<GuestPhys> = self.planted.keys().copied().collect();
        for place in places {
            self.lift(memory, place);
        }
        self.planted.clear();
    }

    /// Whether the planted instruction is in memory at `place`.
    fn stands(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        if self.planted.get(&place).is_some_and(|planted| planted.is_out) {
            return false;
        }
        let instruction = planted_instruction(self.isa);
        let mut there = vec![0; instruction.len()];
        memory.read(place, &mut there) == there.len() && there == instruction
    }

    /// Whether we planted the instruction at a guest-physical address, and it is there.
    pub fn is_planted(&self, memory: &dyn Memory, place: GuestPhys) -> bool {
        self.planted.contains_key(&place) && self.stands(memory, place)
    }

    /// Takes the planted instruction at `place` out, if it is there: for a step, until [`Self::replant`].
    pub fn lift(&mut self, memory: &dyn Memory, place: GuestPhys) -> bool {
        if !self.is_planted(memory, place) {
            return false;
        }
        if let Some(planted) = self.planted.get_mut(&place) {
            memory.write(place, &planted.original);
            planted.is_out = true;
        }
        true
    }

    /// Takes out what is planted within a range, which somebody is about to change for the guest.
    pub fn make_way(&mut self, memory: &dyn Memory, address: GuestPhys, length: usize) {
        for place in self.places(address, length) {
            self.lift(memory, place);
        }
    }

    /// Writes for the guest; how many bytes were written. A planted instruction that is in memory stays, with what
    /// is written for its original, if a breakpoint's address still leads there, as `leads_to` says; else it makes
    /// way.
    pub fn write_for_guest(
        &mut self,
        memory: &dyn Memory,
        address: GuestPhys,
        bytes: &[u8],
        leads_to: &dyn Fn(GuestVirt) -> Option<GuestPhys>,
    ) -> usize {
        let places = self.places(address, bytes.len());
        if places.is_empty() {
            return memory.write(address, bytes);
        }
        for place in places {
            let is_theirs =
                |it: &Breakpoint| it.place == Place::Planted(place) && leads_to(it.address) == Some(place);
            if !self.stands(memory, place) || !self.breakpoints.values().any(is_theirs) {
                self.lift(memory, place);
                // What the guest has written over it by itself is the guest's, too.
                if let Some(planted) = self.planted.get_mut(&place) {
                    planted.is_out = true;
                }
            }
        }
        let mut masked = bytes.to_vec();
        self.write_over(address, &mut masked);
        memory.write(address, &masked)
    }

    /// Puts the instruction at `place` back after a step. What the guest has put there
    /// meanwhile is the new original.
    pub fn replant(&mut self, memory: &dyn Memory, place: GuestPhys) {
        let instruction = planted_instruction(self.isa);
        if self.stands(memory, place) {
            return;
        }
        if let Some(planted) = self.planted.get_mut(&place)
            && memory.read(place, &mut planted.original) == instruction.len()
        {
            memory.write(place, instruction);
            planted.is_out = false;
        }
    }

    /// Places where the guest has written over an instruction of ours, for instance a kernel
    /// that patches its text, with an address that the breakpoint was asked for at. Whether the
    /// place is still that address's is for the caller to find out: a page that has become
    /// something else must not be written to. [`Self::replant`] plants again.
    pub fn overwritten(&self, memory: &dyn Memory) -> Vec<(GuestPhys, GuestVirt)> {
        let is_overwritten = |place: &GuestPhys| !self.stands(memory, *place);
        let address = |place: GuestPhys| {
            self.breakpoints.values().find(|breakpoint| breakpoint.place == Place::Planted(place))
        };
        self.planted
            .keys()
            .filter(|place| is_overwritten(place))
            .filter_map(|place| Some((*place, address(*place)?.address)))
            .collect()
    }

    /// Puts originals over planted instructions in `bytes`, which were read at `address`.
    pub fn unmask(&self, address: GuestPhys, bytes: &mut [u8]) {
        let instruction = planted_instruction(self.isa);
        self.overlaps(address, bytes.len(), |_, planted, index, at| {
            // Where the guest has patched its text, memory is right as it is.
            if !planted.is_out && bytes[at] == instruction[index] {
                bytes[at] = planted.original[index];
            }
        });
    }

    /// Takes bytes that are about to be written at `address`: where an instruction is planted,
    /// they become the original and the planted one stays in `bytes`. One that is out stays out.
    pub fn write_over(&mut self, address: GuestPhys, bytes: &mut [u8]) {
        let instruction = planted_instruction(self.isa);
        let mut changes = Vec::new();
        self.overlaps(address, bytes.len(), |place, planted, index, at| {
            if !planted.is_out {
                changes.push((place, index, at));
            }
        });
        for (place, index, at) in changes {
            if let Some(planted) = self.planted.get_mut(&place) {
                planted.original[index] = bytes[at];
                bytes[at] = instruction[index];
            }
        }
    }

    /// The places of planted instructions of which a byte is within a range.
    fn places(&self, address: GuestPhys, length: usize) -> Vec<GuestPhys> {
        let mut places = Vec::new();
        self.overlaps(address, length, |place, _, _, _| {
            if places.last() != Some(&place) {
                places.push(place);
            }
        });
        places
    }

    /// Calls `visit` for each byte of a planted instruction within a range: its place, its
    /// entry, its index in the instruction and in the range.
    fn overlaps(
        &self,
        address: GuestPhys,
        length: usize,
        mut visit: impl FnMut(GuestPhys, &Planted, usize, usize),
    ) {
        let size = planted_instruction(self.isa).len() as u64;
        let first = GuestPhys(address.0.saturating_sub(size - 1));
        let Some(last) = address.0.checked_add(length as u64) else { return };
        for (place, planted) in self.planted.range(first..GuestPhys(last)) {
            for index in 0..planted.original.len() {
                let at = (place.0 + index as u64).checked_sub(address.0);
                if let Some(at) = at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < length) {
                    visit(*place, planted, index, at);
                }
            }
        }
    }

    /// Breakpoints that need a debug register, with what they want.
    pub fn wants(&self) -> Vec<(Id, Want)> {
        let needs = self.breakpoints.iter().filter(|(_, it)| !matches!(it.place, Place::Planted(_)));
        let mut wants: Vec<(Id, Want)> = needs
            .map(|(id, it)| match it.kind.access() {
                None => (*id, Want::Execute(it.address.0)),
                Some(access) => (*id, Want::Watch(access, it.address.0, it.length)),
            })
            .collect();
        let mut vectors: Vec<u64> = Vec::new();
        for (id, it) in &self.breakpoints {
            if let Place::NotExecutable { vector: Some(vector) } = it.place
                && !vectors.contains(&vector)
            {
                vectors.push(vector);
                wants.push((*id, Want::Execute(vector)));
            }
        }
        wants
    }

    /// Breakpoints that need none, but are better off with one beside the instruction that is planted
    /// for them, with what they want: where the code is still to come, whoever copies it writes over
    /// the instruction, and nobody is told.
    pub fn guarded(&self) -> Vec<(Id, Want)> {
        let is_awaited = |it: &Breakpoint| match it.place {
            Place::Planted(place) => self.planted.get(&place).is_some_and(|planted| planted.awaits_code),
            _ => false,
        };
        let guarded = self.breakpoints.iter().filter(|(_, it)| is_awaited(it));
        guarded.map(|(id, it)| (*id, Want::Execute(it.address.0))).collect()
    }

    /// A breakpoint by its id.
    pub fn get(&self, id: Id) -> Option<&Breakpoint> {
        self.breakpoints.get(&id)
    }

    /// Counts a hit.
    pub fn count(&mut self, id: Id) {
        if let Some(breakpoint) = self.breakpoints.get_mut(&id) {
            breakpoint.hits += 1;
        }
    }

    /// The breakpoints whose instruction is planted at `place`.
    pub fn planted_at(&self, place: GuestPhys) -> Vec<Id> {
        let there = self.breakpoints.iter().filter(|(_, it)| it.place == Place::Planted(place));
        there.map(|(id, _)| *id).collect()
    }

    /// The breakpoints at `address` that are noticed when its fetch is refused, by way of `vector`.
    pub fn refused_at(&self, vector: u64, address: u64) -> Vec<Id> {
        let place = Place::NotExecutable { vector: Some(vector) };
        let there = self.breakpoints.iter();
        let there = there.filter(|(_, it)| it.place == place && it.address == GuestVirt(address));
        there.map(|(id, _)| *id).collect()
    }

    /// Whether a breakpoint is noticed by way of this vector.
    pub fn is_vector(&self, vector: u64) -> bool {
        self.breakpoints.values().any(|it| it.place == Place::NotExecutable { vector: Some(vector) })
    }

    /// Breakpoints on pages that could not be executed, with their address.
    pub fn not_executable(&self) -> Vec<(Id, GuestVirt)> {
        let there = self.breakpoints.iter();
        let there = there.filter(|(_, it)| matches!(it.place, Place::NotExecutable { .. }));
        there.map(|(id, it)| (*id, it.address)).collect()
    }

    /// Software breakpoints that wait on a debug register because their address did not
    /// translate, or not to RAM, with their address. A kernel's own address is the latter while
    /// an aarch64 processor's MMU is off.
    pub fn waiting(&self) -> Vec<(Id, GuestVirt)> {
        self.fallen_back(&[NOT_MAPPED, NOT_RAM])
    }

    /// Software breakpoints that could be planted but are better off on a debug register while
    /// there is one.
    pub fn patched(&self) -> Vec<(Id, GuestVirt)> {
        self.fallen_back(&[PATCHED])
    }

    fn fallen_back(&self, reasons: &[&'static str]) -> Vec<(Id, GuestVirt)> {
        let has_reason = |breakpoint: &Breakpoint| match breakpoint.place {
            Place::Fallback(reason) => reasons.contains(&reason),
            Place::Planted(_) | Place::Register | Place::NotExecutable { .. } => false,
        };
        let fallen = self.breakpoints.iter().filter(|(_, breakpoint)| has_reason(breakpoint));
        fallen.map(|(id, breakpoint)| (*id, breakpoint.address)).collect()
    }

    /// Plants a breakpoint that was waiting, if its page is RAM now; whether it is.
    pub fn settle(&mut self, memory: &dyn Memory, id: Id, place: GuestPhys) -> bool {
        if self.breakpoints.contains_key(&id)
            && self.plant(memory, place).is_ok()
            && let Some(breakpoint) = self.breakpoints.get_mut(&id)
        {
            breakpoint.place = Place::Planted(place);
            return true;
        }
        false
    }
}

/// A breakpoint that has replaced another one, or nothing, for [`Table::settle_change`].
#[derive(Debug)]
#[must_use]
pub struct Change {
    id: Id,
    before: Option<Breakpoint>,
}

/// Why a breakpoint that could be planted is on a debug register while there is one.
pub const PATCHED: &str = "a kernel patches such instructions and looks whether they are as it left them";

/// Whether the instruction at the start of `code` is one that kernels keep to be patched: the
/// NOPs of function tracing and of jump labels, and a call to a tracer in the place of one
/// (Linux, `arch/*/kernel/ftrace.c` and `jump_label.c`).
pub fn is_patched_by_kernels(isa: Isa, code: &[u8]) -> bool {
    match isa {
        Isa::X86_64 => {
            matches!(code, [0x0f, 0x1f, 0x44, 0x00, 0x00, ..] | [0x66, 0x90, ..])
        }
        Isa::Aarch64 => code.starts_with(&[0x1f, 0x20, 0x03, 0xd5]),
    }
}

/// Why a breakpoint waits on a debug register.
pub const NOT_MAPPED: &str = "its page is not mapped yet";
/// The same.
pub const NOT_RAM: &str = "its page is not RAM";
/// Why a breakpoint is on a debug register for good.
pub const NOT_TRAPPED: &str = "this host does not trap planted instructions";

#[cfg(test)]
mod tests;
