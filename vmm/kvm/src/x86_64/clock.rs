//! An x86 guest's time: time-stamp counters, kvm-clock, the timers of local APICs, and the PIT.
//!
//! * The counter goes back by its offset (KVM API, `KVM_VCPU_TSC_OFFSET`), that of all vCPUs by the same
//!   number of cycles, so that they stay alike; where a host has no such attribute, by writing the MSR.
//! * A TSC deadline runs in the host's time once it is armed: moving the offset does not move it. It is
//!   taken away, and written again when the counter is right.
//! * A local APIC's timer in its other two modes is set going again from the count that it had (KVM
//!   reads it from TMCCT). Its registers are written as they are at that moment, so that interrupts
//!   which have arrived meanwhile stay.
//! * The PIT's periodic timer is stopped meanwhile; KVM starts a whole period when it is set again, so ticks
//!   are made up for what was begun of others. Its last counter, by which guests measure others, goes on from
//!   where it was. A first channel that interrupts once runs on: KVM does not tell what is left of it.

use super::NativeVm;
use crate::error::{KvmError, ioctl};
use crate::lines::Lines;
use kvm_bindings as kvm;
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, 0xae, 0xe1, kvm::kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, 0xae, 0xe2, kvm::kvm_device_attr);

/// KVM API, "Group: `KVM_VCPU_TSC_CTRL`".
const KVM_VCPU_TSC_CTRL: u32 = 0;
const KVM_VCPU_TSC_OFFSET: u64 = 0;

/// Intel SDM vol. 4, "Architectural MSRs".
const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Offsets of a local APIC's registers, and bits of them (Intel SDM vol. 3, "Local APIC Register Address
/// Map", "Local Vector Table", "Divide Configuration Register").
mod apic {
    pub const IRR: usize = 0x200;
    pub const LVT_TIMER: usize = 0x320;
    pub const INITIAL_COUNT: usize = 0x380;
    pub const CURRENT_COUNT: usize = 0x390;
    pub const DIVIDE: usize = 0x3e0;
    pub const MASKED: u32 = 1 << 16;
    pub const MODE: u32 = 0b11 << 17;
    pub const ONE_SHOT: u32 = 0;
    pub const PERIODIC: u32 = 0b01 << 17;
}

/// What is known of the machine's timers. The place of each counter is kept with its vCPU, by KVM.
#[derive(Debug, Default)]
pub struct Counter(Mutex<Option<Ticks>>);

/// The PIT's periodic timer since it was set going last. KVM does not tell how far it has come in a period, and
/// begins a whole one when it is set; so what was begun of others is gathered, and the guest gets the tick that
/// it makes up. Else one that is held more often than once in a period would never have another tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    period: Duration,
    started: Instant,
    /// What was begun of periods before: as a rule less than one.
    begun: Duration,
}

impl Ticks {
    /// Those of a timer with this count, which is set going now, when the guest's time has gone on for `late` already.
    fn start(count: u32, now: Instant, late: Duration) -> Ticks {
        // KVM lets no timer be faster (`min_timer_period_us`).
        const SHORTEST: Duration = Duration::from_micros(200);
        let period = u64::from(count).saturating_mul(1_000_000_000) / PIT_RATE;
        Ticks { period: Duration::from_nanos(period).max(SHORTEST), started: now, begun: late }
    }

    /// The same set going once more, after it was stopped at `stopped`, when it had stood still for `owed`
    /// since it was set going; and whether a tick is due. One that the guest has set meanwhile is a new one.
    fn restart(self, before: Option<Ticks>, stopped: Instant, owed: Duration) -> (Ticks, bool) {
        let Some(before) = before.filter(|before| before.period == self.period) else { return (self, false) };
        let ran = stopped.saturating_duration_since(before.started).saturating_sub(owed);
        let part = ran.as_nanos() % self.period.as_nanos();
        let begun = self.begun + before.begun + Duration::from_nanos(u64::try_from(part).unwrap_or(0));
        let left = begun.checked_sub(self.period);
        (Ticks { begun: left.unwrap_or(begun), ..self }, left.is_some())
    }
}

/// What the machine's clocks and timers said.
#[derive(Debug)]
pub struct FrozenVm {
    /// kvm-clock, nanoseconds.
    clock: u64,
    /// The PIT, if it was stopped.
    pit: Option<kvm::kvm_pit_state2>,
}

