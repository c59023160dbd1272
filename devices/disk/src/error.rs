//! Why an image is not opened: a line each, with what helps.

use std::io;
use std::path::PathBuf;

/// Why an image is not opened. The text goes behind the image's name.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host does not let us.
    #[error("{0}")]
    Open(#[source] io::Error),
    /// The host does not let us write to it.
    #[error("{0} (say ro or snapshot if the guest is not to change it)")]
    OpenToWrite(#[source] io::Error),
    /// It is no place for bytes.
    #[error("it is {0}, and a disk is a file or a block device")]
    Kind(&'static str),
    /// No bytes.
    #[error("it is empty (make it as large as the disk is to be, for example by truncate -s 1G)")]
    Empty,
    /// A raw image that a guest has made look like qcow2, or a qcow2 image that nobody called so.
    #[error(
        "it begins as qcow2 and its name does not end in .qcow2: say format=qcow2 if it is that, format=raw if a guest \
         has written it there"
    )]
    MagicWithoutSuffix,
    /// Named qcow2, and is none.
    #[error(
        "its name ends in .qcow2 and it does not begin as qcow2 does: say format=raw if it is a raw image"
    )]
    SuffixWithoutMagic,
    /// Another process has it.
    #[error("another process {0}: end that one, or take a copy")]
    InUse(&'static str),
    /// qcow2 that cannot be used.
    #[error("{0}")]
    Qcow2(#[from] Qcow2Error),
    /// A file below it.
    #[error("its backing file '{name}': {source}")]
    Backing {
        /// As the image has it.
        name: String,
        /// Why.
        source: Box<DiskError>,
    },
    /// The overlay has no place.
    #[error("no temporary file for what the guest writes in {}: {source} (TMPDIR names a folder with room)", folder.display())]
    Temporary {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a qcow2 image is not used. Source: QEMU, docs/interop/qcow2.txt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2Error {
    /// It is something else.
    #[error("it is no qcow2 image, whatever format= says: say format=raw if it is a raw one")]
    Magic,
    /// Of another version.
    #[error(
        "it is qcow2 of version {0}, and versions 2 and 3 can be used (qemu-img convert -O qcow2 makes one)"
    )]
    Version(u32),
    /// The file ends before what its header promises.
    #[error(
        "it is damaged or cut off: {what} at {at:#x} is behind its end ({length} bytes; qemu-img check says more)"
    )]
    Cut {
        /// What.
        what: &'static str,
        /// Where it should be, bytes from the file's start.
        at: u64,
        /// The file's length.
        length: u64,
    },
    /// Numbers that cannot be.
    #[error("it is damaged: {0} (qemu-img check says more)")]
    Damaged(&'static str),
    /// It was not closed, or is known to be damaged.
    #[error("it is marked as {0}: qemu-img check -r all repairs it")]
    Marked(&'static str),
    /// Encrypted.
    #[error("it is encrypted, which is not supported: qemu-img convert makes a plain one")]
    Encrypted,
    /// Its data is elsewhere.
    #[error(
        "its data is in another file, which is not followed: qemu-img convert -O qcow2 makes one of both"
    )]
    ExternalData,
    /// Something that is not supported.
    #[error("it has {0}, which is not supported: qemu-img convert -O qcow2 makes one without")]
    Feature(&'static str),
    /// A bit that nobody has heard of.
    #[error("it has the incompatible feature {0}, which is not known here")]
    UnknownFeature(u32),
    /// The name of a backing file that is none.
    #[error("its backing file '{0}' is not in a file by its name, and nothing else is opened")]
    Protocol(String),
    /// A backing file whose format would have to be guessed.
    #[error(
        "its header does not say what format its backing file '{0}' has, which is not guessed: qemu-img rebase -u -F \
         raw|qcow2 -b '{0}' IMAGE says so"
    )]
    NoFormat(String),
    /// A backing file of another format.
    #[error("its backing file has the format '{0}': raw and qcow2 can be used")]
    Format(String),
    /// A backing file somewhere else.
    #[error(
        "it is not below the image's folder, where backing files have to be (links count as where they lead to)"
    )]
    Outside,
    /// The chain is long, or goes round.
    #[error("there are more than {0} images over each other, or it is its own backing file")]
    Deep(usize),
    /// What the library says.
    #[error("{0}")]
    Other(String),
}
