//! What has to be done around an entry to the guest of a vCPU that is debugged, beyond what KVM
//! does: interrupts kept out of single steps, instructions that cannot be stepped run to where
//! they lead, traces of the step taken out of the guest, the guest's own debug registers kept
//! in force. The rules are in `arch::*::step`.

use crate::debugger::{LiveMemory, ThreadDebug};
use crate::kvm::{HOST_ISA, KvmError, Vcpu};
use arch::aarch64::exception_entry::pstate;
use arch::aarch64::step::{self as arm, Repair};
use arch::aarch64::syndrome::DebugException;
use arch::register::{Bank, RegisterFile};
use arch::x86::debug_registers::{Condition, DR6_BS, Slot};
use arch::x86::simulate::{self, Bits};
use arch::x86::step::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, FAULTS, GATE_SIZE, HLT, Leads, RFLAGS_TF, flags_in_frame, gate_target,
    leads_to, pushes_flags,
};
use arch::{GuestVirt, Isa};
use debug::arming::{Arming, DebugRegisters, Want, allocate, with_own};
use debug::disassemble::{LONGEST_INSTRUCTION, Mode};
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

/// The trap of a step that has been done in another way.
pub fn stepped() -> Trap {
    match HOST_ISA {
        Isa::X86_64 => Trap::Debug { dr6: DR6_BS },
        Isa::Aarch64 => {
            Trap::Aarch64 { exception: DebugException::SoftwareStep { load_exclusive: false }, far: 0 }
        }
    }
}

/// A step that is under way.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Linear address of the instruction.
    from: u64,
    /// The vCPU runs to the first of these instead of stepping; none for a plain step.
    runs_to: Vec<u64>,
    /// x86: handlers that the instruction may fault to.
    faults: Vec<Fault>,
    /// x86: the instruction stores the flags.
    pushes_flags: bool,
    /// aarch64: interrupts are masked.
    masked: Option<arm::Before>,
    /// aarch64: the instruction and what was known before it.
    instruction: u32,
}

/// A handler that has a debug register during a step.
#[derive(Clone, Copy, Debug)]
struct Fault {
    handler: u64,
    /// Where it finds the saved flags, from its stack pointer.
    flags: u64,
}

/// What [`before`] has prepared.
#[derive(Debug)]
pub enum Prepared {
    /// The guest runs; no step was asked for.
    Run,
    /// The guest makes a step.
    Step(Step),
    /// The step is done already: the instruction only waits, and has been gone over.
    Done,
}

/// Prepares an entry to the guest, and has KVM told what the vCPU runs with.
///
/// # Errors
/// [`KvmError`].
pub fn before(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    host: &HostDebug,
    thread: &mut ThreadDebug,
) -> Result<Prepared, KvmError> {
    thread.faulted = None;
    // The exception that was queued may be gone: whoever writes registers drops it.
    let queued = thread.runs_to.take().filter(|_| vcpu.has_queued());
    if !thread.arming.step {
        if thread.is_new || !is_unchanged(vcpu, host, thread)? {
            set(vcpu, host, thread, thread.arming.clone(), &mut Step::default())?;
        }
        return Ok(Prepared::Run);
    }
    let (pc, flags) = vcpu.pc_and_flags()?;
    let code = vcpu.code()?;
    let mut step = Step { from: code.linear(pc), ..Step::default() };
    let space = Space::Virtual(vcpu.regime()?);
    let mut bytes = [0; LONGEST_INSTRUCTION];
    let count = memory::read(memory, &space, None, GuestVirt(step.from), &mut bytes);
    let bytes = &bytes[..count];
    let mut arming = thread.arming.clone();
    if let Some(target) = queued {
        step.runs_to.push(target);
        let arming = run_to(&arming, &step.runs_to);
        set(vcpu, host, thread, arming, &mut step)?;
        return Ok(Prepared::Step(step));
    }
    match HOST_ISA {
        Isa::X86_64 => {
            let is_long = code.mode == Mode::Bits64;
            if bytes.first() == Some(&HLT) && is_ring_0(vcpu) {
                return go_over(vcpu, pc.wrapping_add(1));
            }
            // Without a debug register that works there is nothing to run to.
            let can_run_to = host.breakpoints > 0;
            let leads = leads_to(bytes).filter(|_| can_run_to);
            if let Some(target) = leads.and_then(|leads| target(vcpu, memory, &space, step.from, leads)) {
                step.runs_to.push(target);
                arming = run_to(&arming, &[target]);
            } else {
                // Prefixes of 32-bit code are a part of those of 64-bit code.
                step.pushes_flags = pushes_flags(bytes, is_long);
                // What can be simulated touches no memory and cannot fault.
                let bits = if is_long { Bits::Code64 } else { Bits::Code32 };
                if can_run_to && simulate::simulate(bytes, bits, |_| Some(0)).is_none() {
                    step.faults = faults(vcpu, memory, &space);
                }
                if arming.block_interrupts && !host.blocks_interrupts {
                    vcpu.shadow_interrupts()?;
                }
            }
        }
        Isa::Aarch64 => {
            let instruction = arch::bytes::u32_at(bytes, 0).unwrap_or(0);
            step.instruction = instruction;
            if arm::is_wait(instruction) {
                return go_over(vcpu, pc.wrapping_add(4));
            }
            if arm::is_load_exclusive(instruction) {
                let mut sequence = [0; 4 * arm::LONGEST_SEQUENCE];
                let count = memory::read(memory, &space, None, GuestVirt(pc), &mut sequence);
                let targets = arm::exclusive_sequence(&sequence[..count], pc);
                if let Some(targets) = targets.filter(|targets| targets.len() <= host.breakpoints) {
                    arming = run_to(&arming, &targets);
                    step.runs_to = targets;
                }
            }
            if arming.block_interrupts {
                let before = arm::Before { instruction, pc, pstate: flags };
                let mut file = RegisterFile::new(HOST_ISA);
                file.set("cpsr", arm::before(&before));
                vcpu.set_registers(&file)?;
                step.masked = Some(before);
            }
        }
    }
    // The guest may have changed the flag that it is stepped with, so KVM is told each time.
    set(vcpu, host, thread, arming, &mut step)?;
    Ok(Prepared::Step(step))
}

