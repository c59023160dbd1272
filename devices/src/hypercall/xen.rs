//! Xen's hypercalls: the family, and what it answers.
//!
//! Enough for a guest to live: its version and features, a console, where its memory is, event
//! channels between its own vCPUs, timers, and its end. Everything else is `-ENOSYS`, decoded all the
//! same. Numbers and layouts are those of `xen/include/public` of Xen 4.20.

pub mod cpuid;
pub mod errno;
mod events;
mod platform;
pub mod time;
mod version;

use super::call::Call;
use super::family::{Answer, Effect, Family};
use super::frame::Fault;
use super::table::Table;
use crate::End;
use arch::GuestPhys;
use arch::hypercall::Abi;
use errno::{E2BIG, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH};
use events::Events;
pub use platform::{Delivery, Platform};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

static TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::parse(include_str!("xen/xen.calls")).expect("the tests parse it"));

/// Xen's calls.
pub fn table() -> &'static Table {
    &TABLE
}

/// `DOMID_SELF`.
const SELF: u64 = 0x7ff0;
/// Calls of one multicall that are answered; further ones are not.
const MOST_CALLS: u64 = 1024;
/// Bytes of console output that one exit may write: they wait until somebody reads them.
const MOST_OUTPUT: u64 = 64 << 10;

/// What the guest has told.
#[derive(Debug)]
struct Told {
    events: Events,
    parameters: BTreeMap<u64, u64>,
}

/// Xen's hypercalls.
#[derive(Debug)]
pub struct Xen {
    platform: Box<dyn Platform>,
    state: Mutex<Told>,
}

