//! A virtual machine monitor made for debugging kernels, as a library.
//!
//! A [`Guest`](machine::Guest) can be run, held and looked at; the `vmm` binary drives one from the command line
//! ([`run`]). [`boot`] prepares what it begins with, and [`machine`] has all that it runs in.
//!
//! ```no_run
//! use std::time::Duration;
//! use vmm::machine::{Config, Guest};
//!
//! let machine = Guest::new(&Config::default(), Box::new(std::io::stdout()))?;
//! machine.resume();
//! println!("{:?}", machine.wait(Duration::from_secs(10)));
//! # Ok::<(), vmm::error::Error>(())
//! ```

pub mod boot;
pub mod cli;
pub mod control;
pub mod error;
mod given_file;
pub mod logging;
pub mod machine;
pub mod outcome;
mod peer;
pub mod run;
