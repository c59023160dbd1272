//! Past an instruction that a breakpoint or a watchpoint holds a vCPU at.

use super::ranges::Whereabouts;
use super::retries::{Dealt, DealtWith};
use super::{Cpu, Engine, Stepped, Verdict, locate, own_registers, pc};
use crate::arming::{Arming, DebugRegisters};
use crate::disassemble::{LONGEST_INSTRUCTION, OperatingMode};
use crate::machine::{Action, Code, MachineError};
use crate::memory::Translation;
use crate::trap::{Owner, Situation, Trap, decide};
use arch::x86::simulate;
use arch::x86::step::opcode::{Bits, Opcode};
use arch::{GuestPhys, GuestVirt, Isa};

/// The smallest page of either architecture, bytes.
const PAGE: u64 = 4096;

impl Engine {
    /// Gets a vCPU past the instruction at its program counter, which a breakpoint at `place` or
    /// a watchpoint holds it at, and goes on with its action. The vCPU is armed for it.
    pub(super) fn pass(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        dealt_with: DealtWith,
    ) -> Result<Verdict, MachineError> {
        let whereabouts = self.whereabouts(cpu)?;
        if whereabouts == Whereabouts::Left {
            // What is here is none of the range's.
            return self.look_at_range(cpu);
        }
        if self.get_past(cpu, place, dealt_with)? == Stepped::Other {
            return Ok(Verdict::GoOn);
        }
        let is_within = {
            let requests = self.requests();
            matches!(requests.progress(cpu.vcpu().id()).action,
                Action::StepRange(start, end) if (start..end).contains(&pc(cpu)?))
        };
        match whereabouts {
            Whereabouts::NoRun => self.after_step(cpu),
            Whereabouts::Within if !is_within => self.look_at_range(cpu),
            // Whoever else has come by goes on, and the range with it.
            Whereabouts::Within | Whereabouts::Elsewhere | Whereabouts::Left => Ok(Verdict::GoOn),
        }
    }

    /// Executes the instruction under a breakpoint, one way or the other.
    pub(super) fn get_past(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        dealt_with: DealtWith,
    ) -> Result<Stepped, MachineError> {
        // A breakpoint register of the guest's own may be on the same instruction.
        let may_simulate = cpu.own_among_others().is_none_or(|own| !own.iter().any(|own| own.is_execute));
        match place {
            // A fetch that is refused is the guest's to see.
            Some(place) if may_simulate && is_executable(cpu)? && self.simulate(cpu, place)? => {
                Ok(Stepped::Done)
            }
            place => self.step_over(cpu, place, dealt_with),
        }
    }

    /// The instruction at a place, and what is behind it on its page, without what is planted.
    fn code(&self, cpu: &dyn Cpu, place: GuestPhys) -> ([u8; LONGEST_INSTRUCTION], usize) {
        let mut bytes = [0; LONGEST_INSTRUCTION];
        // Where the next page is, only a walk can tell.
        let left = usize::try_from(PAGE - place.0 % PAGE).unwrap_or(0).min(bytes.len());
        let count = cpu.memory().read(place, &mut bytes[..left]);
        self.requests().table.unmask(place, &mut bytes[..count]);
        (bytes, count)
    }

    /// Does without a step what the instruction under a breakpoint does, if it is simple.
    fn simulate(&self, cpu: &mut dyn Cpu, place: GuestPhys) -> Result<bool, MachineError> {
        let code = cpu.vcpu().code()?;
        let (bytes, count) = self.code(cpu, place);
        let bytes = &bytes[..count];
        let read = |row| cpu.vcpu().register(row);
        let changes = match (self.isa, code) {
            (Isa::X86_64, Code { mode: OperatingMode::Bits64, .. }) => {
                simulate::simulate(bytes, simulate::Bits::Code64, read)
            }
            (Isa::X86_64, Code { mode: OperatingMode::Protected32, base: 0 }) => {
                simulate::simulate(bytes, simulate::Bits::Code32, read)
            }
            (Isa::X86_64, _) => None,
            (Isa::Aarch64, _) => arch::bytes::u32_at(bytes, 0)
                .and_then(|instruction| arch::aarch64::simulate::simulate(instruction, read)),
        };
        let Some(mut changes) = changes else { return Ok(false) };
        self.clear_resume_flag_in(cpu, &mut changes);
        cpu.vcpu_mut().set_rows(&changes)?;
        Ok(true)
    }

    /// An instruction that is done has done with RF, which would be the next one's else (SDM vol. 3, 18.3.1.1).
    fn clear_resume_flag_in(&self, cpu: &dyn Cpu, changes: &mut Vec<(usize, u64)>) {
        const RF: u64 = 1 << 16;
        if self.isa != Isa::X86_64 {
            return;
        }
        let Some(row) = arch::register::row(self.isa, "eflags") else { return };
        match changes.iter_mut().find(|(changed, _)| *changed == row) {
            Some((_, flags)) => *flags &= !RF,
            None => {
                let flags = cpu.vcpu().register(row).filter(|flags| flags & RF != 0);
                changes.extend(flags.map(|flags| (row, flags & !RF)));
            }
        }
    }

