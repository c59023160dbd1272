//! What an aarch64 vCPU's registers hold when a guest starts.
//!
//! Sources: Linux `Documentation/arch/arm64/booting.rst`, section 4; Arm ARM (DDI 0487),
//! "Saved Program Status Registers (SPSR_ELx)".

use crate::GuestPhys;

/// PSTATE: EL1 with its own stack pointer, all of D, A, I and F masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

/// Registers at a guest's first instruction, MMU off. What is not named is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootState {
    /// First instruction, guest-physical.
    pub pc: u64,
    /// X0: the device tree, guest-physical.
    pub x0: u64,
    /// PSTATE as KVM's `kvm_regs.regs.pstate` takes it.
    pub pstate: u64,
}

impl BootState {
    /// The state for a guest entered at `entry` that finds its device tree at `device_tree`.
    pub fn new(entry: u64, device_tree: GuestPhys) -> BootState {
        BootState { pc: entry, x0: device_tree.0, pstate: PSTATE_EL1H_MASKED }
    }
}
