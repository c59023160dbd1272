use super::*;
use crate::pci::Function;
use crate::ram::Ram;
use crate::virtio::pace::Pace;
use crate::virtio::testing::{Driver, INDIRECT, NEXT, WRITE};
use arch::GuestPhys;
use std::sync::Mutex;
use std::time::Duration;

const VERSION_1: u64 = 1 << 32;
const NEEDS_RESET: u64 = 64;
const SIZE: usize = 4 << 20;
const HEADER: u64 = 0x2_8000;
const STATUS: u64 = 0x2_9000;
const DATA: u64 = 0x3_0000;

/// What has been done to a disk, beside reading.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Write(u64, usize),
    Flush,
    Discard(u64, u64),
    Zeroes(u64, u64, bool),
}

/// A disk in memory, which says what was done; reads of its sector 13 fail. By itself it moves so many bytes at once.
/// What may take long holds the guest meanwhile, if it is given what does that.
#[derive(Clone)]
struct Fake(Arc<Mutex<(Vec<u8>, Vec<Did>)>>, bool, usize, Arc<Mutex<Option<Pace>>>);

impl Fake {
    fn new(is_writable: bool) -> Fake {
        let bytes = (0..SIZE).map(|at| (at / 512 % 251).to_le_bytes()[0]).collect();
        Fake(Arc::new(Mutex::new((bytes, Vec::new()))), is_writable, 0, Arc::default())
    }

    fn did(&self) -> Vec<Did> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }

    fn note(&self, did: Did) -> io::Result<()> {
        if let Some(pace) = self.3.lock().unwrap().as_ref() {
            // It is in the midst of it.
            assert!(!pace.hold(Duration::ZERO));
        }
        self.0.lock().unwrap().1.push(did);
        Ok(())
    }
}

