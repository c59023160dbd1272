//! Single steps by the trap flag: how an instruction is to be stepped, and what the step leaves in the guest.
//!
//! KVM steps with RFLAGS.TF, and hides it, so the guest's own trap flag has to be followed: `POPF` and
//! `IRET` load it. `PUSHF` stores the flag where the guest sees it, so the stored copy is made the guest's own
//! after the step. `INT n`, `int3` and `SYSCALL` save it and go on without it, so they are not stepped at all:
//! the vCPU runs to where they lead. So do faults, which any instruction may cause: during a step their
//! handlers are watched.
//!
//! [`plan`] is a pure function of the instruction, of the [`Processor`] and of what it [looks](Look) up.
//! Nothing here touches a vCPU.
//!
//! Source: Intel SDM vol. 2, "PUSHF/PUSHFD/PUSHFQ", "INT n/INTO/INT3/INT1", "SYSCALL", "SYSRET", "STI",
//! "HLT"; AMD APM vol. 3, "SYSCALL", "SYSRET", for what Intel's processors do not have.

pub mod gate;
pub mod opcode;

use gate::{Delivery, Handler};
use opcode::{Bits, Opcode};

/// `RFLAGS.TF`.
pub const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_OF: u64 = 1 << 11;
const RFLAGS_VM: u64 = 1 << 17;
const CR0_PE: u64 = 1 << 0;
const EFER_SCE: u64 = 1 << 0;
const EFER_LMA: u64 = 1 << 10;

/// #DB.
pub const DEBUG_VECTOR: u8 = 1;
/// #BP.
pub const BREAKPOINT_VECTOR: u8 = 3;
/// #OF.
const OVERFLOW: u8 = 4;
/// #DE, #BR, #UD, #NM, #DF, #NP, #SS, #GP, #PF, #MF, #AC, #XM (Intel SDM vol. 3, "Exception and Interrupt
/// Reference").
const DIVIDE: u8 = 0;
const BOUND: u8 = 5;
const INVALID_OPCODE: u8 = 6;
const NO_MATH: u8 = 7;
const DOUBLE_FAULT: u8 = 8;
const NOT_PRESENT: u8 = 11;
const STACK: u8 = 12;
const PROTECTION: u8 = 13;
const PAGE: u8 = 14;
const MATH: u8 = 16;
const ALIGNMENT: u8 = 17;
const SIMD: u8 = 19;

/// How the processor protects memory, which says how its exceptions are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode: exceptions go by the gates of protected mode.
    Virtual8086,
    /// Protected mode.
    Protected,
    /// Long mode, compatibility mode included.
    Long,
}

/// A descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Its last byte's offset.
    pub limit: u64,
}

/// The processor's mode, as far as steps depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// How it reads its code.
    pub bits: Bits,
    /// How exceptions are delivered.
    pub protection: Protection,
    /// The code segment's privilege level, 0 to 3.
    pub privilege: u8,
    /// RFLAGS, with the guest's own trap flag.
    pub flags: u64,
    /// `SYSCALL` and `SYSRET` are there (`IA32_EFER.SCE`).
    pub has_syscall: bool,
    /// The interrupt descriptor table, or the vectors of real mode.
    pub idt: DescriptorTable,
    /// The global descriptor table.
    pub gdt: DescriptorTable,
}

impl Processor {
    /// From its registers: `cs` is the selector.
    pub fn new(
        bits: Bits,
        [cr0, efer, flags, cs]: [u64; 4],
        idt: DescriptorTable,
        gdt: DescriptorTable,
    ) -> Processor {
        let protection = match () {
            () if cr0 & CR0_PE == 0 => Protection::Real,
            () if efer & EFER_LMA != 0 => Protection::Long,
            () if flags & RFLAGS_VM != 0 => Protection::Virtual8086,
            () => Protection::Protected,
        };
        let privilege = match protection {
            Protection::Real => 0,
            Protection::Virtual8086 => 3,
            Protection::Protected | Protection::Long => (cs & 3).to_le_bytes()[0],
        };
        Processor { bits, protection, privilege, flags, has_syscall: efer & EFER_SCE != 0, idt, gdt }
    }

