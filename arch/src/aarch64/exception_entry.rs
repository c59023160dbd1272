//! Entering a guest's exception vector by hand: what the processor does when it takes an
//! exception to EL1, as a function from registers to registers.
//!
//! A debug exception that KVM routes to us and that is the guest's own is given back this
//! way. Source: Arm ARM (DDI 0487), `AArch64.TakeException` and "Exception entry": the
//! pseudocode's effect on PSTATE, `SPSR_EL1`, `ELR_EL1`, `ESR_EL1` and `FAR_EL1`.

use super::syndrome::DebugException;

/// Bits of PSTATE, as `SPSR_ELx` and KVM have them.
pub mod pstate {
    /// Negative, zero, carry, overflow.
    pub const NZCV: u64 = 0xf << 28;
    /// Tag check override.
    pub const TCO: u64 = 1 << 25;
    /// Data independent timing.
    pub const DIT: u64 = 1 << 24;
    /// User access override.
    pub const UAO: u64 = 1 << 23;
    /// Privileged access never.
    pub const PAN: u64 = 1 << 22;
    /// Software step.
    pub const SS: u64 = 1 << 21;
    /// Illegal execution state.
    pub const IL: u64 = 1 << 20;
    /// All interrupt and superpriority masking.
    pub const ALLINT: u64 = 1 << 13;
    /// Speculative store bypass safe.
    pub const SSBS: u64 = 1 << 12;
    /// Branch type.
    pub const BTYPE: u64 = 0b11 << 10;
    /// Debug, SError, IRQ and FIQ masks.
    pub const DAIF: u64 = 0xf << 6;
    /// IRQ mask.
    pub const I: u64 = 1 << 7;
    /// FIQ mask.
    pub const F: u64 = 1 << 6;
    /// AArch32 state.
    pub const NRW: u64 = 1 << 4;
    /// Exception level, stack pointer selection.
    pub const MODE: u64 = 0xf;
    /// EL1 with `SP_EL1`.
    pub const EL1H: u64 = 0b0101;
    /// EL1 with `SP_EL0`.
    pub const EL1T: u64 = 0b0100;
    /// EL0.
    pub const EL0T: u64 = 0b0000;
}

/// `SCTLR_EL1.SPAN`: PAN is left alone on exceptions to EL1.
pub const SCTLR_SPAN: u64 = 1 << 23;
/// `SCTLR_EL1.DSSBS`: SSBS on exceptions to EL1.
pub const SCTLR_DSSBS: u64 = 1 << 44;
/// `SCTLR_EL1.SPINTMASK`: ALLINT on exceptions to EL1 is its complement.
pub const SCTLR_SPINTMASK: u64 = 1 << 62;

/// Which optional parts of PSTATE the processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_MTE, any form.
    pub mte: bool,
    /// FEAT_NMI.
    pub nmi: bool,
}

impl Features {
    /// What the ID registers say.
    pub fn new(id_aa64pfr1: u64, id_aa64mmfr1: u64) -> Features {
        let field = |register: u64, shift: u32| register >> shift & 0xf;
        Features {
            pan: field(id_aa64mmfr1, 20) != 0,
            ssbs: field(id_aa64pfr1, 4) != 0,
            mte: field(id_aa64pfr1, 8) != 0,
            nmi: field(id_aa64pfr1, 36) != 0,
        }
    }
}

/// Registers that an exception entry reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Address to return to: for a `BRK` its own, for a step the next instruction.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
    /// `VBAR_EL1`.
    pub vbar: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
    /// What the processor has.
    pub features: Features,
}

