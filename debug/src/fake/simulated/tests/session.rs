//! A whole session without a socket, so that it runs under Miri as well: a client's packets, the stub, the engine and
//! the rules of steps, on processors with threads of their own.

use super::*;
use crate::gdb::client::Scripted;
use crate::gdb::session::Session;

type Live = LiveMachine<Simulated>;

/// How often what is done again and again is: Miri takes thousands of times as long.
const ROUNDS: u64 = if cfg!(miri) { 1 } else { 20 };

/// Lets vCPUs' threads run. To look whether there is something to serve takes Miri as long as many instructions of theirs.
fn give_way() {
    for _ in 0..if cfg!(miri) { 40 } else { 1 } {
        thread::yield_now();
    }
}

/// A guest of two vCPUs that count, who debugs it, and its session.
struct Joined {
    isa: Isa,
    vcpus: Arc<SimulatedVcpus>,
    debugger: Option<Debugger<Simulated>>,
    session: Session<Live>,
    code: Vec<u8>,
    store: u64,
    branch: u64,
}

impl Joined {
    fn new(isa: Isa) -> Joined {
        let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
        let (code, store, branch) = counting(isa);
        ram.write(GuestPhys(CODE), &code);
        let vcpus = Arc::new(Vcpus::new(Simulated::new(isa, 2, ram.clone(), CODE, DATA)));
        let engine = Arc::new(Engine::new(isa, host(), 2));
        let guest = Target { engine: Arc::clone(&engine), memory: Box::new(ram) };
        let (debugger, machine) = Debugger::join(&vcpus, guest, true).unwrap();
        let (session, debugger) = (Session::new(machine, engine), Some(debugger));
        Joined { isa, vcpus, debugger, session, code, store: CODE + store, branch: CODE + branch }
    }

    /// The debugger leaves; what it has left behind is nothing.
    fn leave(mut self) {
        drop(self.session);
        self.debugger.take().unwrap().leave();
        let mut code = vec![0; self.code.len()];
        self.vcpus.monitor().ram.read(GuestPhys(CODE), &mut code);
        assert_eq!(code, self.code, "{}: something stays planted", self.isa);
        let armed = self.vcpus.for_each(|vcpu| !vcpu.arming.is_off());
        assert_eq!(armed, [false; 2], "{}: something stays armed", self.isa);
        assert_eq!(*self.vcpus.monitor().end.lock().unwrap(), None, "{}: it has ended", self.isa);
    }
}

/// The thread that a stop is told of.
fn thread(stop: &str) -> u64 {
    let id = stop.split_once("thread:p01.").unwrap_or_else(|| panic!("{stop} names no thread")).1;
    u64::from_str_radix(id.split(';').next().unwrap_or_default(), 16).unwrap()
}

/// A client that waits for its answers.
struct Asking<'a> {
    client: Scripted<'a, Live>,
    isa: Isa,
    read: Vec<u8>,
}

impl Asking<'_> {
    fn new(isa: Isa, session: &mut Session<Live>) -> Asking<'_> {
        let mut asking = Asking { client: Scripted::new(session).unwrap(), isa, read: Vec::new() };
        asking.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+");
        assert_eq!(asking.ask("QStartNoAckMode"), "OK");
        asking
    }

    fn ask(&mut self, packet: &str) -> String {
        self.client.send(&frame(packet.as_bytes()));
        self.reply()
    }

    fn reply(&mut self) -> String {
        let mut stays = true;
        loop {
            if let Some(packet) = next_reply(&mut self.read) {
                return packet;
            }
            assert!(stays, "{}: it was let go", self.isa);
            stays = self.client.serve();
            self.read.extend(self.client.read());
            // Where there is no reply yet, it is the vCPUs' turn.
            give_way();
        }
    }

    /// Lets all vCPUs run, until one stops by `why`; which thread that is.
    fn run_to(&mut self, why: &str) -> u64 {
        let stop = self.ask("vCont;c");
        assert!(stop.contains(why), "{}: {stop} is not {why}", self.isa);
        thread(&stop)
    }

    fn register(&mut self, name: &str) -> u64 {
        let number = number(self.isa, name);
        u64::from_str_radix(&self.ask(&format!("p{number:x}")), 16).unwrap().swap_bytes()
    }
}

