//! The bus: which function is where, in its two spaces.
//!
//! Configuration spaces are found by a function's place on the bus (PCIe 7.2.2 "ECAM", and x86's configuration
//! mechanism #1). Registers are found where the guest has put them, which it may change at any time: each write to a
//! configuration space that may have moved some renews the list of places. What is put where something else is, of
//! another function or of its own, lies nowhere until that has moved away.
//!
//! A function may be locked by a vCPU for as long as that waits for the host (1 s at a reset). An access waits for the
//! lock of its own function, and one that moves registers away for those of functions that have waited for their place.

use super::Function;
use super::config::{self, SIZE};
use crate::End;
use crate::bus::{Device, Shared};
use crate::state::{Misfit, Saved, Unanswered};
use arch::GuestPhys;
use arch::address::PhysRange;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How many devices a bus has.
pub const DEVICES: usize = 32;
/// How many functions a device may have; ours have one.
const FUNCTIONS: usize = 8;
/// Bytes of configuration spaces of a whole bus.
pub const ECAM_SIZE: u64 = (DEVICES * FUNCTIONS * SIZE) as u64;

/// Registers that the guest has put somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    first: u64,
    last: u64,
    device: usize,
    bar: usize,
}

/// Where registers are, and where those are to be that are nowhere.
#[derive(Debug, Default)]
struct Map {
    /// In ascending order of the first byte. No two meet.
    placed: Vec<Placed>,
    /// As their functions say, with something else there.
    waiting: Vec<Placed>,
}

impl Map {
    fn is_free(&self, entry: &Placed) -> bool {
        !self.placed.iter().any(|it| it.first <= entry.last && entry.first <= it.last)
    }

    /// Whether registers of a device wait for a place that is free.
    fn has_room_for(&self, device: usize) -> bool {
        self.waiting.iter().any(|it| it.device == device && self.is_free(it))
    }

    /// Puts registers there, or has them wait; whether they are there.
    fn put(&mut self, entry: Placed) -> bool {
        if self.placed.contains(&entry) {
            return true;
        }
        if !self.is_free(&entry) {
            self.waiting.push(entry);
            return false;
        }
        let index = self.placed.partition_point(|it| it.first < entry.first);
        self.placed.insert(index, entry);
        true
    }
}

/// A bus.
pub struct PciBus {
    devices: [Option<Shared<dyn Function>>; DEVICES],
    /// Where registers can be reached at all.
    windows: Vec<PhysRange>,
    map: RwLock<Map>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus")
            .field("windows", &self.windows)
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}

