//! The machine that a guest runs in, and what an embedder drives: a [`Guest`], made of a [`Config`].
//!
//! | the guest's | is |
//! | --- | --- |
//! | life: made, let run, held, waited for | [`guest`] |
//! | memory, for whoever serves the guest | [`guest_ram`] |
//! | devices | `rack`, and `output_queue` for what it prints |
//! | hypercalls | [`hypercalls`] |
//! | time, which stands still while it is held | [`guest_clock`] |
//! | vCPUs, each on a thread, which enters the guest and serves it | [`vcpus`], [`serve`] |
//! | debugger, who comes and goes | [`debugger`] |
//! | dumps | [`dumper`] |

pub mod config;
pub mod debugger;
pub mod dumper;
pub mod guest;
pub mod guest_clock;
pub mod guest_ram;
pub mod hypercalls;
mod mailbox;
mod output_queue;
mod rack;
pub mod serve;
pub mod vcpus;

pub use config::{Config, GdbConfig, HypercallConfig, MemorySize};
pub use guest::Guest;
pub use vcpus::Hold;
