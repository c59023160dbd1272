//! Disk images: what a guest's disk is on the host, as bytes at offsets.
//!
//! Nothing here knows of virtio, of a guest's memory or of threads, so all of it can be tested and fuzzed without a
//! guest. Whoever carries the bytes is a device's model.
//!
//! [`Image::open`] opens a raw file, a block device, or a qcow2 image with its backing files; with
//! [`Access::Snapshot`] what is written goes to a temporary file, and the image is only read.
//!
//! # What an image can reach
//! Images come from elsewhere, and a guest writes whatever it likes into its own:
//! * Nobody's format is guessed. Without a word of the user's an image is qcow2 if both its first bytes and its name say
//!   so, raw if neither does, and refused otherwise: a guest that writes a qcow2 header into its raw disk would else
//!   name files of the host's. A backing file's format stands in the header of the image that is over it, or the image
//!   is refused.
//! * Backing files lie below the folder of the image, links resolved ([`Beneath`](rustix::fs::ResolveFlags::BENEATH)),
//!   and are only read. There are at most [`MOST_LAYERS`] of them and the image.
//! * Data in other files, names with a protocol (`json:`, `nbd:`, `http:`) and encryption are refused.
//! * Only files and block devices are opened, without waiting.
//! * What a header says is held against the file before anything is allocated for it ([`DiskError::Qcow2`]): tables that
//!   are too large, outside the file, or too short for the disk; clusters that are behind the file's end. What is there
//!   at the start and goes away later is an I/O error of that read, not zeros, and nothing is written any more.
//!
//! # Who else has it open
//! What is open is locked by the bytes that QEMU locks, so that neither a second monitor nor QEMU writes to an image that
//! is in use, and what is being written is not opened to be read. A file system without locks is used without.
//!
//! # What is on the disk when
//! A write is the host's when it is acknowledged, and is on the host's disk after [`Image::flush`]. qcow2's tables are
//! kept back until then: when a monitor ends by force, what was written since is lost, as with a disk's cache. Once a
//! flush has failed, none of the image succeeds any more: the host tells of what it has lost once.

#![deny(unsafe_code)]
#![warn(missing_docs, clippy::missing_errors_doc)]

mod contents;
mod error;
mod file;
mod image;
mod kept;
mod layer;
mod lock;
mod overlay;
mod qcow2;
mod raw;
pub mod sample;
#[cfg(test)]
mod tests;

pub use contents::{FileSystem, Partition};
pub use error::{DiskError, Qcow2Error};
pub use file::temporary_folder;
pub use image::{Access, Format, Image, Options};
pub use qcow2::chain::MOST_LAYERS;
