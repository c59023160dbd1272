//! What a vCPU runs with: single steps, planted instructions, debug registers.
//!
//! An [`Arming`] is plain data; `vmm` makes `KVM_SET_GUEST_DEBUG` of it.
//! [`Allocation`] shares out debug registers among what wants one.

use crate::abilities::{Abilities, Access};
use arch::Isa;
use arch::aarch64::debug_registers as arm;
use arch::x86::debug_registers as x86;

/// The debug registers of either architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugRegisters {
    /// x86: DR0 to DR3.
    X86([Option<x86::Slot>; x86::COUNT]),
    /// aarch64: breakpoint and watchpoint register pairs.
    Aarch64 {
        /// `DBGBCR` and `DBGBVR`.
        breakpoints: Vec<arm::Pair>,
        /// `DBGWCR` and `DBGWVR`.
        watchpoints: Vec<arm::Pair>,
    },
}

impl DebugRegisters {
    /// None in use.
    pub fn none(isa: Isa) -> DebugRegisters {
        match isa {
            Isa::X86_64 => DebugRegisters::X86([None; x86::COUNT]),
            Isa::Aarch64 => DebugRegisters::Aarch64 { breakpoints: Vec::new(), watchpoints: Vec::new() },
        }
    }

    /// Whether one of them watches for something.
    pub fn is_armed(&self) -> bool {
        match self {
            DebugRegisters::X86(slots) => slots.iter().any(Option::is_some),
            DebugRegisters::Aarch64 { breakpoints, watchpoints } => {
                breakpoints.iter().chain(watchpoints).any(arm::Pair::is_enabled)
            }
        }
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        match self {
            DebugRegisters::X86(slots) => slots.iter().all(Option::is_none),
            DebugRegisters::Aarch64 { breakpoints, watchpoints } => {
                breakpoints.is_empty() && watchpoints.is_empty()
            }
        }
    }
}

/// A debug register of the guest's own that is armed beside the debugger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// The register that is armed; watchpoints of aarch64 start at [`arm::MOST`].
    pub armed: usize,
    /// The guest's register that it stands for.
    pub register: usize,
    /// It is on an instruction.
    pub is_execute: bool,
}

/// The guest's own x86 registers where nothing else is armed.
pub fn in_place(guests: &DebugRegisters) -> Vec<Own> {
    let DebugRegisters::X86(slots) = guests else { return Vec::new() };
    let own = |(register, slot): (usize, &Option<x86::Slot>)| {
        let is_execute = slot.as_ref()?.condition == x86::Condition::Execute;
        Some(Own { armed: register, register, is_execute })
    };
    slots.iter().enumerate().filter_map(own).collect()
}

/// Adds the guest's own registers, as far as there is room: KVM puts the debugger's in the place
/// of all of the guest's. The debugger's come first. What the guest has armed by now counts;
/// what it arms until the next exit is seen then.
pub fn with_own(
    abilities: &Abilities,
    ours: &DebugRegisters,
    guests: &DebugRegisters,
) -> (DebugRegisters, Vec<Own>) {
    let mut all = ours.clone();
    let mut own = Vec::new();
    match (&mut all, guests) {
        (DebugRegisters::X86(slots), DebugRegisters::X86(guests)) => {
            for (register, guest) in guests.iter().enumerate() {
                if guest.is_none() {
                    continue;
                }
                // One that is the same as one of ours shares it.
                let same = slots.iter().position(|slot| slot == guest);
                let Some(armed) = same.or_else(|| slots.iter().position(Option::is_none)) else { break };
                slots[armed] = *guest;
                let is_execute = guest.is_some_and(|guest| guest.condition == x86::Condition::Execute);
                own.push(Own { armed, register, is_execute });
            }
        }
        (
            DebugRegisters::Aarch64 { breakpoints, watchpoints },
            DebugRegisters::Aarch64 { breakpoints: guests, watchpoints: guest_watchpoints },
        ) => {
            for (ours, guests, there, first) in [
                (breakpoints, guests, abilities.breakpoints, 0),
                (watchpoints, guest_watchpoints, abilities.watchpoints, arm::MOST),
            ] {
                for (register, guest) in guests.iter().enumerate().filter(|(_, guest)| guest.is_enabled()) {
                    if ours.len() < there {
                        own.push(Own { armed: first + ours.len(), register, is_execute: first == 0 });
                        ours.push(*guest);
                    }
                }
            }
        }
        _ => {}
    }
    (all, own)
}

