//! Tests of the real binary on real KVM.
//!
//! A *case* ([`cases`]) is a function that runs `vmm` and looks at what comes out. Cases are
//! compiled into one static program, `case`, which runs wherever KVM is: on this machine, or
//! as the first process of a *nest* ([`nest`]): a Debian kernel under QEMU's emulation of a
//! processor with virtualization. `tests/kvm.rs` lists the cases of both architectures and
//! chooses the place.

pub mod artifacts;
pub mod bpf;
pub mod carry;
pub mod cases;
pub mod cells;
pub mod container;
pub mod context;
pub mod debugger;
pub mod demo;
pub mod fuzz;
pub mod guests;
pub mod initramfs;
pub mod measure;
pub mod nest;
pub mod port;
pub mod process;
pub mod qemu_cores;
pub mod random_files;
pub mod report;
pub mod rsp;
pub mod sparse;
#[cfg(test)]
mod structure;
pub mod tools;
pub mod traffic;
