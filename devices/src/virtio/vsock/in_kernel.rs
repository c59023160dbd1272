//! The socket device whose other end is the host's kernel (vhost): its programs reach the guest by its number, and the
//! guest reaches theirs, by `AF_VSOCK` on both sides.
//!
//! The kernel takes from the guest's queues and writes to its RAM by itself. What is here sets it up as the driver begins,
//! carries rings of bells and interrupts to and fro, and has it stand still while the guest is held ([`Outside`]). What a
//! debugger has planted in RAM the kernel does not know of: it is in code, and what the kernel is given to read or write
//! are buffers.

use super::{CLASS, EVENTS, FROM_DRIVER, ID, SIZES, State, TO_DRIVER, happened};
use crate::state::Misfit;
use crate::tell;
use crate::virtio::pace::Outside;
use crate::virtio::queue::{Broken, Queues};
use crate::virtio::worker::{Rung, Serve, Then};
use crate::virtio::{Interrupts, Model, Service};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Messages whose boundaries are kept (5.10.3 "Feature bits").
const MESSAGES: u64 = 1 << 1;
/// Queues that the kernel serves.
const SERVED: [usize; 2] = [TO_DRIVER, FROM_DRIVER];

/// A queue, as the driver has set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Entries.
    pub size: u16,
    /// Where descriptors, the driver's ring and the device's are, guest-physical.
    pub descriptors: u64,
    /// Likewise.
    pub available: u64,
    /// Likewise.
    pub used: u64,
    /// Of the driver's ring: the next that is looked at, modulo 2^16.
    pub next: u16,
}

/// The eventfds of a queue.
#[derive(Debug)]
pub struct Wires {
    /// Written to when the guest has put something into it.
    pub kick: EventFd,
    /// Written to by the kernel when the guest is to be interrupted.
    pub call: EventFd,
    /// Written to by the kernel when the queue is broken.
    pub error: EventFd,
}

impl Wires {
    fn new() -> io::Result<Wires> {
        let new = || EventFd::new(EFD_NONBLOCK);
        Ok(Wires { kick: new()?, call: new()?, error: new()? })
    }
}

/// The kernel's part.
pub trait Kernel: Send + Sync {
    /// The guest's number.
    fn cid(&self) -> u32;

    /// What it can do.
    fn features(&self) -> u64;

    /// Sets up what is served from the next [`run`](Self::run) on: with these features, the queues to the driver and from
    /// it.
    ///
    /// # Errors
    /// The kernel's.
    fn set_up(&self, features: u64, rings: &[Ring; 2], wires: &[Wires; 2]) -> io::Result<()>;

    /// Has it serve, or stand still: then it does not touch the guest's RAM.
    ///
    /// # Errors
    /// The kernel's.
    fn run(&self, runs: bool) -> io::Result<()>;

    /// How far it has come in the driver's ring of one of the two queues.
    ///
    /// # Errors
    /// The kernel's.
    fn next(&self, queue: usize) -> io::Result<u16>;
}

/// How far it is.
#[derive(Debug, Default)]
struct Run {
    /// The driver has begun.
    is_wanted: bool,
    /// The guest is held.
    is_held: bool,
    /// The kernel serves.
    runs: bool,
    /// How far the kernel had come when it stood still last.
    next: [u16; 2],
    are_gone: bool,
    interrupts: Option<Arc<dyn Interrupts>>,
}

struct Inner {
    kernel: Arc<dyn Kernel>,
    wires: [Wires; 2],
    run: Mutex<Run>,
}

impl Inner {
    fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has begun: with these features, queues and interrupts.
    fn begin(&self, features: u64, mut rings: [Ring; 2], interrupts: &Arc<dyn Interrupts>) -> io::Result<()> {
        let mut run = self.run();
        for ((ring, next), wires) in rings.iter_mut().zip(run.next).zip(&self.wires) {
            ring.next = next;
            // Nothing of it is broken yet: what is there was told of another beginning.
            wires.error.read().ok();
        }
        self.kernel.set_up(features & self.kernel.features(), &rings, &self.wires)?;
        run.is_wanted = true;
        run.interrupts = Some(Arc::clone(interrupts));
        self.settle(&mut run)
    }

    /// Has it serve or stand still, as is wanted.
    fn settle(&self, run: &mut Run) -> io::Result<()> {
        let runs = run.is_wanted && !run.is_held;
        if runs == run.runs {
            return Ok(());
        }
        self.kernel.run(runs)?;
        run.runs = runs;
        if runs {
            // What has been put there meanwhile.
            self.wires.iter().try_for_each(|wires| wires.kick.write(1))
        } else {
            for (queue, next) in run.next.iter_mut().enumerate() {
                *next = self.kernel.next(queue)?;
            }
            Ok(())
        }
    }

