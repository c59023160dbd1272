//! An image's tables, held against its file: what they promise has to be there. Source: QEMU, docs/interop/qcow2.txt,
//! "Cluster mapping".

use super::header::Header;
use crate::error::Qcow2Error;
use crate::file::read_some;
use std::collections::HashSet;
use std::fs::File;

/// So many bytes of tables of the second level are looked at before the guest starts: for 512 GiB of data in clusters of
/// 64 KiB. What lies behind that is found when it is read.
const MOST_LOOKED_AT: u64 = 64 << 20;
/// Where the bits of an offset are.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// Read as zeros, whatever is there (version 3).
const ZEROS: u64 = 1;

/// Looks at them.
///
/// # Errors
/// [`Qcow2Error::Cut`], [`Qcow2Error::Damaged`], [`Qcow2Error::Other`] when the file cannot be read.
pub fn check(file: &File, header: &Header, length: u64) -> Result<(), Qcow2Error> {
    let cluster = header.cluster_size();
    let (mut at, end) = (header.l1.0, header.l1.0 + header.l1.1 * 8);
    let mut looked_at = 0;
    let (mut part, mut table) = (Vec::new(), Vec::new());
    while at < end {
        read(file, at, cluster.min(end - at), &mut part)?;
        at += part.len() as u64;
        for second in entries(&part).map(|entry| entry & OFFSET).filter(|offset| *offset != 0) {
            within("a table of the second level", second, cluster, length)?;
            if looked_at < MOST_LOOKED_AT {
                read(file, second, cluster, &mut table)?;
                entries(&table).try_for_each(|entry| check_entry(entry, header, length))?;
                looked_at += cluster;
            }
        }
    }
    Ok(())
}

/// Looks at reference counts, by which clusters are found for what is written: each of the file's has to have one. The
/// library makes those that lack, and where many do it goes from one to the next without an end.
///
/// # Errors
/// As [`check`].
pub fn check_refcounts(file: &File, header: &Header, length: u64) -> Result<(), Qcow2Error> {
    let cluster = header.cluster_size();
    let (at, bytes) = header.refcounts;
    // Entries of a block, and so the clusters that one is for.
    let per_block = (cluster * 8) >> header.refcount_order;
    let blocks = length.div_ceil(cluster).div_ceil(per_block);
    if blocks * 8 > bytes {
        return Err(Qcow2Error::Damaged("the table of reference counts is too short for the file"));
    }
    let mut table = Vec::new();
    read(file, at, bytes, &mut table)?;
    let mut seen = HashSet::new();
    for (number, block) in (0..).zip(entries(&table)) {
        match block {
            0 if number < blocks => {
                return Err(Qcow2Error::Damaged(
                    "a part of it has no reference counts, so it can only be read",
                ));
            }
            0 => {}
            block => {
                within("a block of reference counts", block, cluster, length)?;
                // One that is for many parts of the file would have whoever looks for room go through it for each.
                if !seen.insert(block) {
                    return Err(Qcow2Error::Damaged("two parts of it have the same reference counts"));
                }
            }
        }
    }
    Ok(())
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default()))
}

fn check_entry(entry: u64, header: &Header, length: u64) -> Result<(), Qcow2Error> {
    let cluster = header.cluster_size();
    if entry & COMPRESSED != 0 {
        // The offset has the bits that the number of sectors leaves ("Compressed Clusters Descriptor").
        let bits = 62 - (header.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        if at >= length {
            return Err(Qcow2Error::Cut { what: "a compressed cluster", at, length });
        }
        return Ok(());
    }
    let offset = entry & OFFSET;
    if offset == 0 || header.version > 2 && entry & ZEROS != 0 {
        return Ok(());
    }
    within("a cluster", offset, cluster, length)
}

/// A cluster has to begin in the file, and where clusters do; a file may end within its last.
fn within(what: &'static str, at: u64, cluster: u64, length: u64) -> Result<(), Qcow2Error> {
    if !at.is_multiple_of(cluster) {
        return Err(Qcow2Error::Damaged("a table leads to where no cluster begins"));
    }
    if at >= length {
        return Err(Qcow2Error::Cut { what, at, length });
    }
    Ok(())
}

/// Reads so many bytes; zeros behind the end.
fn read(file: &File, at: u64, count: u64, bytes: &mut Vec<u8>) -> Result<(), Qcow2Error> {
    bytes.clear();
    bytes.resize(usize::try_from(count).unwrap_or_default(), 0);
    read_some(file, at, bytes).map_err(|error| Qcow2Error::Other(error.to_string()))?;
    Ok(())
}
