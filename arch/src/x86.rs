//! Facts about x86 machines.

#[cfg(feature = "boot")]
pub mod bios_data_area;
pub mod boot_state;
pub mod cpuid;
pub mod debug_registers;
pub mod features;
#[cfg(feature = "boot")]
pub mod multiboot2_info;
#[cfg(feature = "boot")]
pub mod multiboot_info;
pub mod pvh;
#[cfg(feature = "boot")]
pub mod reset_vector;
pub mod simulate;
pub mod step;
#[cfg(feature = "boot")]
pub mod zero_page;

pub use crate::layout::x86 as layout;