/// What a vCPU runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arming {
    /// One instruction at a time.
    pub step: bool,
    /// Interrupts are kept out, for the length of a step.
    pub block_interrupts: bool,
    /// Breakpoint instructions come to us.
    pub software: bool,
    /// Debug registers.
    pub registers: DebugRegisters,
    /// The same, and more that are good to have, in force instead where the guest has none of its own
    /// armed: what is its own stays its own.
    pub guarded: Option<Box<DebugRegisters>>,
}

impl Arming {
    /// Nothing: the guest runs as without a debugger.
    pub fn off(isa: Isa) -> Arming {
        let registers = DebugRegisters::none(isa);
        Arming { step: false, block_interrupts: false, software: false, registers, guarded: None }
    }

    /// Whether guest debugging is off altogether.
    pub fn is_off(&self) -> bool {
        !self.step && !self.software && self.registers.is_empty() && self.guarded.is_none()
    }
}

/// What wants a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// An instruction at a guest-virtual address.
    Execute(u64),
    /// Accesses to a range: guest-virtual address, length in bytes.
    Watch(Access, u64, u64),
}

/// Debug registers shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The registers.
    pub registers: DebugRegisters,
    /// For each register in use, the index of the want it serves: breakpoints and watchpoints
    /// apart on aarch64 (watchpoints start at [`arm::MOST`]), DR0 to DR3 on x86.
    pub served: Vec<(usize, usize)>,
}

/// The wants need more debug registers than the host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host has {there} debug registers for this, and more are needed")]
pub struct TooMany {
    /// How many there are.
    pub there: usize,
}

/// Shares out debug registers.
///
/// # Errors
/// [`TooMany`] when there are not enough.
pub fn allocate(isa: Isa, abilities: &Abilities, wants: &[Want]) -> Result<Allocation, TooMany> {
    match isa {
        Isa::X86_64 => allocate_x86(abilities, wants),
        Isa::Aarch64 => allocate_aarch64(abilities, wants),
    }
}

fn allocate_x86(abilities: &Abilities, wants: &[Want]) -> Result<Allocation, TooMany> {
    let mut slots = [None; x86::COUNT];
    let mut served = Vec::new();
    let there = abilities.breakpoints.max(abilities.watchpoints).min(x86::COUNT);
    for (index, want) in wants.iter().enumerate() {
        let (condition, pieces) = match *want {
            Want::Execute(address) => (x86::Condition::Execute, vec![(address, 1)]),
            Want::Watch(access, address, length) => {
                // There is no way to watch reads alone.
                let condition =
                    if access == Access::Write { x86::Condition::Write } else { x86::Condition::Access };
                (condition, x86::pieces(address, length))
            }
        };
        let limit = match want {
            Want::Execute(_) => abilities.breakpoints,
            Want::Watch(..) => abilities.watchpoints,
        };
        if limit == 0 {
            return Err(TooMany { there: 0 });
        }
        for (address, length) in pieces {
            let place = served.len();
            if place >= there {
                return Err(TooMany { there });
            }
            slots[place] = Some(x86::Slot { address, condition, length });
            served.push((place, index));
        }
    }
    Ok(Allocation { registers: DebugRegisters::X86(slots), served })
}