/// What a vCPU's said.
#[derive(Debug)]
pub struct FrozenVcpu {
    counter: u64,
    /// The deadline that was taken away; else 0.
    deadline: u64,
    timer: Option<Timer>,
}

/// A local APIC's timer that counts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Timer {
    is_periodic: bool,
    initial: u32,
    current: u32,
    /// Nanoseconds that one count takes, with KVM's bus clock of 1 GHz.
    count: u32,
}

/// In words.
pub fn what(counts: bool) -> &'static str {
    if counts { "TSC, kvm-clock and timers" } else { "kvm-clock only; the TSC runs on" }
}

fn register(lapic: &kvm::kvm_lapic_state, at: usize) -> u32 {
    let byte = |index: usize| lapic.regs[at + index].to_le_bytes()[0];
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn set_register(lapic: &mut kvm::kvm_lapic_state, at: usize, value: u32) {
    for (place, byte) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *place = std::ffi::c_char::from_le_bytes([byte]);
    }
}

impl Timer {
    /// `None` for one that does not count down; a deadline is none.
    fn of(lapic: &kvm::kvm_lapic_state) -> Option<Timer> {
        let is_periodic = match register(lapic, apic::LVT_TIMER) & apic::MODE {
            apic::ONE_SHOT => false,
            apic::PERIODIC => true,
            _ => return None,
        };
        let (initial, current) = (register(lapic, apic::INITIAL_COUNT), register(lapic, apic::CURRENT_COUNT));
        // Bits 0, 1 and 3 together: 2, 4, ... 128, 1.
        let divide = register(lapic, apic::DIVIDE);
        let count = 1 << (((divide & 0b11 | divide >> 1 & 0b100) + 1) & 0b111);
        (initial != 0 && current != 0).then_some(Timer { is_periodic, initial, current, count })
    }

    /// What it counted down from `owed` before, and whether it went off since.
    fn before(&self, owed: Duration) -> (u32, bool) {
        let owed = u64::try_from(owed.as_nanos()).unwrap_or(u64::MAX) / u64::from(self.count);
        let elapsed = u64::from(self.initial.saturating_sub(self.current));
        if owed <= elapsed || !self.is_periodic {
            let current = u64::from(self.current).saturating_add(owed).min(u64::from(self.initial));
            return (u32::try_from(current).unwrap_or(self.initial), false);
        }
        // It has gone off; KVM keeps one tick that is due, and drops it when the timer is set.
        (self.current, true)
    }
}

/// Modes of the PIT (8254): rate generator and square wave; both also by their numbers plus 4.
const PERIODIC: [u8; 4] = [2, 3, 6, 7];
/// Hz, of the PIT.
const PIT_RATE: u64 = 1_193_182;

/// Nanoseconds by the clock by which KVM notes when a counter of the PIT was loaded.
fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.ok().and_then(|now| u64::try_from(Duration::from(now).as_nanos()).ok()).unwrap_or(0)
}

/// What a counter of the PIT has left of `count`, this many nanoseconds after it was loaded; 1 when it has
/// come to its end, which it does at once then.
fn pit_left(count: u32, elapsed: u64) -> u32 {
    let gone = u128::from(elapsed) * u128::from(PIT_RATE) / 1_000_000_000;
    u32::try_from(u128::from(count).saturating_sub(gone)).unwrap_or(0).max(1)
}

/// `KVM_GET_CLOCK`; stops the PIT.
pub fn freeze_vm(vm: &VmFd) -> Result<FrozenVm, KvmError> {
    /// Modes in which the first channel interrupts once. KVM does not tell what is left of it.
    const ONCE: [u8; 3] = [0, 1, 4];
    /// A mode that runs no timer in KVM.
    const STOPPED: u8 = 5;
    let clock = vm.get_clock().map_err(ioctl("KVM_GET_CLOCK"))?.clock;
    let mut pit = vm.get_pit2().map_err(ioctl("KVM_GET_PIT2"))?;
    let [first, others @ ..] = &mut pit.channels;
    if ONCE.contains(&first.mode) {
        return Ok(FrozenVm { clock, pit: None });
    }
    let now = monotonic();
    let mut counts = false;
    // Setting them loads them anew. Guests measure their counters by what is left of the last one.
    for channel in others.iter_mut().filter(|channel| ONCE.contains(&channel.mode)) {
        let loaded = u64::try_from(channel.count_load_time).unwrap_or(now);
        channel.count = pit_left(channel.count, now.saturating_sub(loaded));
        counts |= channel.count > 1;
    }
    if !counts && !PERIODIC.contains(&first.mode) {
        return Ok(FrozenVm { clock, pit: None });
    }
    let before = pit;
    pit.channels[0].mode = STOPPED;
    vm.set_pit2(&pit).map_err(ioctl("KVM_SET_PIT2"))?;
    Ok(FrozenVm { clock, pit: Some(before) })
}

