//! Bytes of debug information that cost something to read.
//!
//! A small file can have its readers go over the same bytes again and again: units that share tables, lists that are
//! read for each of many functions. So whoever reads is given an amount of work, and an error when that is done.

use gimli::{EndianArcSlice, Error, LittleEndian, Reader, ReaderOffsetId, Result};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Work that may be done still, of time and of memory: one for a read, and one for each byte that is copied or looked
/// through; of what becomes tables in memory a read costs as many times as much as it may take bytes there.
#[derive(Clone, Debug, Default)]
pub(super) struct Work(Arc<AtomicU64>);

impl Work {
    /// Allows so much from now on.
    pub fn allow(&self, amount: u64) {
        self.0.store(amount, Ordering::Relaxed);
    }

    /// Only one thread reads at a time.
    fn spend(&self, amount: u64) -> Result<()> {
        let left = self.0.load(Ordering::Relaxed).checked_sub(amount);
        // Nothing goes on behind what there is too little left for.
        self.0.store(left.unwrap_or(0), Ordering::Relaxed);
        left.map(drop).ok_or(Error::Io)
    }
}

/// Bytes of a section, or of a part of one.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    bytes: EndianArcSlice<LittleEndian>,
    work: Work,
    /// What a read costs.
    price: u64,
}

impl Bytes {
    /// Of a section of which a read costs so much.
    pub fn new(bytes: Vec<u8>, work: &Work, price: u64) -> Bytes {
        Bytes { bytes: EndianArcSlice::new(Arc::from(bytes), LittleEndian), work: work.clone(), price }
    }

    fn spend(&self, bytes: usize) -> Result<()> {
        self.work.spend(self.price.saturating_add(bytes as u64))
    }
}

impl Reader for Bytes {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        self.bytes.endian()
    }

    fn len(&self) -> usize {
        Reader::len(&self.bytes)
    }

    fn empty(&mut self) {
        self.bytes.empty();
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.bytes.truncate(len)
    }

    fn offset_from(&self, base: &Bytes) -> usize {
        self.bytes.offset_from(&base.bytes)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        self.bytes.offset_id()
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        self.bytes.lookup_offset_id(id)
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let found = Reader::find(&self.bytes, byte);
        self.spend(found.as_ref().map_or_else(|_| Reader::len(&self.bytes), |at| *at))?;
        found
    }

    fn skip(&mut self, len: usize) -> Result<()> {
        self.spend(0)?;
        self.bytes.skip(len)
    }

    fn split(&mut self, len: usize) -> Result<Bytes> {
        self.spend(0)?;
        Ok(Bytes { bytes: self.bytes.split(len)?, work: self.work.clone(), price: self.price })
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        self.spend(Reader::len(&self.bytes))?;
        self.bytes.to_slice()
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        self.spend(Reader::len(&self.bytes))?;
        Reader::to_string(&self.bytes)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        self.spend(Reader::len(&self.bytes))?;
        Reader::to_string_lossy(&self.bytes)
    }

    fn read_slice(&mut self, buf: &mut [u8]) -> Result<()> {
        self.spend(0)?;
        self.bytes.read_slice(buf)
    }

    // The rest is made of these.

    fn read_u8(&mut self) -> Result<u8> {
        self.spend(0)?;
        self.bytes.read_u8()
    }

    fn read_u16(&mut self) -> Result<u16> {
        self.spend(0)?;
        self.bytes.read_u16()
    }

    fn read_u32(&mut self) -> Result<u32> {
        self.spend(0)?;
        self.bytes.read_u32()
    }

    fn read_u64(&mut self) -> Result<u64> {
        self.spend(0)?;
        self.bytes.read_u64()
    }

    fn read_uleb128(&mut self) -> Result<u64> {
        self.spend(0)?;
        self.bytes.read_uleb128()
    }

    fn read_sleb128(&mut self) -> Result<i64> {
        self.spend(0)?;
        self.bytes.read_sleb128()
    }

    fn skip_leb128(&mut self) -> Result<()> {
        self.spend(0)?;
        self.bytes.skip_leb128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_costs_work_and_ends_with_it() {
        let work = Work::default();
        let bytes = Bytes::new(b"text\0more".to_vec(), &work, 1);
        assert_eq!(bytes.clone().read_u8(), Err(Error::Io));
        work.allow(8);
        let mut reader = bytes.clone();
        // Four bytes are looked through, one read, and the rest is a split, a skip and what each costs.
        let text = reader.read_null_terminated_slice().unwrap();
        assert_eq!((Reader::len(&text), reader.read_u8()), (4, Ok(b'm')));
        assert_eq!(reader.read_u8(), Err(Error::Io));
        work.allow(5);
        assert_eq!(text.to_slice().unwrap(), &b"text"[..]);
        assert_eq!(text.to_slice(), Err(Error::Io));
    }

    #[test]
    fn nothing_goes_on_behind_what_was_too_much() {
        let work = Work::default();
        let bytes = Bytes::new(b"no end".to_vec(), &work, 3);
        work.allow(8);
        // Looked through in vain.
        assert_eq!(bytes.find(0), Err(Error::Io));
        assert_eq!(bytes.clone().read_u8(), Err(Error::Io));
        work.allow(6);
        let mut reader = bytes.clone();
        assert_eq!([reader.read_u8(), reader.read_u8()], [Ok(b'n'), Ok(b'o')]);
        assert_eq!(reader.read_u8(), Err(Error::Io));
    }
}
