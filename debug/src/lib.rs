//! What a debugger knows about a target, for both architectures on any host.
//!
//! This crate knows no KVM: it is given register values and bytes of memory and answers
//! with text. [`report`] words what a vCPU was doing when it could not go on;
//! [`disassemble`] is the one place that turns bytes into instructions.

#![forbid(unsafe_code)]

pub mod disassemble;
pub mod report;
