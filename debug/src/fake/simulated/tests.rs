//! The whole debugger on a guest without a hypervisor, over its own socket, for both architectures on any host.

mod alone;
mod comings;
mod hostile;
mod session;

use super::*;
use crate::context::{Listener, Listeners, Notice};
use crate::engine::Engine;
use crate::fake::host;
use crate::gdb::endpoint::{Admission, Endpoint, ListeningSocket};
use crate::gdb::packet::frame;
use crate::live::debugger::{Debugger, Options, Polled, Status, Target};
use crate::live::link::Wake;
use crate::socket::Audience;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x4000;
/// A guest that does not do what is waited for never will.
const LIMIT: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options::new(Admission::open())
}

/// Where the debugger runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// On a thread of its own.
    Thread,
    /// In an event loop.
    Loop,
}

/// Every architecture, with the debugger everywhere.
fn everywhere() -> impl Iterator<Item = (Isa, How)> {
    Isa::ALL.into_iter().flat_map(|isa| [How::Thread, How::Loop].map(|how| (isa, how)))
}

/// A debugger that serves.
enum Serving {
    Thread(Debugger<Simulated>),
    Loop(EventLoop),
}

impl Serving {
    fn begin_again(&self, again: &Arc<SimulatedVcpus>) {
        match self {
            Serving::Thread(debugger) => {
                debugger.begin_again(again, Box::new(again.monitor().ram.clone()));
            }
            Serving::Loop(event_loop) => {
                *event_loop.again.lock().unwrap() = Some(Arc::clone(again));
                event_loop.wake.ring();
            }
        }
    }

    /// Has whoever is connected let go.
    fn release(&self) {
        match self {
            Serving::Thread(debugger) => debugger.release(),
            Serving::Loop(event_loop) => {
                event_loop.is_to_release.store(true, Ordering::SeqCst);
                event_loop.wake.ring();
            }
        }
    }

    /// Hears what it tells from now on.
    fn listen(&self) -> Listener {
        match self {
            Serving::Thread(debugger) => debugger.listeners().unwrap().add(1000),
            Serving::Loop(event_loop) => event_loop.listeners.add(1000),
        }
    }

    fn leave(self) {
        match self {
            Serving::Thread(debugger) => debugger.leave(),
            Serving::Loop(event_loop) => event_loop.leave(),
        }
    }
}

/// An event loop that has nothing but a debugger.
struct EventLoop {
    is_to_leave: Arc<AtomicBool>,
    is_to_release: Arc<AtomicBool>,
    /// What the guest begins again in.
    again: Arc<Mutex<Option<Arc<SimulatedVcpus>>>>,
    wake: Wake,
    listeners: Listeners,
    thread: JoinHandle<()>,
}

impl EventLoop {
    fn new(mut debugger: Polled<Simulated>) -> EventLoop {
        let (is_to_leave, is_to_release) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let again: Arc<Mutex<Option<Arc<SimulatedVcpus>>>> = Arc::default();
        let wake = Wake::new().unwrap();
        let (its_order, its_wake, its_again) = (Arc::clone(&is_to_leave), wake.clone(), Arc::clone(&again));
        let its_release = Arc::clone(&is_to_release);
        let listeners = debugger.listeners().clone();
        let thread = thread::spawn(move || {
            loop {
                let mut fds = [
                    PollFd::new(debugger.as_fd(), PollFlags::POLLIN),
                    PollFd::new(its_wake.as_fd(), PollFlags::POLLIN),
                ];
                poll(&mut fds, PollTimeout::NONE).unwrap();
                // Before what it has been rung for is looked at.
                let is_rung = its_wake.take();
                if its_release.swap(false, Ordering::SeqCst) {
                    debugger.release();
                }
                if is_rung && its_order.load(Ordering::SeqCst) {
                    debugger.leave();
                    // Its descriptor is readable then.
                    continue;
                }
                if let Some(again) = its_again.lock().unwrap().take() {
                    debugger.begin_again(&again, Box::new(again.monitor().ram.clone()));
                }
                if debugger.process().unwrap() == Status::Over {
                    return;
                }
            }
        });
        EventLoop { is_to_leave, is_to_release, again, wake, listeners, thread }
    }

