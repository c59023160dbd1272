//! Who else has an image open: locks on bytes, the same as QEMU's, so that either minds the other.
//!
//! What a process does with a file it says by a shared lock on a byte from 100 on, and what it cannot bear others to do
//! by one from 200 on; it looks whether anybody has what stands against either. Source: QEMU, block/file-posix.c
//! (`raw_apply_lock_bytes`, `raw_check_lock_bytes`) and include/block/block-common.h (`BLK_PERM_*`).

use crate::error::DiskError;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, flock};
use std::fs::File;
use std::io;

/// What is done with an image, by its number.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// The first byte for what is done, and for what others may not do.
const DONE: i64 = 100;
const REFUSED: i64 = 200;

fn byte(at: i64, kind: i32) -> flock {
    let kind = i16::try_from(kind).unwrap_or_default();
    let whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    flock { l_type: kind, l_whence: whence, l_start: at, l_len: 1, l_pid: 0 }
}

/// Locks an image for as long as it is open.
///
/// # Errors
/// [`DiskError::InUse`].
pub fn lock(file: &File, is_written: bool) -> Result<(), DiskError> {
    let done: &[i64] = if is_written { &[CONSISTENT_READ, WRITE, RESIZE] } else { &[CONSISTENT_READ] };
    let refused = [WRITE, RESIZE];
    let bytes = done.iter().map(|it| DONE + it).chain(refused.iter().map(|it| REFUSED + it));
    for at in bytes {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&byte(at, libc::F_RDLCK))) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                return Err(DiskError::InUse("has it locked"));
            }
            // A file system without locks, as QEMU takes it.
            Err(_) => return Ok(()),
        }
    }
    for it in refused {
        if is_locked(file, DONE + it) {
            return Err(DiskError::InUse("writes to it"));
        }
    }
    for it in done {
        if is_locked(file, REFUSED + it) {
            return Err(DiskError::InUse(if is_written { "uses it" } else { "has it to itself" }));
        }
    }
    Ok(())
}

/// Whether another one has a lock, shared or not, on a byte.
fn is_locked(file: &File, at: i64) -> bool {
    let mut found = byte(at, libc::F_WRLCK);
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
    asked.map_err(io::Error::from).is_ok() && i32::from(found.l_type) != libc::F_UNLCK
}
