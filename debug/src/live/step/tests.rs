//! The rules of steps, each with a vCPU that is nothing but registers: what it is told before the entry, and what is
//! put right behind it.

use super::*;
use crate::fake::{FakeCounts, FakeVcpu, Ram, host};
use arch::GuestPhys;
use arch::aarch64::exception_entry::pstate::{DAIF, EL1H, F, I, SS};
use arch::x86::step::RFLAGS_TF;

/// The instruction that is stepped.
const CODE: u64 = 0x1000;
/// x86: the table of gates; the handler of a vector; the stack.
const IDT: u64 = 0x2000;
const HANDLERS: u64 = 0x4000;
const STACK: u64 = 0x6000;
/// aarch64: the vectors, and that of a fault at EL1 with its own stack pointer.
const VBAR: u64 = 0x8000;
const VECTOR: u64 = VBAR + 0x200;

fn handler(vector: u64) -> u64 {
    HANDLERS + vector * 0x10
}

/// A vCPU of a guest's kernel, in 64-bit code, with a handler for each exception.
struct Guest {
    vcpu: FakeVcpu,
    ram: Ram,
    host: Abilities,
    armed: Armed,
}

impl Guest {
    fn new(isa: Isa, code: &[u8]) -> Guest {
        let (mut vcpu, ram) = (FakeVcpu::new(isa), Ram::new(1 << 16));
        ram.write(GuestPhys(CODE), code);
        vcpu.set_pc(CODE);
        match isa {
            Isa::X86_64 => {
                for vector in 0..32 {
                    let [a, b, c, d, e, f, g, h] = handler(vector).to_le_bytes();
                    let gate = [a, b, 0x10, 0, 0, 0x8e, c, d, e, f, g, h, 0, 0, 0, 0];
                    ram.write(GuestPhys(IDT + vector * 16), &gate);
                }
                for (name, value) in [
                    ("cr0", 1),
                    ("efer", 1 << 10 | 1),
                    ("eflags", 2),
                    ("cs", 0x10),
                    ("rsp", STACK),
                    ("idt_base", IDT),
                    ("idt_limit", 0x1ff),
                    ("lstar", 0x64_0000),
                ] {
                    vcpu.file.set(name, value);
                }
            }
            Isa::Aarch64 => {
                vcpu.file.set("cpsr", EL1H);
                vcpu.file.set("VBAR_EL1", VBAR);
            }
        }
        let armed = Armed::off(isa);
        Guest { vcpu, ram, host: host(), armed }
    }

    fn stepper(&mut self) -> Stepper<'_> {
        Stepper { vcpu: &mut self.vcpu, memory: &self.ram, host: &self.host, armed: &mut self.armed }
    }

    /// Has the vCPU make a step, interrupts kept out.
    fn prepare(&mut self) -> Entering {
        let off = Arming::off(self.vcpu.isa());
        self.armed.set(&Arming { step: true, block_interrupts: true, ..off });
        self.stepper().prepare().unwrap()
    }

    fn prepare_step(&mut self) -> PlannedStep {
        match self.prepare() {
            Entering::Step(step) => step,
            other => panic!("{other:?} instead of a step"),
        }
    }

    /// The step ends at `pc`, with a trap of the processor's single step or of a debug register.
    fn finish(&mut self, step: &PlannedStep, pc: u64, trap: Trap) -> Option<Trap> {
        self.vcpu.set_pc(pc);
        self.stepper().finish(step, Some(trap)).unwrap()
    }

    /// Instructions on which a debug register stands.
    fn watched(&self) -> Vec<u64> {
        match &self.vcpu.arming.registers {
            DebugRegisters::X86(slots) => slots.iter().flatten().map(|slot| slot.address).collect(),
            DebugRegisters::Aarch64 { breakpoints, .. } => {
                breakpoints.iter().map(|pair| pair.value).collect()
            }
        }
    }

    fn flags(&self) -> u64 {
        self.vcpu.pc_and_flags().unwrap().1
    }
}

const SINGLE: Trap = Trap::Debug { dr6: DR6_BS };
const REGISTER: Trap = Trap::Debug { dr6: 1 };
const ARM_SINGLE: Trap =
    Trap::Aarch64 { exception: DebugException::SoftwareStep { load_exclusive: false }, far: 0 };
