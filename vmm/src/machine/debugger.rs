//! The debugger of a machine: where it listens, whom it serves, and when it comes and leaves.
//!
//! What it does is in [`debug::live`]. A guest that was started without `--gdb` can be debugged later, by [`Attachment`].

use crate::error::Error;
use crate::machine::config::GdbConfig;
use crate::machine::guest_ram::GuestRam;
use crate::machine::vcpus::{Hold, Threads, Vcpus};
use crate::peer;
use debug::context::Debuggee;
use debug::engine::Engine;
use debug::gdb::description::Believed;
use debug::gdb::endpoint::ListeningSocket;
use debug::live::debugger::{Options, Target};
use debug::live::machine::LiveMachine;
use debug::machine::Machine as _;
use debug::symbols::SymbolFile;
use kvm::ram::{GuestMemory, LiveMemory};
use kvm::{HOST_ISA, probe};
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// The thread that serves gdb.
pub type Debugger = debug::live::debugger::Debugger<crate::machine::vcpus::Threads>;

/// Opens the socket.
///
/// # Errors
/// [`Error`] when it cannot be opened, or there is no folder for dumps.
pub fn listen(config: &GdbConfig) -> Result<ListeningSocket, Error> {
    if let Some(folder) = &config.dump_folder {
        check_dump_folder(folder)?;
    }
    let address = &config.address;
    let listener = ListeningSocket::bind(address, config.audience())
        .map_err(|source| Error::Listen { address: address.to_string(), source })?;
    if address.is_open() {
        log::warn!("whoever can connect to {} owns the guest", listener.address());
    }
    Ok(listener)
}

/// Whether dumps can be written to a folder.
///
/// # Errors
/// [`Error::Open`]: why not.
pub fn check_dump_folder(folder: &Path) -> Result<(), Error> {
    let failed = |source| Error::Open { option: "--dump-dir", path: folder.into(), source };
    if !fs::metadata(folder).map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let writable = AccessFlags::W_OK | AccessFlags::X_OK;
    access(folder, writable).map_err(|error| failed(error.into()))
}

/// Who debugs a machine.
#[derive(Debug, Default)]
enum Occupancy {
    /// Nobody.
    #[default]
    Free,
    /// This.
    Taken(Arc<Debugger>),
    /// Nobody any more: the machine is over, or its guest begins again in another one.
    Gone,
}

/// What whoever wants something of the guest is told when it is not there.
pub(crate) const OVER: &str = "the guest is over, or begins again just now";

/// What is known of a guest's kernel before it says so.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// What its processor is to a debugger.
    pub believed: Believed,
    /// The file that it was linked to.
    pub symbols: SymbolFile,
}

/// What a guest is, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Somebody keeps it from running, or nobody has let it.
    pub is_held: bool,
    /// [`Attachment::stop`] does.
    pub is_stopped: bool,
    pub serves_gdb: bool,
    /// Where, once that is settled.
    pub address: Option<String>,
    pub is_debugged: bool,
}

/// A machine's place for a debugger. Its clones are of the same machine.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Whoever holds a clone must not keep a machine running that is over.
    vcpus: Weak<Vcpus>,
    memory: GuestMemory,
    /// What serves the guest is to know where instructions are planted.
    ram: Arc<GuestRam>,
    /// Its symbols are those that the guest's debugger has, also of a guest that has begun again.
    known: Known,
    /// Locked as long as a debugger comes or leaves.
    place: Arc<Mutex<Occupancy>>,
    /// What keeps the guest from running for whoever has stopped it without debugging it.
    stopped: Arc<Mutex<Option<Hold>>>,
}

impl Attachment {
    /// The file that the guest's kernel was linked to, if somebody has named it or it is looked for.
    pub fn symbols(&self) -> &SymbolFile {
        &self.known.symbols
    }

    /// Of a machine that nobody debugs.
    pub(super) fn new(
        vcpus: &Arc<Vcpus>,
        memory: &GuestMemory,
        ram: &Arc<GuestRam>,
        known: Known,
    ) -> Attachment {
        Attachment {
            vcpus: Arc::downgrade(vcpus),
            memory: memory.clone(),
            ram: Arc::clone(ram),
            known,
            place: Arc::default(),
            stopped: Arc::default(),
        }
    }

