//! A dump as a [`Machine`] that cannot run.

use super::contents::{Contents, DumpedVcpu, Image, joined};
use super::notes::numbers;
use crate::abilities::{Abilities, SoftwareBreakpoints};
use crate::cancel::{Cancel, Cancelled};
use crate::linux::described::{self, Anchor, Scope};
use crate::linux::{Described, VmCoreInfo, translate};
use crate::machine::{
    Action, Activity, Code, Control, DumpFile, Event, Machine, MachineError, Order, StopReason, Tables,
};
use crate::ram::{Absence, Memory};
use arch::address::PhysRange;
use arch::paging::{Regime, TableMemory};
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, Isa};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes of a page of the cache and of the overlay.
const PAGE: usize = 4096;
/// Pages that are kept.
const CACHED: usize = 1024;
/// Pages that may be changed.
const MOST_CHANGED: usize = 64 << 10;

/// A page, by its number.
type Cached = Option<(u64, Box<[u8; PAGE]>)>;

/// A dump's memory, with what was changed over it.
#[derive(Debug)]
pub struct CoreMemory {
    image: Box<dyn Image>,
    ranges: Vec<PhysRange>,
    /// A page is in the place that its number selects.
    cache: Mutex<Vec<Cached>>,
    /// Pages that were changed, if they may be.
    changed: Option<Mutex<BTreeMap<u64, Box<[u8; PAGE]>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CoreMemory {
    fn new(image: Box<dyn Image>, is_writable: bool) -> CoreMemory {
        let ranges = image.ranges();
        let cache = Mutex::new(vec![None; CACHED]);
        CoreMemory { image, ranges, cache, changed: is_writable.then(Mutex::default) }
    }

    /// Where a read of one page ends: at the page's end.
    fn rest(address: u64, length: usize) -> (u64, usize, usize) {
        let start = usize::try_from(address % PAGE as u64).unwrap_or(0);
        (address / PAGE as u64, start, length.min(PAGE - start))
    }

    /// Reads within a page.
    fn read_page(&self, address: u64, bytes: &mut [u8]) -> usize {
        let (page, start, count) = CoreMemory::rest(address, bytes.len());
        let bytes = &mut bytes[..count];
        if let Some(changed) = &self.changed
            && let Some(page) = lock(changed).get(&page)
        {
            bytes.copy_from_slice(&page[start..start + count]);
            return count;
        }
        let mut cache = lock(&self.cache);
        let place = &mut cache[usize::try_from(page).unwrap_or(0) % CACHED];
        if place.as_ref().is_none_or(|(known, _)| *known != page) {
            let mut whole = Box::new([0; PAGE]);
            if self.image.read(page * PAGE as u64, &mut whole[..]) < PAGE {
                // A piece of a page is there, or none of it.
                return self.image.read(address, bytes);
            }
            *place = Some((page, whole));
        }
        let Some((_, known)) = place else { return 0 };
        // Most reads are of a word, for which a call to copy it takes longer than all else.
        match (bytes.first_chunk_mut::<8>(), known[start..].first_chunk()) {
            (Some(word), Some(known)) if count == 8 => *word = *known,
            _ => bytes.copy_from_slice(&known[start..start + count]),
        }
        count
    }
}

impl TableMemory for CoreMemory {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        Memory::read(self, address, bytes) == bytes.len()
    }
}

impl Memory for CoreMemory {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        // Much at once does not go through the cache.
        let is_changed = self.changed.as_ref().is_some_and(|changed| !lock(changed).is_empty());
        if bytes.len() > 4 * PAGE && !is_changed {
            return self.image.read(address.0, bytes);
        }
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.0.checked_add(done as u64) else { break };
            let read = self.read_page(at, &mut bytes[done..]);
            done += read;
            if read == 0 {
                break;
            }
        }
        done
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        let Some(changed) = &self.changed else { return 0 };
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.0.checked_add(done as u64) else { break };
            let (page, start, count) = CoreMemory::rest(at, bytes.len() - done);
            let mut whole = Box::new([0; PAGE]);
            if self.read_page(page * PAGE as u64, &mut whole[..]) < PAGE {
                break;
            }
            let mut changed = lock(changed);
            if changed.len() >= MOST_CHANGED && !changed.contains_key(&page) {
                break;
            }
            whole[start..start + count].copy_from_slice(&bytes[done..done + count]);
            changed.insert(page, whole);
            done += count;
        }
        done
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.ranges.clone()
    }

    fn populated(&self) -> Vec<PhysRange> {
        let mut ranges = self.image.populated();
        if let Some(changed) = &self.changed {
            ranges.extend(lock(changed).keys().map(|page| PhysRange::new(page * PAGE as u64, PAGE as u64)));
        }
        joined(ranges)
    }

    fn absence(&self, address: GuestPhys) -> Option<Absence> {
        self.image.absence(address.0)
    }
}