/// Sets the PIT going again, that was stopped at `stopped`, when the guest had stood still for `owed`, and whose time
/// goes on from `restart`. It is the last thing of all, as its interrupts come from within KVM, which would be lost
/// while a local APIC's registers are written; what passes until then is a part of a period that is begun.
pub fn start_timers(
    vm: &VmFd,
    counter: &Counter,
    frozen: &FrozenVm,
    (stopped, owed, restart): (Instant, Duration, Instant),
    lines: &Lines,
) -> Result<(), KvmError> {
    /// The PIT's GSI.
    const PIT_LINE: u32 = 0;
    let mut ticks = counter.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pit) = &frozen.pit else {
        *ticks = None;
        return Ok(());
    };
    vm.set_pit2(pit).map_err(ioctl("KVM_SET_PIT2"))?;
    let first = &pit.channels[0];
    if !PERIODIC.contains(&first.mode) {
        *ticks = None;
        return Ok(());
    }
    let now = Instant::now();
    let begins = Ticks::start(first.count, now, now.saturating_duration_since(restart));
    let (now, is_due) = begins.restart(*ticks, stopped, owed);
    *ticks = Some(now);
    if is_due {
        let _raised = lines.raise();
        NativeVm::set_line(vm, PIT_LINE, true)?;
        NativeVm::set_line(vm, PIT_LINE, false)?;
    }
    Ok(())
}

/// `KVM_SET_CLOCK`.
pub fn thaw_vm(
    vm: &VmFd,
    _: &Counter,
    frozen: &FrozenVm,
    owed: Duration,
    _counts: bool,
) -> Result<(), KvmError> {
    let owed = u64::try_from(owed.as_nanos()).unwrap_or(u64::MAX);
    let clock = kvm::kvm_clock_data { clock: frozen.clock.saturating_sub(owed), ..Default::default() };
    vm.set_clock(&clock).map_err(ioctl("KVM_SET_CLOCK"))
}

fn read_msrs<const N: usize>(vcpu: &VcpuFd, indices: [u32; N]) -> Result<[u64; N], KvmError> {
    let entries = indices.map(|index| kvm::kvm_msr_entry { index, ..Default::default() });
    let mut msrs = kvm::Msrs::from_entries(&entries).map_err(|_| KvmError::Missing("room for a few MSRs"))?;
    let count = vcpu.get_msrs(&mut msrs).map_err(ioctl("KVM_GET_MSRS"))?;
    // Those behind one that KVM does not know are not read.
    let mut values = [0; N];
    for (value, entry) in values.iter_mut().zip(&msrs.as_slice()[..count]) {
        *value = entry.data;
    }
    Ok(values)
}