fn locked(function: &Shared<dyn Function>) -> MutexGuard<'_, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// An empty bus, whose registers can be reached within `windows`.
    pub fn new(windows: &[PhysRange]) -> PciBus {
        PciBus { devices: Default::default(), windows: windows.to_vec(), map: RwLock::default() }
    }

    /// Adds a function as the next device; its number. `None` when the bus is full.
    pub fn add(&mut self, function: Shared<dyn Function>) -> Option<u8> {
        let free = self.devices.iter().position(Option::is_none)?;
        self.devices[free] = Some(function);
        u8::try_from(free).ok()
    }

    fn function(&self, device: usize, function: usize) -> Option<&Shared<dyn Function>> {
        self.devices.get(device)?.as_ref().filter(|_| function == 0)
    }

    /// Reads a function's configuration space; `data` is as it was, all ones, when there is none.
    pub fn read_config(&self, device: usize, function: usize, offset: usize, data: &mut [u8]) {
        if let Some(function) = self.function(device, function) {
            locked(function).read_config(offset, data);
        }
    }

    /// Writes to it.
    pub fn write_config(&self, device: usize, function: usize, offset: usize, data: &[u8]) {
        let Some(function) = self.function(device, function) else { return };
        let mut function = locked(function);
        let before = places(&*function);
        let may_move = function.config_mut().write(offset, data);
        function.configured(offset, data.len());
        let leaves = may_move && places(&*function) != before && self.place(device, &mut *function);
        // Functions are locked one at a time: two that move might wait for each other.
        drop(function);
        if leaves {
            self.place_waiting();
        }
    }

    /// Where registers would be, if they may be there.
    fn entry(&self, device: usize, (bar, first, size): (usize, u64, u64)) -> Option<Placed> {
        let fits = self.windows.iter().any(|window| window.contains(GuestPhys(first), size));
        fits.then_some(Placed { first, last: first + (size - 1), device, bar })
    }

    /// Puts a function's registers where its configuration space says; whether it has left a place.
    fn place(&self, device: usize, function: &mut dyn Function) -> bool {
        let wanted = places(function).into_iter().map(|(bar, at, size)| {
            let entry = at.and_then(|first| self.entry(device, (bar, first, size)));
            (bar, entry)
        });
        let wanted: Vec<_> = wanted.collect();
        // With the function locked, so that the map and the function agree, whoever else writes.
        let mut map = self.map_mut();
        let count = map.placed.len();
        map.placed.retain(|it| it.device != device || wanted.iter().any(|(_, entry)| *entry == Some(*it)));
        let leaves = map.placed.len() < count;
        map.waiting.retain(|it| it.device != device);
        for (bar, entry) in wanted {
            let entry = entry.filter(|entry| map.put(*entry));
            function.placed(bar, entry.map(|entry| entry.first));
        }
        leaves
    }

    /// Puts registers where their functions want them, if they could not be there before. Those that are somewhere
    /// stay, and functions that do not wait for a place that is free are not locked.
    fn place_waiting(&self) {
        for (device, function) in self.functions() {
            if !self.map().has_room_for(device) {
                continue;
            }
            let mut function = locked(function);
            let mut map = self.map_mut();
            let waiting: Vec<Placed> = map.waiting.extract_if(.., |it| it.device == device).collect();
            for entry in waiting {
                if map.put(entry) {
                    function.placed(entry.bar, Some(entry.first));
                }
            }
        }
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, with the numbers of their devices.
    fn functions(&self) -> impl Iterator<Item = (usize, &Shared<dyn Function>)> {
        self.devices.iter().enumerate().filter_map(|(device, it)| Some((device, it.as_ref()?)))
    }

    /// The states of its functions, in the order of their devices, while the guest is held.
    ///
    /// # Errors
    /// [`Unanswered`], of the first whose state is not to be had.
    pub fn save(&self) -> Result<Vec<Saved>, Unanswered> {
        self.devices.iter().flatten().map(|function| locked(function).save()).collect()
    }

    /// Puts them back.
    ///
    /// # Errors
    /// [`Misfit`]: those before the first that does not fit are put back.
    pub fn restore(&self, states: &[Saved]) -> Result<(), Misfit> {
        if states.len() != self.devices.iter().flatten().count() {
            return Err(Misfit::Damaged { device: NAME, why: "it has another number of devices".into() });
        }
        let done = self.functions().zip(states).try_for_each(|((device, function), saved)| {
            let mut function = locked(function);
            function.restore(saved)?;
            self.place(device, &mut *function);
            Ok(())
        });
        // Where another one was that had not been put back yet.
        self.place_waiting();
        done
    }

    /// What is at an address: the function, the base address, and the offset behind that.
    fn find(&self, address: u64) -> Option<(&Shared<dyn Function>, usize, u64)> {
        let map = self.map();
        let index = map.placed.partition_point(|it| it.first <= address).checked_sub(1)?;
        let Placed { first, last, device, bar } = map.placed[index];
        let function = self.function(device, 0)?;
        (address <= last).then_some((function, bar, address - first))
    }

    /// Reads registers at an address; `data` is as it was, all ones, when there are none.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((function, bar, offset)) = self.find(address) {
            locked(function).read(bar, offset, data);
        }
    }

    /// Writes to them.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<End> {
        let (function, bar, offset) = self.find(address)?;
        locked(function).write(bar, offset, data)
    }
}

/// Of the bus's state.
const NAME: &str = "PCI bus";

type Places = Vec<(usize, Option<u64>, u64)>;

fn places(function: &dyn Function) -> Places {
    function.config().places().collect()
}

/// Configuration spaces in memory: 4 KiB for each function.
#[derive(Debug)]
pub struct Ecam(pub Arc<PciBus>);

/// A function's device, its number in that, and what is left of the offset.
fn split(offset: u64) -> Option<(usize, usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    Some((offset / SIZE / FUNCTIONS, offset / SIZE % FUNCTIONS, offset % SIZE))
}

