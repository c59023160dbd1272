//! A qcow2 image's header, looked at before anything else reads it. Source: QEMU, docs/interop/qcow2.txt.

use crate::error::Qcow2Error;

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Clusters are of 512 bytes to 2 MiB, as QEMU has it.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The most bytes of the table of the first level, and of that of reference counts, as QEMU has it.
const MOST_L1: u64 = 32 << 20;
const MOST_REFCOUNTS: u64 = 8 << 20;
const LONGEST_NAME: u32 = 1023;
/// Bytes of a header of version 2, and the fewest of version 3.
const V2: usize = 72;
const V3: usize = 104;
/// Header extensions: their ends, and what is looked at.
mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const ENCRYPTION: u32 = 0x0537_be77;
    pub const EXTERNAL_DATA: u32 = 0x4441_5441;
}
/// An entry of the extension with features' names.
const FEATURE_NAME: usize = 48;

/// What a header says, which can be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// The disk's, bytes.
    pub size: u64,
    /// Where the table of the first level is, and its entries.
    pub l1: (u64, u64),
    /// Where the table of reference counts is, and its bytes.
    pub refcounts: (u64, u64),
    /// Of the bits of a reference count.
    pub refcount_order: u32,
    pub backing: Option<Backing>,
}

/// A backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    pub name: String,
    pub is_qcow2: bool,
}

/// Numbers at offsets, of which those behind the end are zeros.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).map_or(0, |it| u32::from_be_bytes(it.try_into().unwrap_or_default()))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

fn damaged<T>(why: &'static str) -> Result<T, Qcow2Error> {
    Err(Qcow2Error::Damaged(why))
}

/// The bytes of a cluster of an image that begins so.
///
/// # Errors
/// [`Qcow2Error::Magic`], [`Qcow2Error::Version`], [`Qcow2Error::Damaged`].
pub fn cluster_size(beginning: &[u8]) -> Result<u64, Qcow2Error> {
    let fields = Fields(beginning);
    if !beginning.starts_with(&MAGIC) {
        return Err(Qcow2Error::Magic);
    }
    if beginning.len() < V2 {
        return damaged("it ends within its header");
    }
    let (version, bits) = (fields.u32(4), fields.u32(20));
    if !(2..=3).contains(&version) {
        return Err(Qcow2Error::Version(version));
    }
    if !CLUSTER_BITS.contains(&bits) {
        return damaged("its clusters are of less than 512 bytes or more than 2 MiB");
    }
    Ok(1 << bits)
}

impl Header {
    /// Reads it from the first cluster of a file of so many bytes.
    ///
    /// # Errors
    /// Why the image cannot be used.
    pub fn parse(first: &[u8], length: u64) -> Result<Header, Qcow2Error> {
        let cluster = cluster_size(first)?;
        let fields = Fields(first);
        let (version, cluster_bits) = (fields.u32(4), fields.u32(20));
        check_features(&fields, version)?;
        let header = Header {
            version,
            cluster_bits,
            size: fields.u64(24),
            l1: (fields.u64(40), fields.u32(36).into()),
            refcounts: (fields.u64(48), u64::from(fields.u32(56)) * cluster),
            refcount_order: if version == 2 { 4 } else { fields.u32(96) },
            backing: None,
        };
        header.check(length)?;
        let format = extensions(first, version)?;
        let backing = match fields.u64(8) {
            0 => None,
            at => Some(backing(first, (at, fields.u32(16)), format)?),
        };
        Ok(Header { backing, ..header })
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How much of the disk an entry of the first level's table is for, bytes.
    fn per_entry(&self) -> u64 {
        self.cluster_size() * self.cluster_size() / 8
    }

    /// Holds numbers against each other, and against the file.
    fn check(&self, length: u64) -> Result<(), Qcow2Error> {
        let cluster = self.cluster_size();
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return damaged("the disk's size is 0, or no multiple of 512");
        }
        let (l1, entries) = self.l1;
        if entries * 8 > MOST_L1 {
            return damaged("the table of its first level has more than 32 MiB");
        }
        if entries < self.size.div_ceil(self.per_entry()) {
            return damaged("the table of its first level is too short for the disk");
        }
        if self.refcounts.1 == 0 || self.refcounts.1 > MOST_REFCOUNTS.max(cluster) {
            return damaged("the table of reference counts has nothing, or more than 8 MiB");
        }
        for (what, at, bytes) in [
            ("the table of its first level", l1, entries * 8),
            ("the table of reference counts", self.refcounts.0, self.refcounts.1),
        ] {
            if at == 0 || !at.is_multiple_of(cluster) {
                return damaged("a table does not begin where a cluster does");
            }
            let end = at.checked_add(bytes);
            if end.is_none_or(|end| end > length.next_multiple_of(cluster)) {
                return Err(Qcow2Error::Cut { what, at, length });
            }
        }
        Ok(())
    }
}