/// Makes the step by hand: an instruction that only waits.
fn go_over(vcpu: &Vcpu, next: u64) -> Result<Prepared, KvmError> {
    let mut file = RegisterFile::new(HOST_ISA);
    file.set_pc(next);
    vcpu.set_registers(&file)?;
    Ok(Prepared::Done)
}

/// x86: the code segment's privilege level.
fn is_ring_0(vcpu: &Vcpu) -> bool {
    vcpu.registers(&[Bank::System]).get("cs").is_some_and(|selector| selector & 3 == 0)
}

/// Tells KVM, with the guest's own debug registers added, as KVM puts ours in the place of all of
/// them; those that are left then go to handlers of faults.
fn set(
    vcpu: &Vcpu,
    host: &HostDebug,
    thread: &mut ThreadDebug,
    mut arming: Arming,
    step: &mut Step,
) -> Result<(), KvmError> {
    (thread.own, thread.guests) = (None, None);
    if !arming.registers.is_empty() || !step.faults.is_empty() {
        let guests = vcpu.own_debug_registers(host)?;
        let (all, own) = with_own(host, &arming.registers, &guests);
        arming.registers = all;
        (thread.own, thread.guests) = (Some(own), Some(guests));
    }
    if let DebugRegisters::X86(slots) = &mut arming.registers {
        let mut free = slots.iter_mut().filter(|slot| slot.is_none());
        step.faults.retain(|fault| {
            let slot = Slot { address: fault.handler, condition: Condition::Execute, length: 1 };
            free.next().map(|place| *place = Some(slot)).is_some()
        });
    }
    vcpu.set_debug(&arming)?;
    thread.is_new = false;
    Ok(())
}

/// Whether the guest has left its own debug registers as they were when they were armed beside
/// the debugger's; if not, they are armed anew when the guest is entered.
///
/// # Errors
/// [`KvmError`].
pub fn is_unchanged(vcpu: &Vcpu, host: &HostDebug, thread: &mut ThreadDebug) -> Result<bool, KvmError> {
    let Some(before) = &thread.guests else { return Ok(true) };
    let is_unchanged = vcpu.own_debug_registers(host)? == *before;
    thread.is_new |= !is_unchanged;
    Ok(is_unchanged)
}

/// What runs to one of `targets` instead of stepping.
pub fn run_to(arming: &Arming, targets: &[u64]) -> Arming {
    let every = HostDebug { breakpoints: targets.len(), ..FULL };
    let wants: Vec<Want> = targets.iter().map(|target| Want::Execute(*target)).collect();
    let registers = allocate(HOST_ISA, &every, &wants)
        .map_or_else(|_| DebugRegisters::none(HOST_ISA), |allocation| allocation.registers);
    Arming { step: false, registers, ..arming.clone() }
}