const ARM_REGISTER: Trap = Trap::Aarch64 { exception: DebugException::Breakpoint, far: 0 };

// CPUID; it is none that could be simulated.
const CPUID: &[u8] = &[0x0f, 0xa2];

#[test]
fn what_is_not_stepped_is_told_once() {
    for isa in Isa::ALL {
        let mut guest = Guest::new(isa, CPUID);
        let want = Want::Execute(0x7000);
        let registers = allocate(isa, &guest.host, &[want]).unwrap().registers;
        guest.armed.set(&Arming { registers, ..Arming::off(isa) });
        assert!(matches!(guest.stepper().prepare().unwrap(), Entering::Run));
        assert_eq!(guest.watched(), [0x7000], "{isa}");
        // Nothing has changed: the hypervisor is not told again.
        guest.vcpu.arming = Arming::off(isa);
        assert!(matches!(guest.stepper().prepare().unwrap(), Entering::Run));
        assert!(guest.vcpu.arming.is_off(), "{isa}");
    }
}

#[test]
fn the_guests_own_debug_registers_stay_in_force() {
    let isa = Isa::X86_64;
    let mut guest = Guest::new(isa, CPUID);
    let slot = |address| Some(Slot { address, condition: Condition::Execute, length: 1 });
    guest.vcpu.guests = DebugRegisters::X86([None, slot(0x7100), None, None]);
    let registers = DebugRegisters::X86([slot(0x7000), None, None, None]);
    guest.armed.set(&Arming { registers, ..Arming::off(isa) });
    guest.stepper().prepare().unwrap();
    assert_eq!(guest.watched(), [0x7000, 0x7100]);
    let own = guest.armed.own_among_others().unwrap();
    assert_eq!(own, [Own { armed: 1, register: 1, is_execute: true }]);
    let injection = Injection::Debug { dr6: 0b10, is_fault: true, skip: 0 };
    assert!(guest.stepper().is_own(&injection).unwrap());
    // The guest moves it: what came from it is its own no more, and it is armed anew.
    guest.vcpu.guests = DebugRegisters::X86([None, slot(0x7200), None, None]);
    assert!(!guest.stepper().is_own(&injection).unwrap());
    guest.stepper().prepare().unwrap();
    assert_eq!(guest.watched(), [0x7000, 0x7200]);
}

#[test]
fn handlers_of_faults_are_watched_on_what_registers_are_left() {
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    let step = guest.prepare_step();
    // #PF, #GP, #UD, #SS: as many as there are registers.
    assert_eq!(guest.watched(), [14, 13, 6, 12].map(handler));
    assert!(guest.vcpu.arming.step && step.entry() == Entry::Step);
    // It ends at one of them: the step is done, and the instruction was not executed.
    assert_eq!(guest.finish(&step, handler(13), REGISTER), Some(SINGLE));
    assert_eq!(guest.armed.faulted, Some(CODE));

    // Those that the guest has armed are not to be had.
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    let slot = |address| Some(Slot { address, condition: Condition::Execute, length: 1 });
    guest.vcpu.guests = DebugRegisters::X86([slot(0x7000), None, slot(0x7100), None]);
    guest.prepare_step();
    assert_eq!(guest.watched(), [0x7000, 0x7100, handler(14), handler(13)]);

    // A host without such registers steps all the same.
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    guest.host.breakpoints = 0;
    guest.prepare_step();
    assert!(guest.watched().is_empty() && guest.vcpu.arming.step);

    // From a handler's first instruction the vCPU gets away.
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    guest.ram.write(GuestPhys(handler(14)), CPUID);
    guest.vcpu.set_pc(handler(14));
    guest.prepare_step();
    assert!(!guest.watched().contains(&handler(14)));
}

