//! What has to be done around an entry to the guest of a vCPU that is debugged, beyond what KVM
//! does: interrupts kept out of single steps, instructions that cannot be stepped run to where
//! they lead, traces of the step taken out of the guest, the guest's own debug registers kept
//! in force. The plans are made in `arch::*::step`; here they are carried out.

use crate::debugger::{LiveMemory, ThreadDebug};
use crate::guest_clock::Entry;
use crate::kvm::{HOST_ISA, KvmError, Vcpu};
use arch::aarch64::exception_entry::pstate;
use arch::aarch64::step::{self as arm, Repair};
use arch::aarch64::syndrome::DebugException;
use arch::register::{Bank, RegisterFile};
use arch::x86::debug_registers::{Condition, DR6_BS, Slot, matches};
use arch::x86::simulate;
use arch::x86::step::gate::Handler;
use arch::x86::step::opcode::{Bits, Opcode};
use arch::x86::step::{
    BREAKPOINT_VECTOR, DEBUG_VECTOR, DescriptorTable, Look, Plan, Processor, RFLAGS_TF, loads_flags, plan,
};
use arch::{GuestVirt, Isa};
use debug::arming::{Arming, DebugRegisters, Want, allocate, with_own};
use debug::disassemble::{LONGEST_INSTRUCTION, Mode};
use debug::memory::{self, Space};
use debug::target::{Code, HostDebug};
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
    /// Handlers that the instruction may fault to, which have a debug register meanwhile. On aarch64 they
    /// are vectors, and only in the way of one that runs.
    faults: Vec<Handler>,
    /// x86: the instruction stores the flags.
    stores_flags: bool,
    /// x86: it reads or writes ports again and again, and stays where it is meanwhile.
    repeats: bool,
    /// x86: the guest's own trap flag.
    own: OwnTrapFlag,
    /// The instruction may find out the time.
    reads_time: bool,
    /// aarch64: interrupts are masked.
    masked: Option<arm::Before>,
    /// aarch64: the instruction.
    instruction: u32,
}

impl Step {
    /// What it is to the guest's time.
    pub fn entry(&self) -> Entry {
        if self.reads_time || !self.runs_to.is_empty() { Entry::Run } else { Entry::Step }
    }
}