    fn leave(self) {
        self.is_to_leave.store(true, Ordering::SeqCst);
        self.wake.ring();
        self.thread.join().unwrap();
    }
}

struct Setting {
    isa: Isa,
    how: How,
    vcpus: Arc<SimulatedVcpus>,
    debugger: Option<Serving>,
    listeners: Option<Listeners>,
    path: PathBuf,
    /// The code, the address of its store and of its branch.
    code: (Vec<u8>, u64, u64),
}

impl Setting {
    /// A guest that runs, and is not debugged.
    fn new((isa, how): (Isa, How), vcpus: u32) -> Setting {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("simulated-{}-{number}.sock", std::process::id()));
        let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
        let (bytes, store, branch) = counting(isa);
        ram.write(GuestPhys(CODE), &bytes);
        let vcpus = Arc::new(Vcpus::new(Simulated::new(isa, vcpus, ram, CODE, DATA)));
        vcpus.resume();
        Setting {
            isa,
            how,
            vcpus,
            debugger: None,
            listeners: None,
            path,
            code: (bytes, CODE + store, CODE + branch),
        }
    }

    fn attach(&mut self) -> Client {
        let listener = ListeningSocket::bind(&Endpoint::Unix(self.path.clone()), Audience::Owner).unwrap();
        let memory = Box::new(self.vcpus.monitor().ram.clone());
        let engine = Arc::new(Engine::new(self.isa, host(), self.vcpus.count()));
        let guest = Target { engine, memory };
        self.debugger = Some(match self.how {
            How::Thread => {
                let debugger = Debugger::attach(&self.vcpus, guest, listener, options()).unwrap();
                self.listeners = debugger.listeners().cloned();
                Serving::Thread(debugger)
            }
            How::Loop => {
                let polled = Polled::attach(&self.vcpus, guest, listener, options()).unwrap();
                self.listeners = Some(polled.listeners().clone());
                Serving::Loop(EventLoop::new(polled))
            }
        });
        Client::new(&self.path)
    }

    /// What a vCPU has stored last.
    fn stored(&self, vcpu: u64) -> u64 {
        let mut bytes = [0; 8];
        self.vcpus.monitor().ram.read(GuestPhys(DATA + 8 * vcpu), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Waits until a vCPU runs.
    fn expect_running(&self, vcpu: u64) {
        let (begin, before) = (Instant::now(), self.stored(vcpu));
        while self.stored(vcpu) == before {
            assert!(begin.elapsed() < LIMIT, "vCPU {vcpu} does not run");
            thread::yield_now();
        }
    }

    fn memory_of_code(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.code.0.len()];
        self.vcpus.monitor().ram.read(GuestPhys(CODE), &mut bytes);
        bytes
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Some(debugger) = self.debugger.take() {
            debugger.leave();
        }
        drop(self.vcpus.pause(|_| true));
    }
}

/// Takes the next packet out of what was read, if all of it is there.
fn next_reply(read: &mut Vec<u8>) -> Option<String> {
    loop {
        let begin = read.iter().position(|byte| *byte == b'$')?;
        let end = read.iter().position(|byte| *byte == b'#')?;
        if read.len() < end + 3 {
            return None;
        }
        let packet = String::from_utf8(read[begin + 1..end].to_vec()).unwrap();
        read.drain(..end + 3);
        // What is said to the person is no answer.
        if !packet.starts_with('O') || packet == "OK" {
            return Some(packet);
        }
    }
}

/// gdb's number of a register: the program counter, or the one that the guest counts in.
fn number(isa: Isa, name: &str) -> u32 {
    match (isa, name) {
        (Isa::X86_64, "pc") => 16,
        (Isa::X86_64, _) | (Isa::Aarch64, "count") => 0,
        (Isa::Aarch64, _) => 32,
    }
}

/// A client of the bare protocol.
struct Client {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Client {
    fn new(path: &PathBuf) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut client = Client { stream, read: Vec::new() };
        client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+");
        assert_eq!(client.ask("QStartNoAckMode"), "OK");
        client
    }

    fn send(&mut self, packet: &str) {
        self.stream.write_all(&frame(packet.as_bytes())).unwrap();
    }

