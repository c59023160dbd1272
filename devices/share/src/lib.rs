//! A folder of the host's, served to a guest by the FUSE protocol.
//!
//! A request is bytes, and so is its reply: nothing here knows of virtio, of a guest's memory or of threads, so all of
//! it can be tested and fuzzed without a guest. Whoever carries the bytes is a device's model.
//!
//! # What a guest can reach
//! * Files below the folder, and nothing else. A name is one component, and is looked up in a folder that is open, by
//!   `openat2` with everything switched off that could lead elsewhere. Symbolic links are text, which the guest follows
//!   by itself. A folder that somebody moves out of the shared one on the host while the guest has it open stays the
//!   guest's to see, as it would any process's.
//! * No other file system: where something is mounted below the folder, there is an empty folder (or file) that cannot
//!   be changed, on which the guest can mount something of its own. [`Server::cover`] does the same for a folder.
//! * Files and folders alone are opened. The host's devices, pipes and sockets can be seen, renamed and removed, and none
//!   can be made, nor can mode or owner of the host's devices be changed. (What a guest does with a device's node that it
//!   sees is between it and its own kernel.)
//! * Nobody gets rights on the host by a share: set-id bits are taken out of what the guest sets, and off each file
//!   that it writes to; attributes are those of `user.` alone. Bits that are there are shown, as `sudo` in a
//!   guest whose root is shared needs them.
//! * A read-only share refuses all that would write by one table, `protocol::Operation::effect`.
//!
//! # Whose files are
//! `owners`: root's monitor has files belong to whom they do; another user's shows his files as root's, and what the
//! guest makes is his.
//!
//! # What it takes
//! [`Limits`] bounds nodes and descriptors; the rest is a buffer. What is written is given to the host before it is
//! acknowledged, and `fsync`, `O_SYNC` and `O_DSYNC` are the host's own: nothing is kept back here.

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

mod handle;
mod host;
mod node;
mod owners;
mod protocol;
mod request;
mod server;
#[cfg(test)]
mod tests;

pub use host::ShareError;
pub use server::{Access, Limits, MOST_WRITTEN, Reply, Server, State};
