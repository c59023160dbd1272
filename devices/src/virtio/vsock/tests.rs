use super::packet::shutdown;
use super::*;
use crate::pci::Function;
use crate::ram::Ram;
use crate::virtio::Unplug;
use crate::virtio::queue::ActiveQueue;
use crate::virtio::testing::{Driver, TestRam, WRITE};
use arch::GuestPhys;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

const VERSION_1: u64 = 1 << 32;
const CID: u32 = 7;
/// Where packets to the guest, and from it, are.
const TO: u64 = 0x4_0000;
const FROM: u64 = 0x8_0000;
const SIZE: u32 = 4096;
const BUFFERS: u16 = 8;

/// Programs of the host's: a listener for those who ask, and ports that somebody has.
struct Programs {
    listener: UnixListener,
    /// How often there are no descriptors for whoever comes.
    short: u32,
    ports: Arc<Mutex<HashMap<u32, UnixStream>>>,
}

impl Host for Programs {
    fn listener(&self) -> Option<RawFd> {
        Some(self.listener.as_raw_fd())
    }

    fn accept(&mut self) -> io::Result<UnixStream> {
        if self.short > 0 {
            self.short -= 1;
            return Err(io::Error::other("no descriptors"));
        }
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true).map(|()| stream)
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let stream = self.ports.lock().unwrap().remove(&port);
        stream.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// A driver, with the number of packets that it has been given and has sent.
struct Guest {
    driver: Driver<Vsock>,
    taken: u16,
    sent: u16,
    programs: Arc<Mutex<dyn Host>>,
    ports: Arc<Mutex<HashMap<u32, UnixStream>>>,
    path: PathBuf,
}

impl Guest {
    fn new(name: &str) -> Guest {
        Guest::short_of_descriptors(name, 0)
    }

    /// Whose host has no descriptors so often.
    fn short_of_descriptors(name: &str, short: u32) -> Guest {
        let path = std::env::temp_dir().join(format!("vmm-vsock-{}-{name}", std::process::id()));
        std::fs::remove_file(&path).ok();
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ports: Arc<Mutex<HashMap<u32, UnixStream>>> = Arc::default();
        let programs: Arc<Mutex<dyn Host>> =
            Arc::new(Mutex::new(Programs { listener, short, ports: Arc::clone(&ports) }));
        Guest::of(programs, ports, path)
    }

    /// One with these programs on the host's side.
    fn of(
        programs: Arc<Mutex<dyn Host>>,
        ports: Arc<Mutex<HashMap<u32, UnixStream>>>,
        path: PathBuf,
    ) -> Guest {
        let vsock = Vsock::new(CID, MOST_CONNECTIONS, Arc::clone(&programs)).unwrap();
        let mut driver = Driver::new(vsock);
        driver.set_up(VERSION_1 | STREAMS);
        let mut guest = Guest { driver, taken: 0, sent: 0, programs, ports, path };
        (0..BUFFERS).for_each(|head| guest.give(head));
        guest
    }

    /// Gives the device a buffer.
    fn give(&mut self, head: u16) {
        let place = TO + u64::from(head) * u64::from(SIZE);
        self.driver.descriptor(0, head, (place, SIZE), WRITE, 0);
        self.driver.offer(0, head);
    }

