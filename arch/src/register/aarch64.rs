//! The registers of aarch64.
//!
//! Names and order of the standard features are those of the GDB manual, "AArch64 Features";
//! offsets are those of KVM's `struct kvm_regs` (`arch/arm64/include/uapi/asm/kvm.h`),
//! encodings those of the Arm ARM (DDI 0487), "AArch64 System Registers". KVM's names for
//! `CNTV_CVAL_EL0` and `CNTVCT_EL0` are exchanged by mistake (KVM API, `KVM_SET_ONE_REG`),
//! and so are the encodings here.

use super::{Feature, Group, Register, Source, describe as row};
use Feature::{Aarch64Core, Aarch64Fpu, Aarch64PointerAuthentication, Aarch64System};
use Group::{Debug, Float, General, Vector as Vectors};
use Source::{Core, Fpcr, Fpsr, PointerMask, StackPointer, System, Vector};

/// Row of PC.
pub const PC: usize = 32;
/// Row of CPSR: PSTATE.
pub const CPSR: usize = 33;

/// A system register's encoding: op0, op1, CRn, CRm, op2.
pub const fn encoding(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Every row.
#[rustfmt::skip]
pub const TABLE: &[Register] = &[
    row("x0", 64, General, Aarch64Core, "int64", Core(0)),
    row("x1", 64, General, Aarch64Core, "int64", Core(8)),
    row("x2", 64, General, Aarch64Core, "int64", Core(16)),
    row("x3", 64, General, Aarch64Core, "int64", Core(24)),
    row("x4", 64, General, Aarch64Core, "int64", Core(32)),
    row("x5", 64, General, Aarch64Core, "int64", Core(40)),
    row("x6", 64, General, Aarch64Core, "int64", Core(48)),
    row("x7", 64, General, Aarch64Core, "int64", Core(56)),
    row("x8", 64, General, Aarch64Core, "int64", Core(64)),
    row("x9", 64, General, Aarch64Core, "int64", Core(72)),
    row("x10", 64, General, Aarch64Core, "int64", Core(80)),
    row("x11", 64, General, Aarch64Core, "int64", Core(88)),
    row("x12", 64, General, Aarch64Core, "int64", Core(96)),
    row("x13", 64, General, Aarch64Core, "int64", Core(104)),
    row("x14", 64, General, Aarch64Core, "int64", Core(112)),
    row("x15", 64, General, Aarch64Core, "int64", Core(120)),
    row("x16", 64, General, Aarch64Core, "int64", Core(128)),
    row("x17", 64, General, Aarch64Core, "int64", Core(136)),
    row("x18", 64, General, Aarch64Core, "int64", Core(144)),
    row("x19", 64, General, Aarch64Core, "int64", Core(152)),
    row("x20", 64, General, Aarch64Core, "int64", Core(160)),
    row("x21", 64, General, Aarch64Core, "int64", Core(168)),
    row("x22", 64, General, Aarch64Core, "int64", Core(176)),
    row("x23", 64, General, Aarch64Core, "int64", Core(184)),
    row("x24", 64, General, Aarch64Core, "int64", Core(192)),
    row("x25", 64, General, Aarch64Core, "int64", Core(200)),
    row("x26", 64, General, Aarch64Core, "int64", Core(208)),
    row("x27", 64, General, Aarch64Core, "int64", Core(216)),
    row("x28", 64, General, Aarch64Core, "int64", Core(224)),
    row("x29", 64, General, Aarch64Core, "int64", Core(232)),
    row("x30", 64, General, Aarch64Core, "int64", Core(240)),
    row("sp", 64, General, Aarch64Core, "data_ptr", StackPointer),
    row("pc", 64, General, Aarch64Core, "code_ptr", Core(256)),
    row("cpsr", 32, General, Aarch64Core, "cpsr_flags", Core(264)),
    row("v0", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(0)),
    row("v1", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(1)),
    row("v2", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(2)),
    row("v3", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(3)),
    row("v4", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(4)),
    row("v5", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(5)),
    row("v6", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(6)),
    row("v7", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(7)),
    row("v8", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(8)),
    row("v9", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(9)),
    row("v10", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(10)),
    row("v11", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(11)),
    row("v12", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(12)),
    row("v13", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(13)),
    row("v14", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(14)),
    row("v15", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(15)),
    row("v16", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(16)),
    row("v17", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(17)),
    row("v18", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(18)),
    row("v19", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(19)),
    row("v20", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(20)),
    row("v21", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(21)),
    row("v22", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(22)),
    row("v23", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(23)),
    row("v24", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(24)),
    row("v25", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(25)),
    row("v26", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(26)),
    row("v27", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(27)),
    row("v28", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(28)),
    row("v29", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(29)),
    row("v30", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(30)),
    row("v31", 128, Vectors, Aarch64Fpu, "aarch64v", Vector(31)),
    row("fpsr", 32, Float, Aarch64Fpu, "int", Fpsr),
    row("fpcr", 32, Float, Aarch64Fpu, "int", Fpcr),
    row("sp_el0", 64, Group::System, Aarch64System, "data_ptr", Core(248)),
    row("sp_el1", 64, Group::System, Aarch64System, "data_ptr", Core(272)),
    row("elr_el1", 64, Group::System, Aarch64System, "code_ptr", Core(280)),
    row("spsr_el1", 64, Group::System, Aarch64System, "int64", Core(288)),
    row("sctlr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 1, 0, 0))),
    row("actlr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 1, 0, 1))),
    row("cpacr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 1, 0, 2))),
    row("ttbr0_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 2, 0, 0))),
    row("ttbr1_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 2, 0, 1))),
    row("tcr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 2, 0, 2))),
    row("afsr0_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 5, 1, 0))),
    row("afsr1_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 5, 1, 1))),
    row("esr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 5, 2, 0))),
    row("far_el1", 64, Group::System, Aarch64System, "data_ptr", System(encoding(3, 0, 6, 0, 0))),
    row("par_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 7, 4, 0))),
    row("mair_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 10, 2, 0))),
    row("amair_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 10, 3, 0))),
    row("vbar_el1", 64, Group::System, Aarch64System, "code_ptr", System(encoding(3, 0, 12, 0, 0))),
    row("contextidr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 13, 0, 1))),
    row("tpidr_el1", 64, Group::System, Aarch64System, "data_ptr", System(encoding(3, 0, 13, 0, 4))),
    row("tpidr_el0", 64, Group::System, Aarch64System, "data_ptr", System(encoding(3, 3, 13, 0, 2))),
    row("tpidrro_el0", 64, Group::System, Aarch64System, "data_ptr", System(encoding(3, 3, 13, 0, 3))),
    row("cntkctl_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 14, 1, 0))),
    row("cntv_ctl_el0", 64, Group::System, Aarch64System, "int64", System(encoding(3, 3, 14, 3, 1))),
    row("cntv_cval_el0", 64, Group::System, Aarch64System, "int64", System(encoding(3, 3, 14, 0, 2))),
    row("cntvct_el0", 64, Group::System, Aarch64System, "int64", System(encoding(3, 3, 14, 3, 2))),
    row("midr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 0, 0, 0))),
    row("mpidr_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 0, 0, 5))),
    row("id_aa64pfr0_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 0, 4, 0))),
    row("id_aa64pfr1_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 0, 4, 1))),
    row("id_aa64mmfr1_el1", 64, Group::System, Aarch64System, "int64", System(encoding(3, 0, 0, 7, 1))),
    row("mdscr_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 2, 2))),
    row("dbgbvr0_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 0, 4))),
    row("dbgbvr1_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 1, 4))),
    row("dbgbvr2_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 2, 4))),
    row("dbgbvr3_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 3, 4))),
    row("dbgbvr4_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 4, 4))),
    row("dbgbvr5_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 5, 4))),
    row("dbgbvr6_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 6, 4))),
    row("dbgbvr7_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 7, 4))),
    row("dbgbvr8_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 8, 4))),
    row("dbgbvr9_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 9, 4))),
    row("dbgbvr10_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 10, 4))),
    row("dbgbvr11_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 11, 4))),
    row("dbgbvr12_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 12, 4))),
    row("dbgbvr13_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 13, 4))),
    row("dbgbvr14_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 14, 4))),
    row("dbgbvr15_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 15, 4))),
    row("dbgbcr0_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 0, 5))),
    row("dbgbcr1_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 1, 5))),
    row("dbgbcr2_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 2, 5))),
    row("dbgbcr3_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 3, 5))),
    row("dbgbcr4_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 4, 5))),
    row("dbgbcr5_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 5, 5))),
    row("dbgbcr6_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 6, 5))),
    row("dbgbcr7_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 7, 5))),
    row("dbgbcr8_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 8, 5))),
    row("dbgbcr9_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 9, 5))),
    row("dbgbcr10_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 10, 5))),
    row("dbgbcr11_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 11, 5))),
    row("dbgbcr12_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 12, 5))),
    row("dbgbcr13_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 13, 5))),
    row("dbgbcr14_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 14, 5))),
    row("dbgbcr15_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 15, 5))),
    row("dbgwvr0_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 0, 6))),
    row("dbgwvr1_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 1, 6))),
    row("dbgwvr2_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 2, 6))),
    row("dbgwvr3_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 3, 6))),
    row("dbgwvr4_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 4, 6))),
    row("dbgwvr5_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 5, 6))),
    row("dbgwvr6_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 6, 6))),
    row("dbgwvr7_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 7, 6))),
    row("dbgwvr8_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 8, 6))),
    row("dbgwvr9_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 9, 6))),
    row("dbgwvr10_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 10, 6))),
    row("dbgwvr11_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 11, 6))),
    row("dbgwvr12_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 12, 6))),
    row("dbgwvr13_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 13, 6))),
    row("dbgwvr14_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 14, 6))),
    row("dbgwvr15_el1", 64, Debug, Aarch64System, "data_ptr", System(encoding(2, 0, 0, 15, 6))),
    row("dbgwcr0_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 0, 7))),
    row("dbgwcr1_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 1, 7))),
    row("dbgwcr2_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 2, 7))),
    row("dbgwcr3_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 3, 7))),
    row("dbgwcr4_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 4, 7))),
    row("dbgwcr5_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 5, 7))),
    row("dbgwcr6_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 6, 7))),
    row("dbgwcr7_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 7, 7))),
    row("dbgwcr8_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 8, 7))),
    row("dbgwcr9_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 9, 7))),
    row("dbgwcr10_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 10, 7))),
    row("dbgwcr11_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 11, 7))),
    row("dbgwcr12_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 12, 7))),
    row("dbgwcr13_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 13, 7))),
    row("dbgwcr14_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 14, 7))),
    row("dbgwcr15_el1", 64, Debug, Aarch64System, "int64", System(encoding(2, 0, 0, 15, 7))),
    row("pauth_dmask", 64, Group::System, Aarch64PointerAuthentication, "int", PointerMask { is_high: false }),
    row("pauth_cmask", 64, Group::System, Aarch64PointerAuthentication, "int", PointerMask { is_high: false }),
    row("pauth_dmask_high", 64, Group::System, Aarch64PointerAuthentication, "int", PointerMask { is_high: true }),
    row("pauth_cmask_high", 64, Group::System, Aarch64PointerAuthentication, "int", PointerMask { is_high: true }),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_those_of_kvm() {
        // ARM64_SYS_REG(3, 0, 0, 0, 5) is MPIDR_EL1.
        assert_eq!(encoding(3, 0, 0, 0, 5), 0xc005);
        assert_eq!(encoding(2, 0, 0, 15, 7), 0x807f);
    }

    #[test]
    fn standard_features_have_all_registers_that_gdb_asks_for() {
        let count = |feature| TABLE.iter().filter(|row| row.feature == feature).count();
        assert_eq!((count(Aarch64Core), count(Aarch64Fpu)), (34, 34));
    }
}
