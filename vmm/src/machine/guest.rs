//! What an embedder drives: make a [`Guest`], [`resume`](Guest::resume) it, give
//! its console input, wait for its [`Outcome`]. The command line's event loop ([`crate::run`])
//! is one such driver.

mod build;
mod debugged;

pub use debugged::Debugged;

use crate::boot::Booted;
use crate::error::Error;
use crate::machine::backends::Backends;
use crate::machine::config::Config;
use crate::machine::debugger::{Attachment, Debugger};
use crate::machine::dumper::Dumper;
use crate::machine::hypercalls::LiveHypercalls;
use crate::machine::output_queue::Pump;
use crate::machine::rack::{HostPort, VirtioDevices};
use crate::machine::serve::over::report;
use crate::machine::services::Services;
use crate::machine::vcpus::{Hold, Vcpus};
use crate::outcome::Outcome;
use arch::GuestVirt;
use build::{Listens, build};
use debug::command::why::Why;
use debug::machine::Activity;
use debug::memory::{self, Translation};
use devices::guest_log;
use devices::platform::serial::Serial;
use devices::virtio::console::Terminal;
pub use devices::virtio::console::TerminalSize;
use kvm::ram::LiveMemory;
use kvm::{HOST_ISA, Vcpu, Vm};
use nix::time::{ClockId, clock_gettime};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// How long a guest's kernel is looked at, at most, when it has hung or crashed: far more than it takes where processors
/// are not emulated.
pub const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// A machine with a guest, whose vCPUs are paused until it is resumed. Threads may share it; those of its vCPUs
/// (on which its console's output is written) must not stop it, as they would wait for themselves.
#[derive(Debug)]
pub struct Guest {
    // The threads end before what they use goes: first the one that asks vCPUs.
    attachment: Attachment,
    dumper: Dumper,
    stage: Mutex<Stage>,
    vcpus: Arc<Vcpus>,
    waits: bool,
    outcomes: Mutex<Receiver<Outcome>>,
    wake: EventFd,
    serial: Arc<Mutex<Serial>>,
    /// The console, where it is a virtio device.
    terminal: Option<Arc<Terminal>>,
    /// Behind the vCPUs, which wait for it at their end.
    _pump: Option<Pump>,
    ports: Mutex<Vec<HostPort>>,
    input_wanted: EventFd,
    booted: Booted,
    is_linux: bool,
    hypercalls: Option<Arc<LiveHypercalls>>,
    services: Arc<Services>,
    virtio: VirtioDevices,
    /// They are taken from it, and cannot be given to the next one.
    has_lost_devices: AtomicBool,
    /// Until it begins again: they are the next guest's then.
    backends: Mutex<Backends>,
    _vm: Vm,
}

/// How far an embedder has gone with a guest.
#[derive(Debug)]
enum Stage {
    /// It has not let it run yet.
    NotStarted,
    /// It runs, as far as the embedder is concerned.
    Runs,
    /// It is held.
    Held { _hold: Hold, was_started: bool },
}

impl Guest {
    /// Builds the machine and prepares its guest. The console's output goes to `output`, on a
    /// vCPU's thread, or that of a virtio console.
    ///
    /// # Errors
    /// [`Error`] for everything that a host, a file or an option can be wrong about.
    pub fn new(config: &Config, output: Box<dyn Write + Send>) -> Result<Guest, Error> {
        Guest::with_backends(config, Backends::default(), output)
    }