    /// Whether it may do what is for system software.
    fn is_privileged(&self) -> bool {
        self.privilege == 0
    }

    /// The privilege level that may change the interrupt flag (RFLAGS.IOPL).
    fn io_privilege(&self) -> u8 {
        (self.flags >> 12 & 3).to_le_bytes()[0]
    }
}

/// What a plan looks up in the guest.
pub trait Look {
    /// Reads memory at a linear address; whether all of it is mapped.
    fn memory(&self, linear: u64, bytes: &mut [u8]) -> bool;

    /// A register by its name in the register table.
    fn register(&self, name: &'static str) -> Option<u64>;
}

/// How an instruction is stepped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It only waits for what is kept out of steps: the vCPU goes on behind it, this many bytes on.
    Skip(u64),
    /// With the trap flag.
    Trap {
        /// It stores the flags at the stack pointer, which then has the trap flag in them.
        stores_flags: bool,
        /// Handlers that it may fault to, the likely ones first.
        faults: Vec<Handler>,
    },
    /// The vCPU runs, without the trap flag, to one of these linear addresses.
    RunTo {
        /// Where it leads.
        targets: Vec<u64>,
        /// Handlers that it may fault to instead.
        faults: Vec<Handler>,
        /// A trap of the guest's own trap flag comes behind it, as the processor would raise it.
        traps: bool,
    },
}

/// Plans the step of the instruction at the start of `code`, which is at `linear`.
pub fn plan(code: &[u8], linear: u64, processor: &Processor, look: &dyn Look) -> Plan {
    let Some(opcode) = Opcode::read(code, processor.bits) else {
        // It faults when it is fetched.
        return processor.trap(look, &[PAGE, PROTECTION, INVALID_OPCODE], false);
    };
    let interrupt = |vector| processor.interrupt(look, vector);
    match opcode.number {
        // Whoever may do it, it is none of these with LOCK, but #UD.
        HLT | INT3 | INT_N | INTO | INT1 | STI | SYSCALL | SYSRET if opcode.is_locked => {
            processor.trap(look, &[INVALID_OPCODE, PAGE, DOUBLE_FAULT, NOT_PRESENT], false)
        }
        HLT if processor.is_privileged() => Plan::Skip(opcode.length as u64),
        INT3 => interrupt(BREAKPOINT_VECTOR),
        INT_N if code.len() > opcode.length => interrupt(opcode.next),
        INTO if processor.bits != Bits::Code64 && processor.flags & RFLAGS_OF != 0 => interrupt(OVERFLOW),
        INT1 => match processor.handler(look, DEBUG_VECTOR) {
            Some(handler) => processor.run_to(look, vec![handler.address], &[DOUBLE_FAULT, PAGE], false),
            None => processor.trap(look, &[NOT_PRESENT, DOUBLE_FAULT], false),
        },
        // Some processors hold its trap back for one more instruction.
        STI if processor.privilege <= processor.io_privilege() => {
            let next = linear.wrapping_add(opcode.length as u64);
            processor.run_to(look, vec![next], &[], true)
        }
        SYSCALL => processor.syscall(look),
        SYSRET => processor.sysret(look, opcode.is_wide),
        number => processor.trap(look, &processor.likely_faults(&opcode), number == PUSHF),
    }
}

const PUSHF: u16 = 0x9c;
const POPF: u16 = 0x9d;
const INT3: u16 = 0xcc;
const INT_N: u16 = 0xcd;
const INTO: u16 = 0xce;
const IRET: u16 = 0xcf;
const INT1: u16 = 0xf1;
const HLT: u16 = 0xf4;
const STI: u16 = 0xfb;
const SYSCALL: u16 = 0x0f05;
const SYSRET: u16 = 0x0f07;

