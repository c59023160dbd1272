//! The threads that run vCPUs.
//!
//! Each thread owns its vCPU. Others leave tasks for it and kick it out of `KVM_RUN` ([`kick`] says why no kick is
//! lost); no lock is held while a guest runs. What the thread does between tasks its
//! [`Runner`] says. A vCPU that can not go on reports its
//! [`Outcome`] and waits for tasks, so that its registers can still be looked at.

mod commands;

use crate::machine::guest_clock::Timekeeper;
use crate::machine::mailbox::{Mailbox, Task};
use crate::machine::serve::Server;
use crate::machine::services::Services;
use crate::outcome::{Outcome, StoppedBy};
use arch::Isa;
use debug::live::gate::Kick;
use debug::live::inbox::{Inbox, Post, Serve as _, inbox};
use debug::live::runner::{Next, Runner};
use debug::live::times::Times;
use debug::live::vcpus::Monitor;
use debug::machine::MachineError;
use debug::reply::{Arguments, Command, Refusal, Reply};
use debug::threads;
use devices::{guest_log, tell};
use kvm::{HOST_ISA, Vcpu, kick};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use vmm_sys_util::signal::Killable;

#[derive(Debug)]
struct Thread {
    post: Post<Vcpu>,
    handle: JoinHandle<()>,
    times: Arc<Times>,
}

impl Thread {
    fn leave(&self, task: Task) {
        if self.post.leave(task) {
            self.kick();
        }
    }

    fn kick(&self) {
        if let Err(error) = self.handle.kill(kick::signal()) {
            log::error!("cannot kick a vCPU thread: {error}");
        }
    }
}

/// All vCPUs of a guest.
pub type Vcpus = debug::live::vcpus::Vcpus<Threads>;
/// While it is there, no vCPU is in the guest.
pub type Hold = debug::live::vcpus::Hold<Threads>;

/// The threads of a guest's vCPUs.
#[derive(Debug)]
pub struct Threads {
    threads: Vec<Thread>,
    time: Arc<Timekeeper>,
    services: Arc<Services>,
}

impl Threads {
    /// Ends the guest, for a client of its control socket.
    pub(crate) fn quit_for_client(&self) {
        self.services.end(Outcome::Stopped(StoppedBy::Control));
    }

    /// Starts a thread for each vCPU. None runs its guest before it is told to.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub(super) fn spawn(vcpus: Vec<Vcpu>, services: &Arc<Services>, time: Timekeeper) -> io::Result<Threads> {
        kick::install_handler()?;
        let time = Arc::new(time);
        let mut result = Threads { threads: Vec::new(), time, services: Arc::clone(services) };
        for vcpu in vcpus {
            let (post, mut inbox) = inbox();
            let services = Arc::clone(services);
            let times = Arc::new(Times::default());
            let its_times = Arc::clone(&times);
            let thread = Builder::new().name(format!("vcpu{}", vcpu.id())).stack_size(STACK);
            let handle =
                threads::start("vcpu", thread, move || run_vcpu(vcpu, &mut inbox, &services, &its_times))?;
            result.threads.push(Thread { post, handle, times });
        }
        Ok(result)
    }

    /// Has exits counted, and the time that hypercalls take, from now on: somebody may ask. Whether exits were counted
    /// before.
    pub(super) fn count_exits(&self) -> bool {
        let were_counted = self.services.exits.begin();
        if let Some(hypercalls) = &self.services.hypercalls {
            hypercalls.calls().count_time();
        }
        were_counted
    }

    /// Has the guest begin again; where it is told whether it has, or in words why not.
    pub(super) fn restart(&self) -> Receiver<Result<(), String>> {
        let told = self.services.restarts.wait();
        self.services.restart();
        told
    }

    /// The threads' mailboxes, in the order of vCPUs.
    pub(super) fn mailboxes(&self) -> Vec<Mailbox> {
        let mailbox = |thread: &Thread| {
            let kicked = kick::Thread::of(&thread.handle);
            // SAFETY: they are used by vCPUs' threads only, which have all ended when the first of them is joined
            // ([`Threads`]'s end), and not before.
            unsafe { Mailbox::new(thread.post.clone(), kicked) }
        };
        self.threads.iter().map(mailbox).collect()
    }
}

/// Bytes of a thread's stack. Without optimization, functions need several times as much.
const STACK: usize = if cfg!(debug_assertions) { 2 << 20 } else { 256 << 10 };

/// How long whoever holds the guest waits for what its devices have begun.
const DEVICES_PATIENCE: Duration = Duration::from_secs(2);

