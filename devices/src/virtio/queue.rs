//! Queues in a guest's RAM, and what a guest has put into them.
//!
//! The rings are virtio-queue's business (2.7 "Split Virtqueues"). What it lets pass and a device must not meet is
//! refused here: chains that are cut off, go round, or lie outside RAM.

use super::Interrupts;
use crate::ram::Ram;
use arch::GuestPhys;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::guest_memory::{self, GuestMemorySliceIterator};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// Guest RAM, as virtio-queue gets to see it.
#[derive(Clone, Debug)]
struct Rings(Arc<dyn Ram>);

/// A piece of RAM, or why there is none. RAM is contiguous as far as rings go: one that lies in two ranges is refused.
struct Slices<'a>(Option<guest_memory::Result<VolatileSlice<'a>>>);

impl<'a> Iterator for Slices<'a> {
    type Item = guest_memory::Result<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take()
    }
}

impl std::iter::FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

impl GuestMemory for Rings {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, _: Permissions) -> bool {
        self.0.shared(GuestPhys(address.0), count).is_some()
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> guest_memory::Result<impl GuestMemorySliceIterator<'a, ()>> {
        let slice = self.0.shared(GuestPhys(address.0), count);
        let slice = slice.ok_or(GuestMemoryError::InvalidGuestAddress(address));
        Ok(Slices((count != 0).then_some(slice)))
    }
}

/// What has been done to a queue, by the guest as a rule, that cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The rings themselves.
    #[error("the rings are damaged: {0}")]
    Rings(#[from] virtio_queue::Error),
    /// A buffer of it, its first address and its size.
    #[error("a buffer of {1} bytes from {0:#x} is not in RAM")]
    NoRam(u64, u32),
    /// What the device is to write comes before what it is to read (2.7.4.2).
    #[error("a chain has what is to be read behind what is to be written")]
    Order,
    /// It has no end, or more parts than the queue has entries (2.7.5.3.1).
    #[error("a chain goes round, or is longer than the queue")]
    Long,
    /// It has no parts.
    #[error("a chain has no parts that can be read")]
    Empty,
    /// A request of a disk's (5.2.6).
    #[error("a request has no header, or no room for what became of it")]
    Request,
    /// What serves it on the host cannot.
    #[error("the host's kernel does not serve it: {0}")]
    Host(std::io::Error),
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub address: GuestPhys,
    /// Bytes.
    pub size: u32,
}

/// A buffer in a guest's RAM, in parts that lie in RAM.
#[derive(Clone, Debug)]
pub struct Buffer {
    ram: Arc<dyn Ram>,
    parts: Vec<Part>,
    size: u64,
}

impl Buffer {
    fn new(ram: &Arc<dyn Ram>) -> Buffer {
        Buffer { ram: Arc::clone(ram), parts: Vec::new(), size: 0 }
    }

    fn push(&mut self, part: Part) {
        self.size += u64::from(part.size);
        self.parts.push(part);
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its parts.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Goes through what lies within so many bytes from an offset: address, and where in those bytes; as long as it is
    /// done whole. How many bytes that was.
    fn each(
        &self,
        offset: u64,
        count: usize,
        mut work: impl FnMut(GuestPhys, usize, usize) -> usize,
    ) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for part in &self.parts {
            let size = u64::from(part.size);
            if skip >= size {
                skip -= size;
                continue;
            }
            let wanted = usize::try_from(size - skip).unwrap_or(usize::MAX).min(count - done);
            let worked = work(GuestPhys(part.address.0 + skip), done, wanted);
            done += worked;
            if worked < wanted || done == count {
                break;
            }
            skip = 0;
        }
        done
    }

