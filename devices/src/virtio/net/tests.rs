//! A driver, and a link that keeps what it is sent and gives what it is told.

use super::*;
use crate::pci::Function;
use crate::ram::Ram;
use crate::virtio::Unplug;
use crate::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};
use arch::GuestPhys;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VERSION_1: u64 = 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;
const NEEDS_RESET: u64 = 64;
const MAC_ADDRESS: Mac = [2, 0, 0, 0, 0, 1];
/// Where packets to and from the driver lie.
const RECEIVED: u64 = 0x1_8000;
const TO_SEND: u64 = 0x4_0000;

#[derive(Debug, Default)]
struct World {
    sent: Vec<Vec<u8>>,
    /// How many more it takes.
    room: usize,
    to_give: VecDeque<Vec<u8>>,
    begun: Option<u64>,
    is_down: bool,
    rested: Duration,
    /// How often it was asked what it can do.
    asked: Arc<AtomicUsize>,
    /// How often the device has looked at it.
    looks: Arc<AtomicUsize>,
}

/// A link whose world the test has as well.
struct TestLink {
    world: Arc<Mutex<World>>,
    bell: EventFd,
}

impl Link for TestLink {
    fn sources(&self) -> Vec<RawFd> {
        vec![self.bell.as_raw_fd()]
    }

    fn features(&self) -> u64 {
        self.world.lock().unwrap().asked.fetch_add(1, Ordering::SeqCst);
        // The last is no link's business.
        feature::CSUM | feature::GUEST_CSUM | 1 << 17
    }

    fn mtu(&self) -> Option<u16> {
        self.world.lock().unwrap().asked.fetch_add(1, Ordering::SeqCst);
        Some(65520)
    }

    fn begin(&mut self, features: u64) {
        self.world.lock().unwrap().begun = Some(features);
    }

    fn reset(&mut self) {
        self.world.lock().unwrap().begun = None;
    }

    fn send(&mut self, packet: &[u8]) -> Sent {
        let mut world = self.world.lock().unwrap();
        if world.room == 0 {
            return Sent::NoRoom;
        }
        world.room -= 1;
        world.sent.push(packet.to_vec());
        Sent::Gone
    }

    fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        self.bell.read().ok();
        let next = self.world.lock().unwrap().to_give.pop_front()?;
        packet[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }

    fn rested(&mut self, time: Duration) {
        self.world.lock().unwrap().rested += time;
    }

    fn is_up(&self) -> bool {
        let world = self.world.lock().unwrap();
        world.looks.fetch_add(1, Ordering::SeqCst);
        !world.is_down
    }
}

/// The world beyond a link, and what rings the device for it.
struct Outside {
    world: Arc<Mutex<World>>,
    bell: EventFd,
}

impl Outside {
    fn ring(&self) {
        self.bell.write(1).unwrap();
    }

    fn give(&self, packet: &[u8]) {
        self.world.lock().unwrap().to_give.push_back(packet.to_vec());
        self.ring();
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.world.lock().unwrap().sent)
    }
}

fn link() -> (TestLink, Outside) {
    let world = Arc::new(Mutex::new(World { room: usize::MAX, ..World::default() }));
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let outside = Outside { world: Arc::clone(&world), bell: bell.try_clone().unwrap() };
    (TestLink { world, bell }, outside)
}

fn driver(features: u64) -> (Driver<Net<TestLink>>, Outside) {
    let (link, outside) = link();
    let mut driver = Driver::new(Net::new(Arc::new(Mutex::new(link)), MAC_ADDRESS));
    driver.set_up(VERSION_1 | features);
    (driver, outside)
}

/// Gives the device a buffer to write to.
fn offer(driver: &mut Driver<Net<TestLink>>, head: u16, size: u32) {
    let place = RECEIVED + 0x100 * u64::from(head);
    driver.descriptor(0, head, (place, size), WRITE, 0);
    driver.offer(0, head);
}

/// Sends a packet, and waits until it is taken.
fn send(driver: &mut Driver<Net<TestLink>>, packet: &[u8]) {
    let taken = driver.used(1).0;
    driver.ram.write(GuestPhys(TO_SEND), packet);
    driver.descriptor(1, 5, (TO_SEND, u32::try_from(packet.len()).unwrap()), 0, 0);
    driver.offer(1, 5);
    while driver.used(1).0 == taken {
        assert!(driver.message().is_some(), "no interrupt");
    }
}