    /// The next packet.
    fn reply(&mut self) -> String {
        loop {
            if let Some(packet) = next_reply(&mut self.read) {
                return packet;
            }
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).unwrap();
            assert!(count > 0, "the server has closed the connection");
            self.read.extend_from_slice(&piece[..count]);
        }
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.reply()
    }

    fn is_closed(&mut self) -> bool {
        let read = self.stream.read_to_end(&mut Vec::new());
        // What it has sent may be unread.
        read.is_ok() || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    fn register(&mut self, isa: Isa, name: &str) -> u64 {
        let number = number(isa, name);
        u64::from_str_radix(&self.ask(&format!("p{number:x}")), 16).unwrap().swap_bytes()
    }
}

#[test]
fn steps_go_from_instruction_to_instruction() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 1);
        let mut client = setting.attach();
        let lengths: &[u64] = if isa == Isa::X86_64 { &[0, 3, 6, 7] } else { &[0, 4, 8, 12] };
        let places: Vec<u64> = lengths.iter().map(|at| CODE + at).collect();
        let mut at = client.register(isa, "pc");
        for _ in 0..20 {
            let index = places.iter().position(|place| *place == at).unwrap();
            let stop = client.ask("vCont;s:p1.1");
            assert!(stop.starts_with("T05"), "{isa}: {stop}");
            at = client.register(isa, "pc");
            assert_eq!(at, places[(index + 1) % places.len()], "{isa}");
        }
    }
}

#[test]
fn each_hit_of_a_breakpoint_is_one_round() {
    for (isa, how) in everywhere() {
        for kind in ["Z0", "Z1"] {
            let mut setting = Setting::new((isa, how), 1);
            let mut client = setting.attach();
            let store = setting.code.1;
            assert_eq!(client.ask(&format!("{kind},{store:x},4")), "OK");
            client.ask("vCont;c");
            let mut count = client.register(isa, "count");
            for _ in 0..10 {
                let stop = client.ask("vCont;c");
                assert!(stop.contains(if kind == "Z0" { "swbreak" } else { "hwbreak" }), "{isa}: {stop}");
                assert_eq!(client.register(isa, "pc"), store);
                count += 1;
                assert_eq!(
                    client.register(isa, "count"),
                    count,
                    "{isa} {kind}: a round is missed or made twice"
                );
            }
            // gdb does not see what is planted; the guest's memory has it.
            let seen = client.ask(&format!("m{CODE:x},{:x}", setting.code.0.len()));
            assert_eq!(crate::gdb::packet::from_hex(seen.as_bytes()).unwrap(), setting.code.0);
            assert_eq!(setting.memory_of_code() != setting.code.0, kind == "Z0");
        }
    }
}

#[test]
fn watchpoints_stop_at_their_access() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 1);
        let mut client = setting.attach();
        assert_eq!(client.ask(&format!("Z2,{DATA:x},8")), "OK");
        let mut counted = Vec::new();
        for _ in 0..3 {
            let stop = client.ask("vCont;c");
            assert!(stop.contains(&format!("watch:{DATA:x}")), "{isa}: {stop}");
            counted.push(client.register(isa, "count"));
        }
        // Another store each time, also where the stop is in front of it.
        assert!(counted.is_sorted_by(|one, next| one < next), "{isa}: {counted:?}");
    }
}

#[test]
fn breakpoint_instructions_of_the_guests_own_are_its_own() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 1);
        let mut client = setting.attach();
        // In the place of the one that does nothing.
        let (place, own): (u64, &[u8]) = match isa {
            Isa::X86_64 => (CODE + 6, &[0xcc]),
            Isa::Aarch64 => (CODE + 8, &0xd420_0020u32.to_le_bytes()),
        };
        setting.vcpus.monitor().ram.write(GuestPhys(place), own);
        let branch = setting.code.2;
        // With one of the debugger's, such instructions come to it.
        assert_eq!(client.ask(&format!("Z0,{branch:x},4")), "OK");
        let before = setting.vcpus.monitor().own_traps.load(Ordering::SeqCst);
        for round in 1..5 {
            let stop = client.ask("vCont;c");
            assert!(stop.contains("swbreak"), "{isa}: {stop}");
            assert_eq!(client.register(isa, "pc"), branch, "{isa}");
            let own_traps = setting.vcpus.monitor().own_traps.load(Ordering::SeqCst);
            assert!(
                own_traps >= before + round - 1 && own_traps <= before + round + 1,
                "{isa} {round}: {own_traps}"
            );
        }
    }
}

