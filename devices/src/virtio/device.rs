//! What a virtio device is on every transport: its status, the features that are agreed on, its queues while the driver
//! sets them up, and the threads that serve them (2 "Basic Facilities of a Virtio Device", 3.1 "Device Initialization").
//!
//! A thread may be kept by the host for as long as that likes ([`worker`](super::worker)), and a vCPU's may not be kept
//! by it. So whatever ends a thread's service waits for it so long at most (1 s), and is then done when the
//! thread has ended, which is looked at, without waiting, at each access to the device's registers
//! ([`settle`](VirtioDevice::settle)):
//!
//! * A reset: the status is not 0 until then, for which a driver waits (2.4.2, 4.1.4.3.2), and whatever it writes
//!   before is dropped, but for what lowers its line.
//! * A queue that is taken back: it reads as ready until then.
//! * A state that is saved: it is not to be had ([`Unanswered`]).
//! * A state that is put back: it is refused, and the device waits for its reset.
//! * Unplugging: it has failed ([`Unplug::unplug`](super::Unplug::unplug)).
//! * A device that goes away leaves the thread behind, which owns what it touches; what it has open is closed by one, too.
//!
//! What a reset closes of the host's may keep whoever closes it as long: it is done on a thread of its own, too, when
//! those that served have ended ([`Model::slow_reset`]), and is waited for likewise.
//!
//! Two threads never serve the same queue, and nothing is asked of a model that a thread of its may be in the middle
//! of: it hears of a reset, of an end and of a closed queue afterwards.

use super::pace::Pace;
use super::queue::{ActiveQueue, Broken, Queues};
use super::worker::{DROP_PATIENCE, Errand, Position, Standing, Worker};
use super::{Interrupts, Model};
use crate::ram::Ram;
use crate::state::{Misfit, Saved, Unanswered};
use crate::{tell, threads};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long a vCPU's thread waits for what a device's thread has begun.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it is waited for where a guest is not going on meanwhile: a state is saved or put back, a device is
/// unplugged.
const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// 2.1 "Device Status Field".
pub mod status {
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device waits for its reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// 6 "Reserved Feature Bits".
mod feature {
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_INDEX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// How a transport reaches the guest.
pub trait Wires: Send + Sync + 'static {
    /// Interrupts for a queue.
    fn queue(&self, index: u16);

    /// Interrupts for the configuration, and for the device's status.
    fn configuration(&self);
}

/// What a device's threads share with the registers.
struct Signals<W> {
    wires: Arc<W>,
    status: AtomicU8,
    /// Of the configuration, which has changed so often (2.5.1).
    generation: AtomicU8,
}

impl<W: Wires> Interrupts for Signals<W> {
    fn queue(&self, index: u16) {
        self.wires.queue(index);
    }

    fn configuration(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.wires.configuration();
    }

    fn needs_reset(&self) {
        self.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        self.wires.configuration();
    }
}

impl<W> fmt::Debug for Signals<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").field("status", &self.status).finish_non_exhaustive()
    }
}

/// A queue, as the driver is setting it up.
#[derive(Debug)]
struct Setting {
    state: QueueState,
    bell: EventFd,
    /// The driver has taken it back, and what serves it has not let go of it yet.
    is_closing: bool,
}

/// What the driver says of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueField {
    /// Entries.
    Size,
    /// It is to be used, 1.
    Ready,
    /// Where descriptors are, guest-physical.
    Descriptors,
    /// Where the driver's ring is.
    Available,
    /// Where the device's is.
    Used,
}

/// A device, behind a transport's registers.
pub struct VirtioDevice<M, W> {
    /// What it is.
    pub model: M,
    ram: Arc<dyn Ram>,
    pace: Pace,
    signals: Arc<Signals<W>>,
    queues: Vec<Setting>,
    driver_features: u64,
    /// While it serves, and until that has ended.
    workers: Option<Vec<Worker>>,
    /// It is reset as soon as its threads have ended.
    is_resetting: bool,
    /// What of that is done on a thread of its own, once nothing serves any more.
    slow_reset: Option<Errand>,
    /// The same for when the device goes away with what it has of the host, and the name of its model.
    last_reset: Option<(&'static str, threads::Work)>,
    /// It serves no more ([`Unplug`](super::Unplug)).
    is_unplugged: bool,
}

impl<M: Model, W> fmt::Debug for VirtioDevice<M, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioDevice").field("model", &self.model.name()).finish_non_exhaustive()
    }
}

