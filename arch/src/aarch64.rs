//! Facts about AArch64 machines.

pub mod boot_state;
pub mod debug_registers;
pub mod exception_entry;
pub mod features;
pub mod simulate;
pub mod step;
pub mod syndrome;

/// Where everything is in a machine of this architecture.
pub use crate::board::layout_aarch64 as layout;