    /// The next packet, whose buffer is given back.
    fn next(&mut self) -> (Header, Vec<u8>) {
        while self.driver.used(0).0 == self.taken {
            self.driver.message().expect("an interrupt");
        }
        // Buffers are used in the order in which they are given.
        let head = self.taken % BUFFERS;
        self.taken += 1;
        let place = TO + u64::from(head) * u64::from(SIZE);
        let mut bytes = vec![0; SIZE as usize];
        self.driver.ram.read(GuestPhys(place), &mut bytes);
        self.give(head);
        let header = Header::decoded(&bytes).unwrap();
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST, CID.into(), STREAM));
        (header, bytes[HEADER..][..header.len as usize].to_vec())
    }

    /// Says something.
    fn say(&mut self, (guest, host): (u32, u32), op: u16, flags: u32, bytes: &[u8]) {
        let header = Header {
            src_cid: CID.into(),
            dst_cid: HOST,
            src_port: guest,
            dst_port: host,
            len: u32::try_from(bytes.len()).unwrap(),
            kind: STREAM,
            op,
            flags,
            buf_alloc: 100,
            fwd_cnt: 0,
        };
        self.say_header(&header, bytes);
    }

    fn say_header(&mut self, header: &Header, bytes: &[u8]) {
        let packet = [&header.encoded()[..], bytes].concat();
        self.driver.ram.write(GuestPhys(FROM), &packet);
        self.driver.descriptor(1, 0, (FROM, u32::try_from(packet.len()).unwrap()), 0, 0);
        self.driver.offer(1, 0);
        self.sent += 1;
        while self.driver.used(1).0 != self.sent {
            self.driver.message().expect("an interrupt");
        }
    }

    /// A program of the host's that has come.
    fn comer(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// A program of the host's has a port.
    fn program(&self, port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        self.ports.lock().unwrap().insert(port, theirs);
        ours
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

fn line(mut stream: &UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" && stream.read(&mut byte).unwrap() == 1 {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// A guest that never answers keeps nothing for programs that have gone.
#[test]
fn a_program_that_has_gone_before_the_answer() {
    let mut guest = Guest::new("gone");
    (&guest.comer()).write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.next();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 7));
    let (gone, _) = guest.next();
    assert_eq!((gone.op, gone.src_port, gone.dst_port), (op::RST, request.src_port, 7));
    // An answer that comes late is one to nobody.
    guest.say((7, request.src_port), op::RESPONSE, 0, b"");
    assert_eq!(guest.next().0.op, op::RST);
}

/// Nobody else comes, and it is let in all the same.
#[test]
fn a_program_that_there_are_no_descriptors_for() {
    let mut guest = Guest::short_of_descriptors("short", 3);
    let program = guest.comer();
    (&program).write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.next();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 7));
}

#[test]
fn a_program_of_the_guests_asks() {
    let mut guest = Guest::new("guest");
    let mut program = guest.program(80);
    guest.say((1000, 80), op::REQUEST, 0, b"");
    let (answer, _) = guest.next();
    assert_eq!((answer.op, answer.src_port, answer.dst_port), (op::RESPONSE, 80, 1000));
    guest.say((1000, 80), op::RW, 0, b"to the host");
    let mut bytes = [0; 11];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    program.write_all(b"back").unwrap();
    let (header, bytes) = guest.next();
    assert_eq!((header.op, &bytes[..], header.fwd_cnt), (op::RW, &b"back"[..], 11));
    // The host's program is done first, then the guest's.
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = guest.next();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SENDS_NO_MORE));
    guest.say((1000, 80), op::RW, 0, b"!");
    guest.say((1000, 80), op::SHUTDOWN, shutdown::BOTH, b"");
    assert_eq!(guest.next().0.op, op::RST);
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"!");
    // Nobody has the port.
    guest.say((1001, 81), op::REQUEST, 0, b"");
    assert_eq!((guest.next().0.op, guest.driver.status() & 0x40), (op::RST, 0));
}