/// For a fault the processor saves RF: with it, debug registers would not see the instruction that is begun again.
#[test]
fn an_instruction_that_has_faulted_is_seen_again() {
    const STACK: u64 = 0x3000;
    const RF: u64 = 1 << 16;
    const TF: u64 = 1 << 8;
    let slot = |address| {
        DebugRegisters::X86([
            Some(Slot { address, condition: Condition::Execute, length: 1 }),
            None,
            None,
            None,
        ])
    };
    for (own, wanted) in [(None, 2), (Some(slot(CODE)), RF | 2), (Some(slot(0x7000)), 2)] {
        let mut guest = Guest::new(Isa::X86_64, CPUID);
        own.into_iter().for_each(|own| guest.vcpu.guests = own);
        let step = guest.prepare_step();
        // #GP, with an error code in front.
        guest.vcpu.file.set("rsp", STACK);
        guest.ram.write(GuestPhys(STACK + 24), &(RF | TF | 2).to_le_bytes());
        assert_eq!(guest.finish(&step, handler(13), REGISTER), Some(SINGLE));
        let mut saved = [0; 8];
        guest.ram.read(GuestPhys(STACK + 24), &mut saved);
        assert_eq!(u64::from_le_bytes(saved), wanted);
    }
}

#[test]
fn interrupts_are_kept_out_of_x86_steps() {
    for blocks_interrupts in [true, false] {
        let mut guest = Guest::new(Isa::X86_64, CPUID);
        guest.host.blocks_interrupts = blocks_interrupts;
        guest.prepare_step();
        let shadows = u32::from(!blocks_interrupts);
        assert_eq!(guest.vcpu.counts, FakeCounts { shadows, ..FakeCounts::default() });
        assert!(guest.vcpu.arming.block_interrupts);
    }
}

/// `monitor step-interrupts on`: nothing keeps them out.
#[test]
fn a_step_may_fall_into_an_interrupt_where_that_is_wanted() {
    for (isa, code) in [(Isa::X86_64, CPUID), (Isa::Aarch64, &0xd503_201fu32.to_le_bytes())] {
        let mut guest = Guest::new(isa, code);
        guest.host.blocks_interrupts = false;
        let flags = guest.flags();
        guest.armed.set(&Arming { step: true, ..Arming::off(isa) });
        assert!(matches!(guest.stepper().prepare(), Ok(Entering::Step(_))));
        assert_eq!((guest.flags(), guest.vcpu.counts.shadows), (flags, 0), "{isa}");
        assert!(guest.vcpu.arming.step && !guest.vcpu.arming.block_interrupts, "{isa}");
    }
}

#[test]
fn what_saves_or_loads_flags_is_run_to_where_it_leads() {
    // int3; int1; sti; syscall.
    for (code, target) in
        [(&[0xcc][..], handler(3)), (&[0xf1], handler(1)), (&[0xfb], CODE + 1), (&[0x0f, 0x05], 0x64_0000)]
    {
        let mut guest = Guest::new(Isa::X86_64, code);
        let step = guest.prepare_step();
        assert!(!guest.vcpu.arming.step && step.entry() == Entry::Run, "{code:x?}");
        assert_eq!(guest.watched()[0], target, "{code:x?}");
        assert_eq!(guest.finish(&step, target, REGISTER), Some(SINGLE), "{code:x?}");
        assert_eq!(guest.armed.faulted, None);
        // Elsewhere it is another's.
        assert_eq!(guest.finish(&step, 0x9000, REGISTER), Some(REGISTER), "{code:x?}");

        // Without a register to run to, it is stepped as well as can be.
        let mut guest = Guest::new(Isa::X86_64, code);
        guest.host.breakpoints = 0;
        guest.prepare_step();
        assert!(guest.vcpu.arming.step, "{code:x?}");
    }
}

#[test]
fn what_only_waits_is_skipped() {
    let mut guest = Guest::new(Isa::X86_64, &[0xf4]);
    assert!(matches!(guest.prepare(), Entering::Skip));
    assert_eq!((guest.vcpu.file.pc(), guest.vcpu.injected.len()), (Some(CODE + 1), 0));
    // A guest that steps itself gets its own trap.
    let mut guest = Guest::new(Isa::X86_64, &[0xf4]);
    guest.vcpu.file.set("eflags", 2 | RFLAGS_TF);
    assert!(matches!(guest.prepare(), Entering::Skip));
    assert_eq!(guest.vcpu.injected.len(), 1);
    // WFI; WFE.
    for code in [0xd503_207fu32, 0xd503_205f] {
        let mut guest = Guest::new(Isa::Aarch64, &code.to_le_bytes());
        assert!(matches!(guest.prepare(), Entering::Skip));
        assert_eq!(guest.vcpu.file.pc(), Some(CODE + 4));
    }
}