    /// As [`Self::settle`]; where it cannot, the guest is told that the device is of no more use.
    fn settle_or_tell(&self, mut run: MutexGuard<'_, Run>) {
        if let Err(error) = self.settle(&mut run) {
            tell!(Error, "vsock: the host's kernel: {error}; the device waits for its reset");
            if let Some(interrupts) = &run.interrupts {
                interrupts.needs_reset();
            }
        }
    }

    fn end(&self) {
        let mut run = self.run();
        run.is_wanted = false;
        self.settle_or_tell(run);
    }
}

impl Outside for Inner {
    fn rest(&self) {
        let mut run = self.run();
        run.is_held = true;
        self.settle_or_tell(run);
    }

    fn go_on(&self) {
        let mut run = self.run();
        run.is_held = false;
        self.settle_or_tell(run);
    }
}

/// The device.
pub struct KernelVsock(Arc<Inner>);

impl fmt::Debug for KernelVsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelVsock").field("cid", &self.0.kernel.cid()).finish_non_exhaustive()
    }
}

impl KernelVsock {
    /// With the kernel's part, which whoever makes the device may keep for another one.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(kernel: Arc<dyn Kernel>) -> io::Result<KernelVsock> {
        let wires = [Wires::new()?, Wires::new()?];
        Ok(KernelVsock(Arc::new(Inner { kernel, wires, run: Mutex::default() })))
    }
}

impl Model for KernelVsock {
    type State = State;

    fn name(&self) -> &'static str {
        "virtio vsock"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn features(&self) -> u64 {
        self.0.kernel.features() & MESSAGES
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_bytes(&u64::from(self.0.kernel.cid()).to_le_bytes(), offset, data);
    }

    fn outside(&self) -> Option<Weak<dyn Outside>> {
        let inner: Arc<dyn Outside> = Arc::<Inner>::clone(&self.0);
        Some(Arc::downgrade(&inner))
    }

    fn services(&mut self, features: u64, interrupts: &Arc<dyn Interrupts>) -> Vec<Service> {
        let server = Server {
            inner: Arc::clone(&self.0),
            features,
            interrupts: Arc::clone(interrupts),
            has_begun: false,
        };
        vec![Service { server: Box::new(server), queues: vec![TO_DRIVER, FROM_DRIVER, EVENTS] }]
    }

    fn reset(&mut self) {
        let mut run = self.0.run();
        (run.next, run.are_gone) = ([0; 2], false);
    }

    /// What the kernel has of connections is not to be had: they are gone for whoever goes on from here.
    fn save(&self) -> State {
        let run = self.0.run();
        State { cid: self.0.kernel.cid(), are_gone: run.are_gone || run.is_wanted, next: Some(run.next) }
    }

    fn restore(&mut self, state: State) -> Result<(), Misfit> {
        if state.cid != self.0.kernel.cid() {
            let why = format!("the guest's number is {}, and another here", state.cid);
            return Err(Misfit::Damaged { device: self.name(), why });
        }
        let Some(next) = state.next else {
            let why = "the host's kernel was not the other end of it".into();
            return Err(Misfit::Damaged { device: self.name(), why });
        };
        let mut run = self.0.run();
        (run.are_gone, run.next) = (state.are_gone, next);
        Ok(())
    }

    /// The kernel cannot leave one of its queues alone.
    fn closed(&mut self, queue: usize) {
        if SERVED.contains(&queue) {
            self.0.end();
        }
    }
}

/// What carries bells and interrupts.
struct Server {
    inner: Arc<Inner>,
    features: u64,
    interrupts: Arc<dyn Interrupts>,
    has_begun: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.end();
    }
}

fn ring(queues: &mut Queues, number: usize) -> Option<Ring> {
    let state = queues.get(number)?.state();
    let (descriptors, available, used) = (state.desc_table, state.avail_ring, state.used_ring);
    Some(Ring { size: state.size, descriptors, available, used, next: 0 })
}