/// A host that can do everything: callers look first whether theirs can.
const FULL: HostDebug = HostDebug {
    software: debug::target::SoftwareBreakpoints::Trapped,
    single_step: true,
    breakpoints: 0,
    watchpoints: 0,
    blocks_interrupts: true,
};

/// The handlers of faults. A fault saves the flags with the trap flag, and the handler runs
/// without: a step must end there, and the saved flag must go.
fn faults(vcpu: &Vcpu, memory: &LiveMemory, space: &Space) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for vector in FAULTS {
        if let Some(handler) = target(vcpu, memory, space, 0, Leads::Vector(vector))
            && !faults.iter().any(|fault| fault.handler == handler)
        {
            faults.push(Fault { handler, flags: flags_in_frame(vector) });
        }
    }
    faults
}

/// Where an instruction or an exception leads, in 64-bit mode.
fn target(vcpu: &Vcpu, memory: &LiveMemory, space: &Space, from: u64, leads: Leads) -> Option<u64> {
    const EFER_LMA: u64 = 1 << 10;
    let registers = vcpu.registers(&[Bank::System]);
    if registers.get("efer")? & EFER_LMA == 0 {
        return None;
    }
    match leads {
        Leads::Rcx => vcpu.registers(&[Bank::General]).get("rcx"),
        Leads::Next(length) => Some(from.wrapping_add(length)),
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
    target(vcpu, memory, &space, 0, Leads::Vector(vector))
}

/// Puts right what a step has left, after any exit, and answers with the trap as the engine
/// sees it: the end of the step, however it was made.
///
/// # Errors
/// [`KvmError`].
pub fn after(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    step: &Step,
    thread: &mut ThreadDebug,
    trap: Option<Trap>,
) -> Result<Option<Trap>, KvmError> {
    let result = match (HOST_ISA, trap) {
        (Isa::X86_64, Some(trap @ Trap::Debug { .. })) => Some(after_x86(vcpu, memory, step, thread, trap)?),
        (Isa::Aarch64, Some(trap @ Trap::Aarch64 { .. })) => Some(after_aarch64(vcpu, step, thread, trap)?),
        (_, trap) => trap,
    };
    if let Some(before) = &step.masked {
        let after = vcpu.step_state()?;
        let Repair { pstate, spsr, register } = arm::after(before, &after);
        let mut repaired = RegisterFile::new(HOST_ISA);
        if let Some(pstate) = pstate {
            repaired.set("cpsr", pstate);
        }
        if let Some(spsr) = spsr {
            repaired.set("SPSR_EL1", spsr);
        }
        if let Some((number, value)) = register {
            repaired.set_row(usize::from(number), value);
        }
        vcpu.set_registers(&repaired)?;
    }
    Ok(result)
}

fn after_x86(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    step: &Step,
    thread: &mut ThreadDebug,
    trap: Trap,
) -> Result<Trap, KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    if step.runs_to.contains(&pc) {
        return Ok(stepped());
    }
    let stored_flags = if let Some(fault) = step.faults.iter().find(|fault| fault.handler == pc) {
        thread.faulted = Some(step.from);
        Some(fault.flags)
    } else {
        (step.pushes_flags && is_step(&trap)).then_some(0)
    };
    let Some(offset) = stored_flags else { return Ok(trap) };
    let registers = vcpu.registers(&[Bank::General]);
    let place = GuestVirt(registers.get("rsp").unwrap_or(0).wrapping_add(offset));
    let space = Space::Virtual(vcpu.regime()?);
    let mut flags = [0; 2];
    if memory::read(memory, &space, None, place, &mut flags) == flags.len() {
        let cleared = u16::from_le_bytes(flags) & !u16::try_from(RFLAGS_TF).unwrap_or(0);
        memory::write(memory, &space, None, place, &cleared.to_le_bytes());
    }
    Ok(stepped())
}

fn after_aarch64(vcpu: &Vcpu, step: &Step, thread: &mut ThreadDebug, trap: Trap) -> Result<Trap, KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    if step.runs_to.contains(&pc) {
        return Ok(stepped());
    }
    if !is_step(&trap) || !arm::may_be_vector(pc, step.from) {
        return Ok(trap);
    }
    let after = vcpu.step_state()?;
    if arm::has_faulted(step.instruction, step.from, &after) {
        thread.faulted = Some(step.from);
        // What was saved says that the instruction is still to be stepped.
        let mut file = RegisterFile::new(HOST_ISA);
        file.set("SPSR_EL1", after.spsr & !pstate::SS);
        vcpu.set_registers(&file)?;
    }
    Ok(trap)
}