#[test]
fn a_program_of_the_hosts_asks() {
    let mut guest = Guest::new("host");
    let mut program = guest.comer();
    program.write_all(b"CONNECT 5000\nearly").unwrap();
    let (header, _) = guest.next();
    assert_eq!((header.op, header.dst_port), (op::REQUEST, 5000));
    let host = header.src_port;
    assert!(host >= FIRST_HOST_PORT);
    guest.say((5000, host), op::RESPONSE, 0, b"");
    assert_eq!(line(&program), format!("OK {host}\n"));
    let (header, bytes) = guest.next();
    assert_eq!((header.op, &bytes[..], header.fwd_cnt), (op::RW, &b"early"[..], 0));
    // The guest has room for 100 bytes, of which 5 are on their way; it is asked for more once.
    program.write_all(&[b'x'; 200]).unwrap();
    assert_eq!(guest.next().1.len(), 95);
    assert_eq!(guest.next().0.op, op::CREDIT_REQUEST);
    let mut more = Header { op: op::CREDIT_UPDATE, buf_alloc: 100, fwd_cnt: 100, ..Header::default() };
    (more.src_cid, more.dst_cid, more.kind) = (CID.into(), HOST, STREAM);
    (more.src_port, more.dst_port) = (5000, host);
    guest.say_header(&more, b"");
    assert_eq!(guest.next().1.len(), 100);
    assert_eq!(guest.next().0.op, op::CREDIT_REQUEST);
    // A guest that says the same again has taken nothing, and is not asked again.
    guest.say_header(&more, b"");
    guest.say_header(&Header { op: op::CREDIT_REQUEST, ..more }, b"");
    assert_eq!(guest.next().0.op, op::CREDIT_UPDATE);
    // One whom the guest does not know any more.
    guest.say((5000, host), op::RST, 0, b"");
    let mut rest = Vec::new();
    assert_eq!(program.read_to_end(&mut rest).unwrap_or(0), 0);
    // What is refused by the guest, and what is no wish.
    let refused = guest.comer();
    (&refused).write_all(b"connect 1\n").unwrap();
    let (header, _) = guest.next();
    guest.say((1, header.src_port), op::RST, 0, b"");
    assert_eq!(line(&refused), "");
    for wrong in ["CONNECT\n", "CONNECT x\n", "GET / HTTP/1.1\n", "CONNECT 0\n", &"x".repeat(64)] {
        let stream = guest.comer();
        (&stream).write_all(wrong.as_bytes()).unwrap();
        let mut byte = [0];
        // Closed with bytes left that nobody read is a reset.
        assert_eq!((&stream).read(&mut byte).unwrap_or(0), 0, "{wrong}");
    }
}

/// A guest's program that has gone has been heard all the same, however late the host's reads.
#[test]
fn what_was_sent_in_order_arrives() {
    let mut guest = Guest::new("late");
    let mut program = guest.program(80);
    guest.say((1000, 80), op::REQUEST, 0, b"");
    assert_eq!(guest.next().0.op, op::RESPONSE);
    // More than the socket takes.
    const PIECES: usize = 7;
    let piece = [7; 60_000];
    (0..PIECES).for_each(|_| guest.say((1000, 80), op::RW, 0, &piece));
    guest.say((1000, 80), op::SHUTDOWN, shutdown::BOTH, b"");
    // Linux does so after eight seconds.
    guest.say((1000, 80), op::RST, 0, b"");
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), PIECES * piece.len());
}

/// The same ports are had again when the host has taken what was left behind.
#[test]
fn what_was_sent_in_order_is_not_lost_to_another_of_the_same_ports() {
    let mut guest = Guest::new("again");
    let mut program = guest.program(80);
    guest.say((1000, 80), op::REQUEST, 0, b"");
    assert_eq!(guest.next().0.op, op::RESPONSE);
    const PIECES: usize = 4;
    let piece = [7; 60_000];
    (0..PIECES).for_each(|_| guest.say((1000, 80), op::RW, 0, &piece));
    guest.say((1000, 80), op::SHUTDOWN, shutdown::BOTH, b"");
    guest.say((1000, 80), op::RST, 0, b"");
    let _other = guest.program(80);
    guest.say((1000, 80), op::REQUEST, 0, b"");
    let mut answers = std::iter::from_fn(|| Some(guest.next().0.op));
    assert_eq!(answers.find(|op| *op != op::CREDIT_UPDATE), Some(op::RST));
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), PIECES * piece.len());
    guest.say((1000, 80), op::REQUEST, 0, b"");
    assert_eq!(guest.next().0.op, op::RESPONSE);
}

