//! A virtual machine monitor made for debugging kernels, as a library.
//!
//! A [`Guest`](machine::Guest) can be run, held and looked at; the `vmm` binary ([`cli`]) drives one from the command
//! line. [`boot`] prepares what a guest begins with, [`machine`] has all that it runs in, [`outcome`] says how it ended
//! and [`error`] why it did not begin.
//!
//! ```no_run
//! use std::time::Duration;
//! use vmm::machine::{Config, Guest};
//!
//! let guest = Guest::new(&Config::default(), Box::new(std::io::stdout()))?;
//! guest.resume();
//! println!("{:?}", guest.wait(Duration::from_secs(10)));
//! # Ok::<(), vmm::error::Error>(())
//! ```
//!
//! A program whose files may not become larger than some size (`RLIMIT_FSIZE`) ignores `SIGXFSZ`, as `vmm` does: else a guest
//! that writes to a disk or a folder beyond that ends the program (signal(7)); so it hears of an error.

#![warn(missing_docs, clippy::missing_errors_doc)]

extern crate alloc;

pub mod boot;
pub mod cell;
pub mod cli;
pub mod control;
pub mod error;
mod given_file;
pub mod job;
pub mod logging;
mod looks;
pub mod machine;
pub mod outcome;
mod patient;
mod peer;
mod run;
mod symbols;