/// The next message that is not of what was sent: that one may come behind what it tells.
fn message_of_received(driver: &Driver<Net<TestLink>>) -> Option<u32> {
    std::iter::from_fn(|| driver.message()).find(|queue| *queue != 1)
}

fn packet(size: u8) -> Vec<u8> {
    [[0; HEADER].to_vec(), (0..size).collect()].concat()
}

#[test]
fn its_configuration() {
    let (mut driver, outside) = driver(feature::STATUS);
    let bytes: Vec<u8> = (0..12).map(|at| driver.read(0x2000 + at, 1).to_le_bytes()[0]).collect();
    assert_eq!(bytes, [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xf0, 0xff]);
    let offered = driver.function.save().unwrap();
    outside.world.lock().unwrap().is_down = true;
    outside.ring();
    assert_eq!((driver.message(), driver.read(0x2006, 2)), (Some(2), 0));
    assert_ne!(driver.function.save().unwrap(), offered);
}

#[test]
fn packets_go_both_ways() {
    for features in [0, EVENT_INDEX | 1 << 28] {
        let (mut driver, outside) = driver(features | feature::MAC);
        assert_eq!(outside.world.lock().unwrap().begun, Some(VERSION_1 | features | feature::MAC));
        // A header that the driver has no features for means nothing.
        let mut wrong = packet(60);
        wrong[0] = 1;
        send(&mut driver, &wrong);
        assert_eq!(outside.sent(), [packet(60)]);
        outside.give(&packet(90));
        offer(&mut driver, 0, 200);
        assert_eq!((message_of_received(&driver), driver.used(0)), (Some(0), (1, 0, 102)));
        let mut got = [0; 102];
        driver.ram.read(GuestPhys(RECEIVED), &mut got);
        let mut wanted = packet(90);
        wanted[BUFFERS] = 1;
        assert_eq!(got[..], wanted);
        driver.write(0x14, 1, 0);
        assert_eq!(outside.world.lock().unwrap().begun, None);
    }
}

#[test]
fn headers_are_the_links_where_it_can_do_something() {
    let (mut driver, outside) = driver(feature::CSUM);
    let mut with_header = packet(60);
    with_header[0] = 1;
    send(&mut driver, &with_header);
    assert_eq!(outside.sent(), [with_header]);
}

/// A packet lies in as many buffers as it needs, which come all at once; it waits until there are so many.
#[test]
fn buffers_are_merged() {
    let (mut driver, outside) = driver(feature::MRG_RXBUF);
    offer(&mut driver, 0, 40);
    outside.give(&packet(90));
    outside.give(&packet(4));
    offer(&mut driver, 1, 40);
    assert_eq!(driver.used(0).0, 0);
    offer(&mut driver, 2, 60);
    assert_eq!((driver.message(), driver.used(0)), (Some(0), (3, 2, 22)));
    let mut wanted = packet(90);
    wanted[BUFFERS] = 3;
    for (place, part) in [(0, &wanted[..40]), (1, &wanted[40..80]), (2, &wanted[80..])] {
        let mut got = vec![0; part.len()];
        driver.ram.read(GuestPhys(RECEIVED + 0x100 * place), &mut got);
        assert_eq!(got, part);
    }
    offer(&mut driver, 3, 40);
    assert_eq!((driver.message(), driver.used(0)), (Some(0), (4, 3, 16)));
}

/// It waits for more than there were, and looks at those again only then.
#[test]
fn too_few_buffers_keep_nobody_busy() {
    for features in [feature::MRG_RXBUF, feature::MRG_RXBUF | EVENT_INDEX] {
        let (mut driver, outside) = driver(features);
        offer(&mut driver, 0, 40);
        outside.give(&packet(90));
        while !outside.world.lock().unwrap().to_give.is_empty() {
            std::thread::yield_now();
        }
        let looks = Arc::clone(&outside.world.lock().unwrap().looks);
        let before = looks.load(Ordering::SeqCst);
        // One that is busy looks thousands of times; this one ends the turn that it is in, and hears of what had rung.
        assert!(driver.stays_quiet(Duration::from_millis(200)));
        let looked = looks.load(Ordering::SeqCst) - before;
        assert!(looked <= 4, "{looked}");
        offer(&mut driver, 1, 40);
        offer(&mut driver, 2, 60);
        assert_eq!((message_of_received(&driver), driver.used(0)), (Some(0), (3, 2, 22)));
    }
}