/// A dump.
#[derive(Debug)]
pub struct Core {
    isa: Isa,
    format: String,
    memory: CoreMemory,
    cpus: Vec<Mutex<DumpedVcpu>>,
    /// What the file says of its kernel.
    noted: Option<VmCoreInfo>,
    /// What is so, found out when it is first asked for.
    kernel: OnceLock<Described>,
    cancel: Cancel,
    remarks: Vec<String>,
    abilities: Abilities,
    is_writable: bool,
    /// How far its kernel is looked for.
    scope: Scope,
    /// What a debugger is told that wants to change something.
    why_not: &'static str,
    events: VecDeque<Event>,
    wake: EventFd,
}

/// What a debugger is told that wants a core to run.
const CANNOT_RUN: &str =
    "this is a dump of a machine that has stopped: it cannot run or step, and breakpoints are never hit";
/// What a debugger is told that wants to change something.
const READ_ONLY: &str = "this is a dump: neither registers nor memory can be changed";

/// What there is to be said of vCPUs without page tables where others have some.
fn without_tables(cpus: &[DumpedVcpu]) -> Option<String> {
    let is_on = |cpu: &DumpedVcpu| translate::regime(&cpu.registers).is_ok_and(|regime| regime.is_on());
    let (with, without): (Vec<usize>, Vec<usize>) = (0..cpus.len()).partition(|vcpu| is_on(&cpus[*vcpu]));
    let (first, _) = (with.first()?, without.first()?);
    let without = numbers(&without);
    Some(format!("paging is off in vCPU {without}: there addresses are translated by vCPU {first}'s tables"))
}

impl Core {
    /// A dump that was read. With `is_writable`, registers and memory can be changed, in a copy that
    /// goes with the value.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(contents: Contents, is_writable: bool) -> io::Result<Core> {
        let Contents { format, isa, image, mut cpus, info, mut remarks } = contents;
        let memory = CoreMemory::new(image, is_writable);
        if cpus.is_empty() {
            remarks.push("there are no registers in it".into());
            cpus.push(DumpedVcpu::unknown(isa));
        }
        remarks.extend(without_tables(&cpus));
        // It never becomes readable: events are there at once.
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let abilities = Abilities {
            software: SoftwareBreakpoints::None,
            single_step: true,
            breakpoints: 0,
            watchpoints: 0,
            blocks_interrupts: true,
        };
        Ok(Core {
            isa,
            format,
            memory,
            cpus: cpus.into_iter().map(Mutex::new).collect(),
            cancel: Cancel::never(),
            noted: info,
            kernel: OnceLock::new(),
            remarks,
            abilities,
            is_writable,
            scope: Scope::Everything,
            why_not: READ_ONLY,
            events: VecDeque::new(),
            wake,
        })
    }

    /// Its kernel is looked for so far, where nobody has said which it is.
    #[must_use]
    pub fn looking_for(self, scope: Scope) -> Core {
        Core { scope, ..self }
    }

    /// A debugger that wants to change something of one that cannot be changed is told this.
    #[must_use]
    pub fn explaining(self, why_not: &'static str) -> Core {
        Core { why_not, ..self }
    }

    /// The kernel is the one that this describes, whatever the file says.
    #[must_use]
    pub fn with_kernel(self, info: VmCoreInfo) -> Core {
        self.knowing(Described { info: Some(info), remarks: Vec::new() })
    }

    /// The kernel has been looked for, and this is what was found.
    #[must_use]
    pub fn knowing(self, found: Described) -> Core {
        Core { kernel: OnceLock::from(found), ..self }
    }

    /// What was found when the kernel was looked for, if it has been.
    pub fn found(&self) -> Option<&Described> {
        self.kernel.get()
    }

    /// What is odd about the file, a line each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The kernel's description of itself.
    pub fn info(&self) -> Option<&VmCoreInfo> {
        self.kernel().and_then(|known| known.info.as_ref())
    }

    /// Looks for the kernel in memory, unless what the file says of it fits.
    fn find_kernel(&self) -> Result<Described, Cancelled> {
        let noted = self.noted.clone();
        if noted.as_ref().is_some_and(|info| described::fits(self.isa, &self.memory, info)) {
            return Ok(Described { info: noted, remarks: Vec::new() });
        }
        let anchors: Vec<Anchor> =
            self.cpus.iter().filter_map(|cpu| Anchor::new(&lock(cpu).registers)).collect();
        let mut go_on = || self.cancel.check();
        let mut found = described::find(self.isa, &self.memory, &anchors, self.scope, &mut go_on)?;
        if noted.is_some() {
            found.remarks.push("what the file says of its kernel is not what its memory has".into());
        }
        found.info = found.info.or(noted);
        Ok(found)
    }

    fn cpu(&self, vcpu: u32) -> Result<MutexGuard<'_, DumpedVcpu>, MachineError> {
        self.cpus.get(vcpu as usize).map(lock).ok_or(MachineError::NoVcpu(vcpu))
    }

    /// The first of the other vCPUs that has page tables.
    fn another(&self, vcpu: u32) -> Option<(u32, Regime)> {
        let others = (0u32..).zip(&self.cpus).filter(|(other, _)| *other != vcpu);
        let mut on = others.filter_map(|(other, cpu)| {
            let regime = translate::regime(&lock(cpu).registers).ok().filter(Regime::is_on)?;
            Some((other, regime))
        });
        on.next()
    }
}

