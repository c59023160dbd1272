//! The machine that a guest runs in, and what an embedder drives: a [`Guest`], made of a [`Config`].
//!
//! | the guest's | is |
//! | --- | --- |
//! | life: made, let run, held, waited for | `guest` |
//! | memory, for whoever serves the guest | `guest_ram` |
//! | devices | `rack`, and `output_queue` for what it prints |
//! | images, networks, folders and sockets of the host, behind its devices | [`Backends`]: `disks`, `nets`, `shares`, `vsocks` |
//! | hypercalls | [`hypercalls`] |
//! | time, which stands still while it is held | `guest_clock` |
//! | vCPUs, each on a thread (to which others leave things to do in its `mailbox`) | [`vcpus`] |
//! | exits, which are served on those threads | `serve`, with what is in `services` |
//! | debugger, who comes and goes | [`debugger`]; a program that is one: `guest::debugged` |
//! | dumps | [`dumper`] |

mod backends;
pub mod config;
pub mod debugger;
mod descriptors;
mod disks;
pub mod dumper;
mod guest;
mod guest_clock;
mod guest_ram;
pub mod hypercalls;
mod mailbox;
mod nets;
mod onlooker;
mod output_queue;
mod rack;
mod serve;
mod services;
mod shares;
pub mod vcpus;
mod vsocks;

pub use backends::Backends;
pub use config::{Config, GdbConfig, GuestClock, HypercallConfig, MemorySize};
pub use guest::{ConsoleInput, DeafPlace, Debugged, Guest, LONGEST_LOOK, TerminalSize};
pub(crate) use onlooker::looks;
pub(crate) use output_queue::dealt_with;
pub use vcpus::Hold;
