//! A guest that has a name (`--name`) can be spoken to by it: `vmm dump NAME PATH`.
//!
//! A socket in a folder that only its user can enter ([`names`]) takes a request, a line of JSON, and gives lines of
//! JSON until the last, which has `done` or `error` ([`protocol`]). A guest's process has the [`server`], a
//! subcommand's is the [`client`]. A client that goes away breaks off what it asked for.
//!
//! To add a request: its line in [`protocol::Request`], and what is done in [`server`].

pub mod client;
mod descriptor;
pub mod door;
pub mod names;
pub mod protocol;
pub mod server;
