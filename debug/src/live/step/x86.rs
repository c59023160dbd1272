//! Steps of an x86 vCPU: by the trap flag, which the hypervisor sets and hides, beside the guest's own.

use super::{At, PlannedStep, Stepper, is_step, stepped};
use crate::arming::{Arming, DebugRegisters};
use crate::disassemble::OperatingMode;
use crate::machine::{Code, MachineError, Memory};
use crate::memory::{self, Translation};
use crate::trap::{Injection, Trap};
use crate::vcpu::Vcpu;
use arch::register::x86_64::{EFLAGS, TABLE};
use arch::register::{known_row, row};
use arch::x86::debug_registers::{Condition, DR6_BS, Slot};
use arch::x86::simulate;
use arch::x86::step::gate::Handler;
use arch::x86::step::opcode::{Bits, Opcode};
use arch::x86::step::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, DescriptorTable, Look, Plan, Processor, RFLAGS_TF, loads_flags, plan,
};
use arch::{GuestVirt, Isa};

/// The guest's own trap flag around a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnTrapFlag {
    before: bool,
    after: bool,
    /// The instruction ends in the #DB of a step of the guest's own.
    traps: bool,
}

/// The #DB of a step of the guest's own.
const OWN_STEP: Injection = Injection::Debug { dr6: DR6_BS, is_fault: false, skip: 0 };

/// Rows of what a plan takes of a processor.
const CR0: usize = known_row(TABLE, "cr0");
const EFER: usize = known_row(TABLE, "efer");
const CS: usize = known_row(TABLE, "cs");
const IDT_BASE: usize = known_row(TABLE, "idt_base");
const IDT_LIMIT: usize = known_row(TABLE, "idt_limit");
const GDT_BASE: usize = known_row(TABLE, "gdt_base");
const GDT_LIMIT: usize = known_row(TABLE, "gdt_limit");

/// A guest, as plans look at it.
struct Guest<'a> {
    vcpu: &'a dyn Vcpu,
    memory: &'a dyn Memory,
    space: &'a Translation,
}

impl Look for Guest<'_> {
    fn memory(&self, linear: u64, bytes: &mut [u8]) -> bool {
        memory::read(self.memory, self.space, None, GuestVirt(linear), bytes) == bytes.len()
    }

    fn register(&self, name: &'static str) -> Option<u64> {
        self.vcpu.register(row(Isa::X86_64, name)?)
    }
}

impl Guest<'_> {
    fn processor(&self, code: &Code, flags: u64) -> Processor {
        // One by one: a file of them all is long, and most of a step's time where memory is slow to be had.
        let get = |row| self.vcpu.register(row).unwrap_or(0);
        let bits = match code.mode {
            OperatingMode::Bits64 => Bits::Code64,
            OperatingMode::Protected32 => Bits::Code32,
            OperatingMode::Real16 => Bits::Code16,
        };
        let table = |base, limit| DescriptorTable { base: get(base), limit: get(limit) };
        let (idt, gdt) = (table(IDT_BASE, IDT_LIMIT), table(GDT_BASE, GDT_LIMIT));
        Processor::new(bits, [get(CR0), get(EFER), flags, get(CS)], idt, gdt)
    }

    /// The linear address of what is at an offset from the stack pointer.
    fn on_stack(&self, offset: u64) -> Option<GuestVirt> {
        let mode = self.vcpu.code().ok()?.mode;
        let pointer = self.register("rsp")?.wrapping_add(offset);
        Some(GuestVirt(match mode {
            OperatingMode::Bits64 => pointer,
            _ => {
                /// The stack segment's pointer has 32 bits (`D`/`B` of its access rights).
                const BIG: u64 = 1 << 14;
                let mask = if self.register("ss_ar")? & BIG != 0 { 0xffff_ffff } else { 0xffff };
                self.register("ss_base")?.wrapping_add(pointer & mask) & 0xffff_ffff
            }
        }))
    }

    /// The trap flag that an instruction is about to load, if it loads the flags.
    fn loaded_trap_flag(&self, code: &[u8], bits: Bits) -> Option<bool> {
        let place = self.on_stack(loads_flags(code, bits)?)?;
        let mut flags = [0; 2];
        self.memory(place.0, &mut flags).then(|| u64::from(u16::from_le_bytes(flags)) & RFLAGS_TF != 0)
    }

    /// Puts the guest's own trap flag into flags that were stored at `offset` from its stack pointer.
    fn store_trap_flag(&self, offset: u64, own: bool) {
        // TF is bit 8.
        self.store_flag(offset + 1, own);
    }

    /// Has debug registers see the instruction again that has faulted: for a fault the processor saves RF, by which the
    /// return to it goes by them (Intel SDM vol. 3, "Instruction-Breakpoint Exception Condition").
    fn clear_resume_flag(&self, handler: &Handler) {
        // RF is bit 16, which 16-bit flags have not.
        if handler.flags_size > 2 {
            self.store_flag(handler.flags + 2, false);
        }
    }

    /// Sets or clears the lowest bit of a byte at an offset from the stack pointer.
    fn store_flag(&self, offset: u64, is_set: bool) {
        let Some(place) = self.on_stack(offset) else { return };
        let mut stored = [0];
        if self.memory(place.0, &mut stored) {
            let stored = stored[0] & !1 | u8::from(is_set);
            memory::write(self.memory, self.space, None, place, &[stored]);
        }
    }
}

