//! What vCPUs' threads serve the guest with, and what they say of it.

use super::hypercalls::LiveHypercalls;
use super::output_queue::OutputQueue;
use crate::outcome::Outcome;
use arch::End;
use debug::live::link::Link;
use debug::machine::{Ended, Event};
use devices::bus::Bus;
use devices::virtio::pace::Pace;
use kvm::exit::VcpuExit;
use kvm::ram::GuestMemory;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// What serves the guest, on whichever vCPU's thread.
#[derive(Debug)]
pub struct Services {
    /// I/O ports.
    pub ports: Bus,
    /// Memory without RAM behind it.
    pub mmio: Bus,
    /// What the guest prints.
    pub(crate) output: Arc<OutputQueue>,
    /// Registers are kept that a reset or a triple fault would lose: there may be a dump of it.
    pub keeps_registers: bool,
    /// RAM.
    pub memory: GuestMemory,
    /// Where a vCPU's outcome goes...
    pub outcomes: Sender<Outcome>,
    /// ...and what is written then, for whoever polls.
    pub wake: EventFd,
    /// How often vCPUs leave the guest, and why.
    pub exits: Exits,
    /// When devices' threads may work.
    pub pace: Pace,
    /// Somebody wants the guest to begin again: a debugger, or whoever waits for what comes of it.
    pub wants_restart: AtomicBool,
    /// Who waits for that.
    pub(super) restarts: Restarts,
    /// The guest has been let run, or would have been but for a debugger.
    pub is_started: AtomicBool,
    /// The debugger that is told at once how the guest has ended: a program's, with no event loop behind it.
    pub told_of_end: Mutex<Option<Arc<Link>>>,
    /// Hypercalls, if they come to us.
    pub hypercalls: Option<Arc<LiveHypercalls>>,
}

/// Tells a debugger how the guest has ended.
pub(super) fn tell_end(link: &Link, outcome: &Outcome) {
    let text = outcome.to_string();
    let text = text.lines().next().unwrap_or_default().to_string();
    link.tell(Event::Ended(Ended { code: outcome.code(), text }));
}

/// Those who wait for a guest to begin again. When the machine is gone without, they hear no more.
#[derive(Debug, Default)]
pub(super) struct Restarts(Mutex<Vec<Sender<Result<(), String>>>>);

impl Restarts {
    /// Where somebody hears whether it has, or in words why not.
    pub fn wait(&self) -> Receiver<Result<(), String>> {
        let (sender, receiver) = channel();
        self.waiting().push(sender);
        receiver
    }

    /// Tells all of them.
    pub fn tell(&self, result: &Result<(), String>) {
        for waits in self.waiting().drain(..) {
            // One that has lost patience is told nothing.
            waits.send(result.clone()).ok();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Sender<Result<(), String>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Services {
    /// Has whoever runs the guest have it begin again.
    pub fn restart(&self) {
        self.wants_restart.store(true, Ordering::Relaxed);
        self.end(Outcome::Ended(End::Reset));
    }

    /// From now on this debugger is told at once how the guest ends.
    pub fn tell_end_to(&self, link: Option<Arc<Link>>) {
        *self.told_of_end.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Says how the guest has ended.
    pub fn end(&self, outcome: Outcome) {
        let told = self.told_of_end.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(link) = told {
            tell_end(&link, &outcome);
        }
        // The machine that listens outlives its threads; at worst nobody reads it.
        self.outcomes.send(outcome).ok();
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot tell that the guest has ended: {error}");
        }
    }
}

/// How often each vCPU has left the guest, by kind of exit; counted once somebody may ask. What it writes to devices is
/// always counted.
#[derive(Debug)]
pub struct Exits {
    is_counted: AtomicBool,
    counts: Vec<[AtomicU64; VcpuExit::KINDS.len()]>,
    device_writes: Vec<AtomicU64>,
}

impl Exits {
    /// None yet.
    pub fn new(vcpus: u32) -> Exits {
        Exits {
            is_counted: AtomicBool::new(false),
            counts: (0..vcpus).map(|_| Default::default()).collect(),
            device_writes: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Has them counted; whether they were before.
    pub fn begin(&self) -> bool {
        self.is_counted.swap(true, Ordering::Relaxed)
    }

    pub(super) fn count(&self, vcpu: u32, exit: &VcpuExit<'_>) {
        if self.is_counted.load(Ordering::Relaxed)
            && let Some(counts) = self.counts.get(vcpu as usize)
        {
            counts[exit.kind()].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A vCPU has written to a device that is served here.
    pub(super) fn count_write(&self, vcpu: u32) {
        if let Some(writes) = self.device_writes.get(vcpu as usize) {
            writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often it has.
    pub(super) fn device_writes(&self, vcpu: u32) -> u64 {
        self.device_writes.get(vcpu as usize).map_or(0, |writes| writes.load(Ordering::Relaxed))
    }

    /// The counts, in the order of vCPUs.
    pub fn told(&self) -> Vec<Vec<(&'static str, u64)>> {
        let told = |counts: &[AtomicU64; VcpuExit::KINDS.len()]| {
            let count = |(name, count): (&&'static str, &AtomicU64)| (*name, count.load(Ordering::Relaxed));
            VcpuExit::KINDS.iter().zip(counts).map(count).collect()
        };
        self.counts.iter().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::RecvError;

    #[test]
    fn exits_are_counted_once_somebody_asks() {
        let exits = Exits::new(1);
        let of_all = |exits: &Exits| exits.told()[0].iter().map(|(_, count)| count).sum::<u64>();
        exits.count(0, &VcpuExit::Interrupted);
        assert_eq!((of_all(&exits), exits.begin()), (0, false));
        exits.count(0, &VcpuExit::Interrupted);
        assert_eq!((of_all(&exits), exits.begin()), (1, true));
    }

    #[test]
    fn whoever_waits_for_a_new_beginning_hears_what_came_of_it_or_that_the_machine_is_gone() {
        let restarts = Restarts::default();
        let (first, second) = (restarts.wait(), restarts.wait());
        drop(second);
        restarts.tell(&Err("there is no kernel".into()));
        assert_eq!(first.recv(), Ok(Err("there is no kernel".into())));
        let again = restarts.wait();
        restarts.tell(&Ok(()));
        assert_eq!((again.recv(), first.recv()), (Ok(Ok(())), Err(RecvError)));
        let late = restarts.wait();
        drop(restarts);
        assert_eq!(late.recv(), Err(RecvError));
    }
}
