//! Devices of a guest, and the buses they sit on.
//!
//! A device is a file of [`platform`]: what firmware is told of it, and its model. A [`Rack`](rack::Rack) puts it on
//! the machine's board and on its bus.
//!
//! A [`Bus`](bus::Bus) maps ranges of I/O ports or of guest-physical memory to
//! [`Device`](bus::Device)s. A vCPU thread that leaves the guest with a port or memory
//! access looks the device up and calls it; a device never panics on what a guest sends,
//! serves accesses of any width, and answers a write that ends the guest with an
//! [`End`]. Devices know neither KVM nor which architecture they serve. What a guest
//! causes them to say goes through [`guest_log`], what they do with the guest's memory through [`ram`].

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod bus;
pub mod guest_log;
pub mod hypercall;
pub mod pci;
pub mod platform;
pub mod rack;
pub mod ram;
pub mod rate_limit;
pub mod state;
pub mod threads;
pub mod virtio;

pub use arch::End;
