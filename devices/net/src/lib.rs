//! A network in user space for a guest, without privileges: frames in, ordinary sockets of the host's out.
//!
//! The guest is 10.0.2.15 of 10.0.2.0/24, which DHCP tells it; 10.0.2.2 is its gateway, and 10.0.2.3 its name server,
//! which is the host's. What it connects to, the host connects to ([`Stack`]). What it must not reach is
//! [`Reach`]'s business. Nothing here waits: whoever carries frames between this and the guest calls it when there is
//! something to do, and polls one descriptor.
//!
//! TCP's state machine is smoltcp's, one socket for each connection; what makes a network of it is here. The guest and
//! whoever is on the other side are hostile: connections, half-open ones, flows, descriptors and what is kept of each
//! have an end ([`Limits`]), and what is lost is told once.

#![forbid(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

mod address;
mod dhcp;
mod doors;
mod events;
mod forward;
mod icmp;
mod outbox;
mod reach;
mod resolver;
mod stack;
mod tcp;
mod udp;

pub use address::{GATEWAY, GUEST, MAC_OF_HOST, MASK, Mac, PREFIX, RESOLVER};
pub use forward::{Forward, Protocol};
pub use outbox::{HEADER, LONGEST_PACKET};
pub use reach::{Guard, Reach};
pub use stack::{Error, Limits, Notice, Options, Stack};

#[cfg(test)]
mod tests;
