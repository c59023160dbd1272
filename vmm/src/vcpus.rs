//! The threads that run vCPUs.
//!
//! Each thread owns its vCPU. Others talk to it by messages and kick it out of `KVM_RUN`
//! ([`kick`] says why no kick is lost); no lock is held while a guest runs. A vCPU that can
//! not go on reports its [`Outcome`] and waits for messages, so that its registers can still
//! be looked at.

use crate::kvm::exit::{InternalError, SystemEvent, VcpuExit};
use crate::kvm::{KvmError, Vcpu, kick};
use crate::memory::GuestMemory;
use crate::outcome::Outcome;
use crate::rate_limit::RateLimit;
use arch::register::Bank;
use debug::disassemble::LONGEST_INSTRUCTION;
use debug::report::Report;
use devices::bus::{Bus, Request};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

/// What all vCPU threads share.
#[derive(Debug)]
pub struct Shared {
    /// I/O ports.
    pub ports: Bus,
    /// Memory without RAM behind it.
    pub mmio: Bus,
    /// RAM.
    pub memory: GuestMemory,
    /// Where a vCPU's outcome goes...
    pub outcomes: Sender<Outcome>,
    /// ...and what is written then, for whoever polls.
    pub wake: EventFd,
}

type Call = Box<dyn FnOnce(&mut Vcpu) + Send>;

enum Message {
    /// Stay out of the guest, then answer.
    Pause(Sender<()>),
    /// Run the guest.
    Resume,
    /// Do this with the vCPU.
    Call(Call),
    /// End the thread; the sender is dropped when it has ended.
    Stop(Sender<()>),
}

#[derive(Debug)]
struct Thread {
    inbox: Sender<Message>,
    handle: JoinHandle<()>,
}

impl Thread {
    fn send(&self, message: Message) {
        // A thread that has ended has dropped its inbox; it needs no message any more.
        if self.inbox.send(message).is_ok() {
            self.kick();
        }
    }

    fn kick(&self) {
        if let Err(error) = self.handle.kill(kick::signal()) {
            log::error!("cannot kick a vCPU thread: {error}");
        }
    }
}

/// A guest's vCPUs, each on a thread of its own.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<Thread>,
}

/// A thread that waits in a device's write to a console that takes nothing sees a kick only
/// if it comes during the wait; so whoever waits for it kicks again after this time.
const KICK_AGAIN: Duration = Duration::from_millis(20);

impl Vcpus {
    /// Starts a thread for each vCPU. None runs its guest before [`Self::resume`].
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn spawn(vcpus: Vec<Vcpu>, shared: &Arc<Shared>) -> io::Result<Vcpus> {
        kick::install_handler()?;
        let mut result = Vcpus { threads: Vec::new() };
        for vcpu in vcpus {
            let (inbox, messages) = channel();
            let shared = Arc::clone(shared);
            let handle = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(256 << 10)
                .spawn(move || run_vcpu(vcpu, &messages, &shared))?;
            result.threads.push(Thread { inbox, handle });
        }
        Ok(result)
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Lets all vCPUs run their guest.
    pub fn resume(&self) {
        for thread in &self.threads {
            thread.send(Message::Resume);
        }
    }

    /// Gets all vCPUs out of the guest and returns when none is in it any more.
    pub fn pause(&self) {
        let (ack, acks) = channel();
        for thread in &self.threads {
            thread.send(Message::Pause(ack.clone()));
        }
        drop(ack);
        self.wait_for(&acks);
    }

    /// Has every vCPU's thread call `call` with it, whether paused or not, and collects the
    /// results in the order of vCPUs. A vCPU whose thread has ended gives none.
    pub fn for_each<R: Send + 'static>(
        &self,
        call: impl Fn(&mut Vcpu) -> R + Send + Sync + 'static,
    ) -> Vec<R> {
        let call = Arc::new(call);
        let receivers: Vec<Receiver<R>> = self
            .threads
            .iter()
            .map(|thread| {
                let (result, results) = channel();
                let call = Arc::clone(&call);
                thread.send(Message::Call(Box::new(move |vcpu| {
                    // Nobody waits for the result any more only when the caller is gone.
                    drop(result.send(call(vcpu)));
                })));
                results
            })
            .collect();
        receivers.iter().filter_map(|results| self.wait_for(results)).collect()
    }

    /// Waits until all senders of `answers` are gone, for the last answer.
    fn wait_for<R>(&self, answers: &Receiver<R>) -> Option<R> {
        let mut last = None;
        loop {
            match answers.recv_timeout(KICK_AGAIN) {
                Ok(answer) => last = Some(answer),
                Err(RecvTimeoutError::Disconnected) => return last,
                Err(RecvTimeoutError::Timeout) => self.threads.iter().for_each(Thread::kick),
            }
        }
    }
}

impl Drop for Vcpus {
    /// Ends all threads and waits for them.
    fn drop(&mut self) {
        let (alive, ended) = channel();
        for thread in &self.threads {
            thread.send(Message::Stop(alive.clone()));
        }
        drop(alive);
        self.wait_for(&ended);
        for thread in self.threads.drain(..) {
            if thread.handle.join().is_err() {
                log::error!("a vCPU thread ended with a panic");
            }
        }
    }
}