impl Device for Ecam {
    fn name(&self) -> &'static str {
        "PCI configuration spaces"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((device, function, offset)) = split(offset) {
            self.0.read_config(device, function, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        let (device, function, offset) = split(offset)?;
        self.0.write_config(device, function, offset, data);
        None
    }
}

/// A range of memory in which functions' registers may lie.
#[derive(Debug)]
pub struct Window {
    /// Whose functions'.
    pub bus: Arc<PciBus>,
    /// Where it begins, guest-physical.
    pub start: u64,
}

impl Device for Window {
    fn name(&self) -> &'static str {
        "PCI window"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.bus.read(self.start + offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<End> {
        self.bus.write(self.start + offset, data)
    }
}

/// The host bridge, as which the bus begins: QEMU's generic one (1b36:0008), which needs no driver.
#[derive(Debug)]
pub struct HostBridge(config::Config);

impl Default for HostBridge {
    fn default() -> HostBridge {
        HostBridge(config::Config::new(config::Identity {
            vendor: 0x1b36,
            device: 8,
            revision: 0,
            class: [6, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl Function for HostBridge {
    fn name(&self) -> &'static str {
        "PCI host bridge"
    }

    fn config(&self) -> &config::Config {
        &self.0
    }

    fn config_mut(&mut self) -> &mut config::Config {
        &mut self.0
    }

    fn configured(&mut self, _: usize, _: usize) {}

    fn read(&mut self, _: usize, _: u64, _: &mut [u8]) {}

    fn write(&mut self, _: usize, _: u64, _: &[u8]) -> Option<End> {
        None
    }

    fn placed(&mut self, _: usize, _: Option<u64>) {}

    fn save(&mut self) -> Result<Saved, Unanswered> {
        Ok(Saved::new(self.name(), 1, &self.0.save()))
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), Misfit> {
        let device = self.name();
        let fits = self.0.restore(&saved.fields::<Vec<u8>>(device, 1)?);
        fits.then_some(()).ok_or_else(|| Misfit::Damaged { device, why: "it is of another function".into() })
    }
}

/// A bus with nothing but its bridge.
pub fn with_bridge(windows: &[PhysRange]) -> PciBus {
    let mut bus = PciBus::new(windows);
    bus.add(Arc::new(Mutex::new(HostBridge::default())));
    bus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::{Config, Identity};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const LOW: PhysRange = PhysRange::new(0xd000_0000, 0x1000_0000);
    const HIGH: PhysRange = PhysRange::new(0x80_0000_0000, 0x40_0000_0000);

    struct Probe {
        config: Config,
        placed: Vec<(usize, Option<u64>)>,
        written: Vec<(usize, u64)>,
    }

    impl Function for Probe {
        fn name(&self) -> &'static str {
            "probe"
        }

        fn config(&self) -> &Config {
            &self.config
        }

        fn config_mut(&mut self) -> &mut Config {
            &mut self.config
        }

        fn configured(&mut self, _: usize, _: usize) {}

        fn read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap_or(0xee) + u8::try_from(bar).unwrap();
        }

        fn write(&mut self, bar: usize, offset: u64, _: &[u8]) -> Option<End> {
            self.written.push((bar, offset));
            None
        }

        fn placed(&mut self, bar: usize, at: Option<u64>) {
            self.placed.push((bar, at));
        }

        fn save(&mut self) -> Result<Saved, Unanswered> {
            Ok(Saved::new(self.name(), 1, &self.config.save()))
        }

        fn restore(&mut self, saved: &Saved) -> Result<(), Misfit> {
            self.config.restore(&saved.fields::<Vec<u8>>("probe", 1)?);
            Ok(())
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        let (vendor, device) = (0x1234, 0x5678);
        let identity =
            Identity { vendor, device, revision: 0, class: [0xff, 0, 0], subsystem_vendor: 0, subsystem: 0 };
        let config = Config::new(identity).bar(0, 0x1000).bar(2, 0x4000);
        Arc::new(Mutex::new(Probe { config, placed: Vec::new(), written: Vec::new() }))
    }

    fn put(bus: &PciBus, device: usize, bar: usize, at: u64) {
        bus.write_config(device, 0, 0x10 + 4 * bar, &at.to_le_bytes());
    }

    fn first_byte(bus: &PciBus, address: u64) -> u8 {
        let mut data = [0xff];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn functions_are_found_by_their_place() {
        let mut bus = with_bridge(&[LOW]);
        assert_eq!(bus.add(probe()), Some(1));
        for expected in 2..32 {
            assert_eq!(bus.add(probe()), Some(expected));
        }
        assert_eq!(bus.add(probe()), None);
        let mut ecam = Ecam(Arc::new(bus));
        let mut id = |offset: u64| {
            let mut data = [0xff; 4];
            ecam.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!([0, 0x8000, 31 * 0x8000].map(&mut id), [0x0008_1b36, 0x5678_1234, 0x5678_1234]);
        // Other functions, another bus.
        assert_eq!([0x1000, 0x9000, ECAM_SIZE, u64::MAX].map(&mut id), [u32::MAX; 4]);
    }

    /// Also when it goes, or when two are put back in each other's places.
    #[test]
    fn what_was_in_the_way_moves_and_makes_room() {
        let probes = [probe(), probe(), probe()];
        let mut bus = PciBus::new(&[LOW, HIGH]);
        for (device, probe) in probes.iter().enumerate() {
            bus.add(probe.clone());
            bus.write_config(device, 0, 4, &[2, 0]);
        }
        let at = |number: u64| LOW.start.0 + 0x10000 * number;
        let where_is = |device: usize| {
            let told = probes[device].lock().unwrap().placed.iter().rev().find(|it| it.0 == 0).unwrap().1;
            let listed =
                bus.map().placed.iter().find(|it| (it.device, it.bar) == (device, 0)).map(|it| it.first);
            assert_eq!(told, listed, "{device}");
            told
        };
        (0..3).for_each(|device| put(&bus, device, 0, at(0)));
        assert_eq!([0, 1, 2].map(where_is), [Some(at(0)), None, None]);
        put(&bus, 0, 0, at(1));
        assert_eq!([0, 1, 2].map(where_is), [Some(at(1)), Some(at(0)), None]);
        let one_way = bus.save().unwrap();
        bus.write_config(1, 0, 4, &[0, 0]);
        assert_eq!([0, 1, 2].map(where_is), [Some(at(1)), None, Some(at(0))]);
        // The second has the third's place, and the first its own.
        bus.restore(&one_way).unwrap();
        assert_eq!(where_is(0), Some(at(1)));
        assert_eq!([1, 2].map(where_is).iter().flatten().count(), 1);
        put(&bus, 2, 0, at(2));
        assert_eq!([0, 1, 2].map(where_is), [Some(at(1)), Some(at(0)), Some(at(2))]);
        let other_way = bus.save().unwrap();
        put(&bus, 0, 0, at(3));
        put(&bus, 1, 0, at(1));
        put(&bus, 0, 0, at(0));
        assert_eq!([0, 1].map(where_is), [Some(at(0)), Some(at(1))]);
        bus.restore(&other_way).unwrap();
        assert_eq!([0, 1, 2].map(where_is), [Some(at(1)), Some(at(0)), Some(at(2))]);
    }

    #[test]
    fn what_is_of_the_same_function_stays_where_it_is() {
        let probe = probe();
        let mut bus = PciBus::new(&[LOW]);
        bus.add(probe.clone());
        bus.write_config(0, 0, 4, &[2, 0]);
        let told = || std::mem::take(&mut probe.lock().unwrap().placed);
        put(&bus, 0, 2, LOW.start.0);
        told();
        put(&bus, 0, 0, LOW.start.0);
        assert_eq!(told(), [(0, None), (2, Some(LOW.start.0))]);
        put(&bus, 0, 2, LOW.start.0 + 0x4000);
        assert_eq!(told(), [(0, Some(LOW.start.0)), (2, Some(LOW.start.0 + 0x4000))]);
    }

    /// What was put back before has made room all the same.
    #[test]
    fn a_state_that_does_not_fit_leaves_places_in_order() {
        let probes = [probe(), probe(), probe()];
        let mut bus = PciBus::new(&[LOW]);
        for probe in &probes {
            bus.add(probe.clone());
        }
        for (device, at) in [(1, LOW.start.0 + 0x1000), (0, LOW.start.0)] {
            put(&bus, device, 0, at);
            bus.write_config(device, 0, 4, &[2, 0]);
        }
        let mut states = bus.save().unwrap();
        states[2] = Saved::new("another", 1, &());
        put(&bus, 0, 0, LOW.start.0 + 0x2000);
        put(&bus, 1, 0, LOW.start.0);
        assert!(bus.restore(&states).is_err());
        assert_eq!(probes[0].lock().unwrap().placed.last(), Some(&(0, Some(LOW.start.0))));
        assert_eq!(first_byte(&bus, LOW.start.0 + 3), 3);
    }

    /// That one may wait for the host.
    #[test]
    fn a_move_does_not_wait_for_a_function_that_is_not_concerned() {
        let (first, second) = (probe(), probe());
        let mut bus = PciBus::new(&[LOW]);
        bus.add(first);
        bus.add(second.clone());
        for (device, at) in [(0, LOW.start.0), (1, LOW.start.0 + 0x1000)] {
            put(&bus, device, 0, at);
            bus.write_config(device, 0, 4, &[2, 0]);
        }
        let (sender, is_done) = channel();
        let held = second.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bus.write_config(0, 0, 4, &[0, 0]);
                sender.send(()).ok();
            });
            let done = is_done.recv_timeout(Duration::from_secs(20));
            drop(held);
            done.unwrap();
        });
        assert_eq!(first_byte(&bus, LOW.start.0), 0xff);
    }

    /// In another bus of the same machine: what is saved there is equal, and registers are found where they were.
    #[test]
    fn it_goes_on_from_a_saved_state() {
        let bus = || {
            let mut bus = with_bridge(&[LOW, HIGH]);
            for number in 1..=2 {
                assert_eq!(bus.add(probe()), Some(number));
            }
            bus
        };
        let (former, next) = (bus(), bus());
        let fresh = former.save().unwrap();
        for (device, at) in [(1, LOW.start.0), (2, LOW.start.0 + 0x8000)] {
            put(&former, device, 0, at);
            put(&former, device, 2, HIGH.start.0 + at);
            former.write_config(device, 0, 4, &[2, 0]);
        }
        former.write_config(2, 0, 0x3c, &[9]);
        let saved = former.save().unwrap();
        assert!(saved != fresh && next.save().unwrap() == fresh && saved.len() == 3);
        next.restore(&saved).unwrap();
        assert_eq!(next.save().unwrap(), saved);
        for bus in [&former, &next] {
            let found = [0, 0x8000, 0x4000].map(|at| first_byte(bus, LOW.start.0 + at + 5));
            assert_eq!(found, [5, 5, 0xff]);
            assert_eq!(first_byte(bus, HIGH.start.0 + LOW.start.0 + 0x8000 + 5), 7);
            let mut line = [0];
            bus.read_config(2, 0, 0x3c, &mut line);
            assert_eq!(line, [9]);
        }
        // And back: nowhere.
        next.restore(&fresh).unwrap();
        assert_eq!((next.save().unwrap() == fresh, first_byte(&next, LOW.start.0 + 5)), (true, 0xff));
        // Fewer devices; others.
        assert!(next.restore(&saved[1..]).is_err());
        assert!(next.restore(&[saved[1].clone(), saved[0].clone(), saved[2].clone()]).is_err());
        assert_eq!(next.save().unwrap(), fresh);
    }

    #[test]
    fn registers_are_where_the_guest_has_put_them() {
        let (first, second) = (probe(), probe());
        let mut bus = PciBus::new(&[LOW, HIGH]);
        bus.add(first.clone());
        bus.add(second.clone());
        put(&bus, 0, 0, LOW.start.0);
        assert_eq!(first_byte(&bus, LOW.start.0), 0xff, "memory is not on");
        bus.write_config(0, 0, 4, &[2, 0]);
        assert_eq!(first_byte(&bus, LOW.start.0 + 3), 3);
        put(&bus, 0, 2, HIGH.start.0);
        assert_eq!(first_byte(&bus, HIGH.start.0 + 0x10), 0x12);
        assert_eq!(
            [LOW.start.0 + 0x1000, LOW.start.0 - 1, HIGH.start.0 + 0x4000].map(|at| first_byte(&bus, at)),
            [0xff; 3]
        );
        // Where another one is, or no window, or over the end of one: nowhere, and the other one is left alone.
        bus.write_config(1, 0, 4, &[2, 0]);
        let over = (HIGH.start.0 + HIGH.size - 0x2000) & !0x3fff;
        for (bar, at) in [(0, LOW.start.0), (2, HIGH.start.0), (0, 0x1000), (2, LOW.start.0 - 0x4000), (2, 0)]
        {
            put(&bus, 1, bar, at);
            assert_eq!(second.lock().unwrap().placed.last(), Some(&(2, None)), "{at:#x}");
        }
        put(&bus, 1, 2, over);
        assert_eq!(second.lock().unwrap().placed.last(), Some(&(2, Some(over))));
        assert_eq!(first_byte(&bus, LOW.start.0 + 3), 3);
        // It moves, and goes.
        put(&bus, 0, 0, LOW.start.0 + 0x7000);
        assert_eq!((first_byte(&bus, LOW.start.0), first_byte(&bus, LOW.start.0 + 0x7001)), (0xff, 1));
        let mut window = Window { bus: Arc::new(bus), start: LOW.start.0 };
        assert_eq!(window.write(0x7008, &[1]), None);
        assert_eq!(first.lock().unwrap().written, [(0, 8)]);
        window.bus.write_config(0, 0, 4, &[0, 0]);
        assert!(first.lock().unwrap().placed.ends_with(&[(0, None), (2, None)]));
        let mut data = [0xff; 4];
        window.read(0x7008, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