fn allocate_aarch64(abilities: &Abilities, wants: &[Want]) -> Result<Allocation, TooMany> {
    let (mut breakpoints, mut watchpoints) = (Vec::new(), Vec::new());
    let mut served = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        match *want {
            Want::Execute(address) => {
                served.push((breakpoints.len(), index));
                breakpoints.push(arm::breakpoint(address));
            }
            Want::Watch(access, address, length) => {
                let access = match access {
                    Access::Read => arm::Access::Read,
                    Access::Write => arm::Access::Write,
                    Access::Any => arm::Access::Any,
                };
                for piece in arm::pieces(address, length) {
                    served.push((arm::MOST + watchpoints.len(), index));
                    watchpoints.push(arm::watchpoint(piece, access));
                }
            }
        }
        for (used, there) in
            [(breakpoints.len(), abilities.breakpoints), (watchpoints.len(), abilities.watchpoints)]
        {
            if used > there {
                return Err(TooMany { there });
            }
        }
    }
    Ok(Allocation { registers: DebugRegisters::Aarch64 { breakpoints, watchpoints }, served })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::abilities::SoftwareBreakpoints;

    pub fn host(breakpoints: usize, watchpoints: usize) -> Abilities {
        Abilities {
            software: SoftwareBreakpoints::Trapped,
            single_step: true,
            breakpoints,
            watchpoints,
            blocks_interrupts: true,
        }
    }

    #[test]
    fn x86_shares_four_registers_among_all() {
        let wants = [Want::Execute(0x1001), Want::Watch(Access::Write, 0x2001, 4)];
        let allocation = allocate(Isa::X86_64, &host(4, 4), &wants).unwrap();
        assert_eq!(allocation.served, [(0, 0), (1, 1), (2, 1), (3, 1)]);
        let DebugRegisters::X86(slots) = allocation.registers else { panic!() };
        assert_eq!(
            slots.map(|slot| slot.map(|slot| (slot.address, slot.length))),
            [Some((0x1001, 1)), Some((0x2001, 1)), Some((0x2002, 2)), Some((0x2004, 1)),]
        );
        let five = [Want::Execute(1), Want::Execute(2), Want::Execute(3), Want::Execute(4), Want::Execute(5)];
        assert_eq!(allocate(Isa::X86_64, &host(4, 4), &five), Err(TooMany { there: 4 }));
    }

    #[test]
    fn the_guests_own_registers_take_what_is_left() {
        let slot = |address, condition| Some(x86::Slot { address, condition, length: 1 });
        let ours = DebugRegisters::X86([
            slot(1, x86::Condition::Execute),
            None,
            slot(2, x86::Condition::Write),
            slot(3, x86::Condition::Write),
        ]);
        let guests = DebugRegisters::X86([
            None,
            slot(4, x86::Condition::Execute),
            slot(5, x86::Condition::Write),
            slot(2, x86::Condition::Write),
        ]);
        let (all, own) = with_own(&host(4, 4), &ours, &guests);
        // The second finds no room.
        assert_eq!(own, [Own { armed: 1, register: 1, is_execute: true }]);
        let shared = DebugRegisters::X86([None, None, None, slot(2, x86::Condition::Write)]);
        let (_, own) = with_own(&host(4, 4), &ours, &shared);
        assert_eq!(own, [Own { armed: 2, register: 3, is_execute: false }]);
        let DebugRegisters::X86(slots) = all else { panic!() };
        assert_eq!(slots.map(|slot| slot.map_or(0, |slot| slot.address)), [1, 4, 2, 3]);

        let (off, on) = (arm::Pair::default(), arm::breakpoint(0x1000));
        let ours =
            DebugRegisters::Aarch64 { breakpoints: vec![arm::breakpoint(0x2000)], watchpoints: vec![] };
        let guests = DebugRegisters::Aarch64 { breakpoints: vec![off, on, on], watchpoints: vec![on, off] };
        let (all, own) = with_own(&host(2, 2), &ours, &guests);
        assert_eq!(
            own,
            [
                Own { armed: 1, register: 1, is_execute: true },
                Own { armed: 16, register: 0, is_execute: false }
            ]
        );
        let DebugRegisters::Aarch64 { breakpoints, watchpoints } = all else { panic!() };
        assert_eq!((breakpoints.len(), watchpoints.len()), (2, 1));
    }

    #[test]
    fn a_host_without_watchpoints_says_so() {
        let wants = [Want::Watch(Access::Any, 0x1000, 8)];
        for isa in Isa::ALL {
            assert_eq!(allocate(isa, &host(4, 0), &wants), Err(TooMany { there: 0 }), "{isa}");
            assert!(allocate(isa, &host(4, 1), &wants).is_ok(), "{isa}");
        }
    }

    #[test]
    fn aarch64_counts_breakpoints_and_watchpoints_apart() {
        let wants = [Want::Execute(0x1000), Want::Watch(Access::Read, 0x2006, 4), Want::Execute(0x3000)];
        let allocation = allocate(Isa::Aarch64, &host(2, 2), &wants).unwrap();
        assert_eq!(allocation.served, [(0, 0), (16, 1), (17, 1), (1, 2)]);
        assert_eq!(allocate(Isa::Aarch64, &host(1, 2), &wants), Err(TooMany { there: 1 }));
        assert_eq!(allocate(Isa::Aarch64, &host(2, 1), &wants), Err(TooMany { there: 1 }));
    }
}
