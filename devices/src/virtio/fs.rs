//! The file system device (5.11): a folder of the host's, for FUSE's protocol in the guest.
//!
//! What requests mean is not known here: whoever has the files ([`Files`]) answers bytes with bytes. A request is taken
//! out of the guest's memory before it is looked at, so that the guest cannot change it any more, and no more of it than
//! one may have.

use super::queue::{Broken, Buffer, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::state::Misfit;
use crate::threads;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// 5 "Device Types".
const ID: u16 = 26;
/// PCI Code and ID Assignment: other mass storage.
const CLASS: [u8; 3] = [1, 0x80, 0];
/// 5.11.2 "Virtqueues": what has to be done before all else (forgetting), and requests. A request is as many pages as
/// there are entries, less a few: with these it is a mebibyte.
const SIZES: &[u16] = &[128, 512];
/// How many requests are served before others have their turn, if they do not take longer than this: one may have the
/// host write a file to its disk.
const TURN: usize = 16;
const LONGEST_TURN: Duration = Duration::from_millis(5);
/// Bytes of the name by which the guest mounts it (5.11.4 "Device configuration layout").
pub const LONGEST_TAG: usize = 36;

/// Whoever has the files.
pub trait Files: Send + 'static {
    /// What is saved of what the guest knows and has open.
    type State: Serialize + DeserializeOwned;

    /// The most bytes of a request that mean something.
    fn longest_request(&self) -> usize;

    /// Answers a request; how many bytes of the reply there are, if there is one.
    fn answer(&mut self, request: &[u8], reply: &Buffer) -> Option<usize>;

    /// Forgets the guest, and closes what it had open. The host may take its time for that.
    fn reset(&mut self);

    /// What the guest knows and has open.
    fn save(&self) -> Self::State;

    /// Puts it back.
    ///
    /// # Errors
    /// Why it is none, in words; then nothing is done.
    fn restore(&mut self, state: Self::State) -> Result<(), String>;
}

/// The device.
pub struct Fs<F> {
    tag: [u8; LONGEST_TAG],
    files: Arc<Mutex<F>>,
}

impl<F> fmt::Debug for Fs<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs").field("tag", &String::from_utf8_lossy(&self.tag)).finish_non_exhaustive()
    }
}

fn locked<F>(files: &Mutex<F>) -> MutexGuard<'_, F> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Files> Fs<F> {
    /// With files, which the guest finds by a name of 1 to [`LONGEST_TAG`] bytes; `None`: it is too long or empty.
    /// Whoever makes the device may keep them, for another one.
    pub fn new(tag: &str, files: Arc<Mutex<F>>) -> Option<Fs<F>> {
        let mut bytes = [0; LONGEST_TAG];
        let place = bytes.get_mut(..tag.len()).filter(|place| !place.is_empty())?;
        place.copy_from_slice(tag.as_bytes());
        Some(Fs { tag: bytes, files })
    }
}

impl<F: Files> Model for Fs<F> {
    type State = F::State;

    fn name(&self) -> &'static str {
        "virtio fs"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn class(&self) -> [u8; 3] {
        CLASS
    }

    fn queue_sizes(&self) -> &[u16] {
        SIZES
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        const REQUEST_QUEUES: u32 = 1;
        let whole = [&self.tag[..], &REQUEST_QUEUES.to_le_bytes()].concat();
        super::read_bytes(&whole, offset, data);
    }

    fn services(&mut self, _: u64, _: &Arc<dyn Interrupts>) -> Vec<Service> {
        let server = Server { files: Arc::clone(&self.files), request: Vec::new() };
        vec![Service { server: Box::new(server), queues: (0..SIZES.len()).collect() }]
    }

    fn slow_reset(&self) -> Option<threads::Work> {
        let files = Arc::clone(&self.files);
        Some(Box::new(move || locked(&files).reset()))
    }

    fn save(&self) -> F::State {
        locked(&self.files).save()
    }

    fn restore(&mut self, state: F::State) -> Result<(), Misfit> {
        let device = self.name();
        locked(&self.files).restore(state).map_err(|why| Misfit::Damaged { device, why })
    }
}

struct Server<F> {
    files: Arc<Mutex<F>>,
    /// Room for a request.
    request: Vec<u8>,
}

impl<F: Files> Serve for Server<F> {
    fn serve(&mut self, rung: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let Rung::Queue(number) = rung else { return Ok(Then::Waits) };
        let Some(queue) = queues.get(number) else { return Ok(Then::Waits) };
        let mut files = locked(&self.files);
        queue.stop_listening()?;
        let begin = Instant::now();
        for _ in 0..TURN {
            let Some(chain) = queue.pop()? else { break };
            let size = usize::try_from(chain.readable.size()).unwrap_or(usize::MAX);
            self.request.resize(size.min(files.longest_request()), 0);
            let there = chain.readable.read(0, &mut self.request);
            let written = files.answer(&self.request[..there], &chain.writable).unwrap_or(0);
            queue.push(&chain, u32::try_from(written).unwrap_or(u32::MAX))?;
            // One at a time: the next one may take long.
            queue.tell()?;
            if begin.elapsed() > LONGEST_TURN {
                return Ok(Then::GoesOn);
            }
        }
        Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Function;
    use crate::ram::Ram;
    use crate::virtio::pace::Pace;
    use crate::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};
    use arch::GuestPhys;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const VERSION_1: u64 = 1 << 32;
    const NEEDS_RESET: u64 = 64;
    const LONGEST: usize = 0x100;

