//! Past an instruction that a breakpoint or a watchpoint holds a vCPU at.

use super::retries::Dealt;
use super::{Cpu, Engine, Stepped, Verdict, locate, own_registers, pc};
use crate::arming::{Arming, DebugRegisters};
use crate::disassemble::{LONGEST_INSTRUCTION, OperatingMode};
use crate::machine::{Action, Code, MachineError};
use crate::trap::{Owner, Situation, Trap, decide};
use arch::x86::simulate;
use arch::x86::step::opcode::{Bits, Opcode};
use arch::{GuestPhys, Isa};

/// The smallest page of either architecture, bytes.
const PAGE: u64 = 4096;

impl Engine {
    /// Gets a vCPU past the instruction at its program counter, which a breakpoint at `place` or
    /// a watchpoint holds it at, and goes on with its action. The vCPU is armed for it. `is_hit`: a breakpoint's hit
    /// has been dealt with here, which is to be told once, however often the instruction is begun.
    pub(super) fn pass(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        is_hit: bool,
    ) -> Result<Verdict, MachineError> {
        if self.get_past(cpu, place, is_hit)? == Stepped::Other {
            return Ok(Verdict::GoOn);
        }
        let runs_in = {
            let requests = self.requests();
            let progress = requests.progress(cpu.vcpu().id());
            progress.run.as_ref().map(|_| progress.action)
        };
        match runs_in {
            None => self.after_step(cpu),
            Some(Action::StepRange(start, end)) if (start..end).contains(&pc(cpu)?) => Ok(Verdict::GoOn),
            Some(_) => self.look_at_range(cpu),
        }
    }

    /// Executes the instruction under a breakpoint, one way or the other.
    pub(super) fn get_past(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        is_hit: bool,
    ) -> Result<Stepped, MachineError> {
        // A breakpoint register of the guest's own may be on the same instruction.
        let may_simulate = cpu.own_among_others().is_none_or(|own| !own.iter().any(|own| own.is_execute));
        match place {
            Some(place) if may_simulate && self.simulate(cpu, place)? => Ok(Stepped::Done),
            place => self.step_over(cpu, place, is_hit),
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
        let Some(changes) = changes else { return Ok(false) };
        cpu.vcpu_mut().set_rows(&changes)?;
        Ok(true)
    }

    /// Executes the instruction under a breakpoint while no other vCPU runs.
    fn step_over(
        &self,
        cpu: &mut dyn Cpu,
        place: Option<GuestPhys>,
        is_hit: bool,
    ) -> Result<Stepped, MachineError> {
        let before = pc(cpu)?;
        let dealt = place.filter(|_| is_hit).and_then(|place| Dealt::at(cpu, place));
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
            // The instruction under the breakpoint may be the guest's own breakpoint.
            Stepped::Trapped(trap) => {
                if let Owner::Guest(injection) = decide_alone(cpu, trap, &alone)? {
                    cpu.inject(&injection)?;
                }
            }
            // The hit has been dealt with, and is none when the instruction is executed again: after its
            // fault, because something else came before it was, or as it repeats itself.
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

    /// Whether the instruction at a place is a string instruction of x86 that repeats itself, of which a step is one
    /// time.
    fn repeats(&self, cpu: &dyn Cpu, place: Option<GuestPhys>) -> bool {
        let Some(place) = place.filter(|_| self.isa == Isa::X86_64) else { return false };
        let (bytes, count) = self.code(cpu, place);
        let bits = match cpu.vcpu().code().map(|code| code.mode) {
            Ok(OperatingMode::Bits64) => Bits::Code64,
            Ok(OperatingMode::Protected32) => Bits::Code32,
            _ => Bits::Code16,
        };
        Opcode::read(&bytes[..count], bits).is_some_and(|opcode| opcode.is_string() && opcode.repeats)
    }
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
