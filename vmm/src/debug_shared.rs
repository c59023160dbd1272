//! What vCPU threads share while a debugger may be there. None of it exists without `--gdb`.

use crate::outcome::Outcome;
use debug::engine::Engine;
use debug::live::link::{Link, Wake};
use debug::target::{Ended, Event};
use kvm::exit::VcpuExit;
use kvm::kick;
use kvm::ram::{GuestMemory, LiveMemory};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};

/// The kinds of exits that are counted.
const EXITS: [&str; 9] = VcpuExit::KINDS;

/// What vCPU threads share while a debugger may be there.
#[derive(Debug)]
pub struct DebugShared {
    /// The debugger's own part.
    pub link: Arc<Link>,
    /// The vCPUs' threads, from when each has begun.
    threads: Arc<Vec<OnceLock<kick::Thread>>>,
    /// Counts how often the debugger that is attached was to be let go.
    release: Wake,
    exits: Vec<[AtomicU64; EXITS.len()]>,
    /// The debugger wants the guest to begin again.
    wants_restart: AtomicBool,
}

impl DebugShared {
    /// For a machine of this many vCPUs; and where the events of the debugger arrive.
    pub fn new(
        engine: Arc<Engine>,
        vcpus: u32,
        memory: &GuestMemory,
        (wake, release): (Wake, Wake),
    ) -> (DebugShared, Receiver<Event>) {
        let threads: Arc<Vec<OnceLock<kick::Thread>>> =
            Arc::new((0..vcpus).map(|_| OnceLock::new()).collect());
        let theirs = Arc::clone(&threads);
        let kick = move |vcpu: u32| {
            if let Some(thread) = theirs.get(vcpu as usize).and_then(OnceLock::get) {
                // SAFETY: vCPU threads are joined only when all of them have come to their end, and the one
                // that calls this, at the gate, has not.
                unsafe { thread.kick() };
            }
        };
        let memory = Box::new(LiveMemory(memory.clone()));
        let (link, events) = Link::new(engine, vcpus, memory, Box::new(kick), wake);
        let shared = DebugShared {
            link: Arc::new(link),
            threads,
            release,
            exits: (0..vcpus).map(|_| Default::default()).collect(),
            wants_restart: AtomicBool::new(false),
        };
        (shared, events)
    }

    /// Called once by each vCPU's thread before it enters the guest.
    pub fn introduce(&self, vcpu: u32) {
        if let Some(thread) = self.threads.get(vcpu as usize) {
            thread.get_or_init(kick::Thread::current);
        }
    }

    /// Whether the debugger wants the guest to begin again; asked once for each time that it does.
    pub fn takes_restart(&self) -> bool {
        self.wants_restart.swap(false, Ordering::Relaxed)
    }

    /// Tells an attached debugger that the guest is over.
    pub fn ended(&self, outcome: &Outcome) {
        let text = outcome.to_string();
        let text = text.lines().next().unwrap_or_default().to_string();
        self.link.tell(Event::Ended(Ended { code: outcome.code(), text }));
    }

    /// Has the debugger that is attached let go, so that another one may come.
    pub fn release(&self) {
        self.release.ring();
    }

    /// Becomes readable when the debugger that is attached is to let go.
    pub fn released(&self) -> &Wake {
        &self.release
    }

    /// Has the guest begin again: whoever sees its end next asks for this.
    pub fn want_restart(&self) {
        self.wants_restart.store(true, Ordering::Relaxed);
    }

    /// How often each vCPU has left the guest, by kind of exit.
    pub fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        let count = |exits: &[AtomicU64; EXITS.len()]| {
            EXITS.iter().zip(exits).map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
        };
        self.exits.iter().map(count).collect()
    }

    /// Counts an exit.
    pub fn count(&self, vcpu: u32, kind: usize) {
        if let Some(counter) = self.exits.get(vcpu as usize).and_then(|exits| exits.get(kind)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}