#[test]
fn flags_that_are_stored_have_the_guests_own_trap_flag() {
    for own in [0, RFLAGS_TF] {
        let mut guest = Guest::new(Isa::X86_64, &[0x9c]);
        guest.vcpu.file.set("eflags", 2 | own);
        let step = guest.prepare_step();
        assert_eq!(guest.flags() & RFLAGS_TF, 0, "the hypervisor hides it");
        // The processor has stored the flag that it was stepped with.
        guest.vcpu.file.set("rsp", STACK - 8);
        guest.ram.write(GuestPhys(STACK - 8), &(2 | RFLAGS_TF).to_le_bytes());
        assert_eq!(guest.finish(&step, CODE + 1, SINGLE), Some(SINGLE));
        let mut stored = [0; 8];
        guest.ram.read(GuestPhys(STACK - 8), &mut stored);
        assert_eq!(u64::from_le_bytes(stored), 2 | own);
        // And a step of the guest's own is owed to it.
        assert_eq!(guest.vcpu.injected.len(), usize::from(own != 0));
    }
}

#[test]
fn flags_that_are_loaded_are_the_guests_own() {
    for (before, after) in [(0, RFLAGS_TF), (RFLAGS_TF, 0), (0, 0)] {
        let mut guest = Guest::new(Isa::X86_64, &[0x9d]);
        guest.vcpu.file.set("eflags", 2 | before);
        guest.ram.write(GuestPhys(STACK), &(2 | after).to_le_bytes());
        let step = guest.prepare_step();
        guest.finish(&step, CODE + 1, SINGLE);
        if before == 0 {
            assert_eq!(guest.flags() & RFLAGS_TF, after, "{before:#x} {after:#x}");
        }
        // The trap of the flag as it was before the instruction.
        assert_eq!(guest.vcpu.injected.len(), usize::from(before != 0), "{before:#x} {after:#x}");
    }
}

#[test]
fn the_hidden_trap_flag_comes_back_when_steps_end() {
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    guest.vcpu.file.set("eflags", 2 | RFLAGS_TF);
    guest.prepare_step();
    assert_eq!(guest.flags() & RFLAGS_TF, 0);
    guest.armed.set(&Arming::off(Isa::X86_64));
    guest.stepper().prepare().unwrap();
    assert_eq!(guest.flags() & RFLAGS_TF, RFLAGS_TF);
}

#[test]
fn a_step_with_an_exception_pending_ends_at_its_handler() {
    let mut guest = Guest::new(Isa::X86_64, CPUID);
    guest.armed.set(&Arming { step: true, ..Arming::off(Isa::X86_64) });
    guest.stepper().inject(&Injection::Breakpoint).unwrap();
    let step = guest.prepare_step();
    assert!(!guest.vcpu.arming.step);
    assert_eq!((guest.watched(), guest.armed.faulted), (vec![handler(3)], Some(CODE)));
    assert_eq!(guest.finish(&step, handler(3), REGISTER), Some(SINGLE));
    // Whoever writes registers drops it; then it is a step as any other.
    guest.vcpu.is_queued = false;
    guest.vcpu.set_pc(CODE);
    guest.prepare_step();
    assert!(guest.vcpu.arming.step);
    assert_eq!(guest.armed.faulted, None);
}

#[test]
fn a_step_that_another_exit_came_before_is_done_when_it_has_moved() {
    // rep outsb stays where it is, each time that it is served.
    for (code, isa, pc, is_served, wanted) in [
        (CPUID, Isa::X86_64, CODE + 2, true, true),
        (CPUID, Isa::X86_64, CODE, true, false),
        (&[0xf3, 0x6e], Isa::X86_64, CODE, true, true),
        (&[0xf3, 0x6e], Isa::X86_64, CODE, false, false),
        (&0xf900_0020u32.to_le_bytes(), Isa::Aarch64, CODE + 4, true, true),
        (&0xf900_0020u32.to_le_bytes(), Isa::Aarch64, CODE, true, false),
    ] {
        let mut guest = Guest::new(isa, code);
        let step = guest.prepare_step();
        guest.vcpu.set_pc(pc);
        assert_eq!(guest.stepper().is_done(&step, is_served).unwrap(), wanted, "{code:x?} {pc:#x}");
        // On aarch64 a trap that is to come still is not.
        assert_eq!(guest.vcpu.arming.is_off(), isa == Isa::Aarch64 && wanted);
    }
}