impl Xen {
    /// The family, for one machine.
    pub fn new(platform: Box<dyn Platform>) -> Xen {
        let events = Events::new(platform.vcpus());
        let state = Told { events, parameters: BTreeMap::new() };
        Xen { platform, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, Told> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU's timer has come to its time.
    pub fn expire(&self, vcpu: u32) {
        self.state().events.raise_virq(&*self.platform, vcpu, events::VIRQ_TIMER);
    }

    /// Answers a call. `room` is how many bytes it, and others in the same exit, may print yet.
    fn dispatch(&self, call: &mut Call<'_>, room: &mut u64) -> Result<Answer, i64> {
        let op = call.op.map(|op| op.label);
        let done = match (call.row.name, op) {
            ("xen_version", Some(op)) => version::answer(call, op)?,
            ("console_io", Some(op)) => self.console(call, op, room)?,
            ("sched_op", Some(op)) => return self.schedule(call, op),
            ("memory_op", Some(op)) => self.memory(call, op)?,
            ("hvm_op", Some(op)) => self.hvm(call, op)?,
            ("vcpu_op", Some(op)) => self.vcpu(call, op)?,
            ("event_channel_op", Some(op)) => self.state().events.answer(&*self.platform, call, op)?,
            ("set_timer_op", _) => {
                let timeout = call.argument("timeout");
                self.platform.set_timer(call.caller.vcpu(), (timeout != 0).then_some(timeout));
                0
            }
            ("vm_assist", _) => 0,
            ("multicall", _) => return self.multicall(call, room),
            _ => return Err(ENOSYS),
        };
        Ok(done.into())
    }

    fn console(&self, call: &mut Call<'_>, op: &str, room: &mut u64) -> Result<i64, i64> {
        let count = call.argument("count");
        match op {
            "write" => {
                const PIECE: usize = 256;
                let total = usize::try_from(count.min(*room)).unwrap_or(0);
                let mut done = 0;
                while done < total {
                    let wanted = total.min(done + PIECE);
                    let text = call.text("buffer", wanted);
                    self.platform.console_write(text.get(done..).unwrap_or(&[]));
                    *room = room.saturating_sub(text.len().saturating_sub(done) as u64);
                    if text.len() < wanted {
                        return Err(EFAULT);
                    }
                    done = wanted;
                }
                // What there is no room for is not said to be printed.
                if count > total as u64 { Err(E2BIG) } else { Ok(0) }
            }
            "read" => {
                let mut bytes = [0; 256];
                let wanted = usize::try_from(count).map_or(bytes.len(), |count| count.min(bytes.len()));
                let read = self.platform.console_read(&mut bytes[..wanted]);
                call.write_text("buffer", &bytes[..read]).map_err(|Fault| EFAULT)?;
                Ok(i64::try_from(read).unwrap_or(0))
            }
            _ => Err(ENOSYS),
        }
    }

    fn schedule(&self, call: &mut Call<'_>, op: &str) -> Result<Answer, i64> {
        match op {
            "yield" => Ok(0.into()),
            "block" => {
                // A block lets events in (Xen, sched.h, SCHEDOP_block).
                let pending = self.state().events.unmask_upcalls(&*self.platform, call.caller.vcpu());
                Ok(Answer { result: 0, effect: if pending { Effect::None } else { Effect::Halt } })
            }
            "poll" => {
                // As many as Xen takes.
                const MOST_PORTS: u64 = 128;
                let caller = call.caller;
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                let (count, timeout) = (frame.get("nr_ports"), frame.get("timeout"));
                if count > MOST_PORTS {
                    return Err(EINVAL);
                }
                let ports = (0..count)
                    .map(|index| frame.pointed(caller, "ports", index).map_err(|Fault| EFAULT))
                    .collect::<Result<Vec<u64>, i64>>()?;
                self.state().events.check(&ports)?;
                // A guest copes with a poll that ends before anything has happened.
                let is_over = || self.state().events.is_any_pending(&*self.platform, &ports);
                self.platform.wait((timeout != 0).then_some(timeout), &is_over);
                Ok(0.into())
            }
            "shutdown" => {
                let reason = call.frame("arg").map_err(|Fault| EFAULT)?.get("reason");
                let end = match reason {
                    0 => End::PowerOff,
                    1 | 5 => End::Reset,
                    3 | 4 => End::Crash,
                    _ => return Err(EINVAL),
                };
                Ok(Answer { result: 0, effect: Effect::End(end) })
            }
            "shutdown_code" => {
                let reason = call.frame("arg").map_err(|Fault| EFAULT)?.get("reason");
                if reason > 5 { Err(EINVAL) } else { Ok(0.into()) }
            }
            _ => Err(ENOSYS),
        }
    }

    fn memory(&self, call: &mut Call<'_>, op: &str) -> Result<i64, i64> {
        const PAGE: u64 = 4096;
        let pages = || self.platform.ram().ranges().iter().map(|range| range.size / PAGE).sum::<u64>();
        let last = || self.platform.ram().ranges().iter().map(|range| range.end().0 / PAGE - 1).max();
        let number = |value: u64| i64::try_from(value).map_err(|_| EINVAL);
        match op {
            "add_to_physmap" => {
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                let (domid, space) = (frame.get("domid"), frame.get("space"));
                let (index, gpfn) = (frame.get("idx"), frame.get("gpfn"));
                is_self(domid)?;
                // The other spaces are of things that this machine has not.
                if space != 0 || index != 0 {
                    return Err(EINVAL);
                }
                let address = gpfn.checked_mul(PAGE).ok_or(EINVAL)?;
                if self.platform.ram().write(GuestPhys(address), &[0; 4096]) < 4096 {
                    return Err(EINVAL);
                }
                let mut state = self.state();
                state.events.share(&*self.platform, address, call.raw.abi, call.caller.tsc());
                Ok(0)
            }
            "memory_map" => {
                let room = call.frame("arg").map_err(|Fault| EFAULT)?.get("nr_entries");
                let buffer = call.frame("arg").map_err(|Fault| EFAULT)?.get("buffer");
                // struct e820entry: address, size, type; 20 bytes (Xen, arch-x86/hvm/start_info.h).
                let entries: Vec<u8> = self
                    .platform
                    .ram()
                    .ranges()
                    .iter()
                    .flat_map(|range| {
                        let (start, size) = (range.start.0.to_le_bytes(), range.size.to_le_bytes());
                        [start.as_slice(), &size, &1u32.to_le_bytes()].concat()
                    })
                    .collect();
                let count = (entries.len() / 20).min(usize::try_from(room).unwrap_or(usize::MAX));
                let bytes = &entries[..count * 20];
                if call.caller.write(buffer, bytes) < bytes.len() {
                    return Err(EFAULT);
                }
                call.frame("arg").map_err(|Fault| EFAULT)?.set("nr_entries", count as u64);
                Ok(0)
            }
            "machine_memory_map" => Err(EPERM),
            "maximum_ram_page" => number(last().unwrap_or(0)),
            "current_reservation" | "maximum_reservation" | "maximum_gpfn" => {
                is_self(call.frame("arg").map_err(|Fault| EFAULT)?.get("domid"))?;
                number(if op == "maximum_gpfn" { last().unwrap_or(0) } else { pages() })
            }
            _ => Err(ENOSYS),
        }
    }

    fn hvm(&self, call: &mut Call<'_>, op: &str) -> Result<i64, i64> {
        match op {
            "set_param" => {
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                let (domid, index, value) = (frame.get("domid"), frame.get("index"), frame.get("value"));
                is_self(domid)?;
                if index > LAST_PARAMETER {
                    return Err(EINVAL);
                }
                let mut state = self.state();
                if index == CALLBACK_IRQ {
                    state.events.set_callback(&*self.platform, call.raw.abi, value)?;
                }
                state.parameters.insert(index, value);
                Ok(0)
            }
            "get_param" => {
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                is_self(frame.get("domid"))?;
                let index = frame.get("index");
                if index > LAST_PARAMETER {
                    return Err(EINVAL);
                }
                // A parameter that nobody has set is 0.
                let value = self.state().parameters.get(&index).copied().unwrap_or(0);
                frame.set("value", value);
                Ok(0)
            }
            "set_evtchn_upcall_vector" if call.raw.abi != Abi::Aarch64 => {
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                let (vcpu, vector) = (frame.get("vcpu"), frame.get("vector"));
                self.state().events.set_vector(&*self.platform, vcpu, vector)
            }
            "pagetable_dying" => Err(EINVAL),
            "get_time" => {
                let now = self.platform.now();
                call.frame("arg").map_err(|Fault| EFAULT)?.set("now", now);
                Ok(0)
            }
            _ => Err(ENOSYS),
        }
    }

    fn vcpu(&self, call: &mut Call<'_>, op: &str) -> Result<i64, i64> {
        let vcpu = u32::try_from(call.argument("vcpuid")).ok().filter(|id| *id < self.platform.vcpus());
        let vcpu = vcpu.ok_or(errno::ENOENT)?;
        match op {
            // How it was started is not Xen's business here.
            "is_up" => Ok(1),
            "register_vcpu_info" => {
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                let (page, offset) = (frame.get("mfn"), frame.get("offset"));
                let address =
                    page.checked_mul(4096).and_then(|page| page.checked_add(offset)).ok_or(EINVAL)?;
                if offset > 4096 - 64 || offset % 8 != 0 {
                    return Err(EINVAL);
                }
                let tsc = call.caller.tsc();
                self.state().events.register(&*self.platform, vcpu, address, call.raw.abi, tsc)
            }
            // A vCPU that runs as it wants to has been running all the time.
            "register_runstate_memory_area" => {
                let address = call.frame("arg").map_err(|Fault| EFAULT)?.get("addr");
                let now = self.platform.now();
                let word = call.raw.abi.word();
                // struct vcpu_runstate_info: state, when it came about, and how long each has lasted.
                let mut info = vec![0; word + 5 * 8];
                info[word..word + 8].copy_from_slice(&now.to_le_bytes());
                info[word + 8..word + 16].copy_from_slice(&now.to_le_bytes());
                if call.caller.write(call.raw.abi.cut(address), &info) < info.len() {
                    Err(EFAULT)
                } else {
                    Ok(0)
                }
            }
            "get_runstate_info" => {
                let now = self.platform.now();
                let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                frame.set("state", 0);
                frame.set("state_entry_time", now);
                frame.set("time", now);
                Ok(0)
            }
            // There is none to stop.
            "stop_periodic_timer" => Ok(0),
            "set_singleshot_timer" | "stop_singleshot_timer" => {
                if vcpu != call.caller.vcpu() {
                    return Err(EINVAL);
                }
                let at = match op {
                    "stop_singleshot_timer" => None,
                    _ => {
                        let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
                        let (at, flags) = (frame.get("timeout_abs_ns"), frame.get("flags"));
                        if flags & 1 != 0 && at < self.platform.now() {
                            return Err(errno::ETIME);
                        }
                        Some(at)
                    }
                };
                self.platform.set_timer(vcpu, at);
                Ok(0)
            }
            "get_physid" => Err(EINVAL),
            _ => Err(ENOSYS),
        }
    }

    /// Each entry is answered in turn, and its result put into it. A multicall within one is
    /// refused.
    fn multicall(&self, call: &mut Call<'_>, room: &mut u64) -> Result<Answer, i64> {
        let mut effect = Effect::None;
        let (list, count) = (call.argument("call_list"), call.argument("nr_calls"));
        let (abi, caller) = (call.raw.abi, call.caller);
        let word = abi.word();
        for index in 0..usize::try_from(count.min(MOST_CALLS)).unwrap_or(0) {
            let mut entry = call.take_entry(index).map_err(|Fault| EFAULT)?;
            let result = match &mut entry.call {
                Some(inner) if inner.row.name == "multicall" => EINVAL,
                Some(inner) => {
                    let answer = self.dispatch(inner, room).unwrap_or_else(Answer::from);
                    // The guest ends once.
                    if effect == Effect::None {
                        effect = answer.effect;
                    }
                    if inner.flush().is_err() { EFAULT } else { answer.result }
                }
                None => ENOSYS,
            };
            entry.result = Some(result);
            call.put_entry(index, entry);
            let place = abi.cut(list.wrapping_add(((index * 8 + 1) * word) as u64));
            let bytes = result.to_le_bytes();
            if caller.write(place, &bytes[..word]) < word {
                return Err(EFAULT);
            }
        }
        let result = if count > MOST_CALLS { EINVAL } else { 0 };
        Ok(Answer { result, effect })
    }
}

const CALLBACK_IRQ: u64 = 0;
const LAST_PARAMETER: u64 = 38;

/// Only the guest itself can be spoken of: it is the only one.
fn is_self(domid: u64) -> Result<(), i64> {
    if domid == SELF || domid == 0 { Ok(()) } else { Err(ESRCH) }
}

impl Family for Xen {
    fn name(&self) -> &'static str {
        "xen"
    }

    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn answer(&self, call: &mut Call<'_>) -> Answer {
        let mut room = MOST_OUTPUT;
        self.dispatch(call, &mut room).unwrap_or_else(Answer::from)
    }

    fn unknown(&self) -> i64 {
        ENOSYS
    }

    fn fault(&self) -> i64 {
        EFAULT
    }

    fn error(&self, result: i64) -> Option<&'static str> {
        errno::name(result)
    }
}
