//! A guest has a name (`--name`, or one that is made up), and can be spoken to by it: `vmm dump NAME PATH`.
//!
//! A socket in a folder that only its user can enter (`names`) takes a request, a line of JSON, and gives lines of
//! JSON until the last, which has `done` or `error` ([`protocol`]). A guest's process has the `server`, a
//! subcommand's is the `client`. A client that goes away breaks off what it asked for.
//!
//! To add a request: its line in [`protocol::Request`], and what is done in `server`.

pub(crate) mod client;
mod descriptor;
pub(crate) mod door;
pub(crate) mod feed;
mod follow;
pub(crate) mod names;
pub(crate) mod pending;
pub mod protocol;
pub(crate) mod server;
