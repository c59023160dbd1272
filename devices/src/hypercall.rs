//! Hypercalls: the seam between how a call reaches the monitor and what it means.
//!
//! A *transport*, in `vmm`, knows how a call comes out of a guest on one architecture and host. It
//! makes a [`RawCall`] of it and a [`Caller`] of the vCPU. A [`Family`] knows what its calls mean:
//! it has a [table], which decodes any of them ([`decode`]), and answers those it
//! can. [`Hypercalls`] stands between: it looks the call up, decodes it if somebody looks (a trace, a
//! debugger), has it answered, and tells.
//!
//! Memory of the guest is read through the caller's page walk, once for each structure: what is
//! shown is what was answered ([`Frame`](frame::Frame)). A family never panics on what a guest sends.

pub mod call;
pub mod caller;
pub mod decode;
pub mod family;
pub mod frame;
pub mod kvm;
mod layout;
mod served;
pub mod table;
pub mod trace;
pub mod xen;

pub use caller::{Caller, MOST_ARGUMENTS, RawCall, Tsc};
pub use family::{Answer, Effect, Family};
pub use served::Hypercalls;

#[cfg(test)]
mod tests;
