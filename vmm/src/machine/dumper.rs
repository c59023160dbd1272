//! Dumps of a live guest: its vCPUs stand still while its memory is written, and then go on as before.

use crate::machine::vcpus::Vcpus;
use arch::paging::Regime;
use arch::register::Bank;
use arch::{GuestPhys, GuestVirt};
use debug::cancel::Cancelled;
use debug::disassemble::OperatingMode;
use debug::dump::write::destination::Destination;
use debug::dump::write::{self, Progress, Subject, Summary, WriteError};
use debug::dump::{DumpedVcpu, Unplanted};
use debug::engine::kept::Kept;
use debug::linux::described::{self, Anchor, Known, Scope};
use debug::linux::log::{Log, Record, Wanted};
use debug::linux::translate::kernel_regime;
use debug::linux::trouble::{self, Sign};
use debug::linux::{Described, VmCoreInfo};
use debug::live::link::Link;
use debug::machine::Memory;
use debug::memory::{self, Translation};
use kvm::ram::GuestMemory;
use kvm::ram::LiveMemory;
use kvm::{HOST_ISA, Vcpu};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
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
    /// What is known of the guest's Linux kernel.
    kernel: Arc<Remembered>,
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
            kernel: Arc::default(),
            is_closed: Arc::default(),
        }
    }

    /// Writes a core. The guest stands still from the first word of it to the last.
    ///
    /// # Errors
    /// [`WriteError`]; the guest goes on all the same.
    pub fn dump(
        &self,
        destination: &Destination,
        moment: Moment,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Summary, WriteError> {
        let path = destination.shown();
        let mut begun = None;
        self.with_subject((path, moment), watch, &mut |subject, watch| {
            begun = Some(write::begin(subject, destination, watch)?);
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
        self.signs(go_on).iter().any(|(sign, _)| *sign == Sign::Panic)
    }

    /// What those lines tell of, that it has panicked or hangs, in their order. Likewise.
    pub fn signs(&self, go_on: &mut dyn FnMut() -> bool) -> Vec<(Sign, String)> {
        const LINES: usize = 200;
        let logs = self.logs(&Wanted::last(LINES), usize::MAX, go_on);
        logs.iter().flat_map(Log::lines).filter_map(|line| Some((trouble::sign(&line, &[])?, line))).collect()
    }

    /// The release of the guest's Linux kernel, as `uname -r` has it, if one is found within `limit` that has described
    /// itself, or what it was last. The guest stands still meanwhile: for a moment where it is the one that is known.
    pub fn release(&self, limit: Duration) -> Option<String> {
        let until = Instant::now() + limit;
        let mut go_on = || match self.is_closed.load(Ordering::Acquire) || until <= Instant::now() {
            true => Err(Cancelled),
            false => Ok(()),
        };
        let found = self.standing_still(Moment::Running, |still| still.kernel(&mut go_on));
        // It may have been looked for longer by somebody else.
        let info = found.flatten().or_else(|| self.kernel.last()?.1.info);
        info.map(|info| info.release().to_string())
    }

    /// The last lines of the log of the guest's Linux kernel, from its memory; none if it is not found there. The guest
    /// stands still meanwhile; `go_on` is asked as above.
    pub fn log(&self, lines: usize, go_on: &mut dyn FnMut() -> bool) -> Vec<String> {
        let logs = self.logs(&Wanted::last(lines), usize::MAX, go_on);
        logs.iter().map(Log::lines).max_by_key(Vec::len).unwrap_or_default()
    }

    /// What that log has from record `since` on, its last `most` lines. A guest whose kernel is known does not stand still for
    /// it; to find the kernel it does, for as long as `limit`.
    pub fn log_since(&self, since: u64, most: usize, limit: Duration) -> Looked {
        let wanted = Wanted { since: Some(since), ..Wanted::last(most) };
        if let Some(log) = self.kernel.log(&LiveMemory(self.memory.clone()), &wanted) {
            return Looked::Found(log);
        }
        let until = Instant::now() + limit;
        match self.logs(&wanted, 1, &mut || Instant::now() < until).pop() {
            Some(log) => Looked::Found(log),
            None if Instant::now() < until => Looked::NotThere,
            None => Looked::CutOff,
        }
    }

    /// The same, by the first `ways` of translating by which it is found, of those that its kernel has described and its vCPUs
    /// have.
    fn logs(&self, wanted: &Wanted, ways: usize, go_on: &mut dyn FnMut() -> bool) -> Vec<Log> {
        let mut go_on = || match self.is_closed.load(Ordering::Acquire) || !go_on() {
            true => Err(Cancelled),
            false => Ok(()),
        };
        let logs = self.standing_still(Moment::End, |still| {
            let Some(info) = still.kernel(&mut go_on) else { return Vec::new() };
            let (anchors, memory) = (still.anchors(), still.memory);
            let by_info = kernel_regime(HOST_ISA, &info);
            let regimes = by_info.into_iter().chain(anchors.into_iter().map(|anchor| anchor.regime));
            regimes.filter_map(|regime| log_by(&memory, regime, &info, wanted)).take(ways).collect()
        });
        logs.unwrap_or_default()
    }

    /// The machine's vCPUs, while it is there.
    pub(super) fn vcpus(&self) -> Option<Arc<Vcpus>> {
        self.vcpus.upgrade()
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
        Some(look(Still { cpus, memory, link: vcpus.link(), kernel: Arc::clone(&self.kernel) }))
    }
}

/// What a look for a kernel's log has come to.
#[derive(Debug)]
pub enum Looked {
    /// It is there.
    Found(Log),
    /// There is none that can be read.
    NotThere,
    /// There was not time enough to say.
    CutOff,
}

/// A kernel's log, by a way of translating.
fn log_by(memory: &LiveMemory, regime: Regime, info: &VmCoreInfo, wanted: &Wanted) -> Option<Log> {
    let space = Translation::Virtual(regime);
    let read = |at: u64, bytes: &mut [u8]| memory::read(memory, &space, None, GuestVirt(at), bytes);
    info.log(read, wanted).ok()
}

/// A guest that stands still.
pub(super) struct Still {
    pub cpus: Vec<DumpedVcpu>,
    pub memory: LiveMemory,
    /// Who debugs it.
    pub link: Option<Arc<Link>>,
    /// What is known of its kernel.
    pub kernel: Arc<Remembered>,
}

/// What has been found of a guest's Linux kernel, for whoever looks at the guest next.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// The kernel that was found last, and all that was said then.
    last: Mutex<Option<(Known, Described)>>,
    /// What was read of it: symbols and types.
    pub kept: Arc<Kept>,
}

impl Remembered {
    fn last(&self) -> Option<(Known, Described)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the kernel that was found last has in its log, while it writes there; `None` where it is not there any more, or
    /// does not say how its addresses are translated. A record may be written over while it is read, so what counts is what
    /// two readings have in common.
    fn log(&self, memory: &LiveMemory, wanted: &Wanted) -> Option<Log> {
        let (known, described) = self.last()?;
        let info = described.info.filter(|_| known.is_there(HOST_ISA, memory))?;
        let regime = kernel_regime(HOST_ISA, &info)?;
        let mut log = log_by(memory, regime, &info, wanted)?;
        if !log.records.is_empty() {
            let again = log_by(memory, regime, &info, wanted)?.records;
            let same = |record: &Record| {
                let at = again.binary_search_by_key(&record.sequence, |it| it.sequence);
                at.is_ok_and(|at| again[at] == *record)
            };
            let had = log.records.len();
            log.records.retain(same);
            log.lost += (had - log.records.len()) as u64;
        }
        Some(log)
    }

    /// The kernel that was found last, if it runs still.
    fn running(&self, memory: &dyn Memory, anchors: &[Anchor]) -> Option<Described> {
        let (known, described) = self.last()?;
        known.runs(HOST_ISA, memory, anchors).then_some(described)
    }

    /// What was found now takes the place of what was known.
    pub fn remember(&self, found: &Described, memory: &dyn Memory) {
        let known = found.info.as_ref().and_then(|info| Known::new(HOST_ISA, memory, info));
        let last = known.map(|known| (known, found.clone()));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }
}

impl Still {
    /// What its vCPUs tell of where a kernel is.
    fn anchors(&self) -> Vec<Anchor> {
        self.cpus.iter().filter_map(|cpu| Anchor::new(&cpu.registers)).collect()
    }

    /// The kernel that was found last, if it runs still.
    pub fn known(&self) -> Option<Described> {
        self.kernel.running(&self.memory, &self.anchors())
    }

    /// Its kernel's description of itself, if it is known, or found as long as `go_on` says so.
    fn kernel(&self, go_on: &mut dyn FnMut() -> Result<(), Cancelled>) -> Option<VmCoreInfo> {
        if let Some(known) = self.known() {
            return known.info;
        }
        match described::find(HOST_ISA, &self.memory, &self.anchors(), Scope::Running, go_on) {
            Ok(found) => {
                self.kernel.remember(&found, &self.memory);
                found.info
            }
            // Nobody wants to know any more.
            Err(Cancelled) => None,
        }
    }
}