fn check_features(fields: &Fields<'_>, version: u32) -> Result<(), Qcow2Error> {
    if fields.u32(32) != 0 {
        return Err(Qcow2Error::Encrypted);
    }
    if version == 2 {
        return Ok(());
    }
    let incompatible = fields.u64(72);
    if fields.u32(96) > 6 {
        return damaged("reference counts are of more than 64 bits");
    }
    if incompatible == 0 {
        return Ok(());
    }
    Err(match incompatible.trailing_zeros() {
        0 => Qcow2Error::Marked("written to and not closed"),
        1 => Qcow2Error::Marked("damaged"),
        2 => Qcow2Error::ExternalData,
        3 => Qcow2Error::Feature("another compression than deflate"),
        4 => Qcow2Error::Feature("clusters in parts (extended_l2)"),
        other => Qcow2Error::UnknownFeature(other),
    })
}

/// Goes through header extensions; what the backing file's format is called, if one says so.
fn extensions(first: &[u8], version: u32) -> Result<Option<String>, Qcow2Error> {
    let fields = Fields(first);
    let mut at = if version == 2 { V2 } else { fields.u32(100) as usize };
    if version > 2 && (at < V3 || at > first.len()) {
        return damaged("its header is shorter than it can be, or longer than a cluster");
    }
    let mut format = None;
    while at + 8 <= first.len() {
        let (kind, size) = (fields.u32(at), fields.u32(at + 4) as usize);
        if kind == extension::END {
            return Ok(format);
        }
        let Some(content) = first.get(at + 8..).and_then(|rest| rest.get(..size)) else {
            return damaged("a header extension is longer than the header");
        };
        match kind {
            extension::BACKING_FORMAT => {
                format = Some(String::from_utf8_lossy(content).into_owned());
            }
            extension::FEATURE_NAMES if !size.is_multiple_of(FEATURE_NAME) => {
                return damaged("the names of its features end within one");
            }
            extension::ENCRYPTION => return Err(Qcow2Error::Encrypted),
            extension::EXTERNAL_DATA => return Err(Qcow2Error::ExternalData),
            _ => {}
        }
        at += 8 + size.next_multiple_of(8);
    }
    Ok(format)
}

/// The backing file whose name is at a place of the first cluster.
fn backing(first: &[u8], (at, size): (u64, u32), format: Option<String>) -> Result<Backing, Qcow2Error> {
    let name = usize::try_from(at).ok().and_then(|at| first.get(at..)?.get(..size as usize));
    let name = name.filter(|name| size <= LONGEST_NAME && !name.is_empty());
    let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) else {
        return damaged("the name of its backing file is not in its header, or is none");
    };
    let name = name.to_string();
    if name.chars().any(char::is_control) {
        return damaged("the name of its backing file has signs that are none");
    }
    // As QEMU reads it: a protocol is what stands before a colon, if no slash does.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(Qcow2Error::Protocol(name));
    }
    match format.as_deref() {
        Some("qcow2") => Ok(Backing { name, is_qcow2: true }),
        Some("raw" | "file") => Ok(Backing { name, is_qcow2: false }),
        Some(other) => {
            Err(Qcow2Error::Format(other.chars().filter(|it| !it.is_control()).take(40).collect()))
        }
        None => Err(Qcow2Error::NoFormat(name)),
    }
}
