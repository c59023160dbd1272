//! A driver of a terminal and of ports, and the host's ends of them.

use super::*;
use crate::pci::Function;
use crate::ram::Ram;
use crate::virtio::testing::{Driver, WRITE};
use arch::GuestPhys;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const VERSION_1: u64 = 1 << 32;
const PLACE: u64 = 0x4_0000;
const PER_QUEUE: u64 = 0x2000;

/// The outer end of a terminal: what is printed, of which it takes so much.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<(Vec<u8>, usize)>>);

impl Paper {
    fn terminal(&self, room: usize) -> (Arc<Terminal>, Receiver<()>) {
        self.0.lock().unwrap().1 = room;
        let (paper, (sender, drained)) = (self.clone(), channel());
        let print = move |bytes: &[u8]| {
            let (printed, room) = &mut *paper.0.lock().unwrap();
            let count = bytes.len().min(*room);
            printed.extend(&bytes[..count]);
            *room -= count;
            count
        };
        let tells = Box::new(move || sender.send(()).map_err(io::Error::other));
        (Arc::new(Terminal::new(Box::new(print), tells).unwrap()), drained)
    }
}

/// A driver of a terminal and a port, and the host's ends of both.
fn driver() -> (Driver<Console>, Host) {
    let paper = Paper::default();
    let (terminal, drained) = paper.terminal(usize::MAX);
    let (stream, port) = UnixStream::pair().unwrap();
    port.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let ports = vec![Port { name: "vmm".into(), stream }];
    let console = Console::new(Some(Arc::clone(&terminal)), ports).unwrap();
    (Driver::new(console), Host { terminal, paper, drained, port })
}

struct Host {
    terminal: Arc<Terminal>,
    paper: Paper,
    /// The guest has taken all input.
    drained: Receiver<()>,
    port: UnixStream,
}

/// Gives a queue a buffer to write to.
fn give(driver: &mut Driver<Console>, queue: u64, head: u16) {
    let place = PLACE + PER_QUEUE * queue + 64 * u64::from(head);
    driver.descriptor(queue, head, (place, 64), WRITE, 0);
    driver.offer(queue, head);
}

/// Sends bytes by a queue.
fn send(driver: &mut Driver<Console>, queue: u64, bytes: &[u8]) {
    let place = PLACE + PER_QUEUE * queue;
    driver.ram.write(GuestPhys(place), bytes);
    driver.descriptor(queue, 0, (place, u32::try_from(bytes.len()).unwrap()), 0, 0);
    driver.offer(queue, 0);
}

/// Waits until so many buffers of a queue are used; what the last one holds.
fn wait(driver: &mut Driver<Console>, queue: u64, count: u16) -> Vec<u8> {
    loop {
        let (used, head, length) = driver.used(queue);
        if used == count {
            let mut bytes = vec![0; length as usize];
            driver.ram.read(GuestPhys(PLACE + PER_QUEUE * queue + 64 * u64::from(head)), &mut bytes);
            return bytes;
        }
        driver.message().expect("an interrupt");
    }
}

