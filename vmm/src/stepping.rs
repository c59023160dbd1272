//! What has to be done around a single step of a vCPU, beyond what KVM does: interrupts kept
//! out, traces of the step taken out of the guest. The rules are in `arch::*::step`.

use crate::debugger::{LiveMemory, ThreadDebug};
use crate::kvm::{HOST_ISA, KvmError, Vcpu};
use arch::aarch64::step::{self as arm, Repair};
use arch::aarch64::syndrome::DebugException;
use arch::register::{Bank, RegisterFile};
use arch::x86::debug_registers::{Condition, DR6_BS, Slot};
use arch::x86::step::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, GATE_SIZE, Leads, RFLAGS_TF, gate_target, leads_to, pushes_flags,
};
use arch::{GuestVirt, Isa};
use debug::arming::{Arming, DebugRegisters};
use debug::memory::{self, Space};
use debug::target::HostDebug;
use debug::trap::{Injection, Trap};

/// Whether a trap is the end of a step.
pub fn is_step(trap: &Trap) -> bool {
    match trap {
        Trap::Debug { dr6 } => dr6 & DR6_BS != 0,
        Trap::Aarch64 { exception: DebugException::SoftwareStep { .. }, .. } => true,
        _ => false,
    }
}

/// The trap of a step over an instruction that was skipped.
pub fn skipped() -> Trap {
    Trap::Aarch64 { exception: DebugException::SoftwareStep { load_exclusive: false }, far: 0 }
}

/// A step that is under way.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Nothing to be done afterwards.
    Plain,
    /// x86: the instruction stores the flags.
    PushesFlags,
    /// x86: the instruction saves the flags; the vCPU runs to where it leads.
    RunsTo(u64),
    /// aarch64: interrupts are masked.
    Masked(arm::Before),
    /// aarch64: the instruction only waits; it has been stepped over.
    Skipped,
}

/// Prepares a step, if the vCPU is armed for one.
///
/// # Errors
/// [`KvmError`].
pub fn before(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    host: &HostDebug,
    thread: &ThreadDebug,
) -> Result<Step, KvmError> {
    let arming = &thread.arming;
    if !arming.step {
        return Ok(Step::Plain);
    }
    if let Some(target) = thread.runs_to {
        return Ok(Step::RunsTo(target));
    }
    let (pc, flags) = vcpu.pc_and_flags()?;
    let space = Space::Virtual(vcpu.regime()?);
    let mut code = [0; 4];
    let count = memory::read(memory, &space, None, GuestVirt(pc), &mut code);
    match HOST_ISA {
        Isa::X86_64 => {
            if let Some(leads) = leads_to(&code[..count])
                && let Some(target) = target(vcpu, memory, &space, leads)
            {
                vcpu.set_debug(&run_to(arming, target))?;
                return Ok(Step::RunsTo(target));
            }
            if arming.block_interrupts && !host.blocks_interrupts {
                vcpu.shadow_interrupts()?;
            }
            // Prefixes of 32-bit code are a part of those of 64-bit code; a REX prefix in
            // front of PUSHF in 32-bit code is an instruction of its own, and rare.
            Ok(if pushes_flags(&code[..count], true) { Step::PushesFlags } else { Step::Plain })
        }
        Isa::Aarch64 => {
            let instruction = u32::from_le_bytes(code);
            let before = arm::Before { instruction, pc, pstate: flags };
            if count == code.len() && arm::is_wait(instruction) {
                let mut file = RegisterFile::new(HOST_ISA);
                file.set_pc(pc.wrapping_add(4));
                vcpu.set_registers(&file)?;
                return Ok(Step::Skipped);
            }
            if !arming.block_interrupts {
                return Ok(Step::Plain);
            }
            let mut file = RegisterFile::new(HOST_ISA);
            file.set("cpsr", arm::before(&before));
            vcpu.set_registers(&file)?;
            Ok(Step::Masked(before))
        }
    }
}

