//! The entropy device (5.4): a queue that the guest fills with buffers, and the device with random bytes.

use super::queue::{Broken, Queues};
use super::worker::{Rung, Serve, Then};
use super::{Interrupts, Model, Service};
use crate::state::Misfit;
use crate::tell;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// 5 "Device Types".
const ID: u16 = 4;
const SIZES: &[u16] = &[64];
/// As much as one buffer gets, bytes: a guest that wants more asks again.
const MOST: usize = 4096;

/// Where random bytes come from: it fills all that it is given, or says why not.
pub type Source = Arc<Mutex<dyn FnMut(&mut [u8]) -> io::Result<()> + Send>>;

/// The device.
pub struct Entropy(Source);

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

struct Server(Source);

impl Serve for Server {
    fn serve(&mut self, _: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(0) else { return Ok(Then::Waits) };
        queue.stop_listening()?;
        for _ in 0..SIZES[0] {
            let Some(chain) = queue.pop()? else { break };
            let mut bytes = [0; MOST];
            let count = usize::try_from(chain.writable.size()).unwrap_or(MOST).min(MOST);
            let bytes = &mut bytes[..count];
            let filled = (self.0.lock().unwrap_or_else(PoisonError::into_inner))(bytes);
            // Bytes that are not random are not given: the guest reads that there are none.
            let written = match filled {
                Ok(()) => chain.writable.write(0, bytes),
                Err(error) => {
                    tell!(Error, "there are no random bytes for the guest: {error}");
                    0
                }
            };
            queue.push(&chain, u32::try_from(written).unwrap_or(0))?;
        }
        queue.tell()?;
        Ok(if queue.listen()? { Then::GoesOn } else { Then::Waits })
    }
}

impl Entropy {
    /// With bytes from `source`.
    pub fn new(source: Source) -> Entropy {
        Entropy(source)
    }
}

impl Model for Entropy {
    type State = ();

