//! Requests of a guest's to its disk (5.2.6 "Device Operation"): what each means, and how each may be wrong.
//!
//! Header and data are taken from wherever a guest has put them; what it says of sectors is held against the disk before
//! anything is done.

use super::told::Told;
use super::{Disk, LONGEST_SERIAL};
use crate::tell;
use crate::virtio::queue::{Broken, Buffer, Chain};
use std::io;
use std::sync::Arc;

/// Bytes of a sector, whatever a disk's blocks are.
pub const SECTOR: u64 = 512;
/// What is read or written at once where it has to be copied, bytes: so much is allocated for it.
const PIECE: usize = 128 << 10;
/// As much as is read or written before others have their turn, bytes. What may take long whatever its size (a flush, a
/// discard, zeros) takes all that is left of them.
pub const BYTES_AT_ONCE: u64 = 2 << 20;
/// The most sectors of a request to discard (1 GiB), and of one for zeros (32 MiB), which may have to be written.
pub const MOST_DISCARDED: u32 = 1 << 21;
pub const MOST_ZEROED: u32 = 1 << 16;
/// Bytes of a request's header: what, nothing, and where.
const HEADER: usize = 16;

/// What is asked for.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// What became of it: a byte at the end of what the device writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// Why a request has failed.
enum Failure {
    /// It asks for what cannot be.
    Wrong,
    /// It asks for what is not known.
    Unsupported,
    /// The host's disk.
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Host(error)
    }
}

/// How far a request that is not done has come.
#[derive(Debug, Default)]
pub struct Progress {
    /// By its first descriptor; with how many bytes are done.
    begun: Option<(u16, u64)>,
    /// Room for a piece.
    piece: Vec<u8>,
}

/// Bytes that the device has written for a request that is done; `None`: there is more of it to do.
type Done = Result<Option<u64>, Failure>;

/// What answers them.
pub struct Requests<D> {
    pub disk: Arc<D>,
    pub label: Arc<str>,
    pub told: Arc<Told>,
    pub serial: [u8; LONGEST_SERIAL],
    pub writes_through: bool,
}

/// A request.
struct Request<'a> {
    what: u32,
    sector: u64,
    /// Bytes that come from the guest behind the header, and those that go to it before the status.
    from: u64,
    to: u64,
    chain: &'a Chain,
}

impl Request<'_> {
    /// # Errors
    /// [`Broken::Request`]: there is no way to say what became of it.
    fn read(chain: &Chain) -> Result<Request<'_>, Broken> {
        let mut header = [0; HEADER];
        let there = chain.readable.read(0, &mut header);
        let to = chain.writable.size().checked_sub(1).filter(|_| there == HEADER).ok_or(Broken::Request)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        Ok(Request {
            what: u32::from_le_bytes([a, b, c, d]),
            sector: u64::from_le_bytes(sector),
            from: chain.readable.size() - HEADER as u64,
            to,
            chain,
        })
    }
}

impl<D: Disk> Requests<D> {
    /// Answers one, or as much of it as is `left` of a turn, bytes; how many bytes were written for it, if it is done.
    ///
    /// # Errors
    /// [`Broken::Request`].
    pub fn answer(
        &self,
        chain: &Chain,
        progress: &mut Progress,
        left: &mut u64,
    ) -> Result<Option<u32>, Broken> {
        let request = Request::read(chain)?;
        if progress.begun.is_none_or(|(head, _)| head != chain.head()) {
            progress.begun = Some((chain.head(), 0));
        }
        let (status, written) = match self.carry_out(&request, progress, left) {
            Ok(None) => return Ok(None),
            Ok(Some(written)) => {
                self.told.has_succeeded(request.what);
                (Status::Ok, written)
            }
            Err(Failure::Wrong) => (Status::IoError, 0),
            Err(Failure::Unsupported) => (Status::Unsupported, 0),
            Err(Failure::Host(error)) => {
                if self.told.is_news(request.what, &error) {
                    tell!(
                        Warn,
                        "{}: at sector {}: {error}; the guest is told so",
                        self.label,
                        request.sector
                    );
                }
                (Status::IoError, 0)
            }
        };
        progress.begun = None;
        chain.writable.write(request.to, &[status as u8]);
        Ok(Some(u32::try_from(written + 1).unwrap_or(u32::MAX)))
    }

