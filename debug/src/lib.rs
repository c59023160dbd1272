//! The debugger of a guest, for both architectures on any host.
//!
//! This crate knows no KVM: the machine that is debugged is a [`machine::Machine`], and one of
//! its vCPUs, on the thread that runs it, a [`vcpu::Vcpu`]. A debug exit goes
//! through these files, in this order:
//!
//! 0. [`live`] enters the guest, by the monitor's callback, and finishes the step that the exit may be the end of;
//! 1. [`trap`] decides whose it is: the debugger's, the guest's own, or nobody's;
//! 2. [`engine`] acts on that, on the vCPU's thread: stop, give it back to the guest, or step
//!    over and go on, for which it asks the table ([`breakpoint`]) and conditions
//!    ([`expression`]);
//! 3. [`gdb`] tells the debugger, and makes its answer into what each vCPU does next
//!    ([`machine::Action`], [`arming`]).
//!
//! A program that debugs a guest as gdb does has a [`context::Debuggee`], of which gdb's session is one client.
//!
//! What a person or a program asks beyond that is a [`command`], which looks at a machine through a [`view`] and
//! answers with a value ([`reply`]).
//!
//! [`memory`] reads and writes guest-virtual memory through a vCPU's page tables; [`report`]
//! words what a vCPU was doing when it could not go on; [`disassemble`] is the one place that
//! turns bytes into instructions.
//!
//! # Features
//! On by default, and none is needed to debug a guest:
//! * `disassembly`: instructions in words. Without it a report has their bytes alone, and on x86 a range step
//!   (gdb's `next` over a loop) steps each instruction where else it would run to where the line is left.
//! * `dwarf`: what the file says that a kernel was linked to (`vmlinux`): names of addresses and source lines ([`symbols`]).
//!   Without it names are those that the kernel has itself (`linux`), without source lines; without both there is no
//!   command `sym`, and addresses are written as numbers.
//! * `linux`: what a Linux kernel says of itself. Without it nobody is told where a kernel has moved itself (KASLR),
//!   there are no commands `linux`, `dmesg`, `ps`, `bt`, `lsmod`, `locks` and `why`, and gdb's `load` over a kernel that runs is not refused.
//! * `dump`, which needs `linux`: memory dumps, written and read. Without it there is no command `dump`.

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod abilities;
pub mod arming;
pub mod breakpoint;
pub mod cancel;
pub mod command;
pub mod context;
pub mod disassemble;
#[cfg(feature = "dump")]
pub mod dump;
pub mod engine;
pub mod expression;
pub mod fake;
pub mod flow;
pub mod gdb;
pub mod live;
pub mod machine;
pub mod memory;
pub mod output;
pub mod patience;
pub mod range;
pub mod reply;
pub mod report;
pub mod socket;
#[cfg(any(feature = "dump", feature = "dwarf"))]
pub mod source;
pub mod symbols;
pub mod threads;
pub mod trap;
pub mod vcpu;
pub mod view;

pub use arch::ram;
#[cfg(feature = "linux")]
pub use linux;