fn write_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), KvmError> {
    let entry = kvm::kvm_msr_entry { index, data, ..Default::default() };
    let msrs = kvm::Msrs::from_entries(&[entry]).map_err(|_| KvmError::Missing("room for an MSR"))?;
    match vcpu.set_msrs(&msrs).map_err(ioctl("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(ioctl("KVM_SET_MSRS")(kvm_ioctls::Error::new(libc::EINVAL))),
    }
}

/// Reads the counter, the deadline, which is taken away, and the local APIC's timer.
pub fn freeze_vcpu(vcpu: &VcpuFd, counts: bool) -> Result<FrozenVcpu, KvmError> {
    let [counter, deadline] = read_msrs(vcpu, [IA32_TIME_STAMP_COUNTER, IA32_TSC_DEADLINE])?;
    if deadline != 0 {
        // Where the counter goes on, so does what compares with it.
        if counts {
            write_msr(vcpu, IA32_TSC_DEADLINE, 0)?;
        }
        return Ok(FrozenVcpu { counter, deadline: if counts { deadline } else { 0 }, timer: None });
    }
    let lapic = vcpu.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
    Ok(FrozenVcpu { counter, deadline, timer: Timer::of(&lapic) })
}

/// Cycles of the guest since the counter was taken, and for `owed` before.
pub fn cycles_since(vcpu: &VcpuFd, frozen: &FrozenVcpu, owed: Duration) -> Result<Option<u64>, KvmError> {
    let before = cycles(vcpu, owed)?;
    let [now] = read_msrs(vcpu, [IA32_TIME_STAMP_COUNTER])?;
    Ok(Some(now.wrapping_sub(frozen.counter).wrapping_add(before)))
}

/// Whether the clocks can be put back by a difference, without having been taken.
pub fn can_shift(_: &Counter) -> bool {
    true
}

/// kvm-clock goes back by `owed`.
pub fn shift_vm(vm: &VmFd, _: &Counter, owed: Duration, _counts: bool) -> Result<(), KvmError> {
    let clock = vm.get_clock().map_err(ioctl("KVM_GET_CLOCK"))?.clock;
    let clock = clock.saturating_sub(u64::try_from(owed.as_nanos()).unwrap_or(u64::MAX));
    let clock = kvm::kvm_clock_data { clock, ..Default::default() };
    vm.set_clock(&clock).map_err(ioctl("KVM_SET_CLOCK"))
}

/// The counter goes back by `owed`, and so do the timers that are armed.
pub fn shift_vcpu(vcpu: &VcpuFd, owed: Duration, counts: bool, lines: &Lines) -> Result<(), KvmError> {
    let [deadline] = read_msrs(vcpu, [IA32_TSC_DEADLINE])?;
    if counts {
        move_back(vcpu, cycles(vcpu, owed)?)?;
        if deadline != 0 {
            write_msr(vcpu, IA32_TSC_DEADLINE, deadline)?;
        }
    } else {
        notify(vcpu)?;
    }
    if deadline != 0 {
        return Ok(());
    }
    let lapic = vcpu.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
    match Timer::of(&lapic) {
        Some(timer) => lines.keep_still(|| restart(vcpu, timer, owed)),
        None => Ok(()),
    }
}

/// Cycles of the guest in a time.
fn cycles(vcpu: &VcpuFd, time: Duration) -> Result<u64, KvmError> {
    let khz = u128::from(vcpu.get_tsc_khz().map_err(ioctl("KVM_GET_TSC_KHZ"))?);
    Ok(u64::try_from(time.as_nanos() * khz / 1_000_000).unwrap_or(0))
}

/// Tells a guest that looks for it that it was held.
fn notify(vcpu: &VcpuFd) -> Result<(), KvmError> {
    match vcpu.kvmclock_ctrl() {
        // The guest uses no kvm-clock.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        result => result.map_err(ioctl("KVM_KVMCLOCK_CTRL")),
    }
}

/// Moves the counter back.
fn move_back(vcpu: &VcpuFd, cycles: u64) -> Result<(), KvmError> {
    let mut offset = 0u64;
    let attribute = kvm::kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET,
        addr: std::ptr::from_mut(&mut offset) as u64,
        flags: 0,
    };
    // SAFETY: KVM writes the 8 bytes that the attribute points to, which live through the call.
    if unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) } != 0 {
        // Linux before 5.16.
        let [now] = read_msrs(vcpu, [IA32_TIME_STAMP_COUNTER])?;
        return write_msr(vcpu, IA32_TIME_STAMP_COUNTER, now.wrapping_sub(cycles));
    }
    let back = offset.wrapping_sub(cycles);
    let attribute = kvm::kvm_device_attr { addr: std::ptr::from_ref(&back) as u64, ..attribute };
    // SAFETY: KVM reads the 8 bytes, which live through the call.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => Err(ioctl("KVM_SET_DEVICE_ATTR for KVM_VCPU_TSC_OFFSET")(kvm_ioctls::Error::last())),
    }
}

/// Moves the counter back, arms the timers again, and tells a guest that looks for it that it was held.
pub fn thaw_vcpu(
    vcpu: &VcpuFd,
    frozen: &FrozenVcpu,
    back: Option<u64>,
    owed: Duration,
    lines: &Lines,
) -> Result<(), KvmError> {
    let moved = back.map_or(Ok(()), |cycles| move_back(vcpu, cycles));
    // Whatever has become of the counter: a guest without its timer stands still for good.
    if frozen.deadline != 0 {
        write_msr(vcpu, IA32_TSC_DEADLINE, frozen.deadline)?;
    }
    moved?;
    if let Some(timer) = frozen.timer {
        lines.keep_still(|| restart(vcpu, timer, owed))?;
    }
    notify(vcpu)
}