/// Nothing is written past a buffer, and one packet that fits into none does not keep the next.
#[test]
fn what_does_not_fit_is_lost() {
    let (mut driver, outside) = driver(0);
    outside.give(&packet(90));
    outside.give(&packet(10));
    offer(&mut driver, 0, 50);
    assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 22)));
    // In all of a queue's buffers there is no room for it.
    let (mut driver, outside) = self::driver(feature::MRG_RXBUF);
    for head in 0..ENTRIES {
        driver.descriptor(0, head, (RECEIVED, 0), WRITE, 0);
        driver.offer(0, head);
    }
    outside.give(&packet(90));
    while !outside.world.lock().unwrap().to_give.is_empty() {
        std::thread::yield_now();
    }
    assert_eq!((driver.used(0).0, driver.status() & NEEDS_RESET), (0, 0));
}

/// What the link has no room for waits in the guest's queue.
#[test]
fn a_full_link_is_waited_for() {
    let (mut driver, outside) = driver(0);
    outside.world.lock().unwrap().room = 1;
    send(&mut driver, &packet(1));
    driver.ram.write(GuestPhys(TO_SEND), &packet(2));
    driver.descriptor(1, 6, (TO_SEND, 14), 0, 0);
    driver.offer(1, 6);
    assert_eq!(driver.used(1).0, 1);
    outside.world.lock().unwrap().room = 1;
    outside.ring();
    while driver.used(1).0 == 1 {
        assert!(driver.message().is_some());
    }
    assert_eq!(outside.sent(), [packet(1), packet(2)]);
}

