//! Memory dumps: written from any [`Machine`](crate::machine::Machine), and read back as one.
//!
//! Layers, each of which knows nothing of the next:
//! * [`read::source`]: bytes of a file, which may be compressed ([`packing`]);
//! * a reader for each format ([`read`]), which makes [`Contents`] of it: physical memory as an [`Image`], vCPUs'
//!   registers, and the kernel's description of itself;
//! * translation, from registers or from that description ([`translate`](crate::linux::translate));
//! * [`core`]: all of it as a machine that cannot run, for the debugger above.
//!
//! [`write`](mod@write) makes ELF cores; [`diff`] tells two dumps apart.

mod contents;
pub mod core;
pub mod diff;
mod notes;
pub mod packing;
mod progress;
pub mod read;
mod unplanted;
pub mod write;

pub use contents::{Contents, DumpError, DumpedVcpu, Image};
pub use progress::Progress;
pub use read::{in_one_piece, open};
pub use unplanted::{Unplanted, cpus};

#[cfg(test)]
mod tests;
