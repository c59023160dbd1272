//! Single steps that no interrupt falls into.
//!
//! KVM on aarch64 has no way to keep interrupts out of a step, so they are masked in PSTATE
//! for one instruction ([`before`]) and what the instruction made of the mask is put right
//! ([`after`]): instructions that read or write the mask, and exceptions that save it.
//! [`plan`] says how an instruction is stepped at all. All of this is pure; nothing here touches a vCPU.
//!
//! Source: Arm ARM (DDI 0487), "MRS", "MSR (immediate)", "MSR (register)", "ERET", "WFI",
//! and "Exception entry".

use super::exception_entry::{pstate, vector};
use super::simulate::{Flow, flow};

const MASKED: u64 = pstate::I | pstate::F;

/// `MRS Xt, DAIF`.
const MRS_DAIF: u32 = 0xd53b_4220;
/// `MSR DAIF, Xt`.
const MSR_DAIF: u32 = 0xd51b_4220;
/// `MSR DAIFSet, #imm` and `MSR DAIFClr, #imm`, without the immediate.
const MSR_DAIF_SET: u32 = 0xd503_40df;
const MSR_DAIF_CLEAR: u32 = 0xd503_40ff;

/// What is known before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// The instruction, if it could be read.
    pub instruction: u32,
    /// Its address.
    pub pc: u64,
    /// PSTATE as the guest has it.
    pub pstate: u64,
}

/// What is known after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// Program counter.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// `VBAR_EL1`, to recognize an exception.
    pub vbar: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
}

impl After {
    /// Where a synchronous exception of an instruction that is executed with this PSTATE goes.
    pub fn fault_vector(&self, pstate: u64) -> u64 {
        vector(self.vbar, pstate)
    }
}

/// What has to be put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// PSTATE's new value.
    pub pstate: Option<u64>,
    /// `SPSR_EL1`'s new value.
    pub spsr: Option<u64>,
    /// The number of a general register, and its new value.
    pub register: Option<(u8, u64)>,
}

/// Whether the instruction waits for an interrupt or an event: a hint that may do nothing,
/// and that a step goes over without waiting.
pub fn is_wait(instruction: u32) -> bool {
    const WFE: u32 = 0xd503_205f;
    const WFI: u32 = 0xd503_207f;
    const WFET: u32 = 0xd503_1000;
    const WFIT: u32 = 0xd503_1020;
    matches!(instruction, WFE | WFI) || matches!(instruction & !0x1f, WFET | WFIT)
}

/// Whether the instruction can find out the time without leaving the guest: MRS of the generic timer's
/// registers (Arm ARM (DDI 0487), "Generic Timer registers": op0 3, op1 3, `CRn` 14), HVC, and whatever 32-bit
/// code has for it.
pub fn reads_time(instruction: u32, pstate: u64) -> bool {
    const HVC: u32 = 0xd400_0002;
    const MRS_TIMER: u32 = 0xd53b_e000;
    pstate & pstate::NRW != 0 || instruction & 0xffff_f000 == MRS_TIMER || instruction & 0xffe0_001f == HVC
}

/// Whether the instruction begins a sequence that ends with a store-exclusive: LDXR, LDAXR, LDXP
/// and their kin.
pub fn is_load_exclusive(instruction: u32) -> bool {
    is_exclusive(instruction) && instruction >> 22 & 1 != 0
}

/// Loads and stores exclusive, of which CASP is none.
fn is_exclusive(instruction: u32) -> bool {
    instruction & 0x3f80_0000 == 0x0800_0000 && !(instruction >> 31 == 0 && instruction >> 21 & 1 != 0)
}

/// Instructions of a sequence that are looked at.
pub const LONGEST_SEQUENCE: usize = 16;