impl Machine for Core {
    fn isa(&self) -> Isa {
        self.isa
    }

    fn vcpus(&self) -> u32 {
        u32::try_from(self.cpus.len()).unwrap_or(u32::MAX)
    }

    fn activity(&self, vcpu: u32) -> Activity {
        self.cpu(vcpu).map_or(Activity::Unknown, |cpu| cpu.activity)
    }

    fn registers(&self, vcpu: u32, _: &[Bank]) -> Result<RegisterFile, MachineError> {
        let mut file = self.cpu(vcpu)?.registers.clone();
        // Where the file does not tell, the kernel does.
        if self.isa == Isa::Aarch64
            && file.get("TCR_EL1").is_none()
            && let Some(info) = self.info()
        {
            translate::set_pointer_masks(&mut file, info);
        }
        Ok(file)
    }

    fn code(&self, vcpu: u32) -> Result<Code, MachineError> {
        let cpu = self.cpu(vcpu)?;
        let base = cpu.registers.get("cs_base").unwrap_or(0);
        Ok(Code { mode: cpu.mode, base })
    }

    fn regime(&self, vcpu: u32) -> Result<Regime, MachineError> {
        Ok(self.translation(vcpu)?.0)
    }

    /// Those of a vCPU that has none (it was not started, or has paging off, as after a reset) are another's.
    fn translation(&self, vcpu: u32) -> Result<(Regime, Tables), MachineError> {
        let own = translate::regime(&self.cpu(vcpu)?.registers);
        if let Ok(regime) = own
            && regime.is_on()
        {
            return Ok((regime, Tables::Own));
        }
        if let Some((other, regime)) = self.another(vcpu) {
            return Ok((regime, Tables::Vcpu(other)));
        }
        // What takes a search of all memory comes last.
        match (self.info().and_then(|info| translate::kernel_regime(self.isa, info)), own) {
            (Some(regime), _) => Ok((regime, Tables::Description)),
            (None, Ok(off)) => Ok((off, Tables::Own)),
            (None, Err(fault)) => Err(MachineError::Host(fault.to_string())),
        }
    }

    fn file(&self) -> Option<DumpFile<'_>> {
        Some(DumpFile { format: &self.format, remarks: &self.remarks })
    }

    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), MachineError> {
        if !self.is_writable {
            return Err(MachineError::Unsupported(self.why_not));
        }
        let mut cpu = self.cpu(vcpu)?;
        cpu.registers.take_from(file);
        Ok(())
    }

    fn memory(&self) -> &dyn Memory {
        &self.memory
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn resume(&mut self, orders: Vec<Order>) -> Result<(), MachineError> {
        let moving = (0..).zip(orders).find(|(_, order)| order.action != Action::Stay);
        if let Some((vcpu, _)) = moving {
            let registers = self.cpu(vcpu)?.registers.clone();
            let reason = StopReason::Refused(CANNOT_RUN.into());
            self.events.push_back(Event::Stopped { vcpu, reason, registers });
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.events.clear();
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn disarm(&mut self) {}

    fn control(&mut self, control: Control) -> Result<(), MachineError> {
        match control {
            // Nothing is to be ended but the server, which its user does.
            Control::Quit => Ok(()),
            Control::Nmi(_) | Control::Reset => Err(MachineError::Unsupported(CANNOT_RUN)),
        }
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        Vec::new()
    }

    fn can_run(&self) -> bool {
        false
    }

    fn read_only(&self) -> Option<&'static str> {
        (!self.is_writable).then_some(self.why_not)
    }

    fn set_cancel(&mut self, cancel: &Cancel) {
        self.cancel = cancel.clone();
    }

    fn kernel(&self) -> Option<&Described> {
        if let Some(known) = self.kernel.get() {
            return Some(known);
        }
        // What was broken off is looked for again when it is asked for again.
        let found = self.find_kernel().ok()?;
        Some(self.kernel.get_or_init(|| found))
    }
}