    fn name(&self) -> &'static str {
        "virtio entropy"
    }

    fn id(&self) -> u16 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        SIZES
    }

    fn services(&mut self, _: u64, _: &Arc<dyn Interrupts>) -> Vec<Service> {
        vec![Service { server: Box::new(Server(Arc::clone(&self.0))), queues: vec![0] }]
    }

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), Misfit> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Function;
    use crate::ram::Ram;
    use crate::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};
    use arch::GuestPhys;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    const VERSION_1: u64 = 1 << 32;
    const EVENT_INDEX: u64 = 1 << 29;
    const NEEDS_RESET: u64 = 64;

    fn filled_with(byte: u8) -> Entropy {
        Entropy::new(Arc::new(Mutex::new(move |bytes: &mut [u8]| {
            bytes.fill(byte);
            Ok(())
        })))
    }

    fn driver() -> Driver<Entropy> {
        Driver::new(filled_with(0xa5))
    }

    #[test]
    fn buffers_are_filled() {
        for features in [VERSION_1, VERSION_1 | EVENT_INDEX | 1 << 28] {
            let mut driver = driver();
            driver.set_up(features);
            // Two parts, the second one above 4 GiB; more than is given at once.
            driver.descriptor(0, 3, (0x8000, 0x20), WRITE | NEXT, 7);
            driver.descriptor(0, 7, (1 << 32, 0x1000), WRITE, 0);
            driver.offer(0, 3);
            assert_eq!(driver.message(), Some(0));
            assert_eq!(driver.used(0), (1, 3, 4096));
            let mut bytes = [0; 0x22];
            driver.ram.read(GuestPhys(0x8000), &mut bytes);
            assert_eq!((&bytes[..0x20], &bytes[0x20..]), (&[0xa5; 0x20][..], &[0; 2][..]));
            driver.ram.read(GuestPhys((1 << 32) + 0xfdf), &mut bytes[..2]);
            assert_eq!(bytes[..2], [0xa5, 0]);
            // Reset, and once more.
            driver.set_up(features);
            driver.descriptor(0, 0, (0x9000, 1), WRITE, 0);
            driver.offer(0, 0);
            assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 1)));
            assert!(driver.is_quiet());
        }
    }

    #[test]
    fn what_is_not_there_to_be_written_is_given_back_empty() {
        let mut driver = driver();
        driver.set_up(VERSION_1);
        driver.descriptor(0, 0, (0x8000, 0x10), 0, 0);
        driver.offer(0, 0);
        assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 0)));
    }

    /// Nothing is written, and nothing is said to be; the next one is served.
    #[test]
    fn a_source_that_fails_gives_nothing() {
        let fails = Arc::new(AtomicBool::new(true));
        let asked = Arc::clone(&fails);
        let mut driver = Driver::new(Entropy::new(Arc::new(Mutex::new(move |bytes: &mut [u8]| {
            bytes.fill(0x5a);
            if asked.swap(false, Ordering::SeqCst) {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(())
            }
        }))));
        driver.set_up(VERSION_1);
        driver.descriptor(0, 0, (0x8000, 0x10), WRITE, 0);
        driver.offer(0, 0);
        assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 0)));
        let mut bytes = [1; 0x10];
        driver.ram.read(GuestPhys(0x8000), &mut bytes);
        assert_eq!(bytes, [0; 0x10]);
        driver.offer(0, 0);
        assert_eq!((driver.message(), driver.used(0)), (Some(0), (2, 0, 0x10)));
    }

    /// Each of these is the end of the device until its reset, and of nothing else.
    #[test]
    fn hostile_chains() {
        type Descriptor = (u16, (u64, u32), u16, u16);
        let good = (0x8000, 16);
        let chains: [&[Descriptor]; 8] = [
            // Round; itself; an index that the queue has not got.
            &[(0, good, WRITE | NEXT, 1), (1, good, WRITE | NEXT, 0)],
            &[(0, good, WRITE | NEXT, 0)],
            &[(0, good, WRITE | NEXT, 0x7fff)],
            // No RAM; over its end; over the end of addresses.
            &[(0, (0x4000_0000, 1), WRITE, 0)],
            &[(0, (0xf_fff0, 17), WRITE, 0)],
            &[(0, (u64::MAX - 3, 16), WRITE, 0)],
            // The wrong way round.
            &[(0, good, WRITE | NEXT, 1), (1, good, 0, 0)],
            // A table of parts that is none.
            &[(0, (0x8000, 17), INDIRECT, 0)],
        ];
        for chain in chains {
            let mut driver = driver();
            driver.set_up(VERSION_1 | 1 << 28);
            for (index, part, flags, next) in chain {
                driver.descriptor(0, *index, *part, *flags, *next);
            }
            driver.offer(0, 0);
            // By the configuration's vector.
            assert_eq!(driver.message(), Some(1), "{chain:x?}");
            assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
            assert_eq!(driver.used(0).0, 0);
            driver.set_up(VERSION_1);
            assert_eq!(driver.status() & NEEDS_RESET, 0);
            driver.descriptor(0, 0, (0x8000, 4), WRITE, 0);
            driver.offer(0, 0);
            assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 4)));
        }
    }

    #[test]
    fn more_available_than_a_queue_holds() {
        let mut driver = driver();
        driver.set_up(VERSION_1);
        driver.ram.write(GuestPhys(0x2002), &200u16.to_le_bytes());
        driver.write(0x3000, 2, 0);
        assert_eq!((driver.message(), driver.status() & NEEDS_RESET), (Some(1), NEEDS_RESET));
    }

    #[test]
    fn rings_that_are_not_in_ram() {
        for register in [0x20, 0x28, 0x30] {
            let mut driver = driver();
            driver.set_up(VERSION_1);
            driver.write(0x14, 1, 0);
            for status in [1, 3] {
                driver.write(0x14, 1, status);
            }
            driver.write(8, 4, 1);
            driver.write(0xc, 4, 1);
            driver.write(0x14, 1, 11);
            driver.write(0x10, 2, 1);
            for (place, at) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
                driver.write(place, 8, if place == register { 0xffff_ffff_ffff_f000 } else { at });
                driver.write(place, 4, if place == register { 0xffff_f000 } else { at });
                driver.write(place + 4, 4, if place == register { 0xffff_ffff } else { 0 });
            }
            driver.write(0x1c, 2, 1);
            driver.write(0x14, 1, 15);
            assert_eq!((driver.message(), driver.status() & NEEDS_RESET), (Some(1), NEEDS_RESET));
        }
    }

    /// Saved in the middle, put into another device with the same memory, it goes on; and what is saved then is equal.
    #[test]
    fn it_goes_on_from_a_saved_state() {
        for features in [VERSION_1, VERSION_1 | EVENT_INDEX] {
            let mut driver = driver();
            let fresh = driver.function.save().unwrap();
            driver.set_up(features);
            driver.descriptor(0, 3, (0x8000, 0x20), WRITE, 0);
            driver.offer(0, 3);
            assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 3, 0x20)));
            let saved = driver.function.save().unwrap();
            assert_ne!(saved, fresh);
            let mut other = driver.with_another(filled_with(0x5a));
            other.function.restore(&saved).unwrap();
            assert_eq!(other.function.save().unwrap(), saved);
            other.descriptor(0, 4, (0x9000, 0x10), WRITE, 0);
            other.offer(0, 4);
            assert_eq!((other.message(), other.used(0)), (Some(0), (2, 4, 0x10)));
            other.function.restore(&fresh).unwrap();
            assert_eq!(other.function.save().unwrap(), fresh);
            // Of another device, or damaged: refused, and nothing is done.
            let mut wrong = saved.clone();
            wrong.fields["device"]["fields"]["queues"][0]["size"] = 3.into();
            assert!(
                other.function.restore(&wrong).unwrap_err().to_string().contains("more than this device has")
            );
        }
    }

    /// What the guest has asked for and not got is given by the device that goes on.
    #[test]
    fn what_is_asked_for_when_it_is_saved_is_given_afterwards() {
        let mut driver = driver();
        driver.set_up(VERSION_1);
        assert!(driver.pace.hold(Duration::from_secs(20)));
        driver.descriptor(0, 3, (0x8000, 0x20), WRITE, 0);
        driver.offer(0, 3);
        let saved = driver.function.save().unwrap();
        assert_eq!(driver.used(0).0, 0);
        let mut other = driver.with_another(filled_with(0x5a));
        other.function.restore(&saved).unwrap();
        assert_eq!((other.message(), other.used(0)), (Some(0), (1, 3, 0x20)));
        let mut bytes = [0; 0x21];
        other.ram.read(GuestPhys(0x8000), &mut bytes);
        assert_eq!((&bytes[..0x20], bytes[0x20]), (&[0x5a; 0x20][..], 0));
    }

    /// A guest that fills the queue all the time does not keep the device from its end.
    #[test]
    fn it_ends_while_the_guest_is_busy() {
        let mut driver = driver();
        driver.set_up(VERSION_1);
        driver.descriptor(0, 0, (0x8000, 16), WRITE, 0);
        let (ram, (over, is_over)) = (driver.ram.clone(), std::sync::mpsc::channel::<()>());
        let busy = std::thread::spawn(move || {
            let mut index = 0u16;
            while is_over.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let mut used = [0; 2];
                ram.read(GuestPhys(0x3002), &mut used);
                index = u16::from_le_bytes(used).wrapping_add(64);
                ram.write(GuestPhys(0x2002), &index.to_le_bytes());
            }
            index
        });
        let mut available = [0; 2];
        while available == [0; 2] {
            driver.ram.read(GuestPhys(0x2002), &mut available);
        }
        driver.write(0x3000, 2, 0);
        assert_eq!(driver.message(), Some(0));
        driver.write(0x14, 1, 0);
        assert_eq!(driver.status(), 0);
        drop(over);
        busy.join().unwrap();
    }
}