/// Registers that an exception entry writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// The vector's address.
    pub pc: u64,
    /// PSTATE at the vector.
    pub pstate: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
    /// `ELR_EL1`.
    pub elr: u64,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`, where the exception sets it.
    pub far: Option<u64>,
}

/// Where a synchronous exception that is taken to EL1 with this PSTATE goes (Arm ARM (DDI 0487), "Exception
/// vectors").
pub fn vector(vbar: u64, pstate: u64) -> u64 {
    let offset = if pstate & pstate::NRW != 0 {
        0x600
    } else if pstate & pstate::MODE == pstate::EL0T {
        0x400
    } else if pstate & 1 != 0 {
        0x200
    } else {
        0x000
    };
    (vbar & !0x7ff) + offset
}

/// The PSTATE with which a page of user mode's, or of the kernel's, is fetched from, as far as [`vector`] asks, by a vCPU
/// whose PSTATE is `now`: as it is where that is the level, else EL0 of AArch64, or EL1 with its own stack pointer.
pub fn pstate_of_fetch(is_users: bool, now: u64) -> u64 {
    let is_in_user_mode = now & pstate::MODE == pstate::EL0T || now & pstate::NRW != 0;
    match is_users {
        _ if is_users == is_in_user_mode => now,
        true => pstate::EL0T,
        false => pstate::EL1H,
    }
}

/// The address whose fetch was refused, when a vCPU is at the vector of that: the abort of an instruction on a
/// page that may not be executed (Arm ARM (DDI 0487), "`ESR_EL1`": EC of an Instruction Abort, IFSC of a
/// Permission fault).
pub fn refused_fetch(esr: u64, elr: u64) -> Option<u64> {
    const INSTRUCTION_ABORT: [u64; 2] = [0x20, 0x21];
    /// But for the level, in the low two bits.
    const PERMISSION: u64 = 0b00_1100;
    let is_permission = esr & 0b11_1100 == PERMISSION;
    (INSTRUCTION_ABORT.contains(&(esr >> 26 & 0x3f)) && is_permission).then_some(elr)
}

/// Takes a debug exception to EL1. `far` is the address of the access, for a watchpoint.
pub fn take(exception: DebugException, far: u64, before: &Before) -> After {
    let Before { pc, pstate: old, vbar, sctlr, features } = *before;
    let from_lower = old & pstate::NRW != 0 || old & pstate::MODE == pstate::EL0T;
    // The flags and DIT stay; what is not named here is cleared.
    let mut new = old & (pstate::NZCV | pstate::DIT | pstate::PAN) | pstate::DAIF | pstate::EL1H;
    if features.pan && sctlr & SCTLR_SPAN == 0 {
        new |= pstate::PAN;
    }
    if features.ssbs && sctlr & SCTLR_DSSBS != 0 {
        new |= pstate::SSBS;
    }
    if features.mte {
        new |= pstate::TCO;
    }
    if features.nmi && sctlr & SCTLR_SPINTMASK == 0 {
        new |= pstate::ALLINT;
    }
    let far = matches!(exception, DebugException::Watchpoint { .. }).then_some(far);
    After { pc: vector(vbar, old), pstate: new, spsr: old, elr: pc, esr: exception.syndrome(from_lower), far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_page_it_is_tells_the_vector() {
        // EL0, AArch32's user mode, EL1 with its own stack pointer, EL1 with that of EL0.
        for (now, of_user, of_kernel) in
            [(0, 0x400, 0x200), (0x10, 0x600, 0x200), (5, 0x400, 0x200), (4, 0x400, 0)]
        {
            let at = |is_users| vector(0x8000, pstate_of_fetch(is_users, now)) - 0x8000;
            assert_eq!((at(true), at(false)), (of_user, of_kernel), "{now:#x}");
        }
    }

    const VBAR: u64 = 0xffff_8000_1000_0800;

    fn before(pstate: u64, sctlr: u64, features: Features) -> Before {
        Before { pc: 0x1234_5678, pstate, vbar: VBAR, sctlr, features }
    }

    #[test]
    fn the_vector_follows_the_level_and_the_stack() {
        for (mode, offset, class) in [
            (pstate::EL1T, 0x000, 0x33),
            (pstate::EL1H, 0x200, 0x33),
            (pstate::EL0T, 0x400, 0x32),
            (pstate::NRW, 0x600, 0x32),
        ] {
            let step = DebugException::SoftwareStep { load_exclusive: false };
            let after = take(step, 0, &before(mode, 0, Features::default()));
            assert_eq!((after.pc, after.esr >> 26), (VBAR + offset, class), "{mode:#x}");
            assert_eq!((after.elr, after.spsr), (0x1234_5678, mode));
        }
    }

    #[test]
    fn pstate_at_the_vector() {
        use pstate::*;
        let all = Features { pan: true, ssbs: true, mte: true, nmi: true };
        let none = Features::default();
        let base = DAIF | EL1H;
        for (old, sctlr, features, new) in [
            (NZCV | EL0T, 0, none, NZCV | base),
            (SS | IL | BTYPE | UAO | EL1H, 0, none, base),
            (DIT | EL1H, 0, none, DIT | base),
            // SPAN clear sets PAN; SPAN set leaves it as it was.
            (EL0T, 0, Features { pan: true, ..none }, PAN | base),
            (EL0T, SCTLR_SPAN, Features { pan: true, ..none }, base),
            (PAN | EL1H, SCTLR_SPAN, Features { pan: true, ..none }, PAN | base),
            (SSBS | EL1H, 0, Features { ssbs: true, ..none }, base),
            (EL1H, SCTLR_DSSBS, Features { ssbs: true, ..none }, SSBS | base),
            (EL1H, 0, Features { mte: true, ..none }, TCO | base),
            (EL1H, 0, Features { nmi: true, ..none }, ALLINT | base),
            (ALLINT | EL1H, SCTLR_SPINTMASK, Features { nmi: true, ..none }, base),
            (EL0T, SCTLR_DSSBS, all, TCO | ALLINT | PAN | SSBS | base),
        ] {
            let after = take(DebugException::Brk(7), 0, &before(old, sctlr, features));
            assert_eq!(after.pstate, new, "{old:#x} {sctlr:#x} {features:?}");
            assert_eq!((after.spsr, after.esr, after.far), (old, 0xf200_0007, None));
        }
    }

    #[test]
    fn only_a_watchpoint_sets_far() {
        let watch = DebugException::Watchpoint { is_write: true, is_cache_maintenance: false };
        let after = take(watch, 0xabcd, &before(pstate::EL1H, 0, Features::default()));
        assert_eq!((after.far, after.esr), (Some(0xabcd), 0xd600_0062));
    }

    #[test]
    fn features_from_id_registers() {
        assert_eq!(Features::new(0, 0), Features::default());
        let all = Features { pan: true, ssbs: true, mte: true, nmi: true };
        assert_eq!(Features::new(1 << 36 | 2 << 8 | 2 << 4, 3 << 20), all);
    }
}
