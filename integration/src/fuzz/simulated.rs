//! A guest whose processors are simulated, and who debugs it: orders of a program, and packets of a client.

use arch::{GuestPhys, Isa};
use debug::context::{Debuggee, GoError, Mode, Point, WaitError};
use debug::engine::Engine;
use debug::fake;
use debug::fake::simulated::{CODE, DATA, SharedRam, Simulated, SimulatedVcpus, counting};
use debug::fake::{FakeVcpu, Ram};
use debug::gdb::client::misbehave;
use debug::gdb::packet::frame;
use debug::gdb::session::Session;
use debug::live::debugger::{Debugger, Target};
use debug::live::machine::LiveMachine;
use debug::live::vcpus::Vcpus;
use debug::ram::Memory;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const VCPUS: u32 = 2;
/// What is not done by then never will be.
const LIMIT: Duration = Duration::from_secs(20);
/// Orders, or packets, that are carried out of an input: each may wait for threads.
const MOST: usize = 64;
/// Kicks that come late: a step of the debugger's own that meets two of them is made later.
const LATE_KICKS: u64 = 1000;

/// A guest whose processors all count, store what they have counted, and begin again.
struct Guest {
    isa: Isa,
    ram: SharedRam,
    vcpus: Arc<SimulatedVcpus>,
    code: Vec<u8>,
    /// Where its instructions begin.
    instructions: [u64; 4],
}

impl Guest {
    fn new(isa: Isa) -> Guest {
        let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
        let (code, store, branch) = counting(isa);
        ram.write(GuestPhys(CODE), &code);
        let vcpus = Arc::new(Vcpus::new(Simulated::new(isa, VCPUS, ram.clone(), CODE, DATA)));
        let nothing = if isa == Isa::X86_64 { branch - 1 } else { branch - 4 };
        let instructions = [0, store, nothing, branch].map(|at| CODE + at);
        Guest { isa, ram, vcpus, code, instructions }
    }

    /// Somebody comes to debug it.
    fn join(&self) -> Option<(Debugger<Simulated>, LiveMachine<Simulated>, Arc<Engine>)> {
        let engine = Arc::new(Engine::new(self.isa, fake::host(), VCPUS));
        let target = Target { engine: Arc::clone(&engine), memory: Box::new(self.ram.clone()) };
        // Without descriptors there is nothing to fuzz.
        let (debugger, machine) = Debugger::join(&self.vcpus, target, true).ok()?;
        Some((debugger, machine, engine))
    }

    fn counter(&self) -> &'static str {
        if self.isa == Isa::X86_64 { "rax" } else { "x0" }
    }

    /// What it executes is its own, and so are its debug registers.
    fn assert_left(&self, is_untouched: bool) {
        let mut code = vec![0; self.code.len()];
        self.ram.read(GuestPhys(CODE), &mut code);
        assert!(!is_untouched || code == self.code, "{code:x?} is left in the guest");
        let off = self.vcpus.for_each(|vcpu: &mut FakeVcpu| vcpu.arming.is_off());
        assert_eq!(off, [true; VCPUS as usize], "vCPUs are left armed");
    }
}

fn isa(data: &[u8]) -> (Isa, &[u8]) {
    match data.split_first() {
        Some((choice, rest)) if choice & 1 != 0 => (Isa::Aarch64, rest),
        Some((_, rest)) => (Isa::X86_64, rest),
        None => (Isa::X86_64, data),
    }
}

/// A program's orders, a byte each behind the one that chooses the architecture: breakpoints of all kinds come and go,
/// the guest runs and is stepped. It is never seen with anything planted, no vCPU gets past a breakpoint, what is
/// to stop does, and nothing is left behind.
pub fn orders(data: &[u8]) {
    let (isa, orders) = isa(data);
    let guest = Guest::new(isa);
    let Some((debugger, machine, engine)) = guest.join() else { return };
    guest.vcpus.monitor().late_kicks.store(LATE_KICKS, Ordering::SeqCst);
    let mut debuggee = Debuggee::new(machine, engine);
    debuggee.attach();
    let mut program = Program { guest: &guest, debuggee, points: Vec::new() };
    for order in orders.iter().take(MOST) {
        program.carry_out(*order);
        program.assert_hidden();
    }
    program.debuggee.leave_held();
    debugger.leave();
    guest.assert_left(true);
    let end = guest.vcpus.monitor().end.lock().map(|end| end.clone()).unwrap_or_default();
    assert_eq!(end, None, "the guest has ended");
}