    /// The same, with something of the host's that has been opened for its devices already.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub fn with_backends(
        config: &Config,
        backends: Backends,
        output: Box<dyn Write + Send>,
    ) -> Result<Guest, Error> {
        build(config, &backends, output, Listens::Yes)
    }

    /// Builds a machine in which the guest begins again. A debugger that is attached to this one goes over to
    /// the other, with all that it has asked for; it is that debugger who lets the new guest run. Where there is none,
    /// or it has left, none is waited for, whatever `config` says. This one is to be dropped.
    ///
    /// The devices are others, as after power-on, and those that `config` has as this machine had them have what these had
    /// of the host: disks and what was written to them, networks, folders, sockets ([`Backends`]). Connections of the guest's
    /// and files that it had open are closed, but for sockets that the host's kernel has (`docs/vsock.md`); ports of the host's that lead to it lead to the other one. Ports of the
    /// console device are new ([`Self::take_port`]), and those of this machine end when it is dropped.
    ///
    /// # Errors
    /// As [`Guest::new`]; then this machine is as it was, also one that somebody has stopped. So it is when a device that `config` has otherwise than before
    /// wants what this machine has, as a lock of a disk. When the host does not answer what a device has asked of it, this
    /// machine has [lost its devices](Self::has_lost_devices), and stays held.
    pub fn again(&self, config: &Config, output: Box<dyn Write + Send>) -> Result<Guest, Error> {
        let again = self.next(config, output);
        self.services.restarts.tell(&again.as_ref().map(|_| ()).map_err(ToString::to_string));
        again
    }

    fn next(&self, config: &Config, output: Box<dyn Write + Send>) -> Result<Guest, Error> {
        let vcpus = self.vcpus.count();
        if self.attachment.debugger().is_some() && config.cpus != vcpus {
            return Err(Error::Usage(format!(
                "a guest with a debugger begins again with as many vCPUs as it had: {vcpus}, not {}",
                config.cpus
            )));
        }
        // Its vCPUs that have not ended are not to meet what the debugger puts into the other one.
        let was_held = matches!(*self.stage(), Stage::Held { .. });
        self.pause();
        let debugger = self.attachment.close();
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anybody may let the other one run, this one has nothing of what is the other's.
        let mut again = build(config, &backends, output, Listens::No).and_then(|next| {
            let what = "cannot begin again, and has lost its devices: the host does not answer what one of them has asked";
            let stuck = || Error::System { what, source: std::io::ErrorKind::TimedOut.into() };
            let is_free = self.virtio.unplug();
            self.has_lost_devices.store(!is_free, Ordering::SeqCst);
            is_free.then_some(next).ok_or_else(stuck)
        });
        match &mut again {
            Ok(next) => {
                // Nothing can go wrong any more.
                *backends = Backends::default();
                self.attachment.go_on();
                next.attachment.take_symbols(&self.attachment);
                next.take_over(debugger.as_ref());
            }
            Err(_) => {
                self.attachment.open(debugger);
                if !was_held && !self.has_lost_devices() {
                    let mut stage = self.stage();
                    // What was held is let go; one that was never started waits on.
                    *stage = match *stage {
                        Stage::Held { was_started: false, .. } => Stage::NotStarted,
                        _ => Stage::Runs,
                    };
                }
            }
        }
        again
    }

    /// The debugger of the machine that this one is the next of, if it has one, is this one's, and lets it run.
    fn take_over(&mut self, former: Option<&Arc<Debugger>>) {
        if let Some(former) = former {
            self.waits = true;
            self.attachment.take_over(former);
        }
    }

    /// Whether its kernel is Linux, by its file.
    pub fn is_linux(&self) -> bool {
        self.is_linux
    }

    /// The guest's hypercalls, if they come to us.
    pub fn hypercalls(&self) -> Option<&LiveHypercalls> {
        self.hypercalls.as_deref()
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest run, as far as it was this machine's [`Self::pause`] that held it.
    pub fn resume(&self) {
        let mut stage = self.stage();
        let was_started = match &*stage {
            Stage::NotStarted => false,
            Stage::Runs => return,
            Stage::Held { was_started, .. } => *was_started,
        };
        // What was held is let go.
        *stage = Stage::Runs;
        self.services.is_started.store(true, Ordering::SeqCst);
        if !was_started {
            self.vcpus.resume();
        }
    }

    /// Lets the guest run, unless it waits for a debugger that will.
    pub fn start(&self) {
        self.services.is_started.store(true, Ordering::SeqCst);
        // One that has left by now has not let it run, and one that leaves from here on does.
        match self.waits && self.attachment.debugger().is_some() {
            true => *self.stage() = Stage::Runs,
            false => self.resume(),
        }
    }

    /// Tells an attached debugger how the guest has ended.
    pub fn tell_debugger(&self, outcome: &Outcome) {
        if let Some(link) = self.vcpus.link() {
            super::services::tell_end(&link, outcome);
        }
    }

    /// Whether somebody, a debugger or another, wants the guest to begin again; asked once for each time.
    pub fn takes_restart(&self) -> bool {
        self.services.wants_restart.swap(false, Ordering::Relaxed)
    }

    /// Whether its devices are not its any more, although it could not [begin again](Self::again): it is over.
    pub fn has_lost_devices(&self) -> bool {
        self.has_lost_devices.load(Ordering::SeqCst)
    }

    /// Tells whoever has asked for it that the guest does not begin again.
    pub fn cannot_restart(&self, why: &Error) {
        match self.attachment.debugger() {
            Some(debugger) => debugger.cannot_begin_again(why.to_string()),
            None => log::error!("the guest does not begin again: {why}"),
        }
    }

    /// Whether a debugger is connected.
    pub fn is_debugged(&self) -> bool {
        self.vcpus.link().is_some_and(|link| link.is_attached())
    }

    /// Its place for a debugger.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Stops the guest until [`Self::resume`]; returns when no vCPU is in it any more. Its time stands
    /// still meanwhile, if the configuration says so.
    pub fn pause(&self) {
        let mut stage = self.stage();
        let was_started = match &*stage {
            Stage::NotStarted => false,
            Stage::Runs => true,
            Stage::Held { .. } => return,
        };
        *stage = Stage::Held { _hold: self.vcpus.hold(), was_started };
    }

    /// Stops the guest for as long as the result is there. Others may hold it at the same time.
    pub fn hold(&self) -> Hold {
        self.vcpus.hold()
    }

    /// A page on what the guest's Linux kernel is doing, or was when it ended: what each processor is at, who sleeps and
    /// is not woken, who waits for which lock. The guest stands still meanwhile, for `limit` at most, and as long as
    /// `wanted` says so, which is asked now and then.
    ///
    /// # Errors
    /// In words, why there is none.
    pub fn why(
        &self,
        limit: Duration,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Why, String> {
        self.dumper().why(self.attachment().symbols(), limit, wanted)
    }

    /// What each vCPU is doing, in words, in their order: the instruction and the registers. The guest stands still
    /// meanwhile.
    pub fn reports(&self) -> Vec<String> {
        let _hold = self.vcpus.hold();
        let memory = self.services.memory.clone();
        self.vcpus.for_each(move |vcpu| {
            vcpu.with_before(|vcpu| report(vcpu, &memory, &[])).unwrap_or_else(|| report(vcpu, &memory, &[]))
        })
    }

    /// Where each vCPU is that is at work with interrupts off, in their order: neither halted nor waiting for an
    /// interrupt. The guest stands still meanwhile, for microseconds.
    pub fn deaf_places(&self) -> Vec<Option<DeafPlace>> {
        let services = Arc::clone(&self.services);
        self.vcpus.for_each(move |vcpu| deaf_place(vcpu, &services))
    }

    /// The vCPUs.
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// What makes dumps of it.
    pub fn dumper(&self) -> &Dumper {
        &self.dumper
    }

    /// What the guest was started with.
    pub fn booted(&self) -> &Booted {
        &self.booted
    }

    /// Becomes readable when [`Self::outcome`] has something.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// How the guest ended, if a vCPU has said so and no other thread waits for it ([`Self::wait`]). Other
    /// vCPUs may be running still.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.outcomes.try_lock() {
            Ok(outcomes) => outcomes.try_recv().ok(),
            Err(TryLockError::Poisoned(outcomes)) => outcomes.into_inner().try_recv().ok(),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until the guest ends, `limit` at most.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit).ok()
    }

    /// Gives the guest console input; answers how many bytes wait for it to read.
    pub fn input(&self, bytes: &[u8]) -> usize {
        receive(self.terminal.as_deref(), &self.serial, bytes)
    }

    /// The same, for whoever has no guest.
    pub fn console_input(&self) -> ConsoleInput {
        let terminal = self.terminal.as_ref().map(Arc::downgrade);
        ConsoleInput { terminal, serial: Arc::downgrade(&self.serial) }
    }

    /// The console's terminal has this size from now on. A serial port has no way to tell the guest.
    pub fn set_console_size(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            terminal.set_size(size);
        }
    }

    /// The host's end of a named port of the console device; there is one, so it is taken once. When it is closed, the
    /// guest hears so; when the machine is gone, it ends. A guest that [begins again](Self::again) has others.
    pub fn take_port(&self, name: &str) -> Option<UnixStream> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let index = ports.iter().position(|(its, _)| its == name)?;
        Some(ports.swap_remove(index).1)
    }

    /// Becomes readable when the guest has read all input that was waiting.
    pub fn input_wanted(&self) -> &EventFd {
        &self.input_wanted
    }
}