const NOP: u32 = 0xd503_201f;

#[test]
fn interrupts_are_masked_in_aarch64_steps() {
    let mut guest = Guest::new(Isa::Aarch64, &NOP.to_le_bytes());
    let step = guest.prepare_step();
    assert_eq!(guest.flags(), EL1H | I | F);
    assert_eq!(guest.finish(&step, CODE + 4, ARM_SINGLE), Some(ARM_SINGLE));
    assert_eq!(guest.flags(), EL1H);
    // Whatever the step ends with, the mask does not stay.
    let step = {
        guest.vcpu.set_pc(CODE);
        guest.prepare_step()
    };
    guest.stepper().finish(&step, None).unwrap();
    assert_eq!(guest.flags(), EL1H);
    // MRS x3, DAIF reads what the guest has set.
    let mut guest = Guest::new(Isa::Aarch64, &0xd53b_4223u32.to_le_bytes());
    let step = guest.prepare_step();
    guest.vcpu.file.set_row(3, I | F);
    guest.finish(&step, CODE + 4, ARM_SINGLE);
    assert_eq!(guest.vcpu.file.get_row(3), Some(0));
}

#[test]
fn sequences_of_exclusives_are_run_through() {
    // ldxr w0, [x1]; add w0, w0, #1; stxr w2, w0, [x1].
    let code: Vec<u8> =
        [0x885f_7c20u32, 0x1100_0400, 0x8802_7c20].iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut guest = Guest::new(Isa::Aarch64, &code);
    let step = guest.prepare_step();
    assert!(!guest.vcpu.arming.step && step.entry() == Entry::Run);
    assert_eq!(guest.watched(), [CODE + 12, VECTOR]);
    assert_eq!(guest.finish(&step, CODE + 12, ARM_REGISTER), Some(ARM_SINGLE));
    assert_eq!((guest.flags(), guest.armed.faulted), (EL1H, None));
    // Its load has faulted: what was saved is the guest's mask, not ours.
    let step = {
        guest.vcpu.set_pc(CODE);
        guest.prepare_step()
    };
    guest.vcpu.file.set("cpsr", EL1H | DAIF);
    guest.vcpu.file.set("SPSR_EL1", EL1H | I | F);
    assert_eq!(guest.finish(&step, VECTOR, ARM_REGISTER), Some(ARM_SINGLE));
    assert_eq!((guest.armed.faulted, guest.vcpu.file.get("SPSR_EL1")), (Some(CODE), Some(EL1H)));
    // With one register too few it is stepped.
    guest.vcpu.set_pc(CODE);
    guest.vcpu.file.set("cpsr", EL1H);
    guest.host.breakpoints = 1;
    guest.prepare_step();
    assert!(guest.vcpu.arming.step);
}

#[test]
fn aarch64_faults_are_known_by_what_they_have_saved() {
    // ldr x0, [x1].
    let mut guest = Guest::new(Isa::Aarch64, &0xf940_0020u32.to_le_bytes());
    let step = guest.prepare_step();
    guest.vcpu.file.set("cpsr", EL1H | DAIF);
    guest.vcpu.file.set("SPSR_EL1", EL1H | I | F | SS);
    assert_eq!(guest.finish(&step, VECTOR, ARM_SINGLE), Some(ARM_SINGLE));
    assert_eq!(guest.armed.faulted, Some(CODE));
    // It is not still to be stepped when the handler is done.
    assert_eq!(guest.vcpu.file.get("SPSR_EL1"), Some(EL1H));
    // SVC is made to go there.
    let mut guest = Guest::new(Isa::Aarch64, &0xd400_0001u32.to_le_bytes());
    let step = guest.prepare_step();
    guest.vcpu.file.set("cpsr", EL1H | DAIF);
    guest.finish(&step, VECTOR, ARM_SINGLE);
    assert_eq!(guest.armed.faulted, None);
}