impl Processor {
    fn faults(&self, look: &dyn Look, vectors: &[u8]) -> Vec<Handler> {
        let mut faults: Vec<Handler> = Vec::new();
        for vector in vectors {
            if let Some(handler) = self.handler(look, *vector)
                && !faults.iter().any(|fault| fault.address == handler.address)
            {
                faults.push(handler);
            }
        }
        faults
    }

    fn trap(&self, look: &dyn Look, vectors: &[u8], stores_flags: bool) -> Plan {
        Plan::Trap { stores_flags, faults: self.faults(look, vectors) }
    }

    fn run_to(&self, look: &dyn Look, targets: Vec<u64>, vectors: &[u8], traps: bool) -> Plan {
        let mut faults = self.faults(look, vectors);
        faults.retain(|fault| !targets.contains(&fault.address));
        Plan::RunTo { targets, faults, traps }
    }

    /// A software interrupt. What it pushes may fault, too.
    fn interrupt(&self, look: &dyn Look, vector: u8) -> Plan {
        let is_restricted = self.protection == Protection::Virtual8086 && vector != BREAKPOINT_VECTOR;
        match self.software_interrupt(look, vector) {
            // By the bitmap of its task a virtual-8086 program may have the vector of real mode.
            Delivery::To(handler) if is_restricted => {
                let real = Processor { protection: Protection::Real, idt: REAL_IDT, ..*self };
                let also = real.handler(look, vector).map(|handler| handler.address);
                let targets = [handler.address].into_iter().chain(also).collect();
                self.run_to(look, targets, &[PROTECTION, PAGE], false)
            }
            Delivery::To(handler) => {
                self.run_to(look, vec![handler.address], &[PAGE, PROTECTION, DOUBLE_FAULT, STACK], false)
            }
            Delivery::Faults(vector) => {
                self.trap(look, &[vector, PROTECTION, NOT_PRESENT, DOUBLE_FAULT, PAGE], false)
            }
            Delivery::Unknown => self.trap(look, &[PROTECTION, PAGE, DOUBLE_FAULT, NOT_PRESENT], false),
        }
    }

    /// Intel's processors have it in 64-bit mode only, AMD's in the others, too.
    fn syscall(&self, look: &dyn Look) -> Plan {
        if !self.has_syscall || matches!(self.protection, Protection::Real | Protection::Virtual8086) {
            return self.trap(look, &[INVALID_OPCODE, DOUBLE_FAULT], false);
        }
        let target = match (self.bits, self.protection) {
            (Bits::Code64, _) => look.register("lstar"),
            (_, Protection::Long) => look.register("cstar"),
            _ => look.register("star").map(|star| star & 0xffff_ffff),
        };
        self.run_to(look, target.into_iter().collect(), &[INVALID_OPCODE, PAGE, DOUBLE_FAULT], false)
    }

    /// It loads flags without the trap flag before that is looked at (AMD APM vol. 3, "SYSRET").
    fn sysret(&self, look: &dyn Look, is_wide: bool) -> Plan {
        let is_there =
            self.has_syscall && !matches!(self.protection, Protection::Real | Protection::Virtual8086);
        if !is_there || !self.is_privileged() {
            return self.trap(look, &[INVALID_OPCODE, PROTECTION, DOUBLE_FAULT], false);
        }
        let mask = if is_wide { u64::MAX } else { 0xffff_ffff };
        let target = look.register("rcx").map(|rcx| rcx & mask);
        self.run_to(look, target.into_iter().collect(), &[PROTECTION, INVALID_OPCODE, PAGE], false)
    }
}

/// Where real mode has its vectors, unless it was told otherwise, and a virtual-8086 task.
const REAL_IDT: DescriptorTable = DescriptorTable { base: 0, limit: 0x3ff };