#[test]
fn two_vcpus_meet_a_breakpoint_and_neither_slips_past() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let store = setting.code.1;
        // A condition that is false: both count at full speed, and nobody stops.
        assert_eq!(client.ask(&format!("Z0,{store:x},4;X3,220027")), "OK");
        client.send("vCont;c");
        setting.expect_running(0);
        setting.expect_running(1);
        client.stream.write_all(&[3]).unwrap();
        let stop = client.reply();
        assert!(stop.starts_with("T02"), "{isa}: {stop}");
        assert_eq!(client.ask(&format!("z0,{store:x},4")), "OK");
        assert_eq!(setting.memory_of_code(), setting.code.0);
        assert_eq!(*setting.vcpus.monitor().end.lock().unwrap(), None);
    }
}

#[test]
fn a_debugger_comes_and_leaves_at_any_time() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        for round in 0..4 {
            setting.expect_running(0);
            let mut client = setting.attach();
            let listener = setting.debugger.as_ref().unwrap().listen();
            let store = setting.code.1;
            if round % 2 == 0 {
                assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
                assert_eq!(client.ask(&format!("Z2,{DATA:x},8")), "OK");
                let stop = client.ask("vCont;c");
                assert!(stop.starts_with("T05"), "{isa}: {stop}");
            } else {
                client.send("vCont;c");
            }
            // It leaves, whatever its client does.
            setting.debugger.take().unwrap().leave();
            assert!(client.is_closed());
            // Whoever listens hears that the guest runs.
            let notices: Vec<Notice> = std::iter::from_fn(|| listener.take()).collect();
            let state =
                notices.iter().rfind(|it| matches!(it, Notice::Started(_) | Notice::Stopped(..))).unwrap();
            assert!(matches!(state, Notice::Started(_)), "{isa} {how:?}: {notices:?}");
            assert_eq!(setting.memory_of_code(), setting.code.0, "{isa}: something stays planted");
            let armed = setting.vcpus.for_each(|vcpu| !vcpu.arming.is_off());
            assert_eq!(armed, [false; 2], "{isa}: something stays armed");
            assert!(
                setting.vcpus.link().is_none(),
                "{isa} {how:?}: vCPUs know of the debugger that has left"
            );
            setting.expect_running(0);
            setting.expect_running(1);
        }
    }
}

#[test]
fn a_guest_that_dies_is_looked_at_first() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 1);
        let mut client = setting.attach();
        let (store, broken) = (setting.code.1, if isa == Isa::X86_64 { "0f0b" } else { "00000000" });
        assert_eq!(client.ask(&format!("M{store:x},{:x}:{broken}", broken.len() / 2)), "OK");
        let stop = client.ask("vCont;c");
        assert!(stop.starts_with('T') && !stop.starts_with("T05"), "{isa}: {stop}");
        assert_eq!(client.register(isa, "pc"), store);
        assert_eq!(*setting.vcpus.monitor().end.lock().unwrap(), None, "{isa}: it has ended already");
    }
}

/// What is written is answered when it is done, and a value that the vCPU refuses is an error.
#[test]
fn registers_are_written_while_it_stands_still() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        for value in [7u64, 1 << 40] {
            let hex: String = value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(client.ask(&format!("P0={hex}")), "OK", "{isa} {how:?}");
            assert_eq!(client.register(isa, "count"), value, "{isa} {how:?}");
        }
        setting.vcpus.call(0, |vcpu| vcpu.refuses = true);
        let answer = client.ask("P0=0100000000000000");
        assert!(answer.starts_with('E'), "{isa} {how:?}: {answer}");
        assert_eq!(client.ask("?").get(..3), Some("T05"), "{isa} {how:?}: it goes on being served");
        setting.vcpus.call(0, |vcpu| vcpu.refuses = false);
        assert_eq!(client.ask("P0=0100000000000000"), "OK", "{isa} {how:?}");
    }
}