/// The guest's own trap flag around a step.
#[derive(Clone, Copy, Debug, Default)]
struct OwnTrapFlag {
    before: bool,
    after: bool,
    /// The instruction ends in the #DB of a step of the guest's own.
    traps: bool,
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
    let queued = thread.runs_to.filter(|_| vcpu.has_queued());
    thread.runs_to = queued;
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
            let guest = Guest { vcpu, memory, space: &space };
            let own = own_trap_flag(thread, flags);
            let processor = guest.processor(&code, flags & !RFLAGS_TF | if own { RFLAGS_TF } else { 0 });
            step.own = OwnTrapFlag {
                before: own,
                after: guest.loaded_trap_flag(bytes, processor.bits).unwrap_or(own),
                traps: own,
            };
            let opcode = Opcode::read(bytes, processor.bits);
            step.repeats = opcode.is_some_and(|opcode| opcode.is_string_io() && opcode.repeats);
            step.reads_time = opcode.is_none_or(|opcode| opcode.reads_time());
            // Without a debug register that works there is nothing to run to.
            let can_run_to = host.breakpoints > 0;
            // What can be simulated touches no memory and cannot fault.
            let planned = match simulates(bytes, processor.bits) {
                true => Plan::Trap { stores_flags: false, faults: Vec::new() },
                false => plan(bytes, step.from, &processor, &guest),
            };
            match planned {
                Plan::Skip(length) => {
                    let gone = go_over(vcpu, pc.wrapping_add(length))?;
                    if own {
                        inject(vcpu, memory, host, thread, &OWN_STEP)?;
                    }
                    return Ok(gone);
                }
                Plan::RunTo { targets, faults, traps } if can_run_to && !targets.is_empty() => {
                    arming = run_to(&arming, &targets);
                    (step.runs_to, step.faults, step.own.traps) = (targets, faults, own && traps);
                }
                Plan::RunTo { faults, .. } => step.faults = faults,
                Plan::Trap { stores_flags, faults } => {
                    (step.stores_flags, step.faults) = (stores_flags, faults);
                    if arming.block_interrupts && !host.blocks_interrupts {
                        vcpu.shadow_interrupts()?;
                    }
                }
            }
            if !can_run_to {
                step.faults.clear();
            }
            // A handler's first instruction would trap before it is executed, again and again.
            step.faults.retain(|fault| fault.address != step.from);
        }
        Isa::Aarch64 => {
            let instruction = arch::bytes::u32_at(bytes, 0).unwrap_or(0);
            (step.instruction, step.reads_time) = (instruction, arm::reads_time(instruction, flags));
            if arm::is_wait(instruction) {
                return go_over(vcpu, pc.wrapping_add(4));
            }
            if arm::is_load_exclusive(instruction) {
                let mut sequence = [0; 4 * arm::LONGEST_SEQUENCE];
                let count = memory::read(memory, &space, None, GuestVirt(pc), &mut sequence);
                let targets = arm::exclusive_sequence(&sequence[..count], pc);
                let vector = vcpu.step_state()?.fault_vector(flags);
                // With one more for what it faults to.
                if let Some(targets) = targets.filter(|targets| targets.len() < host.breakpoints) {
                    // As below.
                    let vectors = [vector].into_iter().filter(|vector| *vector != pc);
                    step.faults = vectors.map(|address| Handler { address, flags: 0 }).collect();
                    let ends = targets.iter().copied().chain(step.faults.iter().map(|fault| fault.address));
                    arming = run_to(&arming, &ends.collect::<Vec<_>>());
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

/// Whether the instruction can be done without the processor.
fn simulates(code: &[u8], bits: Bits) -> bool {
    let bits = match bits {
        Bits::Code64 => simulate::Bits::Code64,
        Bits::Code32 => simulate::Bits::Code32,
        Bits::Code16 => return false,
    };
    simulate::simulate(code, bits, |_| Some(0)).is_some()
}

/// An x86 guest, as plans look at it.
struct Guest<'a> {
    vcpu: &'a Vcpu,
    memory: &'a LiveMemory,
    space: &'a Space,
}

impl Look for Guest<'_> {
    fn memory(&self, linear: u64, bytes: &mut [u8]) -> bool {
        memory::read(self.memory, self.space, None, GuestVirt(linear), bytes) == bytes.len()
    }

    fn register(&self, name: &'static str) -> Option<u64> {
        self.vcpu.register(arch::register::row(Isa::X86_64, name)?)
    }
}

impl Guest<'_> {
    fn processor(&self, code: &Code, flags: u64) -> Processor {
        let file = self.vcpu.registers(&[Bank::System]);
        let get = |name| file.get(name).unwrap_or(0);
        let bits = match code.mode {
            Mode::Bits64 => Bits::Code64,
            Mode::Protected32 => Bits::Code32,
            Mode::Real16 => Bits::Code16,
        };
        let table = |base, limit| DescriptorTable { base: get(base), limit: get(limit) };
        let idt = table("idt_base", "idt_limit");
        Processor::new(bits, [get("cr0"), get("efer"), flags, get("cs")], idt, table("gdt_base", "gdt_limit"))
    }

    /// The linear address of what is at an offset from the stack pointer.
    fn on_stack(&self, offset: u64) -> Option<GuestVirt> {
        let mode = self.vcpu.code().ok()?.mode;
        let pointer = self.register("rsp")?.wrapping_add(offset);
        Some(GuestVirt(match mode {
            Mode::Bits64 => pointer,
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
        let Some(place) = self.on_stack(offset + 1) else { return };
        let mut stored = [0];
        if self.memory(place.0, &mut stored) {
            let stored = stored[0] & !1 | u8::from(own);
            memory::write(self.memory, self.space, None, place, &[stored]);
        }
    }
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
            let slot = Slot { address: fault.address, condition: Condition::Execute, length: 1 };
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

/// Where the handler of an exception is that is about to be given to an x86 guest.
fn handler(vcpu: &Vcpu, memory: &LiveMemory, injection: &Injection) -> Option<u64> {
    let vector = match injection {
        Injection::Breakpoint => BREAKPOINT_VECTOR,
        Injection::Debug { .. } => DEBUG_VECTOR,
        Injection::Aarch64 { .. } => return None,
    };
    let space = Space::Virtual(vcpu.regime().ok()?);
    let guest = Guest { vcpu, memory, space: &space };
    let processor = guest.processor(&vcpu.code().ok()?, vcpu.pc_and_flags().ok()?.1);
    processor.handler(&guest, vector).map(|handler| handler.address)
}

/// Whether the instruction of a plain step has been executed, by where the vCPU is now.
///
/// # Errors
/// [`KvmError`].
pub fn has_moved(vcpu: &Vcpu, step: &Step) -> Result<bool, KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    Ok(step.runs_to.is_empty() && vcpu.code()?.linear(pc) != step.from)
}

/// Whether a step is done though its trap has not come; then it will not come any more. `is_served` says that
/// an access or a call of the instruction has been served and finished.
///
/// # Errors
/// [`KvmError`].
pub fn is_done(vcpu: &Vcpu, step: &Step, is_served: bool) -> Result<bool, KvmError> {
    let is_done = has_moved(vcpu, step)? || is_served && step.repeats;
    if is_done && HOST_ISA == Isa::Aarch64 {
        // KVM remembers that a trap is to come, until debugging is switched off.
        vcpu.set_debug(&Arming::off(HOST_ISA))?;
    }
    Ok(is_done)
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
        repair(vcpu, step, before)?;
    }
    Ok(result)
}

/// aarch64: gives the guest back what the mask of interrupts has changed, where it has.
fn repair(vcpu: &Vcpu, step: &Step, before: &arm::Before) -> Result<(), KvmError> {
    let after = vcpu.step_state()?;
    let Repair { pstate, spsr, register } = arm::after(before, &step.runs_to, &after);
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
    vcpu.set_registers(&repaired)
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
    let pc = vcpu.code()?.linear(pc);
    let fault = step.faults.iter().find(|fault| fault.address == pc);
    let stored_flags = if step.runs_to.contains(&pc) {
        None
    } else if let Some(fault) = fault {
        thread.faulted = Some(step.from);
        Some(fault.flags)
    } else if is_step(&trap) {
        step.stores_flags.then_some(0)
    } else {
        return Ok(trap);
    };
    if let Some(offset) = stored_flags {
        let space = Space::Virtual(vcpu.regime()?);
        Guest { vcpu, memory, space: &space }.store_trap_flag(offset, step.own.before);
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

fn after_aarch64(vcpu: &Vcpu, step: &Step, thread: &mut ThreadDebug, trap: Trap) -> Result<Trap, KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    if step.runs_to.contains(&pc) {
        return Ok(stepped());
    }
    if step.faults.iter().any(|fault| fault.address == pc) {
        // It ran, so what was saved says nothing of steps.
        thread.faulted = Some(step.from);
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