impl Processor {
    /// Faults that an instruction causes here, the likely ones first. There are four debug registers for them at most.
    fn likely_faults(&self, opcode: &Opcode) -> [u8; 6] {
        // VEX and EVEX prefixes are instructions of old where a memory operand is named (SDM vol. 2, 2.3.5).
        let is_vector =
            [0x62, 0xc4, 0xc5].contains(&opcode.number) && (self.bits == Bits::Code64 || opcode.next >= 0xc0);
        let mut faults = if is_vector { VECTOR_FAULTS } else { likely_faults(opcode) };
        // A program that has asked for it (SDM vol. 3, 7.15, "#AC").
        if self.privilege == 3 && self.flags & RFLAGS_AC != 0 {
            let at = faults.iter().position(|fault| *fault == ALIGNMENT).unwrap_or(faults.len() - 1);
            faults[at] = ALIGNMENT;
            faults[..=at].rotate_right(1);
        }
        faults
    }
}

/// Those of instructions on vectors.
const VECTOR_FAULTS: [u8; 6] = [PAGE, PROTECTION, NO_MATH, SIMD, INVALID_OPCODE, STACK];
/// Alignment is checked in user mode.
const RFLAGS_AC: u64 = 1 << 18;

/// The same of an instruction by itself.
fn likely_faults(opcode: &Opcode) -> [u8; 6] {
    let divides = [0xf6, 0xf7].contains(&opcode.number) && opcode.operation() >= 6;
    match opcode.number {
        0xd4 => [DIVIDE, PAGE, PROTECTION, INVALID_OPCODE, STACK, NO_MATH],
        _ if divides => [DIVIDE, PAGE, PROTECTION, STACK, INVALID_OPCODE, ALIGNMENT],
        0x9b | 0xd8..=0xdf => [NO_MATH, MATH, PAGE, PROTECTION, STACK, INVALID_OPCODE],
        // MOV to a segment register, LES, LDS, POP of one, far jumps, calls and returns, IRET, LLDT, LTR,
        // LSS, LFS, LGS.
        0x07 | 0x17 | 0x1f | 0x8e | 0x9a | 0xc4 | 0xc5 | 0xca | 0xcb | IRET | 0xea | 0xff | 0x0f00
        | 0x0fa1 | 0x0fa9 | 0x0fb2 | 0x0fb4 | 0x0fb5 => {
            [PAGE, PROTECTION, NOT_PRESENT, STACK, INVALID_OPCODE, NO_MATH]
        }
        // PUSH, POP, CALL, RET, ENTER, LEAVE.
        0x50..=0x5f | 0xc2 | 0xc3 | 0xc8 | 0xc9 | 0xe8 => {
            [PAGE, STACK, PROTECTION, ALIGNMENT, INVALID_OPCODE, NO_MATH]
        }
        0x62 => [BOUND, PAGE, PROTECTION, INVALID_OPCODE, NO_MATH, SIMD],
        0x0f0b | 0x0fb9 | 0x0fff => [INVALID_OPCODE, PAGE, PROTECTION, NO_MATH, STACK, ALIGNMENT],
        // SSE and AVX arithmetic, and its conversions.
        0x0f10..=0x0f17 | 0x0f28..=0x0f2f | 0x0f50..=0x0f7f | 0x0fc2 | 0x0fd0..=0x0fff => VECTOR_FAULTS,
        _ => [PAGE, PROTECTION, INVALID_OPCODE, STACK, NO_MATH, ALIGNMENT],
    }
}

/// Where an instruction finds the flags that it loads, if it does: bytes from the stack pointer. `IRET` has
/// them behind the instruction pointer and the code segment.
pub fn loads_flags(code: &[u8], bits: Bits) -> Option<u64> {
    let opcode = Opcode::read(code, bits)?;
    match opcode.number {
        POPF => Some(0),
        IRET if bits == Bits::Code64 && !opcode.is_wide => Some(opcode.stack_operand.min(4) * 2),
        IRET => Some(opcode.stack_operand * 2),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