impl Disk for Fake {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn is_writable(&self) -> bool {
        self.1
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        if at / 512 <= 13 && at + bytes.len() > 13 * 512 {
            return Err(io::Error::other("a bad sector"));
        }
        bytes.copy_from_slice(&self.0.lock().unwrap().0[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0.lock().unwrap().0[at..at + bytes.len()].copy_from_slice(bytes);
        self.note(Did::Write(offset, bytes.len()))
    }

    fn read_into(&self, offset: u64, ram: &[VolatileSlice<'_>]) -> usize {
        let (mut at, mut left) = (usize::try_from(offset).unwrap(), self.2);
        for slice in ram {
            let count = slice.len().min(left);
            slice.copy_from(&self.0.lock().unwrap().0[at..at + count]);
            (at, left) = (at + count, left - count);
        }
        self.2 - left
    }

    fn flush(&self) -> io::Result<()> {
        self.note(Did::Flush)
    }

    fn discard(&self, offset: u64, count: u64) -> io::Result<()> {
        self.note(Did::Discard(offset, count))
    }

    fn write_zeroes(&self, offset: u64, count: u64, gives_room: bool) -> io::Result<()> {
        self.note(Did::Zeroes(offset, count, gives_room))
    }
}

fn block(disk: &Fake, queues: u32) -> Block<Fake> {
    Block::new(disk.clone(), "disk x", "serial-7", queues).unwrap()
}

fn driver(disk: &Fake, features: u64) -> Driver<Block<Fake>> {
    let mut driver = Driver::new(block(disk, 1));
    driver.set_up(VERSION_1 | features);
    driver
}

/// Asks for something of a queue: a header, data in parts, and a status; what became of it, and how many bytes were
/// written.
fn ask(driver: &mut Driver<Block<Fake>>, what: u32, sector: u64, parts: &[(u64, u32, bool)]) -> (u8, u32) {
    let header = [&what.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    driver.ram.write(GuestPhys(HEADER), &header);
    driver.ram.write(GuestPhys(STATUS), &[0xee]);
    driver.descriptor(0, 0, (HEADER, 16), NEXT, 1);
    let mut index = 1;
    for &(address, size, is_written) in parts {
        driver.descriptor(0, index, (address, size), NEXT | if is_written { WRITE } else { 0 }, index + 1);
        index += 1;
    }
    driver.descriptor(0, index, (STATUS, 1), WRITE, 0);
    driver.offer(0, 0);
    assert_eq!(driver.message(), Some(0));
    let mut status = [0];
    driver.ram.read(GuestPhys(STATUS), &mut status);
    (status[0], driver.used(0).2)
}

#[test]
fn its_configuration() {
    let disk = Fake::new(true);
    let mut driver = Driver::new(block(&disk, 3));
    driver.set_up(VERSION_1);
    let mut at = |offset: u64, size| driver.read(0x2000 + offset, size);
    assert_eq!([at(0, 4), at(4, 4), at(12, 4), at(20, 4)], [SIZE as u64 / 512, 0, 254, 512]);
    assert_eq!(
        [at(24, 1), at(34, 2), at(36, 4), at(40, 4), at(48, 4), at(56, 1)],
        [3, 3, 1 << 21, 1, 1 << 16, 1]
    );
    assert_eq!(at(60, 4), 0);
    let writable = block(&disk, 1).features();
    let readable = block(&Fake::new(false), 1).features();
    assert_eq!(writable & (feature::RO | feature::DISCARD | feature::MQ), feature::DISCARD);
    assert_eq!(readable & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES), feature::RO);
    assert_eq!(block(&disk, 0).queue_sizes().len(), 1);
    assert_eq!(block(&disk, 99).queue_sizes().len(), 16);
    assert!(Block::new(disk.clone(), "", &"s".repeat(20), 1).is_some());
    assert!(Block::new(disk, "", &"s".repeat(21), 1).is_none());
}

#[test]
fn sectors_are_read_and_written() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH);
    // In two parts that are no sectors.
    assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 700, true), (DATA + 0x1000, 324, true)]), (0, 1025));
    let mut bytes = [0; 700];
    driver.ram.read(GuestPhys(DATA), &mut bytes);
    assert_eq!((&bytes[..512], &bytes[512..]), (&[20; 512][..], &[21; 188][..]));
    driver.ram.write(GuestPhys(DATA), &[0xaa; 1024]);
    assert_eq!(ask(&mut driver, 1, 8190, &[(DATA, 1024, false)]), (0, 1));
    assert_eq!(disk.did(), [Did::Write(SIZE as u64 - 1024, 1024)]);
    assert_eq!(disk.0.lock().unwrap().0[SIZE - 1024..], [0xaa; 1024]);
    assert_eq!(ask(&mut driver, 4, 0, &[]), (0, 1));
    assert_eq!(disk.did(), [Did::Flush]);
    assert_eq!(ask(&mut driver, 8, 0, &[(DATA, 20, true)]), (0, 21));
    driver.ram.read(GuestPhys(DATA), &mut bytes[..20]);
    assert_eq!(&bytes[..20], b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0");
    // Nothing; what has no room.
    assert_eq!(ask(&mut driver, 0, 0, &[]), (0, 1));
    assert_eq!(ask(&mut driver, 8, 0, &[(DATA, 3, true)]), (0, 4));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES);
    let mut range = |what, sector: u64, count: u32, flags: u32, size| {
        let range =
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes(), &[0; 16]].concat();
        driver.ram.write(GuestPhys(DATA), &range);
        (ask(&mut driver, what, 0, &[(DATA, size, false)]).0, disk.did())
    };
    assert_eq!(range(11, 8, 16, 0, 16), (0, vec![Did::Discard(4096, 8192)]));
    assert_eq!(range(13, 8, 16, 0, 16), (0, vec![Did::Zeroes(4096, 8192, false)]));
    assert_eq!(range(13, 8, 16, 1, 16), (0, vec![Did::Zeroes(4096, 8192, true)]));
    for (what, sector, count, flags, size, status) in [
        (11, 8, 16, 1, 16, 2),
        (11, 8, 16, 2, 16, 2),
        (13, 8, 16, 2, 16, 2),
        (13, 8, 16, 0, 15, 1),
        (13, 8, 16, 0, 32, 1),
        (11, 8191, 2, 0, 16, 1),
        (11, 0, u32::MAX, 0, 16, 1),
        (13, u64::MAX, 1, 0, 16, 1),
        (13, u64::MAX / 512, 1, 0, 16, 1),
        (13, 0, (1 << 16) + 1, 0, 16, 1),
    ] {
        assert_eq!(
            range(what, sector, count, flags, size),
            (status, vec![]),
            "{what} {sector:#x} {count:#x}"
        );
    }
}

