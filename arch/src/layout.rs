//! Where everything is in a machine of each architecture.

pub mod aarch64;
pub mod x86;
