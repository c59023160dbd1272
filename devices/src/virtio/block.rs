//! The block device (5.2): a disk, as sectors of 512 bytes.
//!
//! Where the bytes are is not known here: whoever has them ([`Disk`]) reads and writes at offsets. A queue has a thread of
//! its own, so that a guest's processors do not wait for each other's requests; a long request is worked on in pieces
//! (`requests`), so that nothing is allocated by the guest's say and nobody waits for it.

mod requests;
mod told;

use super::queue::{Broken, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::ram::VolatileSlice;
use crate::state::Misfit;
use crate::tell;
use requests::{Progress, Requests};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::Arc;
use told::Told;

/// 5 "Device Types".
const ID: u16 = 2;
/// PCI Code and ID Assignment: other mass storage.
const CLASS: [u8; 3] = [1, 0x80, 0];
/// Entries of a queue: a request of 254 pages is near a mebibyte.
const ENTRIES: u16 = 256;
/// The most queues.
pub const MOST_QUEUES: u16 = 16;
/// Bytes of what a guest knows a disk by (5.2.6 "Device Operation").
pub const LONGEST_SERIAL: usize = 20;
/// How many requests are served before others have their turn, which ends before that with one that may take long.
const TURN: usize = 16;

/// 5.2.3 "Feature bits".
pub mod feature {
    /// A request has at most so many parts.
    pub const SEG_MAX: u64 = 1 << 2;
    /// It is only read.
    pub const RO: u64 = 1 << 5;
    /// Bytes of a block.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// It keeps writes back until it is told to flush them.
    pub const FLUSH: u64 = 1 << 9;
    /// In what units it works best.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discards.
    pub const DISCARD: u64 = 1 << 13;
    /// Writes zeros.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Whoever has the bytes. Several threads use it at once.
pub trait Disk: Send + Sync + 'static {
    /// Bytes: a multiple of 512.
    fn size(&self) -> u64;

    /// Whether it can be written to.
    fn is_writable(&self) -> bool;

    /// Reads all of `bytes` from an offset in bytes.
    ///
    /// # Errors
    /// The host's.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes them.
    ///
    /// # Errors
    /// The host's.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads into RAM by itself, as much as comes at once: bytes. 0: it is to be read by [`Self::read`], which says why where
    /// that cannot be.
    fn read_into(&self, _offset: u64, _ram: &[VolatileSlice<'_>]) -> usize {
        0
    }

    /// What has been written is kept, whatever happens to the host afterwards.
    ///
    /// # Errors
    /// The host's.
    fn flush(&self) -> io::Result<()>;

    /// These bytes are needed no more.
    ///
    /// # Errors
    /// The host's.
    fn discard(&self, offset: u64, count: u64) -> io::Result<()>;

    /// Makes them zeros; `gives_room`: they need take no room afterwards.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()>;
}

/// The device.
pub struct Block<D> {
    disk: Arc<D>,
    /// For what is said of it.
    label: Arc<str>,
    told: Arc<Told>,
    serial: [u8; LONGEST_SERIAL],
    sizes: Vec<u16>,
}

impl<D> fmt::Debug for Block<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("label", &self.label).finish_non_exhaustive()
    }
}

/// What is saved: what the guest has been told of the disk. The bytes are the disk's, and flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    size: u64,
    is_writable: bool,
}

impl<D: Disk> Block<D> {
    /// A disk, which messages call `label`, with a serial number of at most [`LONGEST_SERIAL`] bytes, and as many queues
    /// as the guest has processors, of which there are 1 to [`MOST_QUEUES`]. `None`: the number is too long.
    pub fn new(disk: D, label: &str, serial: &str, queues: u32) -> Option<Block<D>> {
        let mut bytes = [0; LONGEST_SERIAL];
        bytes.get_mut(..serial.len())?.copy_from_slice(serial.as_bytes());
        let queues = queues.clamp(1, MOST_QUEUES.into()) as usize;
        let (disk, label, told) = (Arc::new(disk), label.into(), Arc::default());
        Some(Block { disk, label, told, serial: bytes, sizes: vec![ENTRIES; queues] })
    }

    fn state(&self) -> State {
        State { size: self.disk.size(), is_writable: self.disk.is_writable() }
    }

    /// 5.2.4 "Device configuration layout".
    fn configuration(&self) -> [u8; 60] {
        /// Blocks of 4096 bytes (2 to the 3rd sectors) are what hosts keep, and overlays.
        const PHYSICAL_BLOCK: u8 = 3;
        let mut bytes = [0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.disk.size() / requests::SECTOR).to_le_bytes());
        // Header and status are in the queue as well.
        put(12, &u32::from(ENTRIES - 2).to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK]);
        // It keeps writes back.
        put(32, &[1]);
        put(34, &u16::try_from(self.sizes.len()).unwrap_or(MOST_QUEUES).to_le_bytes());
        put(36, &requests::MOST_DISCARDED.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &(1u32 << PHYSICAL_BLOCK).to_le_bytes());
        put(48, &requests::MOST_ZEROED.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        // Zeros may take no room.
        put(56, &[1]);
        bytes
    }
}

impl<D: Disk> Model for Block<D> {
    type State = State;

    fn name(&self) -> &'static str {
        "virtio block"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        use feature::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, SEG_MAX, TOPOLOGY, WRITE_ZEROES};
        let kind = if self.disk.is_writable() { DISCARD | WRITE_ZEROES } else { RO };
        let many = if self.sizes.len() > 1 { MQ } else { 0 };
        SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | kind | many
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.configuration(), offset, data);
    }

    fn services(&mut self, features: u64, _: &Arc<dyn Interrupts>) -> Vec<Service> {
        let count = if features & feature::MQ != 0 { self.sizes.len() } else { 1 };
        let service = |queue| {
            let requests = Requests {
                disk: Arc::clone(&self.disk),
                label: Arc::clone(&self.label),
                told: Arc::clone(&self.told),
                serial: self.serial,
                // Without the feature each write is kept before it is acknowledged (5.2.6.2).
                writes_through: features & feature::FLUSH == 0,
            };
            Service {
                server: Box::new(Server { requests, progress: Progress::default() }),
                queues: vec![queue],
            }
        };
        (0..count).map(service).collect()
    }

    fn save(&self) -> State {
        // Whoever goes on from here may open the disk anew.
        if let Err(error) = self.disk.flush() {
            tell!(Error, "{}: cannot flush what is saved: {error}", self.label);
        }
        self.state()
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        if state != self.state() {
            let why = "the disk has another size, or another one can be written to";
            return Err(Misfit::Damaged { device: self.name(), why: why.into() });
        }
        Ok(())
    }
}

/// Serves one queue.
struct Server<D> {
    requests: Requests<D>,
    /// Of a request that takes longer than a turn.
    progress: Progress,
}

impl<D: Disk> Serve for Server<D> {
    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let Rung::Queue(number) = rung else { return Ok(Then::Waits) };
        let Some(queue) = queues.get(number) else { return Ok(Then::Waits) };
        queue.stop_listening()?;
        let mut left = requests::BYTES_AT_ONCE;
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else { break };
            match self.requests.answer(&chain, &mut self.progress, &mut left)? {
                Some(written) => queue.push(&chain, written)?,
                None => {
                    // It is taken again, and gone on with: whoever saves the device finds it in the queue.
                    queue.put_back();
                    return Ok(Then::GoesOn);
                }
            }
            // One at a time: the next one may take long.
            queue.tell()?;
            if left == 0 {
                return Ok(Then::GoesOn);
            }
        }
        Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits })
    }
}

#[cfg(test)]
mod tests;
