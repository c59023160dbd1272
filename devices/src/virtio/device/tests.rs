//! What is done to a device whose thread is kept by the host.

use super::*;
use crate::bus::Device;
use crate::pci::Function;
use crate::ram::Ram;
use crate::virtio::mmio::VirtioMmio;
use crate::virtio::queue::Queues;
use crate::virtio::testing::{Driver, TestLine, TestRam, WRITE};
use crate::virtio::worker::{Rung, Serve, Then};
use crate::virtio::{Service, Unplug};
use arch::GuestPhys;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

const VERSION_1: u64 = 1 << 32;
const NEEDS_RESET: u64 = 64;
/// Registers of a transport by MMIO.
const READY: u64 = 0x044;
const NOTIFY: u64 = 0x050;
const ACKNOWLEDGE: u64 = 0x064;
const STATUS: u64 = 0x070;
/// The longest that anything is waited for here.
const TEST_PATIENCE: Duration = Duration::from_secs(20);

/// What a model has been told, in order.
type Said = Arc<Mutex<Vec<String>>>;

/// A model whose only queue is served as long as the host lets it.
struct Slow {
    said: Said,
    begun: Sender<()>,
    host: Arc<Mutex<Receiver<()>>>,
}

/// The host's end.
struct Host {
    said: Said,
    begun: Receiver<()>,
    answers: Sender<()>,
}

impl Host {
    /// Waits until a thread is in a call of the host's.
    fn is_asked(&self) {
        self.begun.recv_timeout(TEST_PATIENCE).unwrap();
    }

    fn answer(&self) {
        self.answers.send(()).unwrap();
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap())
    }
}

fn slow() -> (Slow, Host) {
    let ((begun, is_begun), (answers, host), said) = (channel(), channel(), Said::default());
    let host_end = Host { said: Arc::clone(&said), begun: is_begun, answers };
    (Slow { said, begun, host: Arc::new(Mutex::new(host)) }, host_end)
}

impl Slow {
    fn say(&self, what: &str) {
        self.said.lock().unwrap().push(what.into());
    }
}

impl Model for Slow {
    type State = ();

    fn name(&self) -> &'static str {
        "virtio slow"
    }

    fn id(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn services(&mut self, _: u64, _: &Arc<dyn Interrupts>) -> Vec<Service> {
        self.say("begins");
        let server = SlowServer { begun: self.begun.clone(), host: Arc::clone(&self.host) };
        vec![Service { server: Box::new(server), queues: vec![0] }]
    }

    fn closed(&mut self, queue: usize) {
        self.say(&format!("closed {queue}"));
    }

    fn ended(&mut self) {
        self.say("ended");
    }

    fn reset(&mut self) {
        self.say("reset");
    }

    fn save(&self) {
        self.say("saved");
    }

    fn restore(&mut self, (): ()) -> Result<(), Misfit> {
        Ok(())
    }
}

struct SlowServer {
    begun: Sender<()>,
    host: Arc<Mutex<Receiver<()>>>,
}

impl Serve for SlowServer {
    fn serve(&mut self, _: Rung, queues: &mut Queues) -> Result<Then, Broken> {
        let Some(queue) = queues.get(0) else { return Ok(Then::Waits) };
        while let Some(chain) = queue.pop()? {
            self.begun.send(()).unwrap();
            self.host.lock().unwrap().recv().unwrap();
            let written = chain.writable.write(0, b"answer");
            queue.push(&chain, u32::try_from(written).unwrap())?;
            queue.tell()?;
        }
        Ok(Then::Waits)
    }
}

/// A driver whose request the host does not answer.
fn stuck() -> (Driver<Slow>, Host) {
    let (model, host) = slow();
    let mut driver = Driver::new(model);
    ask(&mut driver, &host);
    (driver, host)
}

fn ask(driver: &mut Driver<Slow>, host: &Host) {
    driver.set_up(VERSION_1);
    driver.descriptor(0, 0, (0x8000, 16), WRITE, 0);
    driver.offer(0, 0);
    host.is_asked();
}

fn write_mmio(device: &mut VirtioMmio<Slow>, at: u64, value: u32) {
    assert_eq!(device.write(at, &value.to_le_bytes()), None);
}

fn read_mmio(device: &mut VirtioMmio<Slow>, at: u64) -> u32 {
    let mut data = [0; 4];
    device.read(at, &mut data);
    u32::from_le_bytes(data)
}

fn wait_until_zero(device: &mut VirtioMmio<Slow>, at: u64) {
    let start = Instant::now();
    while read_mmio(device, at) != 0 {
        assert!(start.elapsed() < TEST_PATIENCE);
        std::thread::yield_now();
    }
}

