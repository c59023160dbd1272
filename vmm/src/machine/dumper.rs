//! Dumps of a live guest: its vCPUs stand still while its memory is written, and then go on as before.

use crate::machine::vcpus::Vcpus;
use arch::register::Bank;
use arch::{GuestPhys, GuestVirt};
use debug::cancel::Cancelled;
use debug::disassemble::OperatingMode;
use debug::dump::write::destination::Destination;
use debug::dump::write::{self, Progress, Subject, Summary, WriteError};
use debug::dump::{DumpedVcpu, Unplanted};
use debug::linux::VmCoreInfo;
use debug::linux::described::{self, Anchor, Scope};
use debug::linux::log::Wanted;
use debug::linux::translate::kernel_regime;
use debug::linux::trouble;
use debug::live::link::Link;
use debug::memory::{self, Translation};
use kvm::ram::GuestMemory;
use kvm::ram::LiveMemory;
use kvm::{HOST_ISA, Vcpu};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// What dumps of a machine are made with; its clones are of the same machine.
#[derive(Clone, Debug)]
pub struct Dumper {
    /// Whoever holds a clone must not keep a machine running that is over.
    vcpus: Weak<Vcpus>,
    memory: GuestMemory,
    /// One at a time.
    turn: Arc<Mutex<()>>,
    /// Read by whoever looks at the machine, and taken by whoever waits for them.
    looks: Arc<RwLock<()>>,
    /// The release of the guest's Linux kernel, once it is known.
    release: Arc<OnceLock<String>>,
    /// No more.
    is_closed: Arc<AtomicBool>,
}

/// Who is told how far a dump is, and may break it off.
type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// When a dump is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// While the guest runs, or is held.
    Running,
    /// When it has ended. What a reset or a triple fault has made of a vCPU says nothing of the guest: if it has
    /// left paging behind, what was known of it before counts.
    End,
}

/// What a dump has of a vCPU on its thread.
fn capture(vcpu: &Vcpu, moment: Moment) -> DumpedVcpu {
    let look = |vcpu: &Vcpu, is_earlier| {
        let mode = vcpu.code().map_or(OperatingMode::Bits64, |code| code.mode);
        DumpedVcpu { registers: vcpu.registers(&Bank::ALL), mode, activity: vcpu.activity(), is_earlier }
    };
    let earlier = match moment {
        Moment::Running => None,
        Moment::End => vcpu.with_before(|vcpu| look(vcpu, true)),
    };
    earlier.unwrap_or_else(|| look(vcpu, false))
}

impl Dumper {
    /// For a machine.
    pub(super) fn new(vcpus: &Arc<Vcpus>, memory: &GuestMemory) -> Dumper {
        Dumper {
            vcpus: Arc::downgrade(vcpus),
            memory: memory.clone(),
            turn: Arc::default(),
            looks: Arc::default(),
            release: Arc::default(),
            is_closed: Arc::default(),
        }
    }