#[test]
fn a_guest_that_says_what_it_must_not() {
    let mut guest = Guest::new("hostile");
    let answers = |guest: &mut Guest, header: Header| {
        guest.say_header(&header, b"");
        let (answer, _) = guest.next();
        assert_eq!(answer.op, op::RST, "{header:?}");
    };
    let fine = Header {
        src_cid: CID.into(),
        dst_cid: HOST,
        src_port: 1,
        dst_port: 2,
        kind: STREAM,
        op: op::RW,
        ..Header::default()
    };
    answers(&mut guest, fine);
    answers(&mut guest, Header { op: 99, ..fine });
    answers(&mut guest, Header { len: 1000, ..fine });
    answers(&mut guest, Header { op: op::REQUEST, src_port: 0, ..fine });
    // More than there is room for: nobody reads it.
    let _program = guest.program(2);
    guest.say((1, 2), op::REQUEST, 0, b"");
    assert_eq!(guest.next().0.op, op::RESPONSE);
    let mut count = 0;
    let ended = loop {
        guest.say((1, 2), op::RW, 0, &[0; 8000]);
        count += 1;
        let (used, ..) = guest.driver.used(0);
        if used != guest.taken {
            let (answer, _) = guest.next();
            if answer.op == op::RST {
                break true;
            }
        }
        if count > 200 {
            break false;
        }
    };
    assert!(ended, "it may send without end");
}

/// The guest is told so (5.10.6.7.1), by the buffer that it has had there all the time; one that had none is not.
#[test]
fn what_is_put_back_knows_that_its_connections_are_gone() {
    for has_connection in [false, true] {
        let mut guest = Guest::new("saved");
        let next = Guest::new("other");
        let _program = guest.program(80);
        guest.driver.ram.write(GuestPhys(FROM), &[0xff; 4]);
        guest.driver.descriptor(2, 0, (FROM, 4), WRITE, 0);
        guest.driver.offer(2, 0);
        if has_connection {
            guest.say((1000, 80), op::REQUEST, 0, b"");
            assert_eq!(guest.next().0.op, op::RESPONSE);
            guest.driver.ram.write(GuestPhys(FROM), &[0xff; 4]);
        }
        assert!(guest.driver.pace.hold(Duration::from_secs(20)));
        let saved = guest.driver.function.save().unwrap();
        assert_eq!(saved.fields["device"]["fields"]["model"]["are_gone"], has_connection);
        assert_eq!(guest.driver.used(2).0, 0);
        let vsock = || Vsock::new(CID, MOST_CONNECTIONS, Arc::clone(&next.programs)).unwrap();
        let former = std::mem::replace(&mut guest.driver, Driver::new(vsock()));
        let mut driver = former.with_another(vsock());
        driver.function.restore(&saved).unwrap();
        if has_connection {
            while driver.used(2).0 == 0 {
                driver.message().expect("an interrupt");
            }
        }
        assert!(driver.pace.hold(Duration::from_secs(20)));
        let mut event = [0; 4];
        driver.ram.read(GuestPhys(FROM), &mut event);
        let told = if has_connection { ((1, 0, 4), [0; 4]) } else { ((0, 0, 0), [0xff; 4]) };
        assert_eq!((driver.used(2), event), told);
        // It is told once.
        let again = driver.function.save().unwrap();
        assert_eq!(again.fields["device"]["fields"]["model"]["are_gone"], false);
        driver.pace.release();
    }
}