    /// Reads from an offset; how many bytes there were.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> usize {
        self.each(offset, bytes.len(), |address, at, count| {
            self.ram.read(address, &mut bytes[at..at + count])
        })
    }

    /// Writes likewise.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> usize {
        self.each(offset, bytes.len(), |address, at, count| self.ram.write(address, &bytes[at..at + count]))
    }

    /// [Lends](Ram::lend) up to so many bytes from an offset for a host to read into; `work` says how many it has. 0: none,
    /// or they cannot be lent.
    pub fn lend(
        &self,
        offset: u64,
        count: usize,
        mut work: impl FnMut(&[VolatileSlice<'_>]) -> usize,
    ) -> usize {
        let (mut parts, mut done) = (Vec::with_capacity(self.parts.len()), 0);
        self.each(offset, count, |address, _, count| {
            parts.push((address, count));
            count
        });
        if !self.ram.lend(&parts, &mut |slices| done = work(slices)) {
            return 0;
        }
        self.each(offset, done, |address, _, count| {
            self.ram.written(address, count);
            count
        });
        done
    }
}

/// What a guest has put into a queue.
#[derive(Clone, Debug)]
pub struct Chain {
    head: u16,
    /// What the device reads.
    pub readable: Buffer,
    /// What it writes.
    pub writable: Buffer,
}

impl Chain {
    /// The number of its first descriptor: as long as it is not given back, no other has it.
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// A queue that a driver has set up.
pub struct ActiveQueue {
    queue: Queue,
    rings: Rings,
    index: u16,
    /// How many had been given back when the guest was told last, modulo 2^16.
    told: u16,
    /// Rung when the guest has put something into it.
    pub bell: EventFd,
    interrupts: Arc<dyn Interrupts>,
}

impl fmt::Debug for ActiveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveQueue")
            .field("index", &self.index)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl ActiveQueue {
    /// A queue as the guest has set it up, which it rings at `bell`.
    ///
    /// # Errors
    /// [`Broken::Rings`] when that cannot be.
    pub fn new(
        state: QueueState,
        index: u16,
        bell: EventFd,
        (ram, interrupts): (Arc<dyn Ram>, Arc<dyn Interrupts>),
    ) -> Result<ActiveQueue, Broken> {
        let (queue, rings) = (Queue::try_from(state)?, Rings(ram));
        if !queue.is_valid(&rings) {
            return Err(Broken::Rings(virtio_queue::Error::QueueNotReady));
        }
        let told = queue.next_used();
        Ok(ActiveQueue { queue, rings, index, told, bell, interrupts })
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// What it has come to, for whoever sets it up again.
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// What devices interrupt by.
    pub fn interrupts(&self) -> &Arc<dyn Interrupts> {
        &self.interrupts
    }

    /// The next thing in it, if there is one.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        let (size, ram) = (usize::from(self.queue.size()), &self.rings.0);
        let Some(chain) = self.queue.iter(&self.rings)?.next() else { return Ok(None) };
        let (mut readable, mut writable) = (Buffer::new(ram), Buffer::new(ram));
        let (head, mut count, mut goes_on) = (chain.head_index(), 0, false);
        for descriptor in chain {
            let part = Part { address: GuestPhys(descriptor.addr().0), size: descriptor.len() };
            count += 1;
            goes_on = descriptor.has_next();
            if count > size {
                return Err(Broken::Long);
            }
            if ram.shared(part.address, part.size as usize).is_none() {
                return Err(Broken::NoRam(part.address.0, part.size));
            }
            match (descriptor.is_write_only(), writable.parts.is_empty()) {
                (true, _) => writable.push(part),
                (false, true) => readable.push(part),
                (false, false) => return Err(Broken::Order),
            }
        }
        if goes_on {
            return Err(Broken::Long);
        }
        if count == 0 {
            return Err(Broken::Empty);
        }
        Ok(Some(Chain { head, readable, writable }))
    }

    /// Gives it back, with so many bytes written.
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn push(&mut self, chain: &Chain, written: u32) -> Result<(), Broken> {
        self.queue.add_used(&self.rings, chain.head, written)?;
        self.note_used();
        Ok(())
    }

    /// Gives several back at once, each with so many bytes written: the guest sees all of them, or none yet (5.1.6.4
    /// wants that of the buffers of one packet).
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn push_together(&mut self, chains: &[(Chain, u32)]) -> Result<(), Broken> {
        use vm_memory::Bytes;
        /// Flags and index stand before the entries of the used ring, each of which is 8 bytes (2.7.8).
        const ENTRIES: u64 = 4;
        const INDEX: u64 = 2;
        let failed = |error| Broken::Rings(virtio_queue::Error::GuestMemory(error));
        let (ring, size, mut next) = (self.queue.used_ring(), self.queue.size(), self.queue.next_used());
        for (chain, written) in chains {
            let at = GuestAddress(ring + ENTRIES + 8 * u64::from(next % size));
            let entry = u64::from(chain.head) | u64::from(*written) << 32;
            self.rings.write_obj(entry.to_le(), at).map_err(failed)?;
            next = next.wrapping_add(1);
        }
        let index = GuestAddress(ring + INDEX);
        self.rings.store(next.to_le(), index, Ordering::Release).map_err(failed)?;
        self.queue.set_next_used(next);
        self.note_used();
        Ok(())
    }

    /// Whoever keeps account of the guest's pages learns of what has been given back.
    fn note_used(&self) {
        // Flags, index, an entry of 8 bytes for each of the queue's, and the event (2.7.8).
        let size = 6 + 8 * usize::from(self.queue.size());
        self.rings.0.written(GuestPhys(self.queue.used_ring()), size);
    }

    /// Puts back what was taken last, which will be taken again.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Interrupts the guest, if it wants to hear of what has been given back since it was interrupted last.
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn tell(&mut self) -> Result<(), Broken> {
        let used = self.queue.next_used();
        let told = std::mem::replace(&mut self.told, used);
        if used != told && self.wants_to_hear(told, used)? {
            self.interrupts.queue(self.index);
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what is used from `told` to `used`: by the event index (2.7.10), or
    /// without that feature by a flag of the available ring's (2.7.7.2), which virtio-queue does not look at.
    fn wants_to_hear(&self, told: u16, used: u16) -> Result<bool, Broken> {
        use vm_memory::Bytes;
        const NO_INTERRUPT: u16 = 1;
        // What is used is written before what the driver wants is read.
        fence(Ordering::SeqCst);
        let (ring, has_event) = (self.queue.avail_ring(), self.queue.event_idx_enabled());
        // Behind flags, index, and an entry of 2 bytes for each of the queue's.
        let at = if has_event { ring + 4 + 2 * u64::from(self.queue.size()) } else { ring };
        let word = self.rings.load(GuestAddress(at), Ordering::Acquire);
        let word = u16::from_le(word.map_err(virtio_queue::Error::GuestMemory)?);
        Ok(match has_event {
            true => used.wrapping_sub(word).wrapping_sub(1) < used.wrapping_sub(told),
            false => word & NO_INTERRUPT == 0,
        })
    }

    /// Wants to be rung again; whether something has come meanwhile.
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn listen(&mut self) -> Result<bool, Broken> {
        Ok(self.queue.enable_notification(&self.rings)?)
    }

    /// Wants to be rung when there is more than the next so many, which were put back as they are not enough; whether
    /// something has come meanwhile.
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn listen_beyond(&mut self, count: u16) -> Result<bool, Broken> {
        let next = self.queue.next_avail();
        self.queue.set_next_avail(next.wrapping_add(count));
        let more = self.queue.enable_notification(&self.rings);
        self.queue.set_next_avail(next);
        Ok(more?)
    }

    /// Need not be rung for now.
    ///
    /// # Errors
    /// [`Broken::Rings`].
    pub fn stop_listening(&mut self) -> Result<(), Broken> {
        Ok(self.queue.disable_notification(&self.rings)?)
    }
}

/// Queues that one thread serves, by their numbers: those that the guest has set up.
#[derive(Debug)]
pub struct Queues(Vec<Option<ActiveQueue>>);

impl Queues {
    /// None yet, of a device that has so many.
    pub fn new(count: usize) -> Queues {
        Queues((0..count).map(|_| None).collect())
    }

    /// Puts one in.
    pub fn put(&mut self, number: usize, queue: Option<ActiveQueue>) {
        if let Some(place) = self.0.get_mut(number) {
            *place = queue;
        }
    }

    /// The one of a number, if the guest has set it up and this thread serves it.
    pub fn get(&mut self, number: usize) -> Option<&mut ActiveQueue> {
        self.0.get_mut(number)?.as_mut()
    }

    /// How many the device has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that there are.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &ActiveQueue)> {
        self.0.iter().enumerate().filter_map(|(number, queue)| Some((number, queue.as_ref()?)))
    }
}
