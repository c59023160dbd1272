//! Facts about AArch64 machines.

pub mod boot_state;
pub mod device_tree;
pub mod features;
pub mod layout;