struct Program<'a> {
    guest: &'a Guest,
    debuggee: Debuggee<LiveMachine<Simulated>>,
    /// Each with whether whoever comes by stops at it.
    points: Vec<(debug::breakpoint::Id, bool)>,
}

impl Program<'_> {
    fn carry_out(&mut self, order: u8) {
        let which = usize::from(order >> 3);
        let at = self.guest.instructions[which % 4];
        match order & 7 {
            0 => self.add(Point::execute(at), true),
            1 => self.add(Point::execute(at).hardware(), true),
            2 => self.add(Point::write(DATA + 8 * (which as u64 % u64::from(VCPUS)), 8), false),
            3 if !self.points.is_empty() => {
                let (id, _) = self.points.remove(which % self.points.len());
                assert!(self.debuggee.take_out(id), "a breakpoint was not there");
            }
            3 => {}
            4 | 5 if self.points.is_empty() => {}
            4 | 5 => self.go(None, Mode::Run),
            6 => self.go(Some(which), Mode::StepInto),
            _ => self.go(Some(which), Mode::StepOver),
        }
    }

    fn add(&mut self, point: Point, stops_all: bool) {
        // More than there are debug registers for are refused.
        if let Ok(id) = self.debuggee.add(point) {
            self.points.push((id, stops_all));
        }
    }

    /// What each vCPU has counted.
    fn counts(&self) -> Vec<u64> {
        let count = |vcpu| {
            let context = self.debuggee.vcpu(vcpu)?;
            self.debuggee.register(context, self.guest.counter()).ok()
        };
        (0..VCPUS).map(|vcpu| count(vcpu).expect("a vCPU that stands still has registers")).collect()
    }

    /// Resumes the guest, and waits for its stop. Who goes round counts once, and cannot go round twice without
    /// having come by every instruction.
    fn go(&mut self, vcpu: Option<usize>, mode: Mode) {
        let before = self.counts();
        let stepped = vcpu.map(|which| which % before.len());
        let context = match stepped.and_then(|vcpu| self.debuggee.vcpu(u32::try_from(vcpu).ok()?)) {
            Some(context) => context,
            None => self.debuggee.root(),
        };
        match self.debuggee.go_until(context, mode.clone(), LIMIT) {
            Ok(_) => {}
            Err(GoError::Wait(WaitError::TimedOut(_))) => panic!("{mode:?} does not stop: {:?}", self.points),
            Err(error) => panic!("{mode:?}: {error}"),
        }
        let stops_all = self.points.iter().any(|(_, stops_all)| *stops_all);
        for (vcpu, (before, after)) in before.into_iter().zip(self.counts()).enumerate() {
            if stops_all || stepped == Some(vcpu) {
                assert!(
                    after - before <= 1,
                    "vCPU {vcpu} has counted from {before} to {after} in one {mode:?}"
                );
            }
        }
    }

    /// Whoever reads the guest's code reads its own.
    fn assert_hidden(&self) {
        let mut code = vec![0; self.guest.code.len()];
        let read = self.debuggee.read(self.debuggee.root(), CODE, &mut code);
        assert!(read.is_ok() && code == self.guest.code, "the guest is seen with {code:x?}");
    }
}

/// A client's packets, a line each behind the byte that chooses the architecture; one that lets the guest run is
/// followed by an interrupt. Nothing is left behind, but what it has written itself.
pub fn packets(data: &[u8]) {
    let (isa, packets) = isa(data);
    let guest = Guest::new(isa);
    let Some((debugger, machine, engine)) = guest.join() else { return };
    let mut session = Session::new(machine, engine);
    // No dump is written.
    session.dump_folder = PathBuf::from("/nonexistent");
    let lines: Vec<&[u8]> = packets.split(|byte| *byte == b'\n').take(MOST).collect();
    let pieces: Vec<Vec<u8>> = lines
        .iter()
        .flat_map(|line| {
            let runs = matches!(line.first(), Some(b'v' | b'c' | b's' | b'C' | b'S'));
            [Some(frame(line)), runs.then(|| vec![3])].into_iter().flatten()
        })
        .collect();
    let steps: Vec<(&[u8], bool)> = pieces.iter().map(|piece| (piece.as_slice(), true)).collect();
    misbehave(&mut session, &steps).ok();
    drop(session);
    debugger.leave();
    // Registers are where the guest stores, and where it goes on.
    let writes =
        |line: &&[u8]| matches!(line.first(), Some(b'M' | b'X' | b'P' | b'G' | b'c' | b's' | b'C' | b'S'));
    guest.assert_left(!lines.iter().any(writes));
}
