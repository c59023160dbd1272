//! Steps that are more than one: over functions, and out of one. A plan, without a guest: what is seen at each place
//! where the vCPU has come to stand comes in, what it does next comes out.

use super::mode::Mode;
use crate::breakpoint::Hit;
use crate::disassemble::{LONGEST_INSTRUCTION, OperatingMode};
use crate::flow::{Flow, Instruction, instruction, is_speculation_trap};
use arch::{GuestPhys, GuestVirt, Isa};
use std::fmt;
use std::ops::Range;

/// Bytes of a stretch of code that is looked at: there is another one behind it.
const LONGEST: u64 = 512;
/// Bytes that a function of 32-bit code may take from the stack of its caller when it returns (`RET n`). In 64-bit code
/// callers take away what they have put there.
const ARGUMENTS: u64 = 128;

/// Reads code, without what is planted, at a linear address; how many bytes are good.
pub(super) type Reader<'a> = &'a dyn Fn(u64, &mut [u8]) -> usize;

/// Where a vCPU stands.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub isa: Isa,
    pub mode: OperatingMode,
    /// The linear address of its program counter.
    pub pc: u64,
    /// Its stack pointer.
    pub stack: u64,
    /// aarch64: where its function returns to (`X30`), as long as that has called none.
    pub link: u64,
    pub read: Reader<'a>,
}

impl fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}, stack {:#x}", self.isa, self.pc, self.stack)
    }
}

/// A return that is run to: an address, and the stack that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Return {
    pub address: u64,
    /// The lowest stack pointer that it may be made with...
    pub stack: u64,
    /// ...and how far above that it may be, bytes.
    pub slack: u64,
}

/// What a vCPU does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the step is done.
    Done,
    /// One instruction.
    Step,
    /// Until it is out of a range.
    Range(Range<u64>),
    /// It runs to a return.
    RunTo(Return),
}

/// What is to be come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// The next instruction.
    Next,
    /// Out of a range.
    OutOf(Range<u64>),
    /// Out of the function, and of a range of its caller's.
    Caller(Option<Range<u64>>),
}

/// What was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// Nothing: it begins.
    Begin,
    /// The last part.
    Final,
    /// A part of the way.
    Part,
    /// A return, or what looks like one.
    Return,
}

/// A step that is under way.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    goal: Goal,
    last: Last,
    /// The stack pointer at a call that does not come back: a return to below it is a jump.
    floor: Option<u64>,
}

impl Walk {
    /// For a mode that goes over functions, or out of one.
    pub fn new(mode: &Mode) -> Option<Walk> {
        let goal = match mode {
            Mode::StepOver => Goal::Next,
            Mode::StepOverRange(range) => Goal::OutOf(range.clone()),
            Mode::StepOut => Goal::Caller(None),
            Mode::StepOutRange(range) => Goal::Caller(Some(range.clone())),
            Mode::Run | Mode::UntilActive | Mode::StepInto | Mode::StepIntoRange(_) => return None,
        };
        Some(Walk { goal, last: Last::Begin, floor: None })
    }

    /// What is done next, where the vCPU stands.
    pub fn next(&mut self, seen: &Seen<'_>) -> Next {
        if self.last == Last::Final {
            return self.arrive(seen);
        }
        match self.goal.clone() {
            Goal::Next => {
                self.last = Last::Final;
                seen.over().map_or(Next::Step, Next::RunTo)
            }
            Goal::OutOf(range) => self.out_of(&range, seen),
            Goal::Caller(_) => self.leave(seen),
        }
    }

    /// The last part of the way has been gone.
    fn arrive(&mut self, seen: &Seen<'_>) -> Next {
        if let Goal::Caller(Some(range)) = &self.goal
            && range.contains(&seen.pc)
        {
            let range = range.clone();
            (self.goal, self.last) = (Goal::OutOf(range.clone()), Last::Begin);
            return self.out_of(&range, seen);
        }
        Next::Done
    }

    fn out_of(&mut self, range: &Range<u64>, seen: &Seen<'_>) -> Next {
        if !range.contains(&seen.pc) {
            if self.last == Last::Begin {
                self.last = Last::Final;
                return seen.over().map_or(Next::Step, Next::RunTo);
            }
            return Next::Done;
        }
        self.last = Last::Part;
        match seen.over() {
            Some(to) => Next::RunTo(to),
            None => Next::Range(seen.stretch_of(range)),
        }
    }

    fn leave(&mut self, seen: &Seen<'_>) -> Next {
        if self.last == Last::Begin
            && let Some(to) = seen.caller_at_entry()
        {
            self.last = Last::Final;
            return Next::RunTo(to);
        }
        if self.last == Last::Return {
            // Out of the function, the stack is above where it was within.
            let is_out = self.floor.take().is_none_or(|floor| seen.stack > floor);
            if is_out {
                return self.arrive(seen);
            }
        }
        self.last = Last::Part;
        let Some(found) = seen.instruction(seen.pc) else { return Next::Step };
        let behind = seen.pc.wrapping_add(found.length);
        match found.flow {
            Flow::Call(_) if seen.is_trap(behind) => {
                self.floor = Some(seen.stack);
                Next::Range(seen.pc..behind)
            }
            Flow::Call(_) | Flow::Service => Next::RunTo(seen.back_at(behind)),
            Flow::Return | Flow::ExceptionReturn => {
                self.last = Last::Return;
                Next::Range(seen.pc..behind)
            }
            Flow::Elsewhere => Next::Range(seen.pc..behind),
            Flow::Next | Flow::Jump(_) | Flow::Branch(_) => Next::Range(seen.stretch_from(seen.pc, LONGEST)),
        }
    }
}