/// A vCPU thread's life.
fn run_vcpu(mut vcpu: Vcpu, messages: &Receiver<Message>, shared: &Shared) {
    let _kicks = vcpu.accept_kicks();
    let mut io_log = RateLimit::new(20, Duration::from_secs(1));
    let mut running = false;
    loop {
        kick::clear();
        loop {
            let message = if running {
                match messages.try_recv() {
                    Ok(message) => message,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                let Ok(message) = messages.recv() else { return };
                message
            };
            match message {
                Message::Pause(ack) => {
                    if running {
                        vcpu.complete_access();
                    }
                    running = false;
                    // Whoever asked may have given up waiting.
                    ack.send(()).ok();
                }
                Message::Resume => running = true,
                Message::Call(call) => call(&mut vcpu),
                Message::Stop(_alive) => return,
            }
        }
        if let Some(outcome) = run_once(&mut vcpu, shared, &mut io_log) {
            running = false;
            // The machine that listens outlives its threads; at worst nobody reads it.
            drop(shared.outcomes.send(outcome));
            if let Err(error) = shared.wake.write(1) {
                log::error!("cannot tell that vCPU {} has stopped: {error}", vcpu.id());
            }
        }
    }
}

/// Runs the guest until it needs us, and serves it. `Some` when it cannot or must not go on.
fn run_once(vcpu: &mut Vcpu, shared: &Shared, io_log: &mut RateLimit) -> Option<Outcome> {
    let id = vcpu.id();
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) => return Some(cannot_run(vcpu, shared, &error)),
    };
    log::debug!(target: "vmm::exit", "vCPU {id}: {exit:x?}");
    let request = match exit {
        VcpuExit::Interrupted => None,
        VcpuExit::PortRead { port, size, data } => {
            for access in data.chunks_mut(size) {
                if !shared.ports.read(u64::from(port), access) {
                    io_log.info(|| format!("vCPU {id} reads {size} bytes at unused port {port:#x}"));
                }
            }
            None
        }
        VcpuExit::PortWrite { port, size, data } => {
            let mut request = None;
            for access in data.chunks(size) {
                match shared.ports.write(u64::from(port), access) {
                    Ok(asked) => request = request.or(asked),
                    Err(_) => {
                        io_log.info(|| format!("vCPU {id} writes {access:02x?} to unused port {port:#x}"));
                    }
                }
            }
            request
        }
        VcpuExit::MmioRead { address, data } => {
            if !shared.mmio.read(address, data) {
                let size = data.len();
                io_log.info(|| format!("vCPU {id} reads {size} bytes at {address:#x}, where nothing is"));
            }
            None
        }
        VcpuExit::MmioWrite { address, data } => match shared.mmio.write(address, data) {
            Ok(asked) => asked,
            Err(_) => {
                io_log.info(|| format!("vCPU {id} writes {data:02x?} to {address:#x}, where nothing is"));
                None
            }
        },
        VcpuExit::Shutdown => {
            return Some(Outcome::TripleFault { report: report(vcpu, shared, &[]) });
        }
        VcpuExit::SystemEvent(event) => {
            return match event {
                SystemEvent::Shutdown => Some(Outcome::PowerOff),
                SystemEvent::Reset => Some(Outcome::Reset),
                SystemEvent::Crash => Some(Outcome::GuestCrash),
                SystemEvent::Other(number) => {
                    log::warn!("vCPU {id}: KVM reports system event {number}, which has no meaning here");
                    None
                }
            };
        }
        VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
            return Some(Outcome::EmulationFailure { report: report(vcpu, shared, &instruction) });
        }
        VcpuExit::InternalError(InternalError::Other { suberror, data }) => {
            let cause = format!("internal error {suberror}, data {data:x?}");
            return Some(Outcome::InternalError { cause, report: report(vcpu, shared, &[]) });
        }
        VcpuExit::EntryFailed { reason } => {
            let cause = format!("the processor refuses to enter the guest, reason {reason:#x}");
            return Some(Outcome::InternalError { cause, report: report(vcpu, shared, &[]) });
        }
        VcpuExit::NoSyndrome { iss, address } => {
            let cause = format!(
                "an access to {address:#x}, where no RAM is, by an instruction that the hardware does not \
                 describe (ISS {iss:#x})"
            );
            return Some(Outcome::InternalError { cause, report: report(vcpu, shared, &[]) });
        }
        VcpuExit::MemoryFault { address, size } => {
            let cause = format!("a fault on {size} bytes of guest memory at {address:#x}");
            return Some(Outcome::InternalError { cause, report: report(vcpu, shared, &[]) });
        }
        VcpuExit::Halt | VcpuExit::Debug(_) | VcpuExit::Other(_) => {
            let cause = format!("an exit that was not asked for: {exit:?}");
            return Some(Outcome::InternalError { cause, report: report(vcpu, shared, &[]) });
        }
    };
    request.map(|request| match request {
        Request::PowerOff => Outcome::PowerOff,
        Request::Reset => Outcome::Reset,
        Request::Exit(value) => Outcome::Exit(value),
    })
}

fn cannot_run(vcpu: &Vcpu, shared: &Shared, error: &KvmError) -> Outcome {
    Outcome::InternalError { cause: error.to_string(), report: report(vcpu, shared, &[]) }
}

/// Words what the vCPU was doing. `instruction` are the bytes that KVM told, if any; else
/// they are read from guest memory.
fn report(vcpu: &Vcpu, shared: &Shared, instruction: &[u8]) -> String {
    let registers = vcpu.registers(&[Bank::General, Bank::System]);
    let mut code = instruction.to_vec();
    if code.is_empty()
        && let Some(address) = registers.pc().and_then(|pc| vcpu.translate(pc))
    {
        code.resize(LONGEST_INSTRUCTION, 0);
        let read = shared.memory.read(&mut code, GuestAddress(address)).unwrap_or(0);
        code.truncate(read);
    }
    Report { vcpu: vcpu.id(), registers: &registers, code: &code }.text()
}