/// What a plan looks up in the guest.
pub trait Look {
    /// Reads code at a virtual address; how many bytes of it are mapped.
    fn code(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// Where a synchronous exception of the instruction goes ([`After::fault_vector`]).
    fn fault_vector(&self) -> Option<u64>;
}

/// How an instruction is stepped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It only waits: the vCPU goes on behind it, this many bytes on.
    Skip(u64),
    /// By the processor's single step. What it faults to is known by what the exception has saved
    /// ([`has_faulted`]).
    Trap,
    /// It begins a sequence that must not be stepped: the vCPU runs to one of these addresses.
    RunTo {
        /// Where the sequence can be left.
        targets: Vec<u64>,
        /// The vector of its faults, unless that is where the vCPU is.
        faults: Vec<u64>,
    },
}

/// Plans the step of `instruction`, which is at `pc`, on a host with this many breakpoint registers.
pub fn plan(instruction: u32, pc: u64, breakpoints: usize, look: &dyn Look) -> Plan {
    if is_wait(instruction) {
        return Plan::Skip(4);
    }
    if !is_load_exclusive(instruction) {
        return Plan::Trap;
    }
    let mut code = [0; 4 * LONGEST_SEQUENCE];
    let count = look.code(pc, &mut code).min(code.len());
    match (exclusive_sequence(&code[..count], pc), look.fault_vector()) {
        // With one more register for what it faults to.
        (Some(targets), Some(vector)) if targets.len() < breakpoints => {
            // A handler's first instruction would trap before it is executed, again and again.
            Plan::RunTo { targets, faults: [vector].into_iter().filter(|vector| *vector != pc).collect() }
        }
        _ => Plan::Trap,
    }
}

/// Where a sequence of instructions from a load-exclusive to its store-exclusive can be left:
/// behind the store, and where branches within lead. Returning from an exception, as each step
/// does, clears the exclusive monitor, so that a store-exclusive that is stepped to always fails
/// (Arm ARM (DDI 0487), "Use of the monitors" and "Context switch support"). `None` when there is
/// no such end within [`LONGEST_SEQUENCE`] instructions.
pub fn exclusive_sequence(code: &[u8], pc: u64) -> Option<Vec<u64>> {
    let mut targets = Vec::new();
    for (index, word) in code.chunks_exact(4).take(LONGEST_SEQUENCE).enumerate() {
        let instruction = u32::from_le_bytes(word.try_into().ok()?);
        let at = pc.wrapping_add(4 * index as u64);
        let next = at.wrapping_add(4);
        if index > 0 && is_exclusive(instruction) {
            if is_load_exclusive(instruction) {
                return None;
            }
            targets.retain(|target| !(pc..=at).contains(target));
            targets.push(next);
            return Some(targets);
        }
        match flow(instruction, at) {
            Flow::Next => {}
            Flow::Branch(target) => targets.push(target),
            Flow::Jump(_) | Flow::Elsewhere => return None,
        }
    }
    None
}

/// Whether a step from `from` may have ended at a vector; only then more has to be looked at.
pub fn may_be_vector(pc: u64, from: u64) -> bool {
    pc.is_multiple_of(0x80) && pc != from.wrapping_add(4)
}

/// Whether a step of `instruction` ended in the vectors of EL1 because it faulted, not because it
/// is made to go there.
pub fn has_faulted(instruction: u32, from: u64, after: &After) -> bool {
    let goes_there = flow(instruction, from) == Flow::Elsewhere && instruction >> 24 == 0xd4;
    may_be_vector(after.pc, from) && after.pc & !0x7ff == after.vbar & !0x7ff && !goes_there
}

/// PSTATE for the step.
pub fn before(before: &Before) -> u64 {
    before.pstate | MASKED
}