    fn place(&self) -> MutexGuard<'_, Occupancy> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises a non-maskable interrupt on each vCPU.
    ///
    /// # Errors
    /// In words: what the architecture has not, or KVM refuses.
    pub fn raise_nmi(&self) -> Result<(), String> {
        let vcpus = self.vcpus.upgrade().ok_or("the machine is over")?;
        let raised: Result<Vec<()>, _> = vcpus.for_each(|vcpu| vcpu.nmi()).into_iter().collect();
        raised.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Keeps the guest from running until [`Self::go_on`], or its end; whether it is there.
    pub(crate) fn stop(&self) -> bool {
        let Some(vcpus) = self.vcpus.upgrade() else { return false };
        // Others that ask meanwhile do not wait for its vCPUs.
        let hold = vcpus.hold();
        let mut stopped = self.stopped();
        match (&*stopped, &*self.place()) {
            (_, Occupancy::Gone) => return false,
            (None, _) => *stopped = Some(hold),
            (Some(_), _) => {}
        }
        true
    }

    /// Lets the guest go on; whether [`Self::stop`] had kept it.
    pub(crate) fn go_on(&self) -> bool {
        let hold = self.stopped().take();
        hold.is_some()
    }

    /// Whether [`Self::stop`] keeps it. Nobody is waited for.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.try_lock().is_ok_and(|stopped| stopped.is_some())
    }