/// The same by MMIO, with what its line is set to.
fn stuck_by_mmio() -> (VirtioMmio<Slow>, Host, TestRam, Receiver<bool>) {
    let ((model, host), (sender, levels), ram) = (slow(), channel(), TestRam::new());
    let given: (Arc<dyn Ram>, Pace) = (Arc::new(ram.clone()), Pace::default());
    let mut device = VirtioMmio::new(model, given, Box::new(TestLine(Mutex::new(sender)))).unwrap();
    for (at, value) in [(STATUS, 3), (0x024, 1), (0x020, 1), (STATUS, 11), (0x038, 8)] {
        write_mmio(&mut device, at, value);
    }
    for (at, place) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (READY, 1), (STATUS, 15)] {
        write_mmio(&mut device, at, place);
    }
    let descriptor =
        [&0x8000u64.to_le_bytes()[..], &16u32.to_le_bytes(), &2u16.to_le_bytes(), &[0; 2]].concat();
    ram.write(GuestPhys(0x1000), &descriptor);
    ram.write(GuestPhys(0x2002), &1u16.to_le_bytes());
    write_mmio(&mut device, NOTIFY, 0);
    host.is_asked();
    (device, host, ram, levels)
}

#[test]
fn a_reset_is_done_when_the_host_has_answered() {
    let (mut driver, host) = stuck();
    host.said();
    driver.write(0x14, 1, 0);
    // Who writes it again does not wait again, and nothing else that is written counts.
    for (at, value) in [(0x14, 0), (0x14, 0), (0x14, 1), (0x16, 9), (0x18, 4)] {
        driver.write(at, 1 + usize::from(at != 0x14), value);
    }
    assert_eq!((driver.status(), driver.read(0x16, 2), driver.read(0x18, 2)), (15, 0, 8));
    assert!(host.said().is_empty());
    host.answer();
    driver.wait_for_reset();
    assert_eq!(host.said(), ["ended", "reset"]);
    assert_eq!((driver.read(0x1c, 2), driver.read(0x1a, 2)), (0, 0xffff));
    // What it had begun was the former driver's, and is done once.
    assert_eq!(driver.used(0), (1, 0, 6));
    ask(&mut driver, &host);
    host.answer();
    assert!(driver.message().is_some() && driver.message().is_some());
    assert_eq!(driver.used(0), (1, 0, 6));
}

/// Who goes on from what was saved meanwhile finds it done.
#[test]
fn a_reset_that_waits_is_done_before_it_is_saved() {
    let (mut driver, host) = stuck();
    host.said();
    driver.write(0x14, 1, 0);
    assert_eq!(driver.status(), 15);
    host.answer();
    assert!(driver.pace.hold(TEST_PATIENCE));
    let saved = driver.function.save().unwrap();
    assert_eq!(host.said(), ["ended", "reset", "saved"]);
    let device = &saved.fields["device"]["fields"];
    assert_eq!((&device["status"], &device["is_started"]), (&0.into(), &false.into()));
    let mut other = driver.with_another(slow().0);
    other.function.restore(&saved).unwrap();
    assert_eq!((other.status(), other.function.save().unwrap()), (0, saved));
}

/// A model is not asked for what a thread of its may have locked, and what is there is not called a state.
#[test]
fn a_state_is_not_to_be_had_before_the_host_has_answered() {
    let (mut driver, host) = stuck();
    host.said();
    assert!(!driver.pace.hold(Duration::ZERO));
    let error = driver.function.save().unwrap_err();
    assert!(error.to_string().contains("'virtio slow'"), "{error}");
    assert!(host.said().is_empty());
    host.answer();
    let saved = driver.function.save().unwrap();
    assert_eq!((host.said(), driver.used(0)), (vec!["saved".into()], (1, 0, 6)));
    assert_eq!(saved.fields["device"]["fields"]["is_started"], true);
}

#[test]
fn it_is_unplugged_only_when_the_host_has_answered() {
    let (mut driver, host) = stuck();
    host.said();
    assert!(!driver.function.unplug());
    assert!(host.said().is_empty());
    host.answer();
    assert!(driver.function.unplug() && driver.function.unplug());
    assert_eq!((host.said(), driver.status()), (vec!["ended".into(), "reset".into()], 0));
}

#[test]
fn a_state_is_not_put_back_under_a_thread_of_another() {
    let (mut driver, host) = stuck();
    let saved = Driver::new(slow().0).function.save().unwrap();
    let error = driver.function.restore(&saved).unwrap_err();
    assert!(error.to_string().contains("the host does not answer"), "{error}");
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    host.answer();
    driver.reset();
    driver.function.restore(&saved).unwrap();
}