    /// Executes the instruction under a breakpoint while no other vCPU runs.
    fn step_over(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        dealt_with: DealtWith,
    ) -> Result<Stepped, MachineError> {
        let before = pc(cpu)?;
        let dealt = Dealt::at(cpu, place, dealt_with);
        let arming = self.arming(&self.requests(), cpu.vcpu().id());
        let alone = Arming {
            step: true,
            block_interrupts: true,
            software: arming.software,
            registers: DebugRegisters::none(self.isa),
            guarded: None,
        };
        let result = {
            let exclusive = Exclusive::begin(self, cpu, place);
            exclusive.cpu.arm(&alone);
            let result = exclusive.cpu.step();
            exclusive.cpu.arm(&arming);
            result
        };
        let stepped = result?;
        match &stepped {
            // Another instruction that is planted, where more than one is executed (a `mov ss` holds the trap back, and
            // so does a fault of which nobody knew): it is met when the vCPU goes on.
            Stepped::Trapped(trap)
                if trap.is_of_instruction() && self.has_moved_to_planted(cpu, before)? => {}
            // The instruction under the breakpoint may be the guest's own breakpoint.
            Stepped::Trapped(trap) => {
                if let Owner::Guest(injection) = decide_alone(cpu, trap, &alone)? {
                    if injection.is_of_register() && pc(cpu)? == before {
                        self.expect(cpu, dealt);
                    }
                    cpu.inject(&injection)?;
                }
            }
            // The hit has been dealt with, and is none when the instruction is executed again: after its
            // fault, because something else came before it was, or as it repeats itself. One that is there to fault
            // is not executed again, but gone past.
            Stepped::Faulted if self.always_faults(cpu, place) => {}
            Stepped::Faulted => self.expect(cpu, dealt),
            Stepped::Other if pc(cpu)? == before => self.expect(cpu, dealt),
            Stepped::Done if dealt.is_some() && pc(cpu)? == before && self.repeats(cpu, place) => {
                self.expect(cpu, dealt);
            }
            Stepped::Done | Stepped::Other => {}
        }
        Ok(stepped)
    }

    /// The next hit of an instruction is of one whose hit has been dealt with.
    pub(super) fn expect(&self, cpu: &dyn Cpu, dealt: Option<Dealt>) {
        if let Some(dealt) = dealt {
            self.requests().retries.expect(cpu, dealt);
        }
    }

    /// Whether a vCPU has come from an instruction to another one that is planted.
    fn has_moved_to_planted(&self, cpu: &dyn Cpu, before: u64) -> Result<bool, MachineError> {
        let now = pc(cpu)?;
        let place = locate(cpu, now).filter(|_| now != before);
        Ok(place.is_some_and(|place| self.requests().table.is_met(cpu.memory(), place)))
    }

    /// Whether the instruction at a place is a string instruction of x86 that repeats itself, of which a step is one
    /// time.
    fn repeats(&self, cpu: &dyn Cpu, place: Option<GuestPhys>) -> bool {
        let opcode = place.filter(|_| self.isa == Isa::X86_64).and_then(|place| self.opcode(cpu, place));
        opcode.is_some_and(|opcode| opcode.is_string() && opcode.repeats)
    }

    /// Whether the instruction at a place does nothing but fault, as kernels warn by: `ud0`, `ud1`, `ud2` and `udf`.
    fn always_faults(&self, cpu: &dyn Cpu, place: Option<GuestPhys>) -> bool {
        let Some(place) = place else { return false };
        match self.isa {
            Isa::X86_64 => self
                .opcode(cpu, place)
                .is_some_and(|opcode| [0x0f0b, 0x0fb9, 0x0fff].contains(&opcode.number)),
            Isa::Aarch64 => {
                let (bytes, count) = self.code(cpu, place);
                arch::bytes::u32_at(&bytes[..count], 0).is_some_and(|instruction| instruction >> 16 == 0)
            }
        }
    }

    /// What x86 instruction is at a place.
    fn opcode(&self, cpu: &dyn Cpu, place: GuestPhys) -> Option<Opcode> {
        let (bytes, count) = self.code(cpu, place);
        let bits = match cpu.vcpu().code().map(|code| code.mode) {
            Ok(OperatingMode::Bits64) => Bits::Code64,
            Ok(OperatingMode::Protected32) => Bits::Code32,
            _ => Bits::Code16,
        };
        Opcode::read(&bytes[..count], bits)
    }
}

/// Whether the instruction at the program counter is on a page that may be executed.
fn is_executable(cpu: &dyn Cpu) -> Result<bool, MachineError> {
    let regime = cpu.vcpu().regime()?;
    Ok(Translation::Virtual(regime).is_executable(cpu.memory(), GuestVirt(pc(cpu)?)))
}

/// While it is there, no other vCPU runs, and the instruction under a breakpoint is in its place. A monitor's callback
/// that panics in the step takes its vCPU's thread with it; the other ones go on, and meet the breakpoint.
struct Exclusive<'a> {
    engine: &'a Engine,
    cpu: &'a mut dyn Cpu,
    lifted: Option<GuestPhys>,
}

impl<'a> Exclusive<'a> {
    fn begin(engine: &'a Engine, cpu: &'a mut dyn Cpu, place: Option<GuestPhys>) -> Exclusive<'a> {
        cpu.begin_exclusive();
        let lifted = place.filter(|place| engine.requests().table.lift(cpu.memory(), *place));
        Exclusive { engine, cpu, lifted }
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.lifted {
            self.engine.requests().table.replant(self.cpu.memory(), place);
        }
        self.cpu.end_exclusive();
    }
}

/// Whose a trap is that came during a step with nothing of the debugger's in the way.
fn decide_alone(cpu: &dyn Cpu, trap: &Trap, alone: &Arming) -> Result<Owner, MachineError> {
    let pc = pc(cpu)?;
    let opcode = locate(cpu, pc).and_then(|place| {
        let mut byte = [0];
        (cpu.memory().read(place, &mut byte) == 1).then_some(byte[0])
    });
    let registers = &alone.registers;
    Ok(decide(
        trap,
        &Situation {
            pc,
            is_planted: false,
            opcode,
            is_step: true,
            registers,
            served: &[],
            wants: &[],
            own: &own_registers(cpu, trap),
        },
    ))
}