/// Each hit is one round of the vCPU that is told of, and what is planted is not seen.
#[test]
fn breakpoints_hit_each_time() {
    for isa in Isa::ALL {
        let mut joined = Joined::new(isa);
        let (store, code) = (joined.store, joined.code.clone());
        let mut client = Asking::new(isa, &mut joined.session);
        for (kind, why) in [("0", "swbreak"), ("1", "hwbreak")] {
            assert_eq!(client.ask(&format!("Z{kind},{store:x},4")), "OK");
            // The other vCPU is kept where it is.
            for _ in 0..ROUNDS {
                assert!(client.ask("vCont;c:p1.1").contains(why));
                assert_eq!(client.register("pc"), store, "{isa}");
                let count = client.register("count");
                assert!(client.ask("vCont;c:p1.1").contains(why));
                assert_eq!(client.register("count"), count + 1, "{isa}: a round is missed or made twice");
            }
            let seen = client.ask(&format!("m{CODE:x},{:x}", code.len()));
            assert_eq!(crate::gdb::packet::from_hex(seen.as_bytes()).unwrap(), code, "{isa}");
            assert_eq!(client.ask(&format!("z{kind},{store:x},4")), "OK");
        }
        assert_eq!(client.ask("D;1"), "OK", "{isa}");
        drop(client);
        joined.leave();
    }
}

/// Steps go from one instruction to the next, off a breakpoint as well, and a watchpoint stops at its access.
#[test]
fn steps_and_watchpoints() {
    for isa in Isa::ALL {
        let mut joined = Joined::new(isa);
        let (store, branch) = (joined.store, joined.branch);
        let mut client = Asking::new(isa, &mut joined.session);
        assert_eq!(client.ask(&format!("Z0,{store:x},4")), "OK");
        for _ in 0..ROUNDS {
            // Whoever has hit it makes one round, while the other is kept where it is.
            let hit = client.run_to("swbreak");
            let behind = if isa == Isa::X86_64 { branch - 1 } else { branch - 4 };
            for place in [behind, branch, CODE, store] {
                let stop = client.ask(&format!("vCont;s:p1.{hit:x}"));
                assert!(stop.starts_with("T05"), "{isa}: {stop}");
                if thread(&stop) != hit {
                    // The other one had hit it at the same time, and is told of now.
                    assert!(stop.contains("swbreak"), "{isa}: {stop}");
                    break;
                }
                let at = client.register("pc");
                assert_eq!(at, place, "{isa}: at {at:#x}: {stop}");
            }
        }
        assert_eq!(client.ask(&format!("z0,{store:x},4")), "OK");
        assert_eq!(client.ask(&format!("Z2,{DATA:x},8")), "OK");
        for _ in 0..ROUNDS {
            client.run_to(&format!("watch:{DATA:x}"));
        }
        client.client.go();
        joined.leave();
    }
}

/// With a condition that is false vCPUs run on, each past the place by itself, until they are interrupted.
#[test]
#[cfg_attr(
    miri,
    ignore = "not seen to its end there: two vCPUs that run freely past a condition take Miri over five minutes"
)]
fn conditions_and_interrupts() {
    for isa in Isa::ALL {
        let mut joined = Joined::new(isa);
        let store = joined.store;
        let vcpus = Arc::clone(&joined.vcpus);
        let stored = |vcpu: u64| {
            let mut bytes = [0; 8];
            vcpus.monitor().ram.read(GuestPhys(DATA + 8 * vcpu), &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let mut client = Asking::new(isa, &mut joined.session);
        assert_eq!(client.ask(&format!("Z0,{store:x},4;X3,220027")), "OK");
        let before = [stored(0), stored(1)];
        client.client.send(&frame(b"vCont;c"));
        while (0..2).any(|vcpu| stored(vcpu) < before[usize::from(vcpu == 1)] + ROUNDS) {
            assert!(client.client.serve(), "{isa}: it was let go");
            give_way();
        }
        assert_eq!(client.client.read(), b"", "{isa}: nobody has stopped");
        client.client.send(&[3]);
        assert!(client.reply().starts_with("T02"), "{isa}");
        let value: String = 1000u64.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(client.ask(&format!("P0={value}")), "OK", "{isa}");
        assert_eq!(client.register("count"), 1000, "{isa}");
        client.client.go();
        joined.leave();
    }
}