/// Where a guest's console is typed at. It keeps no machine.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    terminal: Option<Weak<Terminal>>,
    serial: Weak<Mutex<Serial>>,
}

impl ConsoleInput {
    /// Gives the guest console input; answers how many bytes wait for it to read, and `None` when it is gone.
    pub fn receive(&self, bytes: &[u8]) -> Option<usize> {
        let terminal = match &self.terminal {
            Some(terminal) => Some(terminal.upgrade()?),
            None => None,
        };
        Some(receive(terminal.as_deref(), &*self.serial.upgrade()?, bytes))
    }
}

/// Gives input to the terminal, or to the serial port where there is none.
fn receive(terminal: Option<&Terminal>, serial: &Mutex<Serial>, bytes: &[u8]) -> usize {
    if let Some(terminal) = terminal {
        return terminal.receive(bytes);
    }
    let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
    serial.receive(bytes);
    let waiting = serial.pending();
    drop(serial);
    guest_log::deliver();
    waiting
}

/// Where a vCPU is that is at work with interrupts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeafPlace {
    /// The instruction's address.
    pub at: u64,
    /// How long its thread has had a processor, since it began: time of the guest's, not of a host that is busy with
    /// something else.
    pub ran: Duration,
    /// How often it has written to devices, since it began: one that prints is in one place for long.
    pub device_writes: u64,
}