/// What the step has left wrong. `runs_to` is where the instruction was run to instead, if it was: to behind a
/// sequence that it begins.
///
/// Only what the mask has changed is put right, and only where it has: in PSTATE, while the vCPU is where the
/// step has left it or within the sequence; in what an exception has saved, at its vector. Anywhere else
/// another part of the guest runs, whose masks are its own.
pub fn after(before: &Before, runs_to: &[u64], after: &After) -> Repair {
    let Before { instruction, pc, pstate: old } = *before;
    let own = old & MASKED;
    if own == MASKED {
        return Repair::default();
    }
    let is_eret = matches!(instruction, 0xd69f_03e0 | 0xd69f_0bff | 0xd69f_0fff);
    let vector = after.fault_vector(old);
    if after.pc == vector && after.pstate & pstate::DAIF == pstate::DAIF && !is_eret {
        let spsr = after.spsr & !MASKED | own;
        return Repair { spsr: Some(spsr), ..Repair::default() };
    }
    let repaired = |mask: u64| Some(after.pstate & !MASKED | mask & MASKED);
    let unmasked = Repair { pstate: repaired(own), ..Repair::default() };
    // Not executed yet: another exit came first.
    if after.pc == pc && (after.pstate ^ (old | MASKED)) & !pstate::SS == 0 {
        return unmasked;
    }
    if !runs_to.is_empty() {
        let offset = |address: u64| Some(address.wrapping_sub(pc)).filter(|offset| *offset < LONGEST_BYTES);
        let end = runs_to.iter().filter_map(|target| offset(*target)).max();
        let is_within = offset(after.pc).is_some_and(|at| end.is_some_and(|end| at <= end));
        return if is_within || runs_to.contains(&after.pc) { unmasked } else { Repair::default() };
    }
    let register = u8::try_from(instruction & 0x1f).unwrap_or(31);
    let immediate = u64::from(instruction >> 8 & 0xf) << 6;
    match instruction {
        _ if is_eret || instruction & !0x1f == MSR_DAIF => Repair::default(),
        _ if instruction & !0x1f == MRS_DAIF => {
            let value = (register < 31).then_some((register, old & pstate::DAIF));
            Repair { pstate: repaired(own), register: value, ..Repair::default() }
        }
        _ if instruction & !0xf00 == MSR_DAIF_SET => {
            Repair { pstate: repaired(own | immediate), ..Repair::default() }
        }
        _ if instruction & !0xf00 == MSR_DAIF_CLEAR => {
            Repair { pstate: repaired(own & !immediate), ..Repair::default() }
        }
        _ => unmasked,
    }
}