#[test]
fn what_is_wrong_is_an_error_and_no_more() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH);
    for (what, sector, size, is_written, status) in [
        // No sectors; behind the end; over the end of numbers.
        (0, 0, 511, true, 1),
        (1, 0, 100, false, 1),
        (0, 8192, 512, true, 1),
        (0, 8191, 1024, true, 1),
        (0, u64::MAX, 512, true, 1),
        (1, u64::MAX / 512, 512, false, 1),
        (1, (1 << 55) - 1, 512, false, 1),
        // A sector that the host cannot read; nobody knows what it is.
        (0, 13, 512, true, 1),
        (2, 0, 512, true, 2),
        (u32::MAX, 0, 512, true, 2),
    ] {
        assert_eq!(
            ask(&mut driver, what, sector, &[(DATA, size, is_written)]),
            (status, 1),
            "{what} {sector:#x}"
        );
    }
    // Data where none is looked for: nothing is read, nothing written.
    assert_eq!(ask(&mut driver, 0, 0, &[(DATA, 512, false)]), (0, 1));
    assert_eq!(ask(&mut driver, 1, 0, &[(DATA, 512, true)]), (0, 1));
    assert_eq!(disk.did(), []);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// Nobody hears of it again before one of the sort has succeeded: of all queues, the disk has one memory of that.
#[test]
fn a_failure_is_told_once() {
    let disk = Fake::new(true);
    let model = block(&disk, 1);
    let told = Arc::clone(&model.told);
    let mut driver = Driver::new(model);
    driver.set_up(VERSION_1 | feature::FLUSH);
    let failure = io::Error::other("a bad sector");
    for _ in 0..2 {
        assert_eq!(ask(&mut driver, 0, 13, &[(DATA, 512, true)]), (1, 1));
        assert_eq!(ask(&mut driver, 1, 13, &[(DATA, 512, false)]), (0, 1));
        assert!(!told.is_news(0, &failure));
    }
    assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 512, true)]), (0, 513));
    assert!(told.is_news(0, &failure));
}

#[test]
fn a_disk_that_is_only_read_is_not_written() {
    let disk = Fake::new(false);
    let mut driver = driver(&disk, feature::RO | feature::FLUSH);
    for what in [1, 11, 13] {
        assert_eq!(ask(&mut driver, what, 0, &[(DATA, 512, false)]), (1, 1), "{what}");
    }
    assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(disk.did(), []);
}

/// Without the feature nothing is acknowledged that is not kept.
#[test]
fn writes_are_kept_before_they_are_acknowledged_without_flushes() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, 0);
    assert_eq!(ask(&mut driver, 1, 0, &[(DATA, 512, false)]), (0, 1));
    assert_eq!(disk.did(), [Did::Write(0, 512), Did::Flush]);
    assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(disk.did(), []);
}

/// More than a turn, more than a piece: all of it is done, in its order, and of the guest's memory no more is copied at
/// once than a piece.
#[test]
fn long_requests_are_done_in_pieces() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH);
    let parts = [(0x8_0000, 0x8_0000, false); 7];
    for (at, value) in [(0x8_0000, 1), (0xf_fe00, 2)] {
        driver.ram.write(GuestPhys(at), &[value; 512]);
    }
    assert_eq!(ask(&mut driver, 1, 1024, &parts), (0, 1));
    let did = disk.did();
    assert!(did.iter().all(|did| matches!(did, Did::Write(_, 0x2_0000))), "{did:?}");
    assert_eq!(did.len(), 7 * 4);
    let bytes = disk.0.lock().unwrap().0.clone();
    for part in 1..8 {
        assert_eq!((bytes[part << 19], bytes[((part + 1) << 19) - 1]), (1, 2), "{part}");
    }
    let written = 7 * 0x8_0000 + 1;
    assert_eq!(ask(&mut driver, 0, 1024, &[(0x8_0000, 0x8_0000, true); 7]), (0, written));
    // One that fails in its midst is over.
    assert_eq!(ask(&mut driver, 0, 0, &[(0x8_0000, 0x8_0000, true); 7]), (1, 1));
    assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 512, true)]), (0, 513));
}