/// Whether the instruction can be done without the processor.
fn simulates(code: &[u8], bits: Bits) -> bool {
    let bits = match bits {
        Bits::Code64 => simulate::Bits::Code64,
        Bits::Code32 => simulate::Bits::Code32,
        Bits::Code16 => return false,
    };
    simulate::simulate(code, bits, |_| Some(0)).is_some()
}

impl Stepper<'_> {
    /// Plans a step; what the vCPU runs with for it, or `None` when the instruction has been skipped.
    pub(super) fn plan_x86(
        &mut self,
        at: &At<'_>,
        step: &mut PlannedStep,
    ) -> Result<Option<Arming>, MachineError> {
        let guest = Guest { vcpu: &*self.vcpu, memory: self.memory, space: &at.space };
        let own = self.own_trap_flag(at.flags);
        let processor = guest.processor(&at.code, at.flags & !RFLAGS_TF | if own { RFLAGS_TF } else { 0 });
        let after = guest.loaded_trap_flag(at.bytes, processor.bits).unwrap_or(own);
        step.own = OwnTrapFlag { before: own, after, traps: own };
        let opcode = Opcode::read(at.bytes, processor.bits);
        step.repeats = opcode.is_some_and(|opcode| opcode.is_string_io() && opcode.repeats);
        step.reads_time = opcode.is_none_or(|opcode| opcode.reads_time());
        // What can be simulated touches no memory and cannot fault.
        let planned = match simulates(at.bytes, processor.bits) {
            true => Plan::Trap { stores_flags: false, faults: Vec::new() },
            false => plan(at.bytes, step.from, &processor, &guest),
        };
        // Without a debug register that works there is nothing to run to.
        let can_run_to = self.host.breakpoints > 0;
        let mut arming = self.armed.arming.clone();
        match planned {
            Plan::Skip(length) => {
                self.skip_to(at.pc.wrapping_add(length))?;
                if own {
                    self.inject(&OWN_STEP)?;
                }
                return Ok(None);
            }
            Plan::RunTo { targets, faults, traps } if can_run_to && !targets.is_empty() => {
                arming = self.run_to(&targets);
                (step.runs_to, step.faults, step.own.traps) = (targets, faults, own && traps);
            }
            Plan::RunTo { faults, .. } => step.faults = faults,
            Plan::Trap { stores_flags, faults } => {
                (step.stores_flags, step.faults) = (stores_flags, faults);
                if arming.block_interrupts && !self.host.blocks_interrupts {
                    self.vcpu.shadow_interrupts()?;
                }
            }
        }
        if !can_run_to {
            step.faults.clear();
        }
        // A handler's first instruction would trap before it is executed, again and again.
        step.faults.retain(|fault| fault.address != step.from);
        Ok(Some(arming))
    }

    /// Tells the hypervisor. It steps with the trap flag and hides it, the guest's own with it, and clears it
    /// when it steps no more: until then the guest's own is remembered.
    pub(super) fn tell_x86(&mut self, arming: &Arming) -> Result<(), MachineError> {
        let (_, flags) = self.vcpu.pc_and_flags()?;
        let own = self.own_trap_flag(flags);
        self.vcpu.set_debug(arming)?;
        let was_kept = self.armed.trap_flag.take().is_some();
        if arming.step {
            self.armed.trap_flag = Some(own);
        } else if was_kept && own {
            self.vcpu.set_rows(&[(EFLAGS, flags | RFLAGS_TF)])?;
        }
        Ok(())
    }

    /// Whether the guest has a debug register of its own on an instruction.
    fn has_own_at(&self, linear: u64) -> Result<bool, MachineError> {
        let DebugRegisters::X86(slots) = self.vcpu.own_debug_registers(self.host)? else { return Ok(false) };
        let is_on_it = |slot: &Slot| slot.condition == Condition::Execute && slot.address == linear;
        Ok(slots.iter().flatten().any(is_on_it))
    }

    /// Whether the guest has set its trap flag, by what the hypervisor shows of the flags.
    fn own_trap_flag(&self, flags: u64) -> bool {
        self.armed.trap_flag.unwrap_or(flags & RFLAGS_TF != 0)
    }

    /// Where the handler of an exception is that is about to be given to an x86 guest.
    pub(super) fn handler(&self, injection: &Injection) -> Option<u64> {
        let vector = match injection {
            Injection::Breakpoint => BREAKPOINT_VECTOR,
            Injection::Debug { .. } => DEBUG_VECTOR,
            Injection::Aarch64 { .. } => return None,
        };
        let space = Translation::Virtual(self.vcpu.regime().ok()?);
        let guest = Guest { vcpu: &*self.vcpu, memory: self.memory, space: &space };
        let processor = guest.processor(&self.vcpu.code().ok()?, self.vcpu.pc_and_flags().ok()?.1);
        processor.handler(&guest, vector).map(|handler| handler.address)
    }

    pub(super) fn finish_x86(&mut self, step: &PlannedStep, trap: Trap) -> Result<Trap, MachineError> {
        let pc = self.linear_pc()?;
        let fault = step.faults.iter().find(|fault| fault.address == pc);
        // One of its own on the instruction it has dealt with, and goes by.
        let is_the_guests = fault.is_some() && self.has_own_at(step.from)?;
        let stored_flags = if step.runs_to.contains(&pc) {
            None
        } else if let Some(fault) = fault {
            self.armed.faulted = Some(step.from);
            Some(fault.flags)
        } else if is_step(&trap) {
            step.stores_flags.then_some(0)
        } else {
            return Ok(trap);
        };
        if let Some(offset) = stored_flags {
            let space = Translation::Virtual(self.vcpu.regime()?);
            let guest = Guest { vcpu: &*self.vcpu, memory: self.memory, space: &space };
            guest.store_trap_flag(offset, step.own.before);
            if let Some(handler) = fault.filter(|_| !is_the_guests) {
                guest.clear_resume_flag(handler);
            }
        }
        if fault.is_some() {
            self.armed.trap_flag = Some(false);
            return Ok(stepped(Isa::X86_64));
        }
        if let Some(kept) = &mut self.armed.trap_flag {
            *kept = step.own.after;
        }
        if step.own.traps {
            self.inject(&OWN_STEP)?;
        } else if step.own.after && self.armed.trap_flag.is_some() {
            // Whoever looks at the flags now is to see it.
            self.tell(&Arming { step: false, ..self.armed.arming.clone() })?;
            self.armed.is_new = true;
        }
        Ok(if stored_flags.is_some() || !is_step(&trap) { stepped(Isa::X86_64) } else { trap })
    }
}