impl Seen<'_> {
    /// The instruction at an address.
    fn instruction(&self, at: u64) -> Option<Instruction> {
        let mut bytes = [0; LONGEST_INSTRUCTION];
        let count = (self.read)(at, &mut bytes);
        instruction(self.isa, self.mode, &bytes[..count], at)
    }

    /// Whether what is at an address is never come to.
    fn is_trap(&self, at: u64) -> bool {
        let mut bytes = [0; 2];
        let count = (self.read)(at, &mut bytes);
        is_speculation_trap(self.isa, &bytes[..count])
    }

    /// The return of a call, to the instruction behind it.
    fn back_at(&self, address: u64) -> Return {
        let slack = if self.mode == OperatingMode::Bits64 { 0 } else { ARGUMENTS };
        Return { address, stack: self.stack, slack }
    }

    /// Where the instruction comes back to, if it calls something that does.
    fn over(&self) -> Option<Return> {
        let found = self.instruction(self.pc)?;
        let behind = self.pc.wrapping_add(found.length);
        match found.flow {
            Flow::Call(_) if self.is_trap(behind) => None,
            Flow::Call(_) | Flow::Service => Some(self.back_at(behind)),
            _ => None,
        }
    }

    /// The stretch of instructions from `start` on that are gone through one after the other, or jump: up to what
    /// calls, returns or leads somewhere else.
    fn stretch_from(&self, start: u64, most: u64) -> Range<u64> {
        let mut end = start;
        while end.wrapping_sub(start) < most {
            let Some(Instruction { length, flow: Flow::Next | Flow::Jump(_) | Flow::Branch(_) }) =
                self.instruction(end)
            else {
                break;
            };
            end = end.wrapping_add(length);
        }
        start..end
    }

    /// The stretch of a range that it stands in: between two calls, as the range's instructions are from its begin on.
    fn stretch_of(&self, range: &Range<u64>) -> Range<u64> {
        let (mut start, mut at) = (range.start, range.start);
        let mut is_met = false;
        while at < range.end && at.wrapping_sub(range.start) < LONGEST {
            is_met |= at == self.pc;
            let Some(Instruction { length, flow }) = self.instruction(at) else { break };
            let next = at.wrapping_add(length);
            if matches!(flow, Flow::Call(_) | Flow::Service) {
                // One that is never come back to is a step of its own.
                if is_met {
                    let end = if at == self.pc { next } else { at };
                    return start..end;
                }
                start = next;
            }
            at = next;
        }
        if is_met && at >= range.end {
            return start..range.end;
        }
        // It stands between two instructions, or behind what is not understood.
        let one = self.instruction(self.pc).map_or(1, |found| found.length);
        self.pc..self.pc.wrapping_add(one)
    }

    /// Where the function returns to, if the vCPU stands at its first instruction, to which a direct call has led.
    fn caller_at_entry(&self) -> Option<Return> {
        let (address, stack, length) = match (self.isa, self.mode) {
            (Isa::X86_64, OperatingMode::Bits64) => {
                let mut bytes = [0; 8];
                let is_read = (self.read)(self.stack, &mut bytes) == bytes.len();
                (is_read.then(|| u64::from_le_bytes(bytes))?, self.stack.wrapping_add(8), 5)
            }
            (Isa::X86_64, _) => return None,
            (Isa::Aarch64, _) => (self.link, self.stack, 4),
        };
        let call = self.instruction(address.checked_sub(length)?)?;
        let is_entry =
            call == Instruction { length, flow: Flow::Call(Some(self.pc)) } && !self.is_trap(address);
        is_entry.then_some(Return { address, stack, slack: 0 })
    }
}

/// Whose return it is that is run to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Returning {
    pub to: Return,
    /// The vCPU that the step is of.
    pub vcpu: u32,
    /// Only this vCPU's return counts: another one has a stack of the same address.
    pub is_this_alone: bool,
    /// The translation table that counts, where each process has one of its own.
    pub table: Option<GuestPhys>,
}

impl Returning {
    /// Whether a hit at the return's address is that return.
    pub fn is_it(&self, hit: &Hit<'_>) -> bool {
        let stack = hit.register("rsp").or_else(|| hit.register("sp"));
        let is_same_stack =
            stack.and_then(|stack| stack.checked_sub(self.to.stack)).is_some_and(|by| by <= self.to.slack);
        let is_same_table = || match self.table {
            None => true,
            Some(table) => {
                hit.regime().and_then(|regime| regime.table_of_process(GuestVirt(self.to.address)))
                    == Some(table)
            }
        };
        is_same_stack && (!self.is_this_alone || hit.vcpu == self.vcpu) && is_same_table()
    }
}

#[cfg(test)]
mod tests;