/// What it had of the guest and of the host stays the thread's until it ends.
#[test]
fn a_device_goes_away_without_its_thread() {
    let (Driver { function, ram, .. }, host) = stuck();
    drop(function);
    host.answer();
    // It is written by the thread, which ends behind that and drops what it asks the host by.
    assert_eq!(host.begun.recv_timeout(TEST_PATIENCE), Err(RecvTimeoutError::Disconnected));
    let mut bytes = [0; 6];
    ram.read(GuestPhys(0x8000), &mut bytes);
    assert_eq!(&bytes, b"answer");
}

/// Until then it is ready, and its position is that of what was done last.
#[test]
fn a_queue_is_taken_back_when_the_host_has_answered() {
    let (mut device, host, _ram, _levels) = stuck_by_mmio();
    assert_eq!(host.said(), ["begins"]);
    for _ in 0..3 {
        write_mmio(&mut device, READY, 0);
        assert_eq!((read_mmio(&mut device, READY), host.said()), (1, vec![]));
    }
    host.answer();
    wait_until_zero(&mut device, READY);
    assert_eq!(host.said(), ["closed 0"]);
    let queue = &device.save().unwrap().fields["device"]["fields"]["queues"][0];
    assert_eq!(
        (&queue["ready"], &queue["next_used"], &queue["next_available"]),
        (&false.into(), &1.into(), &1.into())
    );
}

/// A guest whose driver could not do that would be interrupted without end.
#[test]
fn a_line_is_lowered_while_a_reset_waits() {
    let (mut device, host, ram, levels) = stuck_by_mmio();
    ram.write(GuestPhys(0x2002), &2u16.to_le_bytes());
    host.answer();
    host.is_asked();
    assert_eq!(levels.try_iter().last(), Some(true));
    write_mmio(&mut device, STATUS, 0);
    assert_eq!(read_mmio(&mut device, STATUS), 15);
    write_mmio(&mut device, ACKNOWLEDGE, 1);
    assert_eq!(levels.try_iter().last(), Some(false));
    host.answer();
    wait_until_zero(&mut device, STATUS);
}

/// Before features are agreed on nothing begins, and from then on they are what they are: what is saved can be put
/// back.
#[test]
fn features_are_agreed_on_once() {
    let (model, host) = slow();
    let mut driver = Driver::new(model);
    driver.write(0x14, 1, 3);
    driver.write(8, 4, 1);
    driver.write(0xc, 4, 1);
    driver.write(0x14, 1, 7);
    assert_eq!((driver.status(), host.said()), (3, vec![]));
    driver.set_up(VERSION_1);
    assert_eq!(host.said(), ["ended", "reset", "begins"]);
    for half in [0, 1] {
        driver.write(8, 4, half);
        driver.write(0xc, 4, 0xffff_ffff);
    }
    driver.write(8, 4, 1);
    assert_eq!(driver.read(0xc, 4), 1);
    let saved = driver.function.save().unwrap();
    let mut other = driver.with_another(slow().0);
    other.function.restore(&saved).unwrap();
    for status in [0, 3, 7, 11] {
        let mut wrong = saved.clone();
        wrong.fields["device"]["fields"]["status"] = status.into();
        assert!(other.function.restore(&wrong).unwrap_err().to_string().contains("not set up"));
    }
}

/// A model that has something to tell as soon as it begins.
struct Eager;

impl Model for Eager {
    type State = ();

    fn name(&self) -> &'static str {
        "virtio eager"
    }

    fn id(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn services(&mut self, _: u64, interrupts: &Arc<dyn Interrupts>) -> Vec<Service> {
        interrupts.queue(0);
        Vec::new()
    }

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), Misfit> {
        Ok(())
    }
}

#[test]
fn what_is_told_at_once_reaches_a_guest_that_is_put_back() {
    let mut driver = Driver::new(Eager);
    driver.set_up(VERSION_1);
    assert!(!driver.is_quiet());
    let saved = driver.function.save().unwrap();
    let mut other = driver.with_another(Eager);
    other.function.restore(&saved).unwrap();
    assert!(!other.is_quiet());
}

#[test]
fn what_is_told_at_once_raises_the_line_of_a_guest_that_is_put_back() {
    let eager = || {
        let (sender, levels) = channel();
        let given: (Arc<dyn Ram>, Pace) = (Arc::new(TestRam::new()), Pace::default());
        (VirtioMmio::new(Eager, given, Box::new(TestLine(Mutex::new(sender)))).unwrap(), levels)
    };
    let (mut device, levels) = eager();
    for (at, value) in [(STATUS, 3), (0x024, 1), (0x020, 1), (STATUS, 11), (STATUS, 15)] {
        device.write(at, &u32::to_le_bytes(value));
    }
    assert_eq!(levels.try_iter().last(), Some(true));
    device.write(ACKNOWLEDGE, &1u32.to_le_bytes());
    let saved = device.save().unwrap();
    let (mut other, levels) = eager();
    other.restore(&saved).unwrap();
    assert_eq!(levels.try_iter().last(), Some(true));
}