/// Others hold the guest while a debugger stops it, steps it and lets it run: none waits for another to go.
#[test]
fn others_hold_the_guest_meanwhile() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let (vcpus, is_over) = (Arc::clone(&setting.vcpus), Arc::new(AtomicBool::new(false)));
        let (others, holds) = (Arc::clone(&is_over), Arc::new(AtomicU32::new(0)));
        let its_holds = Arc::clone(&holds);
        let holder = thread::spawn(move || {
            while !others.load(Ordering::SeqCst) {
                drop(vcpus.hold());
                its_holds.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
            }
        });
        let (store, begin, mut round) = (setting.code.1, Instant::now(), 0);
        // Beside others that hold it, however late they begin.
        while round < 30 || holds.load(Ordering::SeqCst) == 0 {
            assert!(begin.elapsed() < LIMIT, "nobody else holds it");
            round += 1;
            assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
            assert!(client.ask("vCont;c").starts_with("T05"), "{isa} {how:?}");
            assert!(client.ask("vCont;s:p1.1").starts_with("T05"), "{isa} {how:?}");
            assert_eq!(client.ask(&format!("z0,{store:x},4")), "OK");
        }
        is_over.store(true, Ordering::SeqCst);
        holder.join().unwrap();
    }
}

/// Beside gdb, others hear what becomes of its guest, and hold up nobody.
#[test]
fn others_listen_to_what_gdbs_guest_does() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let listeners = setting.listeners.clone().unwrap();
        let (listener, deaf) = (listeners.add(64), listeners.add(2));
        for _ in 0..20 {
            assert!(client.ask("vCont;s:p1.1").starts_with("T05"), "{isa} {how:?}");
        }
        client.send("vCont;c");
        client.stream.write_all(&[3]).unwrap();
        assert!(client.reply().starts_with("T02"), "{isa} {how:?}");
        let heard: Vec<Notice> = std::iter::from_fn(|| listener.take()).collect();
        let stops = heard.iter().filter(|notice| matches!(notice, Notice::Stopped(..))).count();
        let starts = heard.iter().filter(|notice| matches!(notice, Notice::Started(_))).count();
        assert_eq!((starts, stops), (21, 21), "{isa} {how:?}: {heard:?}");
        // One who does not listen loses what he has not heard, and is told how much.
        let heard: Vec<Notice> = std::iter::from_fn(|| deaf.take()).collect();
        assert!(heard.iter().any(|notice| matches!(notice, Notice::Lost(_))), "{isa} {how:?}: {heard:?}");
    }
}

/// The debugger has the guest begin again, and keeps its breakpoint; where the monitor cannot, it is told so.
#[test]
fn the_debugger_has_the_guest_begin_again() {
    for (isa, how) in everywhere() {
        let mut setting = Setting::new((isa, how), 2);
        let mut client = setting.attach();
        let (store, reset) = (setting.code.1, "qRcmd,7265736574");
        assert_eq!(client.ask("!"), "OK");
        assert!(client.ask("vRun;").starts_with("E."), "{isa} {how:?}");
        assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
        for round in 1..4 {
            setting.vcpus.monitor().resets.store(0, Ordering::SeqCst);
            client.send(if round == 2 { reset } else { "vRun;" });
            let begin = Instant::now();
            while setting.vcpus.monitor().resets.load(Ordering::SeqCst) == 0 {
                assert!(begin.elapsed() < LIMIT, "{isa} {how:?}: nobody asks for it");
                thread::yield_now();
            }
            let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
            ram.write(GuestPhys(CODE), &setting.code.0);
            let again = Arc::new(Vcpus::new(Simulated::new(isa, 2, ram, CODE, DATA)));
            setting.debugger.as_ref().unwrap().begin_again(&again);
            let answer = client.reply();
            assert!(answer == "OK" && round == 2 || answer.starts_with("T05"), "{isa} {how:?}: {answer}");
            setting.vcpus = again;
            assert_eq!(client.register(isa, "pc"), CODE, "{isa} {how:?}");
            assert!(client.ask("vCont;c").contains("swbreak"), "{isa} {how:?}");
            assert_eq!(client.register(isa, "pc"), store, "{isa} {how:?}");
        }
    }
}