/// A guest that has no buffer for that is listened to: by the event index it rings only where it is asked to.
#[test]
fn a_guest_without_a_buffer_is_asked_to_ring() {
    const EVENT_INDEX: u64 = 1 << 29;
    /// Of the third queue: behind flags, index and entries of its used ring (2.7.8).
    const EVENT: GuestPhys = GuestPhys(0xb000 + 4 + 8 * 16);
    let mut guest = Guest::new("without");
    let next = Guest::new("without-other");
    guest.driver.set_up(VERSION_1 | STREAMS | EVENT_INDEX);
    assert!(guest.driver.pace.hold(Duration::from_secs(20)));
    let mut saved = guest.driver.function.save().unwrap();
    saved.fields["device"]["fields"]["model"]["are_gone"] = true.into();
    guest.driver.ram.write(EVENT, &[0x77; 2]);
    let vsock = || Vsock::new(CID, MOST_CONNECTIONS, Arc::clone(&next.programs)).unwrap();
    let former = std::mem::replace(&mut guest.driver, Driver::new(vsock()));
    let mut driver = former.with_another(vsock());
    driver.function.restore(&saved).unwrap();
    let (start, mut event) = (Instant::now(), [0x77; 2]);
    while event == [0x77; 2] {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody listens");
        driver.ram.read(EVENT, &mut event);
        std::thread::yield_now();
    }
    assert_eq!(event, [0; 2]);
    driver.descriptor(2, 0, (FROM, 4), WRITE, 0);
    driver.offer(2, 0);
    while driver.used(2).0 == 0 {
        driver.message().expect("an interrupt");
    }
    assert_eq!(driver.used(2), (1, 0, 4));
}

#[test]
fn a_state_of_another_kind_of_device_is_refused() {
    let guest = Guest::new("refused");
    let mut vsock = Vsock::new(CID, MOST_CONNECTIONS, Arc::clone(&guest.programs)).unwrap();
    let state = State { are_gone: true, ..vsock.save() };
    vsock.restore(state.clone()).unwrap();
    assert_eq!(vsock.save(), state);
    assert!(vsock.restore(State { next: Some([1, 2]), ..state.clone() }).is_err());
    assert!(vsock.restore(State { cid: 2, ..state }).is_err());
}

/// The host's end outlives a device: whose connections they were hear of their end, and who comes is the next one's.
#[test]
fn another_device_has_the_sockets_of_one_that_is_unplugged() {
    let mut former = Guest::new("unplugged");
    let mut program = former.program(80);
    former.say((1000, 80), op::REQUEST, 0, b"");
    former.next();
    assert!(former.driver.function.unplug());
    let mut rest = Vec::new();
    program.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    // One who has come meanwhile is let in by the next.
    let mut early = former.comer();
    early.write_all(b"CONNECT 5000\n").unwrap();
    let mut next = Guest::of(Arc::clone(&former.programs), Arc::clone(&former.ports), former.path.clone());
    drop(former);
    let (header, _) = next.next();
    assert_eq!((header.op, header.dst_port), (op::REQUEST, 5000));
    next.say((5000, header.src_port), op::RESPONSE, 0, b"");
    assert_eq!(line(&early), format!("OK {}\n", header.src_port));
    let _program = next.program(80);
    next.say((1000, 80), op::REQUEST, 0, b"");
    assert_eq!(next.next().0.op, op::RESPONSE);
}

/// Nobody hears of what is used.
#[derive(Debug)]
struct Deaf;

impl Interrupts for Deaf {
    fn queue(&self, _: u16) {}

    fn configuration(&self) {}

    fn needs_reset(&self) {}
}

/// A guest that was held back and takes back the queue by which it speaks is not waited for with a busy thread.
#[test]
fn a_queue_that_is_taken_back_ends_the_wait_for_it() {
    let guest = Guest::new("taken-back");
    let vsock = Vsock::new(CID, MOST_CONNECTIONS, Arc::clone(&guest.programs)).unwrap();
    let mut queues = Queues::new(SIZES.len());
    let state = QueueState {
        max_size: SIZES[TO_DRIVER],
        size: SIZES[TO_DRIVER],
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        ..QueueState::default()
    };
    let (bell, ram) = (EventFd::new(0).unwrap(), Arc::new(TestRam::new()));
    // No buffers in it.
    queues.put(TO_DRIVER, Some(ActiveQueue::new(state, 0, bell, (ram, Arc::new(Deaf))).unwrap()));
    let mut server = Server(vsock);
    for rung in [Rung::Source(0), Rung::Queue(TO_DRIVER), Rung::Queue(FROM_DRIVER)] {
        server.0.shared().is_held_back = true;
        let looks = (0..10).take_while(|_| server.serve(rung, &mut queues).unwrap() == Then::GoesOn).count();
        assert!(looks < 10, "{rung:?}");
    }
}
