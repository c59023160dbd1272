//! Whose is a debug exit: the debugger's, the guest's own, or nobody's?
//!
//! [`decide`] is a pure function of what the processor reported, what stands at the program
//! counter, and what the vCPU was armed with. It asks KVM nothing. What is the guest's own is
//! described by an [`Injection`], which gives it back as the hardware would have.

use crate::abilities::Access;
use crate::arming::{DebugRegisters, Own, Want};
use arch::aarch64::debug_registers::MOST;
use arch::aarch64::syndrome::DebugException;
use arch::x86::debug_registers::{self as x86, Condition};

/// What the processor reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trap {
    /// x86 #BP, with RIP at the `int3`.
    Int3,
    /// x86 #DB.
    Debug {
        /// `DR6` as the processor would have set it.
        dr6: u64,
    },
    /// An aarch64 debug exception.
    Aarch64 {
        /// Which.
        exception: DebugException,
        /// `FAR_EL2`: for a watchpoint, the address of the access.
        far: u64,
    },
    /// KVM could not emulate an instruction that starts with these bytes.
    EmulationFailure {
        /// As many as KVM told.
        instruction: Vec<u8>,
    },
}

impl Trap {
    /// Whether it is of a breakpoint instruction.
    pub fn is_of_instruction(&self) -> bool {
        matches!(self, Trap::Int3 | Trap::Aarch64 { exception: DebugException::Brk(_), .. })
    }
}

/// An exception that is the guest's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// x86 #BP from the `int3` at RIP.
    Breakpoint,
    /// x86 #DB.
    Debug {
        /// Bits to set in the guest's `DR6`.
        dr6: u64,
        /// It comes before its instruction, as that of an instruction breakpoint does: the
        /// flags that are saved have RF, so that the handler returns past it.
        is_fault: bool,
        /// Bytes by which RIP goes on first: the length of an `INT1`, whose #DB is a trap,
        /// and which RIP still points to.
        skip: u64,
    },
    /// An aarch64 debug exception to EL1.
    Aarch64 {
        /// Which.
        exception: DebugException,
        /// `FAR_EL1`, for a watchpoint.
        far: u64,
    },
}

impl Injection {
    /// The same, once it has been queued and dropped again: what it does to registers is done.
    #[must_use]
    pub fn again(self) -> Injection {
        match self {
            Injection::Debug { dr6, is_fault, .. } => Injection::Debug { dr6, is_fault, skip: 0 },
            other => other,
        }
    }

    /// Whether it comes from a debug register that the guest has armed. It may have disarmed it
    /// again since, without anyone noticing.
    pub fn is_of_register(&self) -> bool {
        match self {
            Injection::Breakpoint => false,
            Injection::Debug { dr6, .. } => x86::matches(*dr6).next().is_some(),
            Injection::Aarch64 { exception, .. } => {
                matches!(exception, DebugException::Breakpoint | DebugException::Watchpoint { .. })
            }
        }
    }
}

/// What the guest is owed of an exit that is the debugger's: on x86 one #DB can tell of
/// registers of both.
pub fn also_guests(trap: &Trap, at: &Situation) -> Option<Injection> {
    let Trap::Debug { dr6 } = trap else { return None };
    let (bits, is_fault) = own_matches(*dr6, at.own);
    // A fault is raised again when the debugger's breakpoint has been stepped off.
    (bits != 0 && !is_fault).then_some(Injection::Debug { dr6: bits, is_fault, skip: 0 })
}

/// The registers of the guest's own that `DR6` names, as its own bits, and whether one of them is
/// on an instruction.
fn own_matches(dr6: u64, own: &[Own]) -> (u64, bool) {
    let matched = own.iter().filter(|own| dr6 >> own.armed & 1 != 0);
    matched.fold((0, false), |(bits, is_fault), own| (bits | 1 << own.register, is_fault | own.is_execute))
}

/// What an exit of the debugger's means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A planted instruction at the program counter.
    Planted,
    /// A debug register on the instruction at the program counter; the index of its want.
    Execute(usize),
    /// A watched access: the index of its want, and the address that was accessed.
    Watch(usize, u64),
    /// A step is done.
    Step,
}

/// Whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The debugger's.
    Debugger(Cause),
    /// The guest's own.
    Guest(Injection),
    /// Nobody's.
    Nobody,
}

/// What is known at the exit.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Program counter, guest-virtual.
    pub pc: u64,
    /// An instruction that the debugger planted stands there.
    pub is_planted: bool,
    /// The byte at the program counter, on x86.
    pub opcode: Option<u8>,
    /// The debugger asked for a step.
    pub is_step: bool,
    /// Debug registers in force.
    pub registers: &'a DebugRegisters,
    /// Which want each of them serves.
    pub served: &'a [(usize, usize)],
    /// What wanted them.
    pub wants: &'a [Want],
    /// Which of the registers in force are the guest's own, and which of its own each stands
    /// for.
    pub own: &'a [Own],
}

impl Situation<'_> {
    fn want(&self, register: usize) -> Option<(usize, Want)> {
        let (_, index) = self.served.iter().find(|(place, _)| *place == register)?;
        Some((*index, *self.wants.get(*index)?))
    }
}

/// `INT1` (`ICEBP`).
const INT1: u8 = 0xf1;
/// `int3`.
const INT3: u8 = 0xcc;

/// Decides.
pub fn decide(trap: &Trap, at: &Situation) -> Owner {
    match trap {
        Trap::Int3 if at.is_planted => Owner::Debugger(Cause::Planted),
        Trap::Int3 => Owner::Guest(Injection::Breakpoint),
        Trap::Debug { dr6 } => decide_debug(*dr6, at),
        Trap::Aarch64 { exception, far } => decide_aarch64(*exception, *far, at),
        Trap::EmulationFailure { instruction } => {
            if at.is_planted && instruction.first() == Some(&INT3) {
                Owner::Debugger(Cause::Planted)
            } else {
                Owner::Nobody
            }
        }
    }
}

fn decide_debug(dr6: u64, at: &Situation) -> Owner {
    let DebugRegisters::X86(slots) = at.registers else { return Owner::Nobody };
    let mut watch = None;
    // DR6 may name registers that are not armed (Intel SDM vol. 3, "Debug Status Register").
    for register in x86::matches(dr6) {
        let (Some(slot), Some((want, _))) = (slots[register], at.want(register)) else { continue };
        if slot.condition == Condition::Execute {
            if slot.address == at.pc {
                return Owner::Debugger(Cause::Execute(want));
            }
        } else {
            watch = watch.or(Some(Cause::Watch(want, slot.address)));
        }
    }
    if let Some(watch) = watch {
        return Owner::Debugger(watch);
    }
    let is_single_step = dr6 & x86::DR6_BS != 0;
    if is_single_step && at.is_step {
        return Owner::Debugger(Cause::Step);
    }
    let is_int1 = !is_single_step && x86::matches(dr6).next().is_none() && at.opcode == Some(INT1);
    let (bits, is_fault) = own_matches(dr6, at.own);
    let known = dr6 & (x86::DR6_BS | x86::DR6_BD | x86::DR6_BT) | bits;
    Owner::Guest(Injection::Debug { dr6: known, is_fault, skip: u64::from(is_int1) })
}

/// How far below a watched byte an access may start that touches it: the largest is a cache
/// line zeroed at once (Arm ARM, "Watchpoint exceptions", the address in `FAR_ELx`).
const LARGEST_ACCESS: u64 = 2048;