    fn carry_out(&self, request: &Request<'_>, progress: &mut Progress, left: &mut u64) -> Done {
        let changes = matches!(request.what, kind::OUT | kind::DISCARD | kind::WRITE_ZEROES);
        if changes && !self.disk.is_writable() {
            return Err(Failure::Wrong);
        }
        let done = match request.what {
            kind::IN => {
                let to = &request.chain.writable;
                let in_place = |at, offset, count| to.lend(at, count, |ram| self.disk.read_into(offset, ram));
                self.in_pieces(request, request.to, (progress, left), in_place, |at, offset, piece| {
                    self.disk.read(offset, piece)?;
                    to.write(at, piece);
                    Ok(())
                })?
            }
            kind::OUT => {
                let from = &request.chain.readable;
                // In place was tried, and took twice as long where the host is an emulation; elsewhere it gains little.
                let in_place = |_, _, _| 0;
                let done = self.in_pieces(
                    request,
                    request.from,
                    (progress, left),
                    in_place,
                    |at, offset, piece| {
                        from.read(HEADER as u64 + at, piece);
                        self.disk.write(offset, piece)
                    },
                )?;
                done.map(|_| 0)
            }
            kind::FLUSH => {
                *left = 0;
                self.disk.flush()?;
                Some(0)
            }
            kind::GET_ID => {
                let count = usize::try_from(request.to).unwrap_or(usize::MAX).min(LONGEST_SERIAL);
                Some(request.chain.writable.write(0, &self.serial[..count]) as u64)
            }
            kind::DISCARD | kind::WRITE_ZEROES => {
                *left = 0;
                self.clear(request, &request.chain.readable)?;
                Some(0)
            }
            _ => return Err(Failure::Unsupported),
        };
        if changes && self.writes_through && done.is_some() {
            *left = 0;
            self.disk.flush()?;
        }
        Ok(done)
    }

    /// The first byte of sectors that the disk has.
    fn place(&self, sector: u64, count: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Wrong)?;
        let end = offset.checked_add(count).ok_or(Failure::Wrong)?;
        if end > self.disk.size() { Err(Failure::Wrong) } else { Ok(offset) }
    }

    /// Reads or writes so many bytes: `in_place` is given where in the request's data, where on the disk, and how many, and
    /// says how many it has done; where it does none, `copied` is given a piece of room. All of them, when it is done.
    fn in_pieces(
        &self,
        request: &Request<'_>,
        count: u64,
        (progress, left): (&mut Progress, &mut u64),
        mut in_place: impl FnMut(u64, u64, usize) -> usize,
        mut copied: impl FnMut(u64, u64, &mut [u8]) -> io::Result<()>,
    ) -> Done {
        if !count.is_multiple_of(SECTOR) {
            return Err(Failure::Wrong);
        }
        let offset = self.place(request.sector, count)?;
        let Progress { begun: Some((_, done)), piece } = progress else { return Err(Failure::Wrong) };
        while *done < count {
            let size = usize::try_from((count - *done).min(*left)).unwrap_or(PIECE);
            if size == 0 {
                return Ok(None);
            }
            // What is done to a part of a sector is done again.
            let mut now = in_place(*done, offset + *done, size) as u64 / SECTOR * SECTOR;
            if now == 0 {
                let size = size.min(PIECE);
                if piece.len() < size {
                    piece.resize(size, 0);
                }
                copied(*done, offset + *done, &mut piece[..size])?;
                now = size as u64;
            }
            *done += now;
            *left = left.saturating_sub(now);
        }
        Ok(Some(count))
    }

    /// Discards, or writes zeros: one range, as the configuration says.
    fn clear(&self, request: &Request<'_>, from: &Buffer) -> Result<(), Failure> {
        const RANGE: usize = 16;
        const UNMAP: u32 = 1;
        let mut range = [0; RANGE];
        if request.from != RANGE as u64 || from.read(HEADER as u64, &mut range) != RANGE {
            return Err(Failure::Wrong);
        }
        let [sector @ .., a, b, c, d, e, f, g, h] = range;
        let (sector, count) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
        let flags = u32::from_le_bytes([e, f, g, h]);
        let zeroes = request.what == kind::WRITE_ZEROES;
        let (known, most) = if zeroes { (UNMAP, MOST_ZEROED) } else { (0, MOST_DISCARDED) };
        if flags & !known != 0 {
            return Err(Failure::Unsupported);
        }
        if count > most {
            return Err(Failure::Wrong);
        }
        let bytes = u64::from(count) * SECTOR;
        let offset = self.place(sector, bytes)?;
        if zeroes {
            self.disk.write_zeroes(offset, bytes, flags & UNMAP != 0)?;
        } else {
            self.disk.discard(offset, bytes)?;
        }
        Ok(())
    }
}
