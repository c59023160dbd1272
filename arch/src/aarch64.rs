//! Facts about AArch64 machines.

pub mod boot_state;
pub mod debug_registers;
pub mod exception_entry;
pub mod features;
pub mod gic;
pub mod simulate;
pub mod step;
pub mod syndrome;

pub use crate::layout::aarch64 as layout;