/// Whoever holds the guest meanwhile waits for one of them, and not for those behind it.
#[test]
fn what_may_take_long_is_done_one_at_a_time() {
    let disk = Fake::new(true);
    // Without flushes each write is followed by one.
    for (what, features, did) in [
        (4, feature::FLUSH, &[Did::Flush][..]),
        (11, feature::FLUSH | feature::DISCARD, &[Did::Discard(0, 512)]),
        (13, feature::FLUSH | feature::WRITE_ZEROES, &[Did::Zeroes(0, 512, false)]),
        (1, 0, &[Did::Write(0, 512), Did::Flush]),
    ] {
        let mut driver = driver(&disk, features);
        *disk.3.lock().unwrap() = Some(driver.pace.clone());
        let header = [&u32::to_le_bytes(what)[..], &[0; 12]].concat();
        driver.ram.write(GuestPhys(HEADER), &header);
        driver.ram.write(GuestPhys(DATA), &[[0; 8], [1, 0, 0, 0, 0, 0, 0, 0]].concat());
        let size = if what == 1 { 512 } else { 16 };
        assert!(driver.pace.hold(Duration::from_secs(20)));
        for head in [0, 4, 8] {
            driver.descriptor(0, head, (HEADER, 16), NEXT, head + 1);
            driver.descriptor(0, head + 1, (DATA, size), NEXT, head + 2);
            driver.descriptor(0, head + 2, (STATUS, 1), WRITE, 0);
            driver.offer(0, head);
        }
        for done in 1..=3 {
            driver.pace.release();
            assert_eq!((driver.message(), driver.pace.hold(Duration::from_secs(20))), (Some(0), true));
            assert_eq!((driver.used(0).0, &disk.did()[..]), (done, did), "{what}");
        }
        *disk.3.lock().unwrap() = None;
        driver.pace.release();
    }
}

/// A disk that moves bytes by itself may do less than it is asked for, down to a part of a sector.
#[test]
fn what_is_moved_in_place_is_all_there() {
    let mut seed = 7u8;
    let mut noise: Vec<u8> = vec![0; 0x6_0000];
    for byte in &mut noise {
        seed = seed.wrapping_mul(141).wrapping_add(3);
        *byte = seed;
    }
    for at_once in [100, 512, 700, 0x1_0200, SIZE] {
        let mut disk = Fake::new(true);
        disk.2 = at_once;
        let mut driver = driver(&disk, feature::FLUSH);
        driver.ram.write(GuestPhys(0x8_0000), &noise);
        let from = [(0x8_0000, 0x1_0100, false), (0x9_0100, 0x4_ff00, false)];
        assert_eq!(ask(&mut driver, 1, 100, &from), (0, 1));
        assert!(disk.0.lock().unwrap().0[51_200..][..noise.len()] == noise, "{at_once}");
        driver.ram.write(GuestPhys(0x8_0000), &vec![0; noise.len()]);
        let to = [(0x8_0000, 0x1_0100, true), (0x9_0100, 0x4_ff00, true)];
        assert_eq!(ask(&mut driver, 0, 100, &to), (0, 0x6_0001), "{at_once}");
        let mut read = vec![0; noise.len()];
        driver.ram.read(GuestPhys(0x8_0000), &mut read);
        assert!(read == noise, "{at_once}");
        // Its neighbours are as they were.
        assert_eq!(disk.0.lock().unwrap().0[51_199], 99);
    }
}

#[test]
fn hostile_chains_end_it_until_its_reset() {
    type Descriptor = (u16, (u64, u32), u16, u16);
    let good = (HEADER, 16);
    let chains: [&[Descriptor]; 8] = [
        // No status; no header; half a header; nothing but room.
        &[(0, good, 0, 0)],
        &[(0, (STATUS, 1), WRITE, 0)],
        &[(0, (HEADER, 15), NEXT, 1), (1, (STATUS, 1), WRITE, 0)],
        &[(0, good, NEXT, 1), (1, (STATUS, 0), WRITE, 0)],
        // Round; the wrong way; not in RAM; no table.
        &[(0, good, NEXT, 1), (1, good, NEXT, 0)],
        &[(0, (STATUS, 1), WRITE | NEXT, 1), (1, good, 0, 0)],
        &[(0, good, NEXT, 1), (1, (0x4000_0000, 512), WRITE | NEXT, 2), (2, (STATUS, 1), WRITE, 0)],
        &[(0, (HEADER, 17), INDIRECT, 0)],
    ];
    for chain in chains {
        let disk = Fake::new(true);
        let mut driver = driver(&disk, feature::FLUSH);
        for (index, part, flags, next) in chain {
            driver.descriptor(0, *index, *part, *flags, *next);
        }
        driver.offer(0, 0);
        assert_eq!((driver.message(), driver.status() & NEEDS_RESET), (Some(1), NEEDS_RESET), "{chain:x?}");
        driver.set_up(VERSION_1);
        assert_eq!(ask(&mut driver, 0, 20, &[(DATA, 512, true)]), (0, 513));
        assert_eq!(disk.did(), []);
    }
}