/// A thread that waits for whoever reads its guest's output may see a kick only if it comes during the
/// wait; so whoever waits for the thread's end kicks again after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// x86 has them.
fn has_ports() -> Result<(), MachineError> {
    match HOST_ISA {
        Isa::X86_64 => Ok(()),
        Isa::Aarch64 => Err(MachineError::Unsupported("aarch64 has no ports")),
    }
}

impl Monitor for Threads {
    type Vcpu = Vcpu;

    fn vcpus(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    fn post(&self, vcpu: u32, task: Task) {
        if let Some(thread) = self.threads.get(vcpu as usize) {
            thread.leave(task);
        }
    }

    fn kick(&self, vcpu: u32) {
        if let Some(thread) = self.threads.get(vcpu as usize) {
            thread.kick();
        }
    }

    fn kick_among_vcpus(&self) -> Kick {
        let threads: Vec<_> = self.threads.iter().map(|thread| kick::Thread::of(&thread.handle)).collect();
        Box::new(move |vcpu| {
            if let Some(thread) = threads.get(vcpu as usize) {
                // SAFETY: vCPU threads are joined only when all of them have come to their end, and the one
                // that calls this, at the gate, has not.
                unsafe { thread.kick() };
            }
        })
    }

    fn is_started(&self) -> bool {
        self.services.is_started.load(Ordering::SeqCst)
    }

    fn reset(&self) -> Result<(), MachineError> {
        self.services.restart();
        Ok(())
    }

    fn quit(&self) {
        self.services.end(Outcome::Stopped(StoppedBy::Debugger));
    }

    fn read_port(&self, port: u16, bytes: &mut [u8]) -> Result<(), MachineError> {
        has_ports()?;
        bytes.fill(0xff);
        // As on hardware, nothing reads as ones.
        self.services.ports.read(u64::from(port), bytes);
        Ok(())
    }

    fn write_port(&self, port: u16, bytes: &[u8]) -> Result<(), MachineError> {
        has_ports()?;
        if let Ok(Some(end)) = self.services.ports.write(u64::from(port), bytes) {
            self.services.end(end.into());
        }
        Ok(())
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.services.exits.told()
    }

    fn commands(&self) -> Vec<Command> {
        commands::of(&self.services)
    }

    fn run_command(&self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        commands::run(&self.services, &self.time, name, arguments)
    }

    fn stands_still(&self, _: &Vcpus) {
        if !self.services.pace.hold(DEVICES_PATIENCE) {
            tell!(Warn, "a device is still busy: the guest's memory may change while the guest is held");
            guest_log::deliver();
        }
        self.time.begin(self.threads.iter().map(|thread| thread.times.as_ref()));
    }

    fn stays(&self, vcpus: &Vcpus) {
        self.time.freeze_now(vcpus);
    }

    fn settle(&self, vcpus: &Vcpus) -> Option<Duration> {
        self.time.settle(vcpus)
    }

    fn goes_on(&self, vcpus: &Vcpus) {
        self.time.end(vcpus);
        self.services.pace.release();
    }
}

impl Drop for Threads {
    /// Ends all threads and waits for them.
    fn drop(&mut self) {
        let (alive, ended) = channel::<()>();
        for thread in &self.threads {
            let alive = alive.clone();
            thread.leave(Box::new(move |runner, _| {
                runner.retire();
                drop(alive);
            }));
        }
        drop(alive);
        while ended.recv_timeout(KICK_AGAIN) == Err(RecvTimeoutError::Timeout) {
            self.threads.iter().for_each(Thread::kick);
        }
        for thread in self.threads.drain(..) {
            if thread.handle.join().is_err() {
                log::error!("a vCPU thread ended with a panic");
            }
        }
    }
}

/// A vCPU thread's life.
fn run_vcpu(mut vcpu: Vcpu, inbox: &mut Inbox<Vcpu>, services: &Services, times: &Arc<Times>) {
    if services.hypercalls.as_ref().is_some_and(|hypercalls| hypercalls.looks_at_registers()) {
        vcpu.always_sync();
    }
    if services.keeps_registers {
        vcpu.keep_before();
    }
    let mut runner = Runner::new(HOST_ISA, Arc::clone(times));
    let mut server = Server::new(services);
    match vcpu.accept_kicks() {
        Ok(_kicks) => inbox.live(&mut runner, &mut vcpu, &mut server),
        Err(error) => server.deal_with(Next::Failed(error.to_string()), &mut runner, &vcpu),
    }
}