fn control(id: u32, event: u16, value: u16) -> Vec<u8> {
    [id.to_le_bytes().to_vec(), event.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

/// Goes through the start-up; how many control messages have come.
fn introduce(driver: &mut Driver<Console>) -> u16 {
    driver.set_up(VERSION_1 | feature::SIZE | feature::MULTIPORT);
    for head in 0..16 {
        give(driver, TO_DRIVER as u64, head);
    }
    send(driver, FROM_DRIVER as u64, &control(0, event::DEVICE_READY, 1));
    assert_eq!(wait(driver, TO_DRIVER as u64, 2), control(1, event::DEVICE_ADD, 0));
    send(driver, FROM_DRIVER as u64, &control(0, event::PORT_READY, 1));
    assert_eq!(wait(driver, TO_DRIVER as u64, 5), [control(0, event::RESIZE, 0), vec![0; 4]].concat());
    send(driver, FROM_DRIVER as u64, &control(1, event::PORT_READY, 1));
    assert_eq!(wait(driver, TO_DRIVER as u64, 7), control(1, event::PORT_OPEN, 1));
    for port in 0..2 {
        send(driver, FROM_DRIVER as u64, &control(port, event::PORT_OPEN, 1));
        wait(driver, FROM_DRIVER as u64, u16::try_from(port).unwrap() + 4);
    }
    7
}

#[test]
fn bytes_go_both_ways() {
    let (mut driver, Host { terminal, paper, drained, mut port }) = driver();
    introduce(&mut driver);
    send(&mut driver, 1, b"to the terminal");
    wait(&mut driver, 1, 1);
    assert_eq!(paper.0.lock().unwrap().0, b"to the terminal");
    send(&mut driver, 5, b"to the port");
    let mut bytes = [0; 64];
    assert_eq!(port.read(&mut bytes).unwrap(), 11);
    assert_eq!(&bytes[..11], b"to the port");
    port.write_all(&[b'x'; 70]).unwrap();
    give(&mut driver, 4, 0);
    assert_eq!(wait(&mut driver, 4, 1), [b'x'; 64]);
    give(&mut driver, 4, 1);
    assert_eq!(wait(&mut driver, 4, 2), [b'x'; 6]);
    give(&mut driver, 4, 2);
    assert_eq!(terminal.receive(b"key"), 3);
    give(&mut driver, 0, 0);
    assert_eq!(wait(&mut driver, 0, 1), b"key");
    drained.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(terminal.pending(), 0);
    // The host's end goes.
    drop(port);
    assert_eq!(wait(&mut driver, TO_DRIVER as u64, 8), control(1, event::PORT_OPEN, 0));
    send(&mut driver, 5, b"to nobody");
    wait(&mut driver, 5, 2);
}

/// To one that knows of ports by a message, also when it was set before the driver began.
#[test]
fn a_size_is_told() {
    let (mut driver, host) = driver();
    introduce(&mut driver);
    assert_eq!(driver.read(0x15, 1), 0);
    host.terminal.set_size(TerminalSize { columns: 80, rows: 25 });
    let told = [control(0, event::RESIZE, 0), vec![25, 0, 80, 0]].concat();
    assert_eq!(wait(&mut driver, TO_DRIVER as u64, 8), told);
    assert_eq!((driver.read(0x2000, 4), driver.read(0x2004, 4)), (25 << 16 | 80, 2));
    assert_eq!(driver.read(0x15, 1), 1);
}

/// A device with a terminal alone is one of two queues, whose driver looks at its configuration.
#[test]
fn a_terminal_needs_no_control_messages() {
    let paper = Paper::default();
    let (terminal, _drained) = paper.terminal(6);
    terminal.set_size(TerminalSize { columns: 132, rows: 50 });
    terminal.receive(b"typed ahead");
    let console = Console::new(Some(Arc::clone(&terminal)), Vec::new()).unwrap();
    assert_eq!((console.features(), console.queue_sizes().len()), (feature::SIZE, 2));
    let mut driver = Driver::new(console);
    driver.set_up(VERSION_1 | feature::SIZE);
    give(&mut driver, 0, 0);
    assert_eq!(wait(&mut driver, 0, 1), b"typed ahead");
    assert_eq!((driver.read(0x2000, 4), driver.read(0x15, 1)), (50 << 16 | 132, 1));
    // What there is no room for waits in the guest, and is not lost; nor when it is saved meanwhile.
    send(&mut driver, 1, b"more than there is room for");
    while paper.0.lock().unwrap().0.len() < 6 {
        std::thread::yield_now();
    }
    assert!(driver.pace.hold(Duration::from_secs(20)));
    let saved = driver.function.save().unwrap();
    assert_eq!(saved.fields["device"]["fields"]["model"]["ports"][0]["taken"], 6);
    driver.function.restore(&saved).unwrap();
    driver.pace.release();
    assert_eq!(driver.used(1).0, 0);
    paper.0.lock().unwrap().1 = usize::MAX;
    terminal.ring();
    wait(&mut driver, 1, 1);
    assert_eq!(paper.0.lock().unwrap().0, b"more than there is room for");
}

/// What nobody takes waits in the guest, and is not lost; nor when it is saved meanwhile.
#[test]
fn what_is_not_taken_waits() {
    let (mut driver, Host { mut port, .. }) = driver();
    introduce(&mut driver);
    let block: Vec<u8> = (0..=255).cycle().take(0x1000).collect();
    // As many as the queue has, which is more than a socket holds (net.core.wmem_default: 208 KiB).
    let sent = ENTRIES;
    for _ in 0..sent {
        send(&mut driver, 5, &block);
    }
    // As whoever saves a guest does: nothing is being served meanwhile.
    assert!(driver.pace.hold(Duration::from_secs(20)));
    let saved = driver.function.save().unwrap();
    assert_eq!(driver.function.save().unwrap(), saved);
    driver.function.restore(&saved).unwrap();
    driver.pace.release();
    let mut got = vec![0; usize::from(sent) * block.len()];
    port.read_exact(&mut got).unwrap();
    assert!(got.chunks(block.len()).all(|piece| piece == block));
    wait(&mut driver, 5, sent);
}

#[test]
fn hostile_control_messages_do_nothing() {
    let (mut driver, _host) = driver();
    let said = introduce(&mut driver);
    let messages = [
        control(7, event::PORT_READY, 1),
        control(u32::MAX, event::PORT_OPEN, 1),
        control(0, 77, 1),
        control(1, event::PORT_READY, 0),
        vec![1, 2, 3],
    ];
    for (count, message) in (6..).zip(messages) {
        send(&mut driver, FROM_DRIVER as u64, &message);
        wait(&mut driver, FROM_DRIVER as u64, count);
    }
    assert_eq!((driver.used(TO_DRIVER as u64).0, driver.status()), (said, 15));
    // Over and over, without room for the answers: nothing gathers.
    for count in 11..=200 {
        send(&mut driver, FROM_DRIVER as u64, &control(0, event::DEVICE_READY, 1));
        wait(&mut driver, FROM_DRIVER as u64, count);
    }
    assert_eq!(driver.function.save().unwrap().fields["device"]["fields"]["model"]["ports"][0]["to_say"], 1);
}

/// What was typed and not taken is the next device's; a port is what its end here is, whatever the other one's was.
#[test]
fn it_goes_on_in_another_device() {
    let (mut driver, Host { terminal, port, .. }) = self::driver();
    let said = introduce(&mut driver);
    drop(port);
    // It is found when the guest has room for what would come.
    give(&mut driver, 4, 0);
    assert_eq!(wait(&mut driver, TO_DRIVER as u64, said + 1), control(1, event::PORT_OPEN, 0));
    terminal.receive(b"typed ahead");
    assert!(driver.pace.hold(Duration::from_secs(20)));
    let saved = driver.function.save().unwrap();
    assert!(saved.fields["device"]["fields"]["model"]["ports"][1]["is_over"] == true);
    let paper = Paper::default();
    let (next_terminal, drained) = paper.terminal(usize::MAX);
    let (stream, mut port) = UnixStream::pair().unwrap();
    let ports = vec![Port { name: "vmm".into(), stream }];
    let console = Console::new(Some(Arc::clone(&next_terminal)), ports).unwrap();
    let mut other = driver.with_another(console);
    next_terminal.receive(b"for another guest");
    assert!(other.pace.hold(Duration::from_secs(20)));
    other.function.restore(&saved).unwrap();
    assert_eq!(next_terminal.pending(), b"typed ahead".len());
    let mut again = other.function.save().unwrap();
    assert_eq!(
        again.fields["device"]["fields"]["model"]["input"],
        saved.fields["device"]["fields"]["model"]["input"]
    );
    other.pace.release();
    assert_eq!(wait(&mut other, TO_DRIVER as u64, said + 2), control(1, event::PORT_OPEN, 1));
    port.write_all(b"hello").unwrap();
    assert_eq!(wait(&mut other, 4, 1), b"hello");
    give(&mut other, 0, 0);
    assert_eq!(wait(&mut other, 0, 1), b"typed ahead");
    drained.recv_timeout(Duration::from_secs(20)).unwrap();
    // More than is ever saved is refused.
    again.fields["device"]["fields"]["model"]["input"] = vec![7; MOST_INPUT + 1].into();
    assert!(other.function.restore(&again).unwrap_err().to_string().contains("are typed"));
}

/// A reset forgets what the guest has said, and not that nobody is there.
#[test]
fn a_port_that_is_over_is_so_after_a_reset() {
    let (mut driver, Host { port, .. }) = self::driver();
    let said = introduce(&mut driver);
    drop(port);
    give(&mut driver, 4, 0);
    wait(&mut driver, TO_DRIVER as u64, said + 1);
    driver.set_up(VERSION_1 | feature::MULTIPORT);
    give(&mut driver, TO_DRIVER as u64, 0);
    give(&mut driver, TO_DRIVER as u64, 1);
    send(&mut driver, FROM_DRIVER as u64, &control(1, event::PORT_READY, 1));
    assert_eq!(wait(&mut driver, TO_DRIVER as u64, 2), control(1, event::PORT_OPEN, 0));
}