/// Empty ones, such without a frame, and too long ones are given back, and go nowhere.
#[test]
fn sizes_have_an_end() {
    let (mut driver, outside) = driver(0);
    for size in [0, 1, 12] {
        send(&mut driver, &vec![1; size]);
    }
    // Twice 64 KiB of the same memory.
    let taken = driver.used(1).0;
    driver.descriptor(1, 0, (TO_SEND, 0xffff), NEXT, 1);
    driver.descriptor(1, 1, (TO_SEND, 0xffff), 0, 0);
    driver.offer(1, 0);
    while driver.used(1).0 == taken {
        assert!(driver.message().is_some());
    }
    assert_eq!(outside.sent(), Vec::<Vec<u8>>::new());
    driver.descriptor(1, 0, (TO_SEND, u32::try_from(LONGEST_PACKET).unwrap()), 0, 1);
    driver.offer(1, 0);
    while outside.world.lock().unwrap().sent.is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn hostile_chains_end_it_until_its_reset() {
    type Descriptor = (u16, (u64, u32), u16, u16);
    let good = (TO_SEND, 100);
    let chains: [&[Descriptor]; 5] = [
        &[(0, good, NEXT, 1), (1, good, NEXT, 0)],
        &[(0, good, WRITE | NEXT, 1), (1, good, 0, 0)],
        &[(0, (0x4000_0000, 16), 0, 0)],
        &[(0, (u64::MAX - 3, 16), WRITE, 0)],
        &[(0, (TO_SEND, 17), INDIRECT, 0)],
    ];
    for queue in [0, 1] {
        for chain in chains {
            let (mut driver, outside) = driver(feature::MRG_RXBUF);
            outside.give(&packet(200));
            for (index, part, flags, next) in chain {
                driver.descriptor(queue, *index, *part, *flags, *next);
            }
            driver.offer(queue, 0);
            assert_eq!(
                (driver.message(), driver.status() & NEEDS_RESET),
                (Some(2), NEEDS_RESET),
                "{queue} {chain:x?}"
            );
            driver.set_up(VERSION_1);
            send(&mut driver, &packet(60));
            assert_eq!(outside.sent(), [packet(60)]);
        }
    }
}

/// Nothing goes while the guest is held, and it goes on afterwards; the link is told for how long it was held.
#[test]
fn it_rests_while_the_guest_is_held() {
    let (mut driver, outside) = driver(0);
    let begin = Instant::now();
    assert!(driver.pace.hold(Duration::from_secs(20)));
    let held = Instant::now();
    offer(&mut driver, 0, 100);
    outside.give(&packet(20));
    let (saved, again) = (driver.function.save().unwrap(), driver.function.save().unwrap());
    assert_eq!((saved, driver.used(0).0), (again, 0));
    let least = held.elapsed();
    driver.pace.release();
    assert_eq!((driver.message(), driver.used(0)), (Some(0), (1, 0, 32)));
    let rested = outside.world.lock().unwrap().rested;
    assert!(least <= rested && rested <= begin.elapsed(), "{least:?} {rested:?}");
}

/// Saved, put into another device with the same memory, it goes on; what is saved then is equal.
#[test]
fn it_goes_on_from_a_saved_state() {
    for features in [0, EVENT_INDEX, feature::MRG_RXBUF | EVENT_INDEX] {
        let (mut driver, outside) = driver(features);
        let fresh =
            Driver::new(Net::new(Arc::new(Mutex::new(link().0)), MAC_ADDRESS)).function.save().unwrap();
        send(&mut driver, &packet(60));
        outside.give(&packet(20));
        offer(&mut driver, 0, 100);
        assert_eq!((message_of_received(&driver), driver.used(0)), (Some(0), (1, 0, 32)));
        let saved = driver.function.save().unwrap();
        assert_ne!(saved, fresh);
        let (link, beyond) = link();
        let mut other = driver.with_another(Net::new(Arc::new(Mutex::new(link)), [9; 6]));
        other.function.restore(&saved).unwrap();
        assert_eq!(other.function.save().unwrap(), saved);
        assert_eq!(beyond.world.lock().unwrap().begun, Some(VERSION_1 | features));
        beyond.give(&packet(30));
        offer(&mut other, 1, 100);
        assert_eq!((message_of_received(&other), other.used(0)), (Some(0), (2, 1, 42)));
        assert_eq!(other.read(0x2000, 1), 2);
        let mut wrong = saved.clone();
        wrong.fields["device"]["fields"]["model"]["mac"] = 7.into();
        assert!(other.function.restore(&wrong).is_err());
        other.function.restore(&fresh).unwrap();
        assert_eq!(other.function.save().unwrap(), fresh);
    }
}

/// A link outlives its device: the next one has it, and the one that is unplugged does not touch it any more.
#[test]
fn another_device_has_the_link_of_one_that_is_unplugged() {
    let (link, outside) = link();
    let link = Arc::new(Mutex::new(link));
    let mut former = Driver::new(Net::new(Arc::clone(&link), MAC_ADDRESS));
    let mut next = Driver::new(Net::new(link, MAC_ADDRESS));
    former.set_up(VERSION_1);
    send(&mut former, &packet(60));
    // Held or not: it ends.
    assert!(former.pace.hold(Duration::from_secs(20)));
    assert!(former.function.unplug());
    assert_eq!((former.status(), outside.world.lock().unwrap().begun), (0, None));
    next.set_up(VERSION_1 | feature::CSUM);
    let begun = || outside.world.lock().unwrap().begun;
    assert_eq!(begun(), Some(VERSION_1 | feature::CSUM));
    for status in [0, 1, 3, 11, 15, 0] {
        former.write(0x14, 1, status);
        assert_eq!((former.status(), begun()), (0, Some(VERSION_1 | feature::CSUM)));
    }
    former.pace.release();
    former.offer(1, 5);
    let asked = Arc::clone(&outside.world.lock().unwrap().asked);
    let before = asked.load(Ordering::SeqCst);
    former.write(0, 4, 0);
    // It offers what queues can and nothing of its own, and has no configuration.
    assert_eq!(
        (former.read(4, 4), former.read(0x2000, 4), former.read(0x200a, 2)),
        (EVENT_INDEX | 1 << 28, 0, 0)
    );
    former.write(0x2000, 4, 0);
    assert_eq!(asked.load(Ordering::SeqCst), before);
    drop(former);
    send(&mut next, &packet(61));
    assert_eq!(outside.sent().iter().map(Vec::len).collect::<Vec<_>>(), [72, 73]);
    outside.give(&packet(20));
    offer(&mut next, 0, 100);
    let heard = message_of_received(&next);
    assert_eq!((heard, next.used(0), begun().is_some()), (Some(0), (1, 0, 32), true));
}
