//! Facts about x86 machines.

pub mod bios_data_area;
pub mod boot_state;
pub mod cpuid;
pub mod debug_registers;
pub mod features;
pub mod multiboot2_info;
pub mod multiboot_info;
pub mod pvh;
pub mod reset_vector;
pub mod simulate;
pub mod step;
pub mod zero_page;

/// Where everything is in a machine of this architecture.
pub use crate::board::layout_x86 as layout;
