//! Memory of a context: its spaces, the one place that each address means, and accesses that end where something is
//! not there.

use super::mode::Unable;
use super::tree::Id;
use crate::ram::Absence;
use arch::GuestPhys;
use arch::paging::Fault;
use arch::words::{counted, verb};
use std::fmt;
use std::ops::Range;

/// A space of addresses of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Guest-virtual, as the context's vCPU translates now.
    Virtual,
    /// Guest-physical: RAM. Devices are no part of it, as looking at one would change it.
    Physical,
    /// x86's I/O ports, as far as the monitor serves them. Reading one does what the guest's reading does.
    Ports,
}

/// An address in a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The space.
    pub space: Space,
    /// The address in it.
    pub address: u64,
}

impl Address {
    /// A guest-physical one.
    pub const fn physical(address: u64) -> Address {
        Address { space: Space::Physical, address }
    }

    /// A port.
    pub const fn port(port: u16) -> Address {
        Address { space: Space::Ports, address: port as u64 }
    }
}

impl From<u64> for Address {
    /// A virtual one.
    fn from(address: u64) -> Address {
        Address { space: Space::Virtual, address }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.space {
            Space::Virtual => write!(f, "{:#x}", self.address),
            Space::Physical => write!(f, "guest-physical {:#x}", self.address),
            Space::Ports => write!(f, "port {:#x}", self.address),
        }
    }
}

/// The one place that an address means, whatever other addresses mean it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical {
    /// The context whose memory it is, for all that share it.
    pub context: Id,
    /// The place.
    pub place: GuestPhys,
    /// The addresses around it, in the space that was asked in, whose places are as far from it as they are
    /// themselves: its page, or its range of RAM.
    pub block: Range<u64>,
}

/// Why there is nothing at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The page tables lead nowhere.
    #[error(transparent)]
    NotMapped(#[from] Fault),
    /// They, or the address itself, lead to where no RAM is.
    #[error("there is no RAM at {0:#x}")]
    NotRam(GuestPhys),
    /// A dump has not got it.
    #[error("{0}")]
    Absent(Absence),
    /// A dump is not written to.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// The space, or the context, is not one that can be looked at.
    #[error(transparent)]
    Unable(#[from] Unable),
    /// The space ends.
    #[error("the space of addresses ends")]
    End,
    /// The vCPU, or whoever serves ports, does not answer; in words.
    #[error("{0}")]
    Host(String),
}

/// An access that was not done to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address}: {missing} ({} before it {} good)", counted(*good, "byte"), verb(*good, "is", "are"))]
pub struct Partial {
    /// Bytes that are good: read, or written.
    pub good: usize,
    /// Where the next one would be.
    pub address: Address,
    /// Why it is not.
    pub missing: Missing,
}
