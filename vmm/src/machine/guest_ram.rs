//! The way of everything that serves the guest to the guest's RAM: its devices, and the families of its hypercalls.
//!
//! What a debugger has planted there is not the guest's. Whoever reads here reads what the guest has; what is
//! written here stays written, and a breakpoint under it is not lost ([`debug::engine`]). Without a debugger that costs
//! one look whether there is one. The boot code writes to a guest's memory before anything can be planted in
//! it, and the debugger has its own way ([`LiveMemory`]).

use arch::GuestPhys;
use arch::address::PhysRange;
use arch::paging::TableMemory;
use debug::engine::Engine;
use debug::machine::Memory;
use devices::ram::Ram;
use devices::{guest_log, tell};
use kvm::ram::{GuestMemory, LiveMemory, forget_mapping};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileSlice};

/// RAM that is [lent](Ram::lend): not while there is a debugger, and one that comes waits for what was lent before.
#[derive(Debug, Default)]
struct Loans {
    state: Mutex<LoansState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct LoansState {
    open: usize,
    is_closed: bool,
}

/// RAM that is lent, as long as this is there.
struct Loan<'a>(&'a Loans);

impl Loans {
    fn state(&self) -> MutexGuard<'_, LoansState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: nothing is lent.
    fn open(&self) -> Option<Loan<'_>> {
        let mut state = self.state();
        (!state.is_closed).then(|| {
            state.open += 1;
            Loan(self)
        })
    }

    /// Nothing is lent from now on; whether all that was is back, for which it is waited so long at most.
    fn close(&self, patience: Duration) -> bool {
        let mut state = self.state();
        state.is_closed = true;
        let waited = self.ended.wait_timeout_while(state, patience, |state| state.open > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.open == 0
    }

    fn reopen(&self) {
        self.state().is_closed = false;
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        // A wake-up of nobody is a system call all the same.
        if state.is_closed && state.open == 0 {
            self.0.ended.notify_all();
        }
    }
}

/// How long a debugger that comes waits for a disk of the host's.
const PATIENCE: Duration = Duration::from_secs(2);

/// RAM of a guest, as what serves it sees it.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: LiveMemory,
    /// What knows where instructions are planted, while there is a debugger.
    engine: Arc<RwLock<Option<Arc<Engine>>>>,
    loans: Arc<Loans>,
}

impl GuestRam {
    /// A guest's RAM, in which nothing is planted.
    pub fn new(memory: &GuestMemory) -> GuestRam {
        GuestRam { memory: LiveMemory(memory.clone()), engine: Arc::default(), loans: Arc::default() }
    }

    /// From now on `engine` may have planted instructions in it, or nobody.
    pub fn set_engine(&self, engine: Option<Arc<Engine>>) {
        let has_one = engine.is_some();
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
        if !has_one {
            self.loans.reopen();
        } else if !self.loans.close(PATIENCE) {
            // It is about code, and what a disk reads is data, as a rule.
            tell!(Warn, "a disk of the host's takes long: what is planted where it reads to may be lost");
            guest_log::deliver();
        }
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets and clears bits of a word in one step, whatever is planted there.
    fn change(&self, address: GuestPhys, size: usize, set: u64, clear: u64) -> Option<u64> {
        const ORDER: Ordering = Ordering::SeqCst;
        let slice = self.memory.0.get_slice(GuestAddress(address.0), size).ok()?;
        let low = |value: u64| value.to_le_bytes();
        match size {
            8 => {
                let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
                word.fetch_update(ORDER, ORDER, |old| Some(old & !clear | set)).ok()
            }
            4 => {
                let word = slice.get_atomic_ref::<AtomicU32>(0).ok()?;
                let part = |value| low(value).first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
                word.fetch_update(ORDER, ORDER, |old| Some(old & !part(clear) | part(set)))
                    .ok()
                    .map(u64::from)
            }
            _ => {
                let word = slice.get_atomic_ref::<AtomicU8>(0).ok()?;
                let part = |value| low(value)[0];
                word.fetch_update(ORDER, ORDER, |old| Some(old & !part(clear) | part(set)))
                    .ok()
                    .map(u64::from)
            }
        }
    }
}

impl TableMemory for GuestRam {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.memory.read_table(address, bytes)
    }
}

impl Memory for GuestRam {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        match &self.engine() {
            None => self.memory.read(address, bytes),
            Some(engine) => engine.read_for_guest(&self.memory, address, bytes),
        }
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        match &self.engine() {
            None => self.memory.write(address, bytes),
            Some(engine) => engine.write_for_guest(&self.memory, address, bytes),
        }
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.memory.ranges()
    }
}