    /// Writes a core to `path`. The guest stands still from the first word of it to the last.
    ///
    /// # Errors
    /// [`WriteError`]; the guest goes on all the same.
    pub fn dump(
        &self,
        path: &Path,
        moment: Moment,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Summary, WriteError> {
        let destination = Destination::anywhere(path)?;
        let mut begun = None;
        self.with_subject((path, moment), watch, &mut |subject, watch| {
            begun = Some(write::begin(subject, &destination, watch)?);
            Ok(())
        })?;
        // The guest need not wait for the disk.
        begun.ok_or_else(|| WriteError::Cancelled(path.into()))?.keep()
    }

    /// Writes a core to an empty file that somebody has opened, as [`Self::dump`] does, but for its name and its being on
    /// disk.
    ///
    /// # Errors
    /// [`WriteError`]; the guest goes on all the same.
    pub fn dump_to(
        &self,
        file: &File,
        path: &Path,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Summary, WriteError> {
        let mut summary = Summary::default();
        self.with_subject((path, Moment::Running), watch, &mut |subject, watch| {
            summary = write::to_open_file(subject, file, path, watch)?;
            Ok(())
        })?;
        Ok(summary)
    }

    /// Has the guest written while it stands still.
    fn with_subject(
        &self,
        (path, moment): (&Path, Moment),
        watch: &mut Watch<'_>,
        write: &mut dyn FnMut(&Subject<'_>, &mut Watch<'_>) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let vcpus = self.vcpus.upgrade().ok_or_else(|| WriteError::Cancelled(path.into()))?;
        let _hold = vcpus.hold();
        let cpus = vcpus.for_each(move |vcpu| capture(vcpu, moment));
        let memory = LiveMemory(self.memory.clone());
        // A debugger may change what is planted meanwhile, and is not to wait for us.
        let link = vcpus.link();
        let unmask = |address: GuestPhys, bytes: &mut [u8]| {
            if let Some(link) = &link {
                link.engine.requests().table.unmask(address, bytes);
            }
        };
        let memory = Unplanted { memory: &memory, unmask: &unmask };
        let mut watch = |progress: Progress| match self.is_closed.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => watch(progress),
        };
        let subject = Subject { isa: HOST_ISA, cpus: &cpus, memory: &memory };
        write(&subject, &mut watch)
    }

    /// The machine ends: a dump that is being written is broken off, as is a look at the machine, and none is begun. Returns
    /// when nothing of them is left.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        drop(self.looks.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Dumper {
    /// Whether the log of the guest's Linux kernel, its last lines, says that it has panicked. The guest stands
    /// still meanwhile; `go_on` is asked now and then whether the answer is still wanted.
    pub fn has_panicked(&self, go_on: &mut dyn FnMut() -> bool) -> bool {
        const LINES: usize = 200;
        let logs = self.logs(LINES, go_on);
        logs.iter().flatten().any(|line| trouble::is_panic(line))
    }

    /// The release of the guest's Linux kernel, as `uname -r` has it, if one is found within `limit` that has described
    /// itself. The guest stands still meanwhile, until it is known: then it is remembered.
    pub fn release(&self, limit: Duration) -> Option<&str> {
        if self.release.get().is_none() {
            let until = Instant::now() + limit;
            let mut go_on = || match self.is_closed.load(Ordering::Acquire) || until <= Instant::now() {
                true => Err(Cancelled),
                false => Ok(()),
            };
            let found = self.standing_still(Moment::Running, |still| still.kernel(&mut go_on));
            let release = found??.release().to_string();
            // Two may have found it.
            self.release.get_or_init(|| release);
        }
        self.release.get().map(String::as_str)
    }

    /// The last lines of the log of the guest's Linux kernel, from its memory; none if it is not found there. The guest
    /// stands still meanwhile; `go_on` is asked as above.
    pub fn log(&self, lines: usize, go_on: &mut dyn FnMut() -> bool) -> Vec<String> {
        self.logs(lines, go_on).into_iter().max_by_key(Vec::len).unwrap_or_default()
    }

    /// The same, by each way of translating that the guest's vCPUs have or its kernel has described.
    fn logs(&self, lines: usize, go_on: &mut dyn FnMut() -> bool) -> Vec<Vec<String>> {
        let mut go_on = || match self.is_closed.load(Ordering::Acquire) || !go_on() {
            true => Err(Cancelled),
            false => Ok(()),
        };
        let logs = self.standing_still(Moment::End, |still| {
            let Some(info) = still.kernel(&mut go_on) else { return Vec::new() };
            let (anchors, memory) = (still.anchors(), still.memory);
            let by_info = kernel_regime(HOST_ISA, &info);
            let regimes = anchors.into_iter().map(|anchor| anchor.regime).chain(by_info);
            let log = |regime| {
                let space = Translation::Virtual(regime);
                let read =
                    |at: u64, bytes: &mut [u8]| memory::read(&memory, &space, None, GuestVirt(at), bytes);
                info.log(read, &Wanted::last(lines)).map(|log| log.lines()).unwrap_or_default()
            };
            regimes.map(log).collect()
        });
        logs.unwrap_or_default()
    }

    /// What becomes true when the machine ends.
    pub(super) fn end(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_closed)
    }

    /// What `look` makes of the guest, as it is at a moment, while it stands still; `None` when the guest is gone.
    pub(super) fn standing_still<R>(&self, moment: Moment, look: impl FnOnce(Still) -> R) -> Option<R> {
        let _looks = self.looks.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        let vcpus = self.vcpus.upgrade()?;
        let _hold = vcpus.hold();
        let cpus = vcpus.for_each(move |vcpu| capture(vcpu, moment));
        let memory = LiveMemory(self.memory.clone());
        Some(look(Still { cpus, memory, link: vcpus.link() }))
    }
}

/// A guest that stands still.
pub(super) struct Still {
    pub cpus: Vec<DumpedVcpu>,
    pub memory: LiveMemory,
    /// Who debugs it.
    pub link: Option<Arc<Link>>,
}

impl Still {
    /// What its vCPUs tell of where a kernel is.
    fn anchors(&self) -> Vec<Anchor> {
        self.cpus.iter().filter_map(|cpu| Anchor::new(&cpu.registers)).collect()
    }

    /// Its kernel's description of itself, if one is found as long as `go_on` says so.
    fn kernel(&self, go_on: &mut dyn FnMut() -> Result<(), Cancelled>) -> Option<VmCoreInfo> {
        let found = described::find(HOST_ISA, &self.memory, &self.anchors(), Scope::Running, go_on);
        // Nobody wants to know any more.
        found.map_or(None, |found| found.info)
    }
}