    /// What has answered so many requests, each with its bytes the other way round; one that begins with 0 is not
    /// answered. If it is given what holds the guest, it does so meanwhile, and takes long.
    struct Mirror(u32, Option<Pace>);

    impl Files for Mirror {
        type State = u32;

        fn longest_request(&self) -> usize {
            LONGEST
        }

        fn answer(&mut self, request: &[u8], reply: &Buffer) -> Option<usize> {
            self.0 += 1;
            assert!(request.len() <= LONGEST);
            if let Some(pace) = &self.1 {
                assert!(!pace.hold(Duration::ZERO));
                let begin = Instant::now();
                while begin.elapsed() <= LONGEST_TURN {}
            }
            let bytes: Vec<u8> = request.iter().rev().copied().collect();
            (request.first() != Some(&0)).then(|| reply.write(0, &bytes))
        }

        fn reset(&mut self) {
            self.0 = 0;
        }

        fn save(&self) -> u32 {
            self.0
        }

        fn restore(&mut self, state: u32) -> Result<(), String> {
            if state > 1000 {
                return Err("so many have not been answered".into());
            }
            self.0 = state;
            Ok(())
        }
    }

    /// Whose files are closed when the host has answered, if that is asked; it tells of each time.
    struct Closing(Sender<()>, Option<Receiver<()>>);

    impl Files for Closing {
        type State = ();

        fn longest_request(&self) -> usize {
            LONGEST
        }

        fn answer(&mut self, _: &[u8], _: &Buffer) -> Option<usize> {
            None
        }

        fn reset(&mut self) {
            // Nobody answers, nor listens, any more once the test is over.
            if let Some(host) = &self.1 {
                host.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
            }
            self.0.send(()).unwrap_or_default();
        }

        fn save(&self) {}

        fn restore(&mut self, (): ()) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn what_is_open_is_closed_as_a_device_goes_unless_another_has_it() {
        let (sender, closed) = channel();
        let new =
            || Driver::new(Fs::new("tag", Arc::new(Mutex::new(Closing(sender.clone(), None)))).unwrap());
        drop(new());
        closed.recv_timeout(Duration::from_secs(20)).unwrap();
        let mut driver = new();
        assert!(crate::virtio::Unplug::unplug(&mut driver.function));
        closed.recv_timeout(Duration::from_secs(20)).unwrap();
        drop(driver);
        assert_eq!(closed.try_iter().count(), 0);
    }

    /// The driver goes on meanwhile, and the reset is not done before.
    #[test]
    fn a_reset_is_done_when_files_are_closed() {
        let ((answers, host), (closed, _)) = (channel(), channel());
        let mut driver =
            Driver::new(Fs::new("tag", Arc::new(Mutex::new(Closing(closed, Some(host))))).unwrap());
        answers.send(()).unwrap();
        driver.set_up(VERSION_1);
        for _ in 0..3 {
            driver.write(0x14, 1, 0);
            assert_eq!(driver.status(), 15);
        }
        assert!(driver.function.save().is_err());
        answers.send(()).unwrap();
        driver.wait_for_reset();
        // Once each time, and the next one asks the host again.
        answers.send(()).unwrap();
        driver.set_up(VERSION_1);
        assert_eq!(driver.status(), 15);
    }

    fn mirror() -> Arc<Mutex<Mirror>> {
        Arc::new(Mutex::new(Mirror(0, None)))
    }

    fn driver() -> Driver<Fs<Mirror>> {
        let mut driver = Driver::new(Fs::new("tag", mirror()).unwrap());
        driver.set_up(VERSION_1);
        driver
    }

    /// A request of these bytes, with room for an answer.
    fn ask(driver: &mut Driver<Fs<Mirror>>, queue: u64, request: &[u8], room: u32) {
        driver.ram.write(GuestPhys(0x1_8000), request);
        let size = u32::try_from(request.len()).unwrap();
        driver.descriptor(queue, 0, (0x1_8000, size), if room > 0 { NEXT } else { 0 }, 1);
        driver.descriptor(queue, 1, (0x2_8000, room), WRITE, 0);
        driver.offer(queue, 0);
    }

    #[test]
    fn its_name_is_in_its_configuration() {
        let mut driver = driver();
        let name: Vec<u8> = (0..8).map(|at| driver.read(0x2000 + at, 1).to_le_bytes()[0]).collect();
        assert_eq!(
            (&name[..], driver.read(0x2024, 4), driver.read(0x2028, 4)),
            (&b"tag\0\0\0\0\0"[..], 1, 0)
        );
        for (tag, is_good) in [("", false), (&"t".repeat(36), true), (&"t".repeat(37), false)] {
            assert_eq!(Fs::new(tag, mirror()).is_some(), is_good);
        }
    }