/// Each queue is served; without the feature the first one alone.
#[test]
fn many_queues() {
    let disk = Fake::new(true);
    let mut driver = Driver::new(block(&disk, 4));
    driver.set_up(VERSION_1 | feature::MQ | feature::FLUSH);
    driver.ram.write(GuestPhys(HEADER), &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for queue in 0..4 {
        driver.descriptor(queue, 0, (HEADER, 16), NEXT, 1);
        driver.descriptor(queue, 1, (STATUS, 1), WRITE, 0);
        driver.offer(queue, 0);
        assert_eq!((driver.message(), driver.used(queue)), (u32::try_from(queue).ok(), (1, 0, 1)));
    }
    assert_eq!(disk.did(), vec![Did::Flush; 4]);
    let mut one = block(&disk, 4);
    let nobody: Arc<dyn Interrupts> = Arc::new(Nobody);
    assert_eq!(one.services(VERSION_1, &nobody).len(), 1);
    assert_eq!(one.services(VERSION_1 | feature::MQ, &nobody).len(), 4);
}

#[derive(Debug)]
struct Nobody;

impl Interrupts for Nobody {
    fn queue(&self, _: u16) {}
    fn configuration(&self) {}
    fn needs_reset(&self) {}
}

#[test]
fn it_goes_on_from_a_saved_state() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH);
    assert_eq!(ask(&mut driver, 1, 20, &[(DATA, 512, false)]).0, 0);
    let saved = driver.function.save().unwrap();
    assert_eq!(disk.did(), [Did::Write(20 * 512, 512), Did::Flush]);
    let mut other = driver.with_another(block(&disk, 1));
    other.function.restore(&saved).unwrap();
    assert_eq!(other.function.save().unwrap(), saved);
    assert_eq!(ask(&mut other, 0, 20, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(other.used(0).0, 2);
    // Another disk: refused, and nothing is done.
    let before = other.function.save().unwrap();
    for (field, value) in [("size", 4096.into()), ("is_writable", false.into())] {
        let mut wrong = saved.clone();
        wrong.fields["device"]["fields"]["model"][field] = value;
        assert!(other.function.restore(&wrong).unwrap_err().to_string().contains("another size"));
    }
    assert!(other.function.save().unwrap() == before);
    assert_eq!(ask(&mut other, 0, 20, &[(DATA, 512, true)]), (0, 513));
}

/// A request that takes several turns and is saved between two of them is done by the device that goes on, all of it.
#[test]
fn a_request_that_is_half_done_is_done_afterwards() {
    let disk = Fake::new(true);
    let mut driver = driver(&disk, feature::FLUSH);
    *disk.3.lock().unwrap() = Some(driver.pace.clone());
    for (at, value) in [(0x8_0000, 1), (0xf_fe00, 2)] {
        driver.ram.write(GuestPhys(at), &[value; 512]);
    }
    driver.ram.write(GuestPhys(HEADER), &[&1u32.to_le_bytes()[..], &[0; 4], &1024u64.to_le_bytes()].concat());
    driver.ram.write(GuestPhys(STATUS), &[0xee]);
    driver.descriptor(0, 0, (HEADER, 16), NEXT, 1);
    (1..8).for_each(|at| driver.descriptor(0, at, (0x8_0000, 0x8_0000), NEXT, at + 1));
    driver.descriptor(0, 8, (STATUS, 1), WRITE, 0);
    driver.offer(0, 0);
    while disk.0.lock().unwrap().1.is_empty() {
        std::thread::yield_now();
    }
    // The first piece has had the guest held: the turn is ended, and no other begun.
    assert!(driver.pace.hold(Duration::from_secs(20)));
    *disk.3.lock().unwrap() = None;
    let done = disk.did().len();
    assert!((1..7 * 4).contains(&done), "{done}");
    let saved = driver.function.save().unwrap();
    let mut status = [0];
    driver.ram.read(GuestPhys(STATUS), &mut status);
    assert_eq!((driver.used(0).0, status, disk.did()), (0, [0xee], vec![Did::Flush]));
    let mut other = driver.with_another(block(&disk, 1));
    other.function.restore(&saved).unwrap();
    assert_eq!((other.message(), other.used(0)), (Some(0), (1, 0, 1)));
    other.ram.read(GuestPhys(STATUS), &mut status);
    assert_eq!((status, disk.did().len()), ([0], 7 * 4));
    let bytes = disk.0.lock().unwrap().0.clone();
    for part in 1..8 {
        assert_eq!((bytes[part << 19], bytes[((part + 1) << 19) - 1]), (1, 2), "{part}");
    }
}
