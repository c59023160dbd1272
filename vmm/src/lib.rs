//! A virtual machine monitor made for debugging kernels, as a library.
//!
//! [`Machine`](machine::Machine) is a guest that can be run, paused and looked at; the `vmm`
//! binary drives one from the command line. [`kvm`] is the only module that calls KVM;
//! [`boot`] prepares guests; [`vcpus`] has the threads that run them; [`run`] is the event
//! loop of the command line; [`debugger`] is the live machine as the `debug` crate sees it;
//! [`check`] finds out what a host's KVM can do.
//!
//! ```no_run
//! use std::time::Duration;
//! use vmm::{config::Config, machine::Machine};
//!
//! let machine = Machine::new(&Config::default(), Box::new(std::io::stdout()))?;
//! machine.resume();
//! println!("{:?}", machine.wait(Duration::from_secs(10)));
//! # Ok::<(), vmm::error::Error>(())
//! ```

pub mod boot;
pub mod candidates;
pub mod check;
pub mod cli;
pub mod completions;
pub mod config;
pub mod console;
pub mod control;
pub mod core_dump;
pub mod debugger;
pub mod dump;
pub mod error;
pub mod given_file;
pub mod guest_clock;
pub mod guest_ram;
pub mod hypercalls;
pub mod line_queue;
pub mod logging;
pub mod machine;
mod mailbox;
pub mod outcome;
mod output_queue;
pub mod panic_watch;
mod peer;
pub mod qemu_habits;
mod rack;
pub mod run;
pub mod serve;
pub mod stdout;
pub mod terminal;
mod unpacked;
pub mod vcpus;