/// Sets a local APIC's timer going again from where it was.
fn restart(vcpu: &VcpuFd, timer: Timer, owed: Duration) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
    let (current, is_due) = timer.before(owed);
    set_register(&mut lapic, apic::CURRENT_COUNT, current);
    let local = register(&lapic, apic::LVT_TIMER);
    if is_due && local & apic::MASKED == 0 {
        let vector = local & 0xff;
        let at = apic::IRR + 0x10 * (vector as usize / 32);
        let pending = register(&lapic, at) | 1 << (vector % 32);
        set_register(&mut lapic, at, pending);
    }
    vcpu.set_lapic(&lapic).map_err(ioctl("KVM_SET_LAPIC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(mode: u32, initial: u32, current: u32, divide: u32) -> kvm::kvm_lapic_state {
        let mut lapic = kvm::kvm_lapic_state { regs: [0; 1024] };
        for (at, value) in [
            (apic::LVT_TIMER, mode | 0xec),
            (apic::INITIAL_COUNT, initial),
            (apic::CURRENT_COUNT, current),
            (apic::DIVIDE, divide),
        ] {
            set_register(&mut lapic, at, value);
            assert_eq!(register(&lapic, at), value);
        }
        lapic
    }

    #[test]
    fn timers_that_count_down() {
        const DEADLINE: u32 = 0b10 << 17;
        let of = |mode, initial, current, divide| Timer::of(&lapic(mode, initial, current, divide));
        assert_eq!(of(DEADLINE, 5, 5, 0), None);
        assert_eq!(of(apic::ONE_SHOT, 1000, 0, 0), None);
        assert_eq!(of(apic::PERIODIC, 0, 0, 0), None);
        for (divide, count) in
            [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1011, 1)]
        {
            let timer = of(apic::PERIODIC, 0x8000_0000, 3, divide).unwrap();
            assert_eq!((timer.count, timer.initial, timer.current), (count, 0x8000_0000, 3), "{divide:#b}");
        }
    }

    #[test]
    fn a_timer_that_is_held_within_each_period_ticks_as_often() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut ticks = Ticks::start(11932, start, ms(0));
        let (period, mut at, mut due) = (ticks.period, start, 0);
        assert!(period > ms(9) && period < ms(11));
        for _ in 0..100 {
            // 4 ms in the guest, and 7 held, of which 2 have gone by before the timer was stopped.
            let stopped = at + ms(6);
            at += ms(11);
            let (now, is_due) = Ticks::start(11932, at, ms(0)).restart(Some(ticks), stopped, ms(2));
            (ticks, due) = (now, due + u32::from(is_due));
        }
        assert!((39..=40).contains(&due), "{due}");
        // Whole periods in the guest have had their ticks.
        let (now, is_due) =
            Ticks::start(11932, at, ms(0)).restart(Some(ticks), at + period * 3, Duration::ZERO);
        assert_eq!((now.begun, is_due), (ticks.begun, false));
        // It is set going when the guest has run for a while, each time.
        let (mut ticks, mut at, mut due) = (Ticks::start(11932, start, ms(0)), start, 0);
        for _ in 0..100 {
            at += ms(4);
            let (now, is_due) = Ticks::start(11932, at, ms(3)).restart(Some(ticks), at, ms(0));
            (ticks, due) = (now, due + u32::from(is_due));
        }
        assert!((69..=70).contains(&due), "{due}");
        // Another one begins anew.
        let other = Ticks::start(1193, at, ms(0));
        assert_eq!(other.restart(Some(ticks), at + ms(50), Duration::ZERO), (other, false));
    }

    #[test]
    fn counters_of_the_pit_go_on_from_where_they_were() {
        assert_eq!(pit_left(0x1_0000, 0), 0x1_0000);
        // 10 ms of 50.
        assert_eq!(pit_left(59659, 10_000_000), 59659 - 11931);
        assert_eq!((pit_left(11931, 10_000_000), pit_left(5, u64::MAX)), (1, 1));
    }

    #[test]
    fn what_was_held_before_the_timer_was_read_is_given_back() {
        let timer = |is_periodic, current| Timer { is_periodic, initial: 1000, current, count: 2 };
        let owed = Duration::from_nanos(200);
        assert_eq!(timer(true, 500).before(owed), (600, false));
        assert_eq!(timer(false, 950).before(owed), (1000, false));
        // 50 counts ago it began anew.
        assert_eq!(timer(true, 950).before(owed), (950, true));
        assert_eq!(timer(true, 500).before(Duration::ZERO), (500, false));
    }
}