/// A queue's state, as it is saved (the positions in its rings, too).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}

/// A device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDevice<S> {
    status: u8,
    generation: u8,
    driver_features: u64,
    is_started: bool,
    queues: Vec<SavedQueue>,
    model: S,
}

/// Of [`SavedDevice`].
const VERSION: u32 = 1;

impl<M: Model, W: Wires> VirtioDevice<M, W> {
    /// After power-on.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(model: M, (ram, pace): (Arc<dyn Ram>, Pace), wires: Arc<W>) -> io::Result<VirtioDevice<M, W>> {
        let queue = |size: &u16| {
            let state = QueueState { max_size: *size, size: *size, ..QueueState::default() };
            Ok(Setting { state, bell: EventFd::new(EFD_NONBLOCK)?, is_closing: false })
        };
        let queues = model.queue_sizes().iter().map(queue).collect::<io::Result<Vec<_>>>()?;
        let signals = Signals { wires, status: AtomicU8::new(0), generation: AtomicU8::new(0) };
        let signals = Arc::new(signals);
        if let Some(outside) = model.outside() {
            pace.attach(outside);
        }
        let last_reset = model.slow_reset().map(|work| (model.name(), work));
        Ok(VirtioDevice {
            model,
            ram,
            pace,
            signals,
            queues,
            driver_features: 0,
            workers: None,
            is_resetting: false,
            slow_reset: None,
            last_reset,
            is_unplugged: false,
        })
    }

    /// What the device offers; one that is unplugged has nothing of its own.
    pub fn features(&self) -> u64 {
        let own = if self.is_unplugged { 0 } else { self.model.features() };
        own | feature::INDIRECT | feature::EVENT_INDEX | feature::VERSION_1
    }

    /// Reads the device's configuration; one that is unplugged has none, which reads as zeros.
    pub fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !self.is_unplugged {
            self.model.read_configuration(offset, data);
        }
    }

    /// Writes to it.
    pub fn write_configuration(&mut self, offset: u64, data: &[u8]) {
        if !self.is_unplugged && !self.is_resetting {
            self.model.write_configuration(offset, data);
        }
    }

    /// What the driver has taken of it.
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// The driver takes these, as long as they are not agreed on.
    pub fn set_driver_features(&mut self, features: u64) {
        let is_agreed = self.status() & (status::FEATURES_OK | status::DRIVER_OK) != 0;
        if !is_agreed && !self.is_resetting {
            self.driver_features = features;
        }
    }

    /// The device's status.
    pub fn status(&self) -> u8 {
        self.signals.status.load(Ordering::SeqCst)
    }

    /// How often the configuration has changed.
    pub fn generation(&self) -> u8 {
        self.signals.generation.load(Ordering::SeqCst)
    }

    /// How many queues it has.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// The most entries that a queue may have; 0 for one that it has not got.
    pub fn most_entries(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(0, |queue| queue.state.max_size)
    }

    /// What the driver has said of a queue; 0 for one that the device has not got.
    pub fn queue(&self, queue: u16, field: QueueField) -> u64 {
        let Some(Setting { state, .. }) = self.queues.get(usize::from(queue)) else { return 0 };
        match field {
            QueueField::Size => state.size.into(),
            QueueField::Ready => state.ready.into(),
            QueueField::Descriptors => state.desc_table,
            QueueField::Available => state.avail_ring,
            QueueField::Used => state.used_ring,
        }
    }

    /// What a queue is set up by, before it is in use. One that is not to be used any more is not as soon as it reads
    /// so (4.2.2.2).
    pub fn set_queue(&mut self, queue: u16, field: QueueField, value: u64) {
        if self.is_resetting {
            return;
        }
        if field == QueueField::Ready && value == 0 {
            return self.close_queue(queue.into());
        }
        let is_set_up = self.status() & status::DRIVER_OK != 0;
        let Some(Setting { state, .. }) = self.queues.get_mut(usize::from(queue)) else { return };
        match field {
            _ if is_set_up => {}
            QueueField::Size => {
                if let Ok(size) = u16::try_from(value)
                    && size.is_power_of_two()
                    && size <= state.max_size
                {
                    state.size = size;
                }
            }
            QueueField::Ready => state.ready |= value == 1,
            QueueField::Descriptors => state.desc_table = value,
            QueueField::Available => state.avail_ring = value,
            QueueField::Used => state.used_ring = value,
        }
    }

    /// Ends what is done with a queue; what it has come to stays with it.
    fn close_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| !queue.is_closing) else { return };
        queue.is_closing = true;
        let until = Instant::now() + PATIENCE;
        self.workers.iter().flatten().for_each(|worker| worker.close(index, until));
        self.settle_queues();
    }

    /// Does what is left to do for queues that have been let go.
    fn settle_queues(&mut self) {
        for index in 0..self.queues.len() {
            let mut workers = self.workers.iter().flatten();
            if !self.queues[index].is_closing || workers.any(|worker| worker.is_closing(index)) {
                continue;
            }
            let closed: Vec<_> = self.workers.iter().flatten().flat_map(Worker::take_closed).collect();
            self.note(closed);
            let Setting { state, bell, is_closing } = &mut self.queues[index];
            (state.ready, *is_closing) = (false, false);
            // Nobody looks for it any more; it may not have been rung.
            bell.read().ok();
            self.model.closed(index);
        }
    }

    /// Does what waits for threads that have ended or let go of a queue, without waiting; whether the device has been
    /// reset by this. To be called before each access to its registers.
    pub fn settle(&mut self) -> bool {
        self.settle_queues();
        self.is_resetting && self.go_on_with_reset(Instant::now())
    }

    /// Whether it is being reset: what the driver writes is dropped.
    pub fn is_resetting(&self) -> bool {
        self.is_resetting
    }

    /// The driver's word on the device's status; 0 resets the device.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
        }
        if value == 0 || self.is_unplugged || self.is_resetting {
            return;
        }
        let mut value = value & !status::NEEDS_RESET;
        // Features that we did not offer, or without version 1, are not agreed on (3.1.1).
        let agreed =
            self.driver_features & !self.features() == 0 && self.driver_features & feature::VERSION_1 != 0;
        if !agreed {
            value &= !status::FEATURES_OK;
        }
        // Nor is a driver set up that has not agreed (3.1.1, steps 5 to 8).
        if (self.status() | value) & status::FEATURES_OK == 0 {
            value &= !status::DRIVER_OK;
        }
        let before = self.signals.status.fetch_or(value, Ordering::SeqCst);
        let begins = value & status::DRIVER_OK != 0 && before & status::DRIVER_OK == 0;
        if begins {
            self.start();
        }
    }

    fn active(&self, index: usize) -> Result<Option<ActiveQueue>, Broken> {
        let Some(Setting { state, bell, .. }) = self.queues.get(index).filter(|queue| queue.state.ready)
        else {
            return Ok(None);
        };
        let bell = bell.try_clone().map_err(|_| Broken::Rings(virtio_queue::Error::QueueNotReady))?;
        let mut state = *state;
        state.event_idx_enabled = self.driver_features & feature::EVENT_INDEX != 0;
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        ActiveQueue::new(state, index, bell, (Arc::clone(&self.ram), self.interrupts())).map(Some)
    }

    fn interrupts(&self) -> Arc<dyn Interrupts> {
        Arc::<Signals<W>>::clone(&self.signals)
    }

    fn start(&mut self) {
        if let Err(why) = self.begin() {
            tell!(Warn, "{}: {why}; the device waits for its reset", self.model.name());
            // Those that have begun are waited for at the reset.
            self.workers.iter().flatten().for_each(Worker::end);
            self.signals.needs_reset();
        }
    }

    fn begin(&mut self) -> Result<(), String> {
        self.workers = Some(Vec::new());
        let interrupts = self.interrupts();
        for service in self.model.services(self.driver_features, &interrupts) {
            let mut queues = Queues::new(self.queues.len());
            for index in service.queues {
                let queue = self.active(index).map_err(|broken| broken.to_string())?;
                queues.put(index, queue);
            }
            let worker = Worker::start(
                self.model.name(),
                service.server,
                queues,
                (self.pace.clone(), Arc::clone(&interrupts)),
            );
            let worker = worker.map_err(|error| error.to_string())?;
            self.workers.get_or_insert_default().push(worker);
        }
        Ok(())
    }

    /// Ends its threads, and waits until a moment at most; whether they have ended. What they have come to stays with
    /// the queues.
    fn stop(&mut self, until: Instant) -> bool {
        if !end_all(&mut self.workers, until) {
            return false;
        }
        self.note_positions(until);
        self.settle_queues();
        self.workers = None;
        self.model.ended();
        true
    }

    /// Whether it serves, and is not one that waits for its reset, which serves nothing any more.
    fn is_started(&self) -> bool {
        self.workers.is_some() && self.status() & status::NEEDS_RESET == 0
    }

    /// Writes down what the queues have come to, and waits for the end of turns until a moment at most; whether all are
    /// over.
    fn note_positions(&mut self, until: Instant) -> bool {
        let positions: Vec<_> = self.workers.iter().flatten().map(|worker| worker.positions(until)).collect();
        let is_all = positions.iter().all(Option::is_some);
        self.note(positions.into_iter().flatten().flatten().collect());
        is_all
    }

    fn note(&mut self, positions: Vec<Position>) {
        for (index, state) in positions {
            if let Some(queue) = self.queues.get_mut(index) {
                queue.state = state;
            }
        }
    }

    /// [`Unplug::unplug`](super::Unplug::unplug).
    pub fn unplug(&mut self) -> bool {
        let is_done = self.reset_until(Instant::now() + LONG_PATIENCE);
        self.is_unplugged = true;
        // Another device may have it from here on.
        self.last_reset = None;
        if !is_done {
            tell!(Error, "{}: the host does not answer, and it cannot be unplugged", self.model.name());
        }
        is_done
    }

    /// As after power-on; whether it is so already. If not, it is so as soon as its threads have ended
    /// ([`Self::settle`]).
    pub fn reset(&mut self) -> bool {
        // Who says so again has waited already.
        let patience = if self.is_resetting { Duration::ZERO } else { PATIENCE };
        self.reset_until(Instant::now() + patience)
    }

    fn reset_until(&mut self, until: Instant) -> bool {
        if self.is_unplugged && !self.is_resetting {
            return true;
        }
        self.is_resetting = true;
        self.go_on_with_reset(until)
    }

    fn go_on_with_reset(&mut self, until: Instant) -> bool {
        if self.slow_reset.is_none() && !(self.stop(until) && self.begin_slow_reset()) {
            return false;
        }
        match self.slow_reset.as_ref().map(|errand| errand.wait(until)) {
            Some(Standing::GoesOn) => return false,
            // It is begun anew at the next look.
            Some(Standing::Failed) => {
                self.slow_reset = None;
                return false;
            }
            Some(Standing::Done) | None => self.slow_reset = None,
        }
        self.model.reset();
        for Setting { state, bell, is_closing } in &mut self.queues {
            *state = QueueState { max_size: state.max_size, size: state.max_size, ..QueueState::default() };
            *is_closing = false;
            bell.read().ok();
        }
        self.driver_features = 0;
        self.signals.status.store(0, Ordering::SeqCst);
        self.is_resetting = false;
        true
    }

    /// Begins what the host may keep a thread with, if there is any; `false`: there is no thread for it, and the reset
    /// waits.
    fn begin_slow_reset(&mut self) -> bool {
        let Some(work) = self.model.slow_reset() else { return true };
        match Errand::start(self.model.name(), work) {
            Ok(errand) => self.slow_reset = Some(errand),
            Err(error) => tell!(Error, "{}: cannot be reset: {error}", self.model.name()),
        }
        self.slow_reset.is_some()
    }

    /// What the driver rings a queue by.
    pub fn bell(&self, queue: u16) -> Option<&EventFd> {
        self.queues.get(usize::from(queue)).map(|queue| &queue.bell)
    }

    /// Rings it.
    pub fn ring(&self, queue: usize) {
        if let Some(queue) = self.queues.get(queue).filter(|queue| queue.state.ready && !queue.is_closing) {
            // Its counter is full when nobody listens: then it is rung already.
            queue.bell.write(1).ok();
        }
    }

    /// The device's state, while the guest is held. What its threads have begun is waited for, so long at most, and a
    /// reset that waits for them is done by then.
    ///
    /// # Errors
    /// [`Unanswered`]: it has not come to that, and nothing is asked of the model.
    pub fn save(&mut self) -> Result<Saved, Unanswered> {
        let (device, until) = (self.model.name(), Instant::now() + LONG_PATIENCE);
        let is_quiet = self.note_positions(until);
        self.settle_queues();
        if !is_quiet || self.is_resetting && !self.go_on_with_reset(until) {
            return Err(Unanswered { device });
        }
        let queue = |setting: &Setting| SavedQueue {
            size: setting.state.size,
            ready: setting.state.ready,
            descriptors: setting.state.desc_table,
            available: setting.state.avail_ring,
            used: setting.state.used_ring,
            next_available: setting.state.next_avail,
            next_used: setting.state.next_used,
        };
        let fields = SavedDevice {
            status: self.status(),
            generation: self.generation(),
            driver_features: self.driver_features,
            is_started: self.is_started(),
            queues: self.queues.iter().map(queue).collect(),
            model: self.model.save(),
        };
        Ok(Saved::new(device, VERSION, &fields))
    }

    /// Puts a state back: with the guest's memory as it was then, it goes on from there. What it interrupts by is put
    /// back by `put_back`, when nothing is in the way of that any more and before anything serves: a thread may have
    /// something to tell as soon as it begins.
    ///
    /// # Errors
    /// [`Misfit`]; `put_back` has not been called then, and the device is as it was, unless its model could not begin,
    /// or could not end before: then it waits for its reset.
    pub fn restore(&mut self, saved: &Saved, put_back: impl FnOnce()) -> Result<(), Misfit> {
        let device = self.model.name();
        let damaged = |why: &str| Misfit::Damaged { device, why: why.into() };
        let fields: SavedDevice<M::State> = saved.fields(device, VERSION)?;
        if self.is_unplugged {
            return Err(damaged("the device it is for is unplugged"));
        }
        if fields.queues.len() != self.queues.len() {
            return Err(damaged("it has another number of queues"));
        }
        let fits = |(saved, setting): (&SavedQueue, &Setting)| {
            saved.size.is_power_of_two() && saved.size <= setting.state.max_size
        };
        // What a driver asks for beyond what there is it does not get, and may have asked for all the same.
        let takes_more = fields.is_started && fields.driver_features & !self.features() != 0;
        if !fields.queues.iter().zip(&self.queues).all(fits) || takes_more {
            return Err(damaged("its queues or features are more than this device has"));
        }
        let is_set_up = status::FEATURES_OK | status::DRIVER_OK;
        if fields.is_started && fields.status & is_set_up != is_set_up {
            return Err(damaged("it serves a driver that is not set up"));
        }
        let (was_started, until) = (self.is_started() && !self.is_resetting, Instant::now() + LONG_PATIENCE);
        let has_ended = if self.is_resetting { self.go_on_with_reset(until) } else { self.stop(until) };
        if !has_ended {
            self.signals.needs_reset();
            return Err(damaged("the host does not answer the device it is for"));
        }
        if let Err(misfit) = self.model.restore(fields.model) {
            // As it was: it goes on from where its threads have come to.
            if was_started {
                self.start();
            }
            return Err(misfit);
        }
        for (saved, Setting { state, .. }) in fields.queues.iter().zip(&mut self.queues) {
            *state = QueueState {
                max_size: state.max_size,
                size: saved.size,
                ready: saved.ready,
                desc_table: saved.descriptors,
                avail_ring: saved.available,
                used_ring: saved.used,
                next_avail: saved.next_available,
                next_used: saved.next_used,
                event_idx_enabled: false,
            };
        }
        self.driver_features = fields.driver_features;
        self.signals.status.store(fields.status, Ordering::SeqCst);
        self.signals.generation.store(fields.generation, Ordering::SeqCst);
        put_back();
        if fields.is_started {
            self.start();
        }
        Ok(())
    }
}

/// Ends threads, all at once, and waits until a moment at most; whether they have ended.
fn end_all(workers: &mut Option<Vec<Worker>>, until: Instant) -> bool {
    workers.iter().flatten().for_each(Worker::end);
    workers.iter_mut().flatten().all(|worker| worker.wait(until))
}

impl<M, W> Drop for VirtioDevice<M, W> {
    fn drop(&mut self) {
        // All at once; each is then waited for by itself.
        self.workers.iter().flatten().for_each(Worker::end);
        let Some((name, work)) = self.last_reset.take() else { return };
        // Without a thread it is done as the model goes.
        let Ok(errand) = Errand::start(name, work) else { return };
        if errand.wait(Instant::now() + DROP_PATIENCE) == Standing::GoesOn {
            tell!(Warn, "{name}: the host does not answer; the thread that closes its files is left behind");
        }
    }
}

#[cfg(test)]
mod tests;
