//! A live guest, as far as a debugger needs nothing of its hypervisor but [`Vcpu`](crate::vcpu::Vcpu).
//!
//! Whoever runs vCPUs has a [`runner::Runner`] on each vCPU's thread and hands it a callback that enters the guest
//! and serves what it wants. The runner calls it to run, to step, and to step while the other vCPUs are out; it has
//! the [engine](crate::engine) judge what comes back, and tells whoever debugs the guest by a [`link::Link`].
//!
//! ```text
//! thread of a vCPU                                      whoever debugs
//! Runner::run -> Stepper::prepare                       Machine (resume, pause, events)
//!             -> Gate::enter -> the monitor's callback     |  tasks and kicks, by the monitor's threads
//!             -> Stepper::finish -> Engine::judge --Link::tell--> events
//! ```
//!
//! - [`runner`]: a vCPU thread's part, and what the callback is given and answers;
//! - [`inbox`]: that thread's way round, and what others leave for it to do;
//! - [`gate`]: who may be in the guest;
//! - `step`: an entry to the guest, and what a step needs around it;
//! - [`debugger`]: attaches and leaves at any time, and serves gdb;
//! - [`machine`]: all vCPUs for the thread that debugs them;
//! - [`link`]: what the threads of one guest share;
//! - [`vcpus`]: all vCPUs, for whoever asks something of them or holds the guest;
//! - `holders`: who holds it;
//! - [`times`]: when a vCPU was in the guest;
//! - [`attention`]: a receiver's word to its senders that it is not asleep, so that they need not ring.

mod ahead;
pub mod attention;
pub mod debugger;
pub mod gate;
mod holders;
pub mod inbox;
pub mod link;
pub mod machine;
pub mod runner;
pub(crate) mod step;
pub mod times;
pub mod vcpus;
mod waited;