    fn stopped(&self) -> MutexGuard<'_, Option<Hold>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the guest begin again, as after power-on, and waits for whoever runs it to have done that, for `patience` at
    /// most. One that [`Self::stop`] keeps is kept on if it does not.
    ///
    /// # Errors
    /// In words: why it does not, or is not known to.
    pub(crate) fn reset(&self, patience: Duration) -> Result<(), String> {
        // The machine is not to be kept meanwhile.
        let told = match self.vcpus.upgrade() {
            Some(vcpus) => vcpus.monitor().restart(),
            None => return Err(OVER.into()),
        };
        told.recv_timeout(patience).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Disconnected => "the guest has ended".into(),
                RecvTimeoutError::Timeout => {
                    format!("it has not begun again for {patience:?}: its monitor is busy, and may have it do so yet")
                }
            })
        })
    }

    /// Ends the guest, if it is there.
    pub(crate) fn quit(&self) {
        if let Some(vcpus) = self.vcpus.upgrade() {
            vcpus.monitor().quit_for_client();
        }
    }

    /// What the guest is, and how; `None` when it is over. Nobody is waited for.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let vcpus = self.vcpus.upgrade()?;
        // Where one comes or leaves just now, there is one.
        let (serves_gdb, address) = match self.place.try_lock().as_deref() {
            Ok(Occupancy::Taken(debugger)) => (true, debugger.address().map(str::to_string)),
            Ok(Occupancy::Free | Occupancy::Gone) => (false, None),
            Err(_) => (true, None),
        };
        Some(Facts {
            vcpus: vcpus.count(),
            memory: self.memory.iter().map(|region| region.len()).sum(),
            is_held: vcpus.is_held() || !vcpus.is_let_run(),
            is_stopped: self.is_stopped(),
            serves_gdb,
            address,
            is_debugged: vcpus.link().is_some_and(|link| link.is_attached()),
        })
    }

    /// The debugger that is there.
    pub fn debugger(&self) -> Option<Arc<Debugger>> {
        match &*self.place() {
            Occupancy::Taken(debugger) => Some(Arc::clone(debugger)),
            Occupancy::Free | Occupancy::Gone => None,
        }
    }

    /// Has a debugger come. gdb is waited for at the listener's address.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is one already, or the machine is over; when the system gives no more threads or
    /// descriptors.
    pub fn attach(&self, listener: ListeningSocket, config: &GdbConfig) -> Result<(), Error> {
        let mut place = self.place();
        let vcpus = self.free(&place)?;
        let options = Options {
            admission: peer::admission(config.any_user),
            on_lost: config.on_lost,
            takeover: config.takeover,
            looks: true,
            believed: self.known.believed,
            symbols: self.known.symbols.clone(),
            dump_folder: config.dump_folder.clone(),
            name: "vmm".into(),
            how_to_release: Some("'vmm release' or --gdb-takeover let another one in".into()),
        };
        let target = self.target(&vcpus);
        log::warn!("waiting for gdb at {}", listener.address());
        match Debugger::attach(&vcpus, target, listener, options) {
            Ok(debugger) => *place = Occupancy::Taken(Arc::new(debugger)),
            Err(error) => {
                self.ram.set_engine(None);
                return Err(Error::system("cannot start the gdb server's thread")(error));
            }
        }
        Ok(())
    }

    /// Has a program come that debugs the guest by itself: it stands still when this returns.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub(super) fn join(&self) -> Result<Debuggee<LiveMachine<Threads>>, Error> {
        let mut place = self.place();
        let vcpus = self.free(&place)?;
        let target = self.target(&vcpus);
        let engine = Arc::clone(&target.engine);
        match Debugger::join(&vcpus, target, true) {
            Ok((debugger, machine)) => {
                *place = Occupancy::Taken(Arc::new(debugger));
                let mut debuggee = Debuggee::new(machine, engine);
                debuggee.attach();
                debuggee.machine.stays();
                Ok(debuggee)
            }
            Err(error) => {
                self.ram.set_engine(None);
                Err(Error::system("cannot debug the guest")(error))
            }
        }
    }

    /// The vCPUs, if nobody debugs them.
    fn free(&self, place: &Occupancy) -> Result<Arc<Vcpus>, Error> {
        let vcpus = match place {
            Occupancy::Taken(_) => {
                return Err(Error::Usage("it has a debugger already (a gdb server, or a program)".into()));
            }
            Occupancy::Gone => None,
            Occupancy::Free => self.vcpus.upgrade(),
        };
        vcpus.ok_or_else(|| Error::Usage("it has ended, or begins again just now: try again".into()))
    }

    /// What the guest is to a debugger that comes. What serves it knows of that one from here on.
    fn target(&self, vcpus: &Vcpus) -> Target {
        let engine = Arc::new(Engine::new(HOST_ISA, probe::host_debug(), vcpus.count()));
        vcpus.monitor().count_exits();
        self.ram.set_engine(Some(Arc::clone(&engine)));
        Target { engine, memory: Box::new(LiveMemory(self.memory.clone())) }
    }

    /// The machine is over, or its guest begins again in another one: nobody comes or leaves any more. The debugger
    /// that was there.
    pub(super) fn close(&self) -> Option<Arc<Debugger>> {
        match std::mem::replace(&mut *self.place(), Occupancy::Gone) {
            Occupancy::Taken(debugger) => Some(debugger),
            Occupancy::Free | Occupancy::Gone => None,
        }
    }

    /// Takes [`Self::close`] back: the guest does not begin again.
    pub(super) fn open(&self, debugger: Option<Arc<Debugger>>) {
        *self.place() = debugger.map_or(Occupancy::Free, Occupancy::Taken);
    }

    /// Has whoever has the symbols of another machine, whose guest begins again in this one, have this one's.
    pub(super) fn take_symbols(&mut self, former: &Attachment) {
        carry_over(&former.known.symbols, &mut self.known.symbols);
    }

    /// Has the debugger of another machine, whose guest begins again in this one, go over to it.
    pub(super) fn take_over(&self, debugger: &Arc<Debugger>) {
        let mut place = self.place();
        let Some(vcpus) = self.vcpus.upgrade() else { return };
        vcpus.monitor().count_exits();
        self.ram.set_engine(Some(Arc::clone(debugger.engine())));
        debugger.begin_again(&vcpus, Box::new(LiveMemory(self.memory.clone())));
        *place = Occupancy::Taken(Arc::clone(debugger));
    }

    /// Has the debugger leave, if there is one: whoever is connected is let go, and the guest runs.
    pub fn leave(&self) -> bool {
        let mut place = self.place();
        let Occupancy::Taken(debugger) = &*place else { return false };
        debugger.leave();
        self.ram.set_engine(None);
        *place = Occupancy::Free;
        true
    }
}

/// Whoever has the symbols of a guest has those of the one that it begins again as.
fn carry_over(old: &SymbolFile, new: &mut SymbolFile) {
    match (old, new) {
        (SymbolFile::Named(old), SymbolFile::Named(new)) => {
            old.replace(new);
            *new = Arc::clone(old);
        }
        // What it has read of a build is so of the next guest's.
        (SymbolFile::Sought(old), SymbolFile::Sought(new)) => *new = Arc::clone(old),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbols::ByBuildId;

    #[test]
    fn a_guest_that_begins_again_has_one_finder() {
        let sought = || SymbolFile::Sought(Arc::new(ByBuildId::new(None)));
        let (old, mut new) = (sought(), sought());
        carry_over(&old, &mut new);
        let (SymbolFile::Sought(old), SymbolFile::Sought(new)) = (old, new) else {
            panic!("they are sought")
        };
        assert!(Arc::ptr_eq(&old, &new));
        let mut absent = SymbolFile::Absent;
        carry_over(&SymbolFile::Sought(old), &mut absent);
        assert!(matches!(absent, SymbolFile::Absent));
    }
}