impl Serve for Server {
    /// Those of used buffers, and those of what is broken.
    fn sources(&self) -> Vec<RawFd> {
        let wires = &self.inner.wires;
        let calls = wires.iter().map(|wires| wires.call.as_raw_fd());
        calls.chain(wires.iter().map(|wires| wires.error.as_raw_fd())).collect()
    }

    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        // All are rung at the start, and the kernel begins with both that it serves.
        if !std::mem::replace(&mut self.has_begun, true)
            && let [Some(to), Some(from)] = SERVED.map(|number| ring(queues, number))
        {
            self.inner.begin(self.features, [to, from], &self.interrupts).map_err(Broken::Host)?;
        }
        match rung {
            Rung::Queue(EVENTS) => happened(&mut self.inner.run().are_gone, queues),
            Rung::Queue(number) => {
                if let Some(wires) = self.inner.wires.get(number) {
                    // Its counter is full when nobody looks: then it is rung already.
                    wires.kick.write(1).ok();
                }
                Ok(Then::Waits)
            }
            Rung::Source(number @ 0..2) => {
                // The edge says it: its counter is left as it is, which nobody waits for. At the start all are looked at
                // once, and what the kernel has told of while the guest was held, and saved, is not lost.
                self.interrupts.queue(u16::try_from(SERVED[number]).unwrap_or(0));
                Ok(Then::Waits)
            }
            Rung::Source(number) => {
                let is_broken =
                    self.inner.wires.get(number - 2).is_some_and(|wires| wires.error.read().is_ok());
                if is_broken {
                    Err(Broken::Host(io::Error::other("the kernel cannot read the queue")))
                } else {
                    Ok(Then::Waits)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Function;
    use crate::virtio::testing::Driver;
    use std::time::Duration;

    const VERSION_1: u64 = 1 << 32;
    const NEEDS_RESET: u64 = 64;

    /// A kernel that writes down what it is told.
    #[derive(Default)]
    struct Fake {
        said: Mutex<Vec<String>>,
        wires: Mutex<Option<[(EventFd, EventFd, EventFd); 2]>>,
        fails: Mutex<bool>,
    }

    impl Fake {
        fn said(&self) -> Vec<String> {
            std::mem::take(&mut self.said.lock().unwrap())
        }

        fn say(&self, text: String) -> io::Result<()> {
            self.said.lock().unwrap().push(text);
            if *self.fails.lock().unwrap() { Err(io::Error::other("it fails")) } else { Ok(()) }
        }
    }

    impl Kernel for Fake {
        fn cid(&self) -> u32 {
            42
        }

        fn features(&self) -> u64 {
            VERSION_1 | MESSAGES | 1 << 26
        }

        fn set_up(&self, features: u64, rings: &[Ring; 2], wires: &[Wires; 2]) -> io::Result<()> {
            let copy = |fd: &EventFd| fd.try_clone().unwrap();
            let copies = [0, 1]
                .map(|at: usize| (copy(&wires[at].kick), copy(&wires[at].call), copy(&wires[at].error)));
            *self.wires.lock().unwrap() = Some(copies);
            let rings = rings.map(|ring| format!("{:x}+{}@{}", ring.descriptors, ring.size, ring.next));
            self.say(format!("set up {features:#x} {}", rings.join(" ")))
        }

        fn run(&self, runs: bool) -> io::Result<()> {
            self.say(format!("run {runs}"))
        }

        fn next(&self, queue: usize) -> io::Result<u16> {
            Ok(u16::try_from(queue).unwrap() + 70)
        }
    }

    fn driver(kernel: &Arc<Fake>) -> Driver<KernelVsock> {
        let kernel: Arc<dyn Kernel> = Arc::<Fake>::clone(kernel);
        let mut driver = Driver::new(KernelVsock::new(kernel).unwrap());
        driver.set_up(VERSION_1 | MESSAGES);
        driver
    }

    /// Waits until what a thread does has been said.
    fn wait(kernel: &Fake, wanted: &str) {
        for _ in 0..2000 {
            if kernel.said.lock().unwrap().iter().any(|said| said == wanted) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("'{wanted}' is not said: {:?}", kernel.said());
    }

    #[test]
    fn the_kernel_serves_from_the_drivers_beginning_to_its_reset() {
        let kernel = Arc::new(Fake::default());
        let mut driver = driver(&kernel);
        wait(&kernel, "run true");
        assert_eq!(kernel.said(), ["set up 0x100000002 1000+128@0 5000+128@0", "run true"]);
        let wires = kernel.wires.lock().unwrap().take().unwrap();
        let kicked = |queue: usize| {
            for _ in 0..2000 {
                if wires[queue].0.read().is_ok() {
                    return true;
                }
                std::thread::park_timeout(Duration::from_millis(10));
            }
            false
        };
        assert!(kicked(0) && kicked(1));
        // It interrupts, behind the first look at all, and bells reach it.
        assert_eq!([driver.message(), driver.message()], [Some(0), Some(1)]);
        for queue in [0, 1, 1] {
            wires[queue].1.write(1).unwrap();
            assert_eq!(driver.message(), u32::try_from(queue).ok());
        }
        wires.iter().for_each(|wires| drop(wires.0.read()));
        driver.offer(1, 0);
        assert!(kicked(1) && wires[0].0.read().is_err());
        driver.write(0x14, 1, 0);
        assert_eq!(kernel.said(), ["run false"]);
        driver.set_up(VERSION_1);
        wait(&kernel, "run true");
        assert_eq!(kernel.said(), ["set up 0x100000000 1000+128@0 5000+128@0", "run true"]);
    }

    #[test]
    fn it_stands_still_while_the_guest_is_held() {
        let kernel = Arc::new(Fake::default());
        let mut driver = driver(&kernel);
        wait(&kernel, "run true");
        kernel.said();
        assert!(driver.pace.hold(Duration::from_secs(20)));
        assert_eq!(kernel.said(), ["run false"]);
        // Twice is once.
        assert!(driver.pace.hold(Duration::from_secs(20)) && kernel.said().is_empty());
        let saved = driver.function.save().unwrap();
        driver.pace.release();
        assert_eq!(kernel.said(), ["run true"]);
        // Another one goes on where it was, and its guest hears that its connections are gone.
        let kernel = Arc::new(Fake::default());
        let other: Arc<dyn Kernel> = Arc::<Fake>::clone(&kernel);
        let mut again = Driver::new(KernelVsock::new(other).unwrap());
        assert!(again.pace.hold(Duration::from_secs(20)));
        again.function.restore(&saved).unwrap();
        assert_eq!(again.function.save().unwrap(), saved);
        again.pace.release();
        wait(&kernel, "run true");
        assert_eq!(kernel.said()[0], "set up 0x100000002 1000+128@70 5000+128@71");
    }

    /// Its host's part outlives a device: the next one sets it up anew, from the beginning.
    #[test]
    fn another_device_has_what_one_had_that_is_unplugged() {
        let kernel = Arc::new(Fake::default());
        let mut first = driver(&kernel);
        wait(&kernel, "run true");
        assert!(crate::virtio::Unplug::unplug(&mut first.function));
        assert_eq!(kernel.said()[1..], ["run true", "run false"]);
        let mut second = driver(&kernel);
        wait(&kernel, "run true");
        assert_eq!(kernel.said(), ["set up 0x100000002 1000+128@0 5000+128@0", "run true"]);
        // Whatever is done with the former one.
        first.write(0x14, 1, 0);
        assert!(first.pace.hold(Duration::from_secs(20)));
        first.pace.release();
        assert!(kernel.said().is_empty() && second.status() & NEEDS_RESET == 0);
    }

    /// A driver that takes a queue back has no packets in its memory any more (on MMIO).
    #[test]
    fn a_queue_that_is_taken_back_is_not_served() {
        let kernel = Arc::new(Fake::default());
        let its: Arc<dyn Kernel> = Arc::<Fake>::clone(&kernel);
        let mut vsock = KernelVsock::new(its).unwrap();
        {
            let mut run = vsock.0.run();
            (run.is_wanted, run.runs) = (true, true);
        }
        vsock.closed(EVENTS);
        assert!(kernel.said().is_empty());
        vsock.closed(FROM_DRIVER);
        assert_eq!(kernel.said(), ["run false"]);
    }

    /// Waits until the driver is told that the device needs a reset.
    fn needs_reset(driver: &mut Driver<KernelVsock>) -> bool {
        while driver.message().expect("an interrupt") != 3 {}
        driver.status() & NEEDS_RESET != 0
    }

    #[test]
    fn what_fails_or_is_broken_is_the_devices_end_alone() {
        let kernel = Arc::new(Fake::default());
        *kernel.fails.lock().unwrap() = true;
        let mut driver = driver(&kernel);
        assert!(needs_reset(&mut driver));
        *kernel.fails.lock().unwrap() = false;
        driver.write(0x14, 1, 0);
        kernel.said();
        driver.set_up(VERSION_1);
        wait(&kernel, "run true");
        let wires = kernel.wires.lock().unwrap().take().unwrap();
        for queue in [1, 0, 1] {
            wires[queue].2.write(1).unwrap();
        }
        assert!(needs_reset(&mut driver));
        wait(&kernel, "run false");
        // What was told of that is not told of the next.
        driver.write(0x14, 1, 0);
        wires[1].2.write(1).unwrap();
        kernel.said();
        driver.set_up(VERSION_1);
        wait(&kernel, "run true");
        assert_eq!(driver.status() & NEEDS_RESET, 0);
    }
}
