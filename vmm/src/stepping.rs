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
use arch::x86::debug_registers::{Condition, DR6_BS, Slot, matches};
use arch::x86::simulate::{self, Bits};
use arch::x86::step::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, FAULTS, GATE_SIZE, HLT, Leads, RFLAGS_TF, flags_in_frame, gate_target,
    leads_to, pops_flags, pushes_flags,
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
    /// x86: the guest's own trap flag.
    own: OwnTrapFlag,
    /// aarch64: interrupts are masked.
    masked: Option<arm::Before>,
    /// aarch64: the instruction and what was known before it.
    instruction: u32,
}

/// The guest's own trap flag around a step.
#[derive(Clone, Copy, Debug, Default)]
struct OwnTrapFlag {
    before: bool,
    after: bool,
    /// The instruction ends in the #DB of a step of the guest's own.
    traps: bool,
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
        // The handler runs first, and then comes back.
        thread.faulted = Some(step.from);
        step.runs_to.push(target);
        let arming = run_to(&arming, &step.runs_to);
        set(vcpu, host, thread, arming, &mut step)?;
        return Ok(Prepared::Step(step));
    }
    match HOST_ISA {
        Isa::X86_64 => {
            let is_long = code.mode == Mode::Bits64;
            let own = own_trap_flag(thread, flags);
            if bytes.first() == Some(&HLT) && is_ring_0(vcpu) {
                let gone = go_over(vcpu, pc.wrapping_add(1))?;
                if own {
                    inject(vcpu, memory, host, thread, &OWN_STEP)?;
                }
                return Ok(gone);
            }
            let leads = leads_to(bytes);
            step.own = OwnTrapFlag {
                before: own,
                after: popped_trap_flag(vcpu, memory, &space, bytes, is_long).unwrap_or(own),
                traps: own && matches!(leads, None | Some(Leads::Next(_))),
            };
            // Without a debug register that works there is nothing to run to.
            let can_run_to = host.breakpoints > 0;
            if let Some(target) =
                leads.filter(|_| can_run_to).and_then(|leads| target(vcpu, memory, &space, step.from, leads))
            {
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
    let guarded = arming.guarded.take();
    if !arming.registers.is_empty() || guarded.is_some() || !step.faults.is_empty() {
        let guests = vcpu.own_debug_registers(host)?;
        if let Some(guarded) = guarded.filter(|_| !guests.is_armed()) {
            arming.registers = *guarded;
        }
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
    tell(vcpu, thread, &arming)?;
    thread.is_new = false;
    Ok(())
}

/// Tells KVM. It steps with the trap flag and hides it, the guest's own with it, and clears it
/// when it steps no more: until then the guest's own is kept in `thread`.
fn tell(vcpu: &Vcpu, thread: &mut ThreadDebug, arming: &Arming) -> Result<(), KvmError> {
    if HOST_ISA == Isa::Aarch64 {
        return vcpu.set_debug(arming);
    }
    let (_, flags) = vcpu.pc_and_flags()?;
    let own = own_trap_flag(thread, flags);
    vcpu.set_debug(arming)?;
    let was_kept = thread.trap_flag.take().is_some();
    if arming.step {
        thread.trap_flag = Some(own);
    } else if was_kept && own {
        vcpu.set_rows(&[(arch::register::x86_64::EFLAGS, flags | RFLAGS_TF)])?;
    }
    Ok(())
}

/// x86: whether the guest has set its trap flag, by what KVM shows of the flags.
fn own_trap_flag(thread: &ThreadDebug, flags: u64) -> bool {
    thread.trap_flag.unwrap_or(flags & RFLAGS_TF != 0)
}

/// x86: the trap flag that an instruction is about to load, if it loads the flags.
fn popped_trap_flag(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    space: &Space,
    code: &[u8],
    is_long_mode: bool,
) -> Option<bool> {
    let offset = pops_flags(code, is_long_mode)?;
    let place = GuestVirt(vcpu.registers(&[Bank::General]).get("rsp")?.wrapping_add(offset));
    let mut flags = [0; 2];
    let count = memory::read(memory, space, None, place, &mut flags);
    (count == flags.len()).then(|| u64::from(u16::from_le_bytes(flags)) & RFLAGS_TF != 0)
}

/// The #DB of a step of the guest's own.
const OWN_STEP: Injection = Injection::Debug { dr6: DR6_BS, is_fault: false, skip: 0 };

/// Gives the guest an exception of its own; a step that is asked for ends at its handler.
///
/// # Errors
/// [`KvmError`].
pub fn inject(
    vcpu: &Vcpu,
    memory: &LiveMemory,
    host: &HostDebug,
    thread: &mut ThreadDebug,
    injection: &Injection,
) -> Result<(), KvmError> {
    let can_run_to = thread.arming.step && host.breakpoints > 0;
    let target = can_run_to.then(|| handler(vcpu, memory, injection)).flatten();
    // With the trap flag on, the flags that the exception saves would have it.
    let arming = target.map_or_else(|| thread.arming.clone(), |target| run_to(&thread.arming, &[target]));
    tell(vcpu, thread, &arming)?;
    vcpu.inject(injection, &arming)?;
    thread.runs_to = target;
    // KVM is told again when the guest is entered.
    thread.is_new = true;
    Ok(())
}

/// Whether the guest has left its own debug registers as they were when they were armed beside
/// the debugger's; if not, they are armed anew when the guest is entered.
fn is_unchanged(vcpu: &Vcpu, host: &HostDebug, thread: &mut ThreadDebug) -> Result<bool, KvmError> {
    let Some(before) = &thread.guests else { return Ok(true) };
    let is_unchanged = vcpu.own_debug_registers(host)? == *before;
    thread.is_new |= !is_unchanged;
    Ok(is_unchanged)
}

/// Whether the guest still has the debug register armed that an exception came from; others may
/// have changed.
///
/// # Errors
/// [`KvmError`].
pub fn is_own(
    vcpu: &Vcpu,
    host: &HostDebug,
    thread: &mut ThreadDebug,
    injection: &Injection,
) -> Result<bool, KvmError> {
    if is_unchanged(vcpu, host, thread)? {
        return Ok(true);
    }
    let now = vcpu.own_debug_registers(host)?;
    Ok(match (injection, &thread.guests, &now) {
        (Injection::Debug { dr6, .. }, Some(DebugRegisters::X86(before)), DebugRegisters::X86(now)) => {
            matches(*dr6).any(|register| before[register] == now[register])
        }
        // The access or the instruction is still to come, and traps again if it is to.
        _ => false,
    })
}

/// What runs to one of `targets` instead of stepping.
fn run_to(arming: &Arming, targets: &[u64]) -> Arming {
    let every = HostDebug { breakpoints: targets.len(), ..FULL };
    let wants: Vec<Want> = targets.iter().map(|target| Want::Execute(*target)).collect();
    let registers = allocate(HOST_ISA, &every, &wants)
        .map_or_else(|_| DebugRegisters::none(HOST_ISA), |allocation| allocation.registers);
    Arming { step: false, registers, guarded: None, ..arming.clone() }
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
fn handler(vcpu: &Vcpu, memory: &LiveMemory, injection: &Injection) -> Option<u64> {
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
    host: &HostDebug,
    step: &Step,
    thread: &mut ThreadDebug,
    trap: Option<Trap>,
) -> Result<Option<Trap>, KvmError> {
    let result = match (HOST_ISA, trap) {
        (Isa::X86_64, Some(trap @ Trap::Debug { .. })) => {
            Some(after_x86(vcpu, memory, host, step, thread, trap)?)
        }
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
    host: &HostDebug,
    step: &Step,
    thread: &mut ThreadDebug,
    trap: Trap,
) -> Result<Trap, KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    let fault = step.faults.iter().find(|fault| fault.handler == pc);
    let stored_flags = if step.runs_to.contains(&pc) {
        None
    } else if let Some(fault) = fault {
        thread.faulted = Some(step.from);
        Some(fault.flags)
    } else if is_step(&trap) {
        step.pushes_flags.then_some(0)
    } else {
        return Ok(trap);
    };
    if let Some(offset) = stored_flags {
        store_trap_flag(vcpu, memory, offset, step.own.before)?;
    }
    if fault.is_some() {
        thread.trap_flag = Some(false);
        return Ok(stepped());
    }
    if let Some(kept) = &mut thread.trap_flag {
        *kept = step.own.after;
    }
    if step.own.traps {
        inject(vcpu, memory, host, thread, &OWN_STEP)?;
    } else if step.own.after && thread.trap_flag.is_some() {
        // Whoever looks at the flags now is to see it.
        tell(vcpu, thread, &Arming { step: false, ..thread.arming.clone() })?;
        thread.is_new = true;
    }
    Ok(if stored_flags.is_some() || !is_step(&trap) { stepped() } else { trap })
}

/// Puts the guest's own trap flag into flags that were stored at `offset` from its stack pointer.
fn store_trap_flag(vcpu: &Vcpu, memory: &LiveMemory, offset: u64, own: bool) -> Result<(), KvmError> {
    let registers = vcpu.registers(&[Bank::General]);
    // TF is bit 8.
    let place = GuestVirt(registers.get("rsp").unwrap_or(0).wrapping_add(offset + 1));
    let space = Space::Virtual(vcpu.regime()?);
    let mut stored = [0];
    if memory::read(memory, &space, None, place, &mut stored) == stored.len() {
        memory::write(memory, &space, None, place, &[stored[0] & !1 | u8::from(own)]);
    }
    Ok(())
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
