//! Facts about x86_64 and aarch64 machines, as pure code.
//!
//! What lives here: memory maps, boot-state tables, kernel image formats, the firmware
//! tables a guest reads (ACPI, device tree, boot parameters), CPUID and ID-register models,
//! register tables. What does not: KVM, files, threads, guest memory. Everything is a
//! function from values to values, so both architectures are compiled and tested on any
//! host; which one is meant is a value of [`Isa`], never a `cfg`.
//!
//! `vmm` turns these values into ioctls and guest memory; `debug` reads a target with them.
//!
//! The feature `boot` has what a guest is booted from: [`board`], [`image`], and of [`x86`] and [`aarch64`] the layouts
//! and what firmware leaves in memory. Without it no library is needed that describes machines or files.

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod aarch64;
pub mod address;
pub mod attention;
#[cfg(feature = "boot")]
pub mod board;
pub mod bytes;
pub mod cpu_features;
pub mod cpu_template;
pub mod end;
pub mod hypercall;
#[cfg(feature = "boot")]
pub mod image;
pub mod isa;
pub mod layout;
pub mod paging;
pub mod plain;
pub mod ram;
pub mod register;
pub mod room;
pub mod words;
pub mod x86;

pub use address::{GuestPhys, GuestVirt};
pub use end::End;
pub use isa::Isa;