impl Ram for GuestRam {
    fn ranges(&self) -> Vec<PhysRange> {
        Memory::ranges(self)
    }

    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        Memory::read(self, address, bytes)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        Memory::write(self, address, bytes)
    }

    fn update(&self, address: GuestPhys, size: usize, set: u64, clear: u64) -> Option<u64> {
        let change = || self.change(address, size, set, clear);
        match &self.engine() {
            None => change(),
            Some(engine) => engine.change_for_guest(&self.memory, address, size, change),
        }
    }

    fn shared(&self, address: GuestPhys, size: usize) -> Option<VolatileSlice<'_>> {
        self.memory.0.get_slice(GuestAddress(address.0), size).ok()
    }

    fn lend(&self, parts: &[(GuestPhys, usize)], work: &mut dyn FnMut(&[VolatileSlice<'_>])) -> bool {
        let Some(_loan) = self.loans.open() else { return false };
        let slice = |&(address, size): &(GuestPhys, usize)| self.shared(address, size);
        let slices: Option<Vec<_>> = parts.iter().map(slice).collect();
        slices.is_some_and(|slices| {
            work(&slices);
            true
        })
    }

    fn forget_mapping(&self, page: GuestPhys) {
        forget_mapping(&self.memory.0, page.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use debug::breakpoint::{Breakpoint, Kind, Place, planted_instruction};
    use debug::fake;
    use debug::memory::Translation;
    use kvm::HOST_ISA;

    fn ram(engine: Option<Arc<Engine>>) -> (GuestRam, GuestPhys) {
        let ram = GuestRam::new(&kvm::ram::map(HOST_ISA, 4 << 20).unwrap());
        ram.set_engine(engine);
        let place = GuestPhys(Memory::ranges(&ram)[0].start.0 + 0x1000);
        (ram, place)
    }

    /// A debugger that comes does not wait for a host's disk for ever, and everybody else not at all.
    #[test]
    fn what_is_lent_is_waited_for() {
        let loans = Loans::default();
        let loan = loans.open().unwrap();
        assert!(!loans.close(Duration::from_millis(1)) && loans.open().is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| loans.close(Duration::from_secs(60)));
            drop(loan);
            assert!(waits.join().unwrap());
        });
        loans.reopen();
        assert!(loans.open().is_some());
        // Nothing of it is locked while a disk works.
        let (ram, place) = ram(None);
        assert!(ram.lend(&[(place, 8)], &mut |_| {
            assert_eq!(Ram::write(&ram, place, &[1]), 1);
            assert!(ram.lend(&[(place, 8)], &mut |_| {}));
        }));
    }

    #[test]
    fn words_are_changed_in_one_step() {
        for engine in [None, Some(Arc::new(Engine::new(HOST_ISA, fake::host(), 1)))] {
            let (ram, place) = ram(engine);
            assert_eq!(Ram::write(&ram, place, &[0x0f; 16]), 16);
            assert_eq!(ram.update(place, 1, 0xf0, 0x01), Some(0x0f));
            assert_eq!(ram.update(place, 4, 1 << 31, 0xff), Some(0x0f0f_0ffe));
            assert_eq!(ram.update(place, 8, 0, 0), Some(0x0f0f_0f0f_8f0f_0f00));
            // No RAM, or not aligned.
            assert_eq!(ram.update(GuestPhys(u64::MAX - 7), 8, 1, 0), None);
            assert_eq!(ram.update(GuestPhys(place.0 + 4), 8, 1, 0), None);
        }
    }

    /// The whole way: what serves the guest neither reads what a debugger has planted nor makes an end of it.
    #[test]
    fn a_breakpoint_is_under_what_is_written() {
        let engine = Arc::new(Engine::new(HOST_ISA, fake::host(), 1));
        let (ram, place) = ram(Some(Arc::clone(&engine)));
        let memory = &ram.memory;
        Ram::write(&ram, place, &[0x11; 8]);
        engine.place(Kind::Software, memory, &Translation::Physical, arch::GuestVirt(place.0), || None);
        let address = arch::GuestVirt(place.0);
        let breakpoint = Breakpoint::new(Kind::Software, address, 1, Place::Planted(place));
        engine.requests().table.insert(memory, breakpoint).unwrap();
        let instruction = planted_instruction(HOST_ISA);
        let stands = || {
            let mut bytes = vec![0; instruction.len()];
            memory.read(place, &mut bytes) == bytes.len() && bytes == instruction
        };
        let mut bytes = [0; 8];
        assert!(stands() && Ram::read(&ram, place, &mut bytes) == 8 && bytes == [0x11; 8]);
        assert_eq!(Ram::write(&ram, place, &[0x22; 8]), 8);
        assert!(stands() && Ram::read(&ram, place, &mut bytes) == 8 && bytes == [0x22; 8]);
        // A word of data is the guest's alone, as it may look at it by itself at any time.
        assert_eq!(ram.update(place, 8, 0, 0xff), Some(0x2222_2222_2222_2222));
        assert!(!stands() && memory.read(place, &mut bytes) == 8 && bytes[..2] == [0, 0x22]);
        engine.refresh(memory, || Translation::Physical);
        assert!(stands() && Ram::read(&ram, place, &mut bytes) == 8 && bytes[..2] == [0, 0x22]);
        engine.requests().table.clear(memory);
        assert!(
            memory.read(place, &mut bytes) == 8 && bytes == [0, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22]
        );
    }
}