fn decide_aarch64(exception: DebugException, far: u64, at: &Situation) -> Owner {
    let guest = Owner::Guest(Injection::Aarch64 { exception, far });
    match exception {
        DebugException::Brk(0) if at.is_planted => Owner::Debugger(Cause::Planted),
        DebugException::Brk(_) | DebugException::Bkpt32(_) => guest,
        DebugException::SoftwareStep { .. } if at.is_step => Owner::Debugger(Cause::Step),
        DebugException::SoftwareStep { .. } => guest,
        DebugException::Breakpoint => at
            .wants
            .iter()
            .position(|want| *want == Want::Execute(at.pc))
            .map_or(guest, |want| Owner::Debugger(Cause::Execute(want))),
        DebugException::Watchpoint { is_write, .. } => {
            let mut nearest: Option<(u64, usize, u64)> = None;
            for &(register, index) in at.served {
                let Some(Want::Watch(access, start, length)) = at.wants.get(index).copied() else { continue };
                let fits = match access {
                    Access::Any => true,
                    Access::Write => is_write,
                    Access::Read => !is_write,
                };
                if register < MOST || !fits {
                    continue;
                }
                // Within the range, or before it by less than the largest access.
                let is_within = far >= start && far - start < length;
                let distance = start.saturating_sub(far);
                let is_before = far < start && distance < LARGEST_ACCESS;
                let address = far.max(start);
                if (is_within || is_before) && nearest.is_none_or(|(best, ..)| distance < best) {
                    nearest = Some((distance, index, address));
                }
            }
            nearest.map_or(guest, |(_, index, address)| Owner::Debugger(Cause::Watch(index, address)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arming::allocate;
    use crate::arming::tests::host;
    use arch::Isa;

    const PC: u64 = 0xffff_8000_1000_0000;

    /// The guest's registers 2 and 3, both on data, in their own places.
    const AS_SET: [Own; 2] =
        [Own { armed: 2, register: 2, is_execute: false }, Own { armed: 3, register: 3, is_execute: false }];

    fn owner(isa: Isa, trap: Trap, wants: &[Want], change: impl FnOnce(&mut Situation)) -> Owner {
        let allocation = allocate(isa, &host(4, 4), wants).unwrap();
        let mut situation = Situation {
            pc: PC,
            is_planted: false,
            opcode: Some(0x90),
            is_step: false,
            registers: &allocation.registers,
            served: &allocation.served,
            wants,
            own: &AS_SET,
        };
        change(&mut situation);
        decide(&trap, &situation)
    }

    #[test]
    fn x86_breakpoint_instructions() {
        let decide = |trap, is_planted| owner(Isa::X86_64, trap, &[], |at| at.is_planted = is_planted);
        let failure = |bytes: &[u8]| Trap::EmulationFailure { instruction: bytes.to_vec() };
        assert_eq!(decide(Trap::Int3, true), Owner::Debugger(Cause::Planted));
        assert_eq!(decide(Trap::Int3, false), Owner::Guest(Injection::Breakpoint));
        assert_eq!(decide(failure(&[0xcc, 0x90]), true), Owner::Debugger(Cause::Planted));
        assert_eq!(decide(failure(&[0xcc]), false), Owner::Nobody);
        assert_eq!(decide(failure(&[0x0f, 0xc7]), true), Owner::Nobody);
        assert_eq!(decide(failure(&[]), true), Owner::Nobody);
    }

    #[test]
    fn x86_debug_exceptions() {
        let wants = [Want::Execute(PC), Want::Watch(Access::Write, 0x1000, 4), Want::Execute(0x5000)];
        let guest = |dr6, skip| Owner::Guest(Injection::Debug { dr6, is_fault: false, skip });
        for (dr6, is_step, opcode, expected) in [
            (x86::DR6_BS, true, 0x90, Owner::Debugger(Cause::Step)),
            (x86::DR6_BS, false, 0x90, guest(x86::DR6_BS, 0)),
            (1 << 0, false, 0x90, Owner::Debugger(Cause::Execute(0))),
            // A step onto a breakpoint is the breakpoint's stop.
            (1 << 0 | x86::DR6_BS, true, 0x90, Owner::Debugger(Cause::Execute(0))),
            (1 << 1, false, 0x90, Owner::Debugger(Cause::Watch(1, 0x1000))),
            (1 << 1 | x86::DR6_BS, true, 0x90, Owner::Debugger(Cause::Watch(1, 0x1000))),
            // DR6 names a register whose instruction is elsewhere, or one that is not armed.
            (1 << 2, false, 0x90, guest(1 << 2, 0)),
            (1 << 3, false, 0x90, guest(1 << 3, 0)),
            (1 << 3 | x86::DR6_BS, true, 0x90, Owner::Debugger(Cause::Step)),
            // INT1 sets no bit of DR6; RIP still points to it.
            (0, false, 0xf1, guest(0, 1)),
            (0, true, 0xf1, guest(0, 1)),
            (x86::DR6_BD, false, 0x0f, guest(x86::DR6_BD, 0)),
        ] {
            let found = owner(Isa::X86_64, Trap::Debug { dr6: dr6 | x86::DR6_FIXED }, &wants, |at| {
                at.is_step = is_step;
                at.opcode = Some(opcode);
            });
            assert_eq!(found, expected, "dr6 {dr6:#x} step {is_step} opcode {opcode:#x}");
        }
    }

    #[test]
    fn x86_registers_of_the_guests_own() {
        let own = [
            Own { armed: 2, register: 0, is_execute: false },
            Own { armed: 3, register: 1, is_execute: true },
        ];
        let wants = [Want::Execute(PC), Want::Watch(Access::Write, 0x1000, 4)];
        let allocation = allocate(Isa::X86_64, &host(4, 4), &wants).unwrap();
        let situation = Situation {
            pc: PC,
            is_planted: false,
            opcode: Some(0x90),
            is_step: false,
            registers: &allocation.registers,
            served: &allocation.served,
            wants: &wants,
            own: &own,
        };
        let debug = |dr6, is_fault| Injection::Debug { dr6, is_fault, skip: 0 };
        for (dr6, owner, also) in [
            (1 << 2, Owner::Guest(debug(1 << 0, false)), Some(debug(1 << 0, false))),
            (1 << 3, Owner::Guest(debug(1 << 1, true)), None),
            (1 << 1 | 1 << 2, Owner::Debugger(Cause::Watch(1, 0x1000)), Some(debug(1 << 0, false))),
            (1 << 1, Owner::Debugger(Cause::Watch(1, 0x1000)), None),
            (1 << 0 | 1 << 3, Owner::Debugger(Cause::Execute(0)), None),
        ] {
            let trap = Trap::Debug { dr6 };
            assert_eq!(
                (decide(&trap, &situation), also_guests(&trap, &situation)),
                (owner, also),
                "{dr6:#x}"
            );
        }
    }

    #[test]
    fn aarch64_exceptions() {
        use DebugException::*;
        let wants = [
            Want::Execute(PC),
            Want::Watch(Access::Write, 0x1000, 4),
            Want::Watch(Access::Read, 0x2000, 8),
            Want::Watch(Access::Any, 0x1_0000, 4096),
        ];
        let step = SoftwareStep { load_exclusive: false };
        let watch = |is_write| Watchpoint { is_write, is_cache_maintenance: false };
        let mine = Owner::Debugger;
        for (exception, far, is_planted, is_step, expected) in [
            (Brk(0), 0, true, false, Some(mine(Cause::Planted))),
            (Brk(0), 0, false, false, None),
            (Brk(1), 0, true, false, None),
            (Brk(0x800), 0, false, true, None),
            (Bkpt32(0), 0, true, false, None),
            (step, 0, false, true, Some(mine(Cause::Step))),
            (step, 0, false, false, None),
            (Breakpoint, 0, false, false, Some(mine(Cause::Execute(0)))),
            (watch(true), 0x1002, false, false, Some(mine(Cause::Watch(1, 0x1002)))),
            // A store pair that starts before what is watched.
            (watch(true), 0xff8, false, false, Some(mine(Cause::Watch(1, 0x1000)))),
            (watch(true), 0x1004, false, false, None),
            (watch(false), 0x1000, false, false, None),
            (watch(false), 0x2007, false, false, Some(mine(Cause::Watch(2, 0x2007)))),
            (watch(true), 0x2000, false, false, None),
            (watch(false), 0x1_0fff, false, true, Some(mine(Cause::Watch(3, 0x1_0fff)))),
            (watch(false), 0x1_1000, false, true, None),
        ] {
            let found = owner(Isa::Aarch64, Trap::Aarch64 { exception, far }, &wants, |at| {
                at.is_planted = is_planted;
                at.is_step = is_step;
            });
            let expected = expected.unwrap_or(Owner::Guest(Injection::Aarch64 { exception, far }));
            assert_eq!(found, expected, "{exception:?} {far:#x}");
        }
        let elsewhere = owner(Isa::Aarch64, Trap::Aarch64 { exception: Breakpoint, far: 0 }, &wants, |at| {
            at.pc = 0x4444;
        });
        assert!(matches!(elsewhere, Owner::Guest(_)));
    }
}