    #[test]
    fn requests_are_answered_on_both_queues() {
        let mut driver = driver();
        for queue in [0, 1] {
            ask(&mut driver, queue, b"abc", 16);
            assert_eq!((driver.message(), driver.used(queue)), (u32::try_from(queue).ok(), (1, 0, 3)));
            let mut answer = [0; 4];
            driver.ram.read(GuestPhys(0x2_8000), &mut answer);
            assert_eq!(&answer, b"cba\0");
            driver.ram.write(GuestPhys(0x2_8000), &[0; 16]);
            // Without an answer; without room for one.
            ask(&mut driver, queue, b"\0bc", 0);
            assert_eq!((driver.message(), driver.used(queue)), (u32::try_from(queue).ok(), (2, 0, 0)));
            ask(&mut driver, queue, b"abc", 2);
            assert_eq!((driver.message(), driver.used(queue)), (u32::try_from(queue).ok(), (3, 0, 2)));
        }
    }

    /// Whoever holds the guest meanwhile waits for one of them, and not for those behind it.
    #[test]
    fn what_takes_long_is_done_one_at_a_time() {
        let files = mirror();
        let mut driver = Driver::new(Fs::new("tag", Arc::clone(&files)).unwrap());
        driver.set_up(VERSION_1);
        assert!(driver.pace.hold(Duration::from_secs(20)));
        files.lock().unwrap().1 = Some(driver.pace.clone());
        for head in [0, 2, 4] {
            driver.descriptor(1, head, (0x1_8000, 3), NEXT, head + 1);
            driver.descriptor(1, head + 1, (0x2_8000, 16), WRITE, 0);
            driver.offer(1, head);
        }
        for done in 1..=3 {
            driver.pace.release();
            assert_eq!((driver.message(), driver.pace.hold(Duration::from_secs(20))), (Some(1), true));
            assert_eq!((driver.used(1).0, files.lock().unwrap().0), (done, done.into()));
        }
        driver.pace.release();
    }

    /// No more is taken than a request may have; one that has nothing to read is empty.
    #[test]
    fn sizes_have_an_end() {
        let mut driver = driver();
        ask(&mut driver, 1, &[7; LONGEST + 1], 0x800);
        assert_eq!((driver.message(), driver.used(1)), (Some(1), (1, 0, u32::try_from(LONGEST).unwrap())));
        driver.descriptor(1, 0, (0x2_8000, 16), WRITE, 0);
        driver.offer(1, 0);
        assert_eq!((driver.message(), driver.used(1)), (Some(1), (2, 0, 0)));
    }

    #[test]
    fn hostile_chains_end_it_until_its_reset() {
        type Descriptor = (u16, (u64, u32), u16, u16);
        let good = (0x1_8000, 16);
        let chains: [&[Descriptor]; 4] = [
            &[(0, good, NEXT, 1), (1, good, NEXT, 0)],
            &[(0, good, WRITE | NEXT, 1), (1, good, 0, 0)],
            &[(0, good, NEXT, 1), (1, (0x4000_0000, 16), WRITE, 0)],
            &[(0, (0x1_8000, 17), INDIRECT, 0)],
        ];
        for chain in chains {
            let mut driver = driver();
            for (index, part, flags, next) in chain {
                driver.descriptor(1, *index, *part, *flags, *next);
            }
            driver.offer(1, 0);
            assert_eq!(
                (driver.message(), driver.status() & NEEDS_RESET),
                (Some(2), NEEDS_RESET),
                "{chain:x?}"
            );
            driver.set_up(VERSION_1);
            ask(&mut driver, 1, b"abc", 16);
            assert_eq!((driver.message(), driver.used(1)), (Some(1), (1, 0, 3)));
        }
    }

    #[test]
    fn it_goes_on_from_a_saved_state() {
        let mut driver = driver();
        ask(&mut driver, 1, b"abc", 16);
        assert_eq!(driver.message(), Some(1));
        let saved = driver.function.save().unwrap();
        let mut other = driver.with_another(Fs::new("tag", mirror()).unwrap());
        other.function.restore(&saved).unwrap();
        assert_eq!(other.function.save().unwrap(), saved);
        ask(&mut other, 1, b"abc", 16);
        assert_eq!((other.message(), other.used(1)), (Some(1), (2, 0, 3)));
        assert_ne!(other.function.save().unwrap(), saved);
        let mut wrong = saved.clone();
        wrong.fields["device"]["fields"]["model"] = 1001.into();
        assert!(other.function.restore(&wrong).unwrap_err().to_string().contains("not been answered"));
        // A reset forgets the guest.
        other.write(0x14, 1, 0);
        let fresh = Driver::new(Fs::new("tag", mirror()).unwrap()).function.save().unwrap();
        assert_eq!(
            other.function.save().unwrap().fields["device"]["fields"],
            fresh.fields["device"]["fields"]
        );
    }
}