/// Bytes of a sequence that is looked at.
const LONGEST_BYTES: u64 = 4 * LONGEST_SEQUENCE as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use pstate::{DAIF, EL0T, EL1H, F, I, NZCV};

    const VBAR: u64 = 0xffff_8000_0001_0800;
    const NOP: u32 = 0xd503_201f;

    #[test]
    fn readers_of_time() {
        // MRS x0, CNTVCT_EL0; MRS x3, CNTV_CTL_EL0; HVC #0.
        assert!([0xd53b_e040, 0xd53b_e323, 0xd400_0002].iter().all(|code| reads_time(*code, EL1H)));
        // MRS x0, DAIF; MSR CNTV_CTL_EL0, x0; SVC #0.
        assert!(![NOP, MRS_DAIF, 0xd51b_e320, 0xd400_0001].iter().any(|code| reads_time(*code, EL1H)));
        assert!(reads_time(NOP, pstate::NRW));
    }

    fn repair(instruction: u32, old: u64, new: u64) -> Repair {
        after(
            &Before { instruction, pc: 0x1000, pstate: old },
            &[],
            &After { pc: 0x1004, pstate: new, vbar: VBAR, spsr: 0 },
        )
    }

    #[test]
    fn ordinary_instructions_get_their_mask_back() {
        for old in [EL1H, EL1H | I, EL1H | F, EL0T | NZCV] {
            let masked = before(&Before { instruction: NOP, pc: 0, pstate: old });
            assert_eq!(masked & (I | F), I | F);
            assert_eq!(repair(NOP, old, masked ^ NZCV).pstate, Some(old ^ NZCV));
        }
        assert_eq!(repair(NOP, EL1H | I | F, EL1H | I | F), Repair::default());
    }

    #[test]
    fn sequences_of_exclusives() {
        let code = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        // 1: ldxr w0, [x1]; add w0, w0, #1; stxr w2, w0, [x1]; cbnz w2, 1b
        let plain = code(&[0x885f_7c20, 0x1100_0400, 0x8802_7c20, 0x35ff_ffa2]);
        assert_eq!(exclusive_sequence(&plain, 0x1000), Some(vec![0x100c]));
        // ldaxr x0, [x1]; cmp x0, x3; b.ne .+0x10; stlxr w2, x4, [x1]: a compare-and-swap.
        let branches = code(&[0xc85f_fc20, 0xeb03_001f, 0x5400_0081, 0xc802_fc24]);
        assert_eq!(exclusive_sequence(&branches, 0x1000), Some(vec![0x1018, 0x1010]));
        assert_eq!(exclusive_sequence(&code(&[0x885f_7c20, 0xd65f_03c0]), 0), None);
        assert_eq!(exclusive_sequence(&code(&[0x885f_7c20; 2]), 0), None);
        assert_eq!(exclusive_sequence(&code(&[0x885f_7c20]), 0), None);
        assert!(is_load_exclusive(0xc87f_0440)); // ldxp x0, x1, [x2]
        // ldar, casp, cas, stxr
        for other in [0xc8df_fc20, 0x4860_7c82, 0xc8a0_7c41, 0x8802_7c20, 0xf940_0000] {
            assert!(!is_load_exclusive(other), "{other:#x}");
        }
    }

    /// Code from 0x1000 on, and where faults go.
    struct Code(Vec<u8>, Option<u64>);

    impl Look for Code {
        fn code(&self, address: u64, bytes: &mut [u8]) -> usize {
            let start = usize::try_from(address - 0x1000).unwrap().min(self.0.len());
            let count = bytes.len().min(self.0.len() - start);
            bytes[..count].copy_from_slice(&self.0[start..start + count]);
            count
        }

        fn fault_vector(&self) -> Option<u64> {
            self.1
        }
    }

    #[test]
    fn plans() {
        const LDXR: u32 = 0x885f_7c20;
        let sequence: Vec<u8> =
            [LDXR, 0x1100_0400, 0x8802_7c20].iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let vector = VBAR + 0x200;
        let run = |faults: &[u64]| Plan::RunTo { targets: vec![0x100c], faults: faults.to_vec() };
        for (instruction, breakpoints, code, faults_to, wanted) in [
            (NOP, 4, &sequence[..], Some(vector), Plan::Trap),
            (0xd503_207f, 4, &sequence, Some(vector), Plan::Skip(4)),
            (0xd503_1003, 0, &[], None, Plan::Skip(4)),
            (LDXR, 4, &sequence, Some(vector), run(&[vector])),
            // The vector itself is stepped away from.
            (LDXR, 4, &sequence, Some(0x1000), run(&[])),
            // No register is left for its faults; the sequence is not all there; nobody knows where faults go.
            (LDXR, 1, &sequence, Some(vector), Plan::Trap),
            (LDXR, 4, &sequence[..8], Some(vector), Plan::Trap),
            (LDXR, 4, &sequence, None, Plan::Trap),
        ] {
            let planned = plan(instruction, 0x1000, breakpoints, &Code(code.to_vec(), faults_to));
            assert_eq!(planned, wanted, "{instruction:#x} {breakpoints} {faults_to:x?}");
        }
    }

    #[test]
    fn faults_are_told_from_calls() {
        let after = |pc| After { pc, pstate: EL1H | DAIF, vbar: VBAR, spsr: 0 };
        assert!(has_faulted(0xf940_0000, 0x1000, &after(VBAR + 0x200)));
        assert!(has_faulted(0xf940_0000, 0x1000, &after(VBAR + 0x400)));
        assert!(!has_faulted(0xd400_0001, 0x1000, &after(VBAR + 0x400)));
        assert!(!has_faulted(0xf940_0000, 0x1000, &after(0x1004)));
        assert!(!has_faulted(0xd61f_0000, 0x1000, &after(VBAR + 0x804)));
    }

    #[test]
    fn instructions_that_touch_the_mask() {
        // msr daifset, #2; msr daifclr, #2; #3.
        assert_eq!(repair(0xd503_42df, EL1H, EL1H | I | F).pstate, Some(EL1H | I));
        assert_eq!(repair(0xd503_42ff, EL1H | I, EL1H | F).pstate, Some(EL1H));
        assert_eq!(repair(0xd503_43ff, EL1H | I, EL1H).pstate, Some(EL1H));
        // msr daif, x3: what it wrote stays. mrs x3, daif: what it read is put right.
        assert_eq!(repair(0xd51b_4223, EL1H, EL1H | F), Repair::default());
        let read = repair(0xd53b_4223, EL1H | I, EL1H | I | F);
        assert_eq!((read.pstate, read.register), (Some(EL1H | I), Some((3, I))));
        assert_eq!(repair(0xd53b_423f, EL1H, EL1H | I | F).register, None);
        // eret takes PSTATE from SPSR_EL1.
        assert_eq!(repair(0xd69f_03e0, EL1H, EL0T), Repair::default());
    }

    #[test]
    fn an_exception_saves_the_right_mask() {
        for (offset, old) in [(0x400, EL0T), (0x200, EL1H | I)] {
            let masked = old | I | F;
            let repair = after(
                &Before { instruction: 0xd400_0001, pc: 0x1000, pstate: old },
                &[],
                &After { pc: VBAR + offset, pstate: EL1H | DAIF, vbar: VBAR, spsr: masked },
            );
            assert_eq!(repair, Repair { spsr: Some(old), ..Repair::default() });
        }
    }

    #[test]
    fn only_what_was_masked_is_repaired() {
        // ldxr w0, [x1]
        let before = Before { instruction: 0x885f_7c20, pc: 0x1000, pstate: EL1H };
        let at = |pc, pstate, spsr| {
            super::after(&before, &[0x100c, 0x1040], &After { pc, pstate, vbar: VBAR, spsr })
        };
        let unmasked = Repair { pstate: Some(EL1H), ..Repair::default() };
        // Kicked before it began, within the sequence, at its end, and where a branch of it leads.
        for pc in [0x1000, 0x1004, 0x100c, 0x1040] {
            assert_eq!(at(pc, EL1H | I | F, 0), unmasked, "{pc:#x}");
        }
        // The load has faulted: what was saved is the guest's again, the vector's own mask stays.
        let spsr = Repair { spsr: Some(EL1H), ..Repair::default() };
        assert_eq!(at(VBAR + 0x200, EL1H | DAIF, EL1H | I | F), spsr);
        // Anywhere else it is none of ours.
        for pc in [VBAR + 0x204, VBAR + 0x280, 0x2000] {
            assert_eq!(at(pc, EL1H | DAIF, EL1H | I | F), Repair::default(), "{pc:#x}");
        }
        // The same of a plain step that another exit has interrupted.
        let plain = Before { instruction: 0xf940_0020, ..before };
        let kicked = After { pc: 0x1000, pstate: EL1H | I | F, vbar: VBAR, spsr: 0 };
        assert_eq!(super::after(&plain, &[], &kicked), unmasked);
    }

    #[test]
    fn waits() {
        for (instruction, waits) in
            [(0xd503_207f, true), (0xd503_205f, true), (0xd503_1003, true), (0xd503_1025, true), (NOP, false)]
        {
            assert_eq!(is_wait(instruction), waits, "{instruction:#x}");
        }
    }
}