/// What runs to `target` instead of stepping.
pub fn run_to(arming: &Arming, target: u64) -> Arming {
    let slot = Slot { address: target, condition: Condition::Execute, length: 1 };
    Arming { step: false, registers: DebugRegisters::X86([Some(slot), None, None, None]), ..arming.clone() }
}

/// Where an instruction or an exception leads, in 64-bit mode.
fn target(vcpu: &Vcpu, memory: &LiveMemory, space: &Space, leads: Leads) -> Option<u64> {
    const EFER_LMA: u64 = 1 << 10;
    let registers = vcpu.registers(&[Bank::System]);
    if registers.get("efer")? & EFER_LMA == 0 {
        return None;
    }
    match leads {
        Leads::Lstar => vcpu.registers(&[Bank::Msr]).get("lstar"),
        Leads::Vector(vector) => {
            let offset = u64::from(vector) * GATE_SIZE as u64;
            if offset + GATE_SIZE as u64 > registers.get("idt_limit")? + 1 {
                return None;
            }
            let gate_at = GuestVirt(registers.get("idt_base")?.checked_add(offset)?);
            let mut gate = [0; GATE_SIZE];
            let count = memory::read(memory, space, None, gate_at, &mut gate);
            (count == GATE_SIZE).then(|| gate_target(&gate)).flatten()
        }
    }
}

/// Where the handler of an exception is that is about to be given to the guest.
pub fn handler(vcpu: &Vcpu, memory: &LiveMemory, injection: &Injection) -> Option<u64> {
    let vector = match injection {
        Injection::Breakpoint => BREAKPOINT_VECTOR,
        Injection::Debug { .. } => DEBUG_VECTOR,
        Injection::Aarch64 { .. } => return None,
    };
    let space = Space::Virtual(vcpu.regime().ok()?);
    target(vcpu, memory, &space, Leads::Vector(vector))
}

/// The trap of a step that ran to `target`: the end of the step, if it is there.
pub fn arrived(vcpu: &Vcpu, step: &Step, trap: Trap) -> Trap {
    match (step, &trap) {
        (Step::RunsTo(target), Trap::Debug { .. })
            if vcpu.pc_and_flags().is_ok_and(|(pc, _)| pc == *target) =>
        {
            Trap::Debug { dr6: DR6_BS }
        }
        _ => trap,
    }
}

/// Puts right what a step has left, after any exit; `is_done` says that the instruction is.
///
/// # Errors
/// [`KvmError`].
pub fn after(vcpu: &Vcpu, memory: &LiveMemory, step: &Step, is_done: bool) -> Result<(), KvmError> {
    match step {
        Step::Plain | Step::Skipped | Step::RunsTo(_) => Ok(()),
        Step::PushesFlags if is_done => {
            let registers = vcpu.registers(&[Bank::General]);
            let stack = GuestVirt(registers.get("rsp").unwrap_or(0));
            let space = Space::Virtual(vcpu.regime()?);
            let mut flags = [0; 2];
            if memory::read(memory, &space, None, stack, &mut flags) == flags.len() {
                let cleared = u16::from_le_bytes(flags) & !u16::try_from(RFLAGS_TF).unwrap_or(0);
                memory::write(memory, &space, None, stack, &cleared.to_le_bytes());
            }
            Ok(())
        }
        Step::PushesFlags => Ok(()),
        Step::Masked(before) => {
            let after = vcpu.step_state()?;
            let Repair { pstate, spsr, register } = arm::after(before, &after);
            let mut repaired = RegisterFile::new(HOST_ISA);
            if let Some(pstate) = pstate {
                repaired.set("cpsr", pstate);
            }
            if let Some(spsr) = spsr {
                repaired.set("spsr_el1", spsr);
            }
            if let Some((number, value)) = register {
                repaired.set_row(usize::from(number), value);
            }
            vcpu.set_registers(&repaired)
        }
    }
}