/// On the vCPU's thread.
fn deaf_place(vcpu: &Vcpu, services: &Services) -> Option<DeafPlace> {
    let (pc, flags) = vcpu.pc_and_flags().ok()?;
    if vcpu.activity() != Activity::Running || !arch::attention::is_deaf(HOST_ISA, flags) {
        return None;
    }
    // What waits for an interrupt is left behind its instruction by KVM, or at it.
    let (memory, regime) = (LiveMemory(services.memory.clone()), vcpu.regime().ok()?);
    let mut code = [0; 8];
    let place = GuestVirt(pc.wrapping_sub(4));
    let count = memory::read(&memory, &Translation::Virtual(regime), None, place, &mut code);
    let ran = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?);
    let device_writes = services.exits.device_writes(vcpu.id());
    (!arch::attention::waits(HOST_ISA, &code[..count])).then_some(DeafPlace { at: pc, ran, device_writes })
}

impl Drop for Guest {
    /// Whoever holds a clone of what is for the control socket does not keep the debugger.
    fn drop(&mut self) {
        drop(self.attachment.close());
        self.attachment.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thread may wait for the guest's end while another holds it.
    #[test]
    fn threads_may_share_a_machine() {
        fn shared<T: Send + Sync>() {}
        shared::<Guest>();
        shared::<Hold>();
    }
}
