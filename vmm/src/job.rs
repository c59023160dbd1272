//! Jobs: a command that runs in a guest which is booted for it, and what comes of that.
//!
//! [`plan`] finds the kernel and its modules and composes what the guest begins with: an initramfs with a first process
//! of ours (`guests/init`) and the list of steps that it takes ([`steps`]). [`desk`] runs the guest and carries what
//! goes in and out of the command, over a port of the console device, by [`protocol`]. [`verdict`] says what came of it.

mod beside;
pub mod desk;
pub mod dump_on;
pub mod ended;
pub mod free_memory;
pub mod hold;
pub mod initramfs;
pub mod kernel_log;
pub mod ktap;
mod loading;
pub mod matrix;
mod memory_log;
pub mod modules;
pub mod plan;
pub mod protocol;
pub mod report_file;
pub mod root_image;
mod serial;
pub mod session;
pub mod signals;
pub mod steps;
pub mod stop;
pub mod streams;
pub mod stuck;
pub mod table;
pub mod verdict;
pub mod visitors;
pub mod ways;
