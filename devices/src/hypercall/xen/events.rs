//! Event channels between the guest's own vCPUs, by the two-level interface: bits in the shared
//! page, and an interrupt.
//!
//! Source: Xen, `xen/include/public/event_channel.h` and `xen.h` (`struct shared_info`, `struct
//! vcpu_info`).

use super::errno::{EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, ESRCH};
use super::platform::Platform;
use super::time;
use crate::hypercall::call::Call;
use crate::hypercall::caller::Tsc;
use crate::hypercall::frame::Fault;
use arch::GuestPhys;
use arch::hypercall::Abi;

/// Ports that a guest may have: as many as a 32-bit one can.
const PORTS: usize = 1024;
/// The timer's event.
pub const VIRQ_TIMER: u64 = 0;
const LAST_VIRQ: u64 = 23;

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Closed,
    Unbound,
    Interdomain { remote: usize },
    Virq { virq: u64 },
    Ipi,
}

/// Where the shared page has what (Xen, `struct shared_info`), in bytes.
struct Layout {
    /// `struct vcpu_info`s, and how many are in the page.
    info: u64,
    infos: u32,
    /// `evtchn_pending` and `evtchn_mask`.
    pending: u64,
    mask: u64,
    /// Bytes of a word of these.
    word: usize,
}

const fn layout(abi: Abi) -> Layout {
    match abi {
        Abi::X86_64 => Layout { info: 64, infos: 32, pending: 2048, mask: 2560, word: 8 },
        Abi::X86_32 => Layout { info: 64, infos: 32, pending: 2048, mask: 2176, word: 4 },
        Abi::Aarch64 => Layout { info: 48, infos: 1, pending: 48, mask: 560, word: 8 },
    }
}

/// `evtchn_upcall_pending` and `evtchn_upcall_mask` in `struct vcpu_info`; `evtchn_pending_sel` is at
/// the next word.
const UPCALL_PENDING: u64 = 0;
const UPCALL_MASK: u64 = 1;

#[derive(Clone, Copy, Debug, Default)]
struct VcpuEvents {
    /// Its `struct vcpu_info`, guest-physical.
    info: Option<u64>,
    /// x86: the vector of its upcall.
    vector: Option<u32>,
}

/// Where the shared page has a vCPU's `struct vcpu_info`.
fn info_in((address, abi): (u64, Abi), id: u32) -> u64 {
    address + u64::from(id) * layout(abi).info
}

/// Puts the time into a `struct vcpu_info`.
fn tell_time(platform: &dyn Platform, info: u64, tsc: Option<Tsc>) {
    const TIME: u64 = 32;
    if let Some(tsc) = tsc {
        platform.ram().write(GuestPhys(info + TIME), &time::time_info(tsc, platform.now()));
    }
}

/// All event channels.
#[derive(Debug)]
pub struct Events {
    /// By port; 0 is none.
    ports: Vec<(Port, u32)>,
    vcpus: Vec<VcpuEvents>,
    shared: Option<(u64, Abi)>,
    /// aarch64: the private interrupt of the upcall.
    private_interrupt: Option<u32>,
}

impl Events {
    /// None yet.
    pub fn new(vcpus: u32) -> Events {
        Events {
            ports: vec![(Port::Closed, 0)],
            vcpus: vec![VcpuEvents::default(); vcpus as usize],
            shared: None,
            private_interrupt: None,
        }
    }

    /// The guest has put the shared page at an address.
    pub fn share(&mut self, platform: &dyn Platform, address: u64, abi: Abi, tsc: Option<Tsc>) {
        let before = self.shared.replace((address, abi));
        let Layout { mask, word, .. } = layout(abi);
        // Behind the mask, which has as many bits as eight of its words have bytes.
        platform
            .ram()
            .write(GuestPhys(address + mask + (8 * word * word) as u64), &time::wall_clock(platform));
        let delivery = platform.delivery().filter(|delivery| delivery.share(address, abi));
        for (id, vcpu) in (0..layout(abi).infos).zip(&mut self.vcpus) {
            let place = info_in((address, abi), id);
            if vcpu.info.is_none() || vcpu.info == before.map(|before| info_in(before, id)) {
                vcpu.info = Some(place);
                tell_time(platform, place, tsc);
                if let Some(delivery) = delivery {
                    delivery.place(id, place);
                }
            }
        }
    }

    /// A vCPU's `struct vcpu_info` is elsewhere. Everything in it is pending at first, so that
    /// nothing is lost; a guest copes with an event too many.
    pub fn register(
        &mut self,
        platform: &dyn Platform,
        id: u32,
        address: u64,
        abi: Abi,
        tsc: Option<Tsc>,
    ) -> Result<i64, i64> {
        let vcpu = self.vcpus.get_mut(id as usize).ok_or(ENOENT)?;
        let in_page = self.shared.map(|shared| info_in(shared, id));
        if vcpu.info.is_some() && vcpu.info != in_page {
            return Err(EINVAL);
        }
        let word = layout(abi).word;
        platform.ram().update(GuestPhys(address + word as u64), word, u64::MAX, 0).ok_or(EINVAL)?;
        vcpu.info = Some(address);
        tell_time(platform, address, tsc);
        if let Some(delivery) = platform.delivery() {
            delivery.place(id, address);
        }
        self.mark(platform, id);
        Ok(0)
    }

    /// x86: the vector of a vCPU's upcall. One that is due already comes now.
    pub fn set_vector(&mut self, platform: &dyn Platform, vcpu: u64, vector: u64) -> Result<i64, i64> {
        let id = self.vcpu(vcpu)?;
        let vcpu = self.vcpus.get_mut(id as usize).ok_or(ENOENT)?;
        let vector = u8::try_from(vector).ok().filter(|vector| *vector >= 16).ok_or(EINVAL)?;
        if let Some(delivery) = platform.delivery() {
            delivery.set_vector(id, vector);
        }
        let vector = u32::from(vector);
        vcpu.vector = Some(vector);
        if let Some(info) = vcpu.info
            && platform
                .ram()
                .update(GuestPhys(info + UPCALL_PENDING), 1, 0, 0)
                .is_some_and(|pending| pending != 0)
        {
            platform.interrupt(id, vector, info + UPCALL_PENDING);
        }
        Ok(0)
    }

    /// How the guest wants to be told: on aarch64 by a private interrupt; on x86 by a vector for all
    /// vCPUs, if the host delivers events, as no interrupt of the local APIC is like it. By a line of
    /// the interrupt controller is taken, and has no effect: guests that have vectors for each vCPU ask
    /// for it too.
    pub fn set_callback(&mut self, platform: &dyn Platform, abi: Abi, value: u64) -> Result<(), i64> {
        const LINE: u64 = 0;
        const VECTOR: u64 = 2;
        let (kind, number) = (value >> 56, value.to_le_bytes()[0]);
        match (abi, kind) {
            (Abi::Aarch64, VECTOR) if (16..=31).contains(&number) => {
                self.private_interrupt = Some(number.into());
            }
            (Abi::Aarch64, LINE) => self.private_interrupt = None,
            (Abi::X86_64 | Abi::X86_32, VECTOR) if number >= 16 => {
                platform.delivery().filter(|delivery| delivery.set_callback(number)).ok_or(EOPNOTSUPP)?;
            }
            (Abi::X86_64 | Abi::X86_32, LINE) => {
                platform.delivery().map(|delivery| delivery.set_callback(0));
            }
            _ => return Err(EOPNOTSUPP),
        }
        Ok(())
    }

    /// Sets a vCPU's upcall going. Also if one is due already: its interrupt is lost where the guest
    /// has not switched its local APIC on yet, and one too many does no harm.
    fn mark(&self, platform: &dyn Platform, id: u32) {
        let Some(VcpuEvents { info: Some(info), vector }) = self.vcpus.get(id as usize) else { return };
        let before = platform.ram().update(GuestPhys(info + UPCALL_PENDING), 1, 1, 0);
        if before.is_some()
            && let Some(number) = vector.or(self.private_interrupt)
        {
            platform.interrupt(id, number, info + UPCALL_PENDING);
        }
    }

    /// Lets upcalls in; whether one is due.
    pub fn unmask_upcalls(&self, platform: &dyn Platform, id: u32) -> bool {
        let Some(VcpuEvents { info: Some(info), .. }) = self.vcpus.get(id as usize) else { return false };
        platform.ram().update(GuestPhys(info + UPCALL_MASK), 1, 0, 0xff);
        platform.ram().update(GuestPhys(info + UPCALL_PENDING), 1, 0, 0).is_some_and(|pending| pending != 0)
    }

    /// Makes a port's event pending.
    fn deliver(&self, platform: &dyn Platform, port: usize) {
        let (Some((shared, abi)), Some((_, vcpu))) = (self.shared, self.ports.get(port)) else { return };
        let number = u32::try_from(port).unwrap_or(0);
        if platform.delivery().is_some_and(|delivery| delivery.send(*vcpu, number)) {
            return;
        }
        let Layout { pending, mask, word, .. } = layout(abi);
        let (index, bit) = (port / (8 * word), 1u64 << (port % (8 * word)));
        let at = (index * word) as u64;
        let before = platform.ram().update(GuestPhys(shared + pending + at), word, bit, 0);
        let masked = platform.ram().update(GuestPhys(shared + mask + at), word, 0, 0);
        if before.is_none_or(|before| before & bit != 0) || masked.is_none_or(|masked| masked & bit != 0) {
            return;
        }
        self.select(platform, *vcpu, index, word);
    }

    /// Tells a vCPU which word of pending events to look at.
    fn select(&self, platform: &dyn Platform, id: u32, index: usize, word: usize) {
        if let Some(VcpuEvents { info: Some(info), .. }) = self.vcpus.get(id as usize) {
            platform.ram().update(GuestPhys(info + word as u64), word, 1 << index, 0);
            self.mark(platform, id);
        }
    }

    /// Raises an event of the hypervisor's for a vCPU, if it has bound it.
    pub fn raise_virq(&self, platform: &dyn Platform, vcpu: u32, virq: u64) {
        let wanted = (Port::Virq { virq }, vcpu);
        if let Some(port) = self.ports.iter().position(|port| *port == wanted) {
            self.deliver(platform, port);
        }
    }

    /// Whether these may be polled.
    pub fn check(&self, ports: &[u64]) -> Result<(), i64> {
        if ports.iter().all(|port| (1..PORTS as u64).contains(port)) { Ok(()) } else { Err(EINVAL) }
    }

    /// Whether the event of any of these ports is pending.
    pub fn is_any_pending(&self, platform: &dyn Platform, ports: &[u64]) -> bool {
        let Some((shared, abi)) = self.shared else { return false };
        let Layout { pending, word, .. } = layout(abi);
        let bits = 8 * word as u64;
        ports.iter().any(|port| {
            let at = shared + pending + port / bits * word as u64;
            platform
                .ram()
                .update(GuestPhys(at), word, 0, 0)
                .is_some_and(|value| value >> (port % bits) & 1 != 0)
        })
    }

    fn allocate(&mut self, port: Port, vcpu: u32) -> Result<usize, i64> {
        let free = self.ports.iter().skip(1).position(|(port, _)| *port == Port::Closed);
        match free {
            Some(free) => {
                self.ports[free + 1] = (port, vcpu);
                Ok(free + 1)
            }
            None if self.ports.len() < PORTS => {
                self.ports.push((port, vcpu));
                Ok(self.ports.len() - 1)
            }
            None => Err(ENOSPC),
        }
    }

    /// An open port.
    fn port(&mut self, number: u64) -> Result<(usize, &mut (Port, u32)), i64> {
        let number = usize::try_from(number).map_err(|_| EINVAL)?;
        let port = self.ports.get_mut(number).filter(|(port, _)| *port != Port::Closed).ok_or(EINVAL)?;
        Ok((number, port))
    }

    fn vcpu(&self, number: u64) -> Result<u32, i64> {
        u32::try_from(number).ok().filter(|vcpu| (*vcpu as usize) < self.vcpus.len()).ok_or(ENOENT)
    }

    fn close(&mut self, number: usize) {
        if let (Port::Interdomain { remote }, _) = self.ports[number]
            && remote != number
        {
            self.ports[remote].0 = Port::Unbound;
        }
        self.ports[number] = (Port::Closed, 0);
    }

    /// Lets the events of a port through; one that waits is told as if it came now.
    fn unmask(&mut self, platform: &dyn Platform, number: usize) -> Result<(), i64> {
        let (shared, abi) = self.shared.ok_or(EINVAL)?;
        let Layout { pending, mask, word, .. } = layout(abi);
        let (index, bit) = (number / (8 * word), 1u64 << (number % (8 * word)));
        let at = (index * word) as u64;
        let update = |place: u64, set: u64, clear: u64| {
            platform.ram().update(GuestPhys(shared + place + at), word, set, clear).unwrap_or(0) & bit != 0
        };
        let was_masked = update(mask, 0, bit);
        if was_masked && update(pending, 0, 0) {
            update(pending, 0, bit);
            self.deliver(platform, number);
        }
        Ok(())
    }

    /// Answers a sub-operation of `event_channel_op`.
    pub fn answer(&mut self, platform: &dyn Platform, call: &mut Call<'_>, op: &str) -> Result<i64, i64> {
        let frame = call.frame("arg").map_err(|Fault| EFAULT)?;
        let is_self = |domid: u64| if matches!(domid, 0 | 0x7ff0) { Ok(()) } else { Err(ESRCH) };
        match op {
            "alloc_unbound" => {
                is_self(frame.get("dom"))?;
                let port = self.allocate(Port::Unbound, 0)?;
                frame.set("port", port as u64);
            }
            "bind_interdomain" => {
                is_self(frame.get("remote_dom"))?;
                let (remote, there) = self.port(frame.get("remote_port"))?;
                if there.0 != Port::Unbound {
                    return Err(EINVAL);
                }
                let local = self.allocate(Port::Interdomain { remote }, 0)?;
                self.ports[remote].0 = Port::Interdomain { remote: local };
                frame.set("local_port", local as u64);
                // An event may have been lost while it was not bound.
                self.deliver(platform, local);
            }
            "bind_virq" => {
                let (virq, vcpu) = (frame.get("virq"), self.vcpu(frame.get("vcpu"))?);
                if virq > LAST_VIRQ {
                    return Err(EINVAL);
                }
                if self.ports.contains(&(Port::Virq { virq }, vcpu)) {
                    return Err(EEXIST);
                }
                let port = self.allocate(Port::Virq { virq }, vcpu)?;
                frame.set("port", port as u64);
            }
            "bind_ipi" => {
                let vcpu = self.vcpu(frame.get("vcpu"))?;
                let port = self.allocate(Port::Ipi, vcpu)?;
                frame.set("port", port as u64);
            }
            "close" => {
                let (number, _) = self.port(frame.get("port"))?;
                self.close(number);
            }
            "send" => {
                let (number, port) = self.port(frame.get("port"))?;
                match port.0 {
                    Port::Interdomain { remote } => self.deliver(platform, remote),
                    Port::Ipi => self.deliver(platform, number),
                    // Nobody is there.
                    Port::Unbound => {}
                    Port::Virq { .. } | Port::Closed => return Err(EINVAL),
                }
            }
            "status" => {
                is_self(frame.get("dom"))?;
                let number = usize::try_from(frame.get("port")).map_err(|_| EINVAL)?;
                let (port, vcpu) = *self.ports.get(number).ok_or(EINVAL)?;
                let status = match port {
                    Port::Closed => 0,
                    Port::Unbound => 1,
                    Port::Interdomain { .. } => 2,
                    Port::Virq { .. } => 4,
                    Port::Ipi => 5,
                };
                frame.set("status", status);
                frame.set("vcpu", u64::from(vcpu));
            }
            "bind_vcpu" => {
                let vcpu = self.vcpu(frame.get("vcpu"))?;
                let (_, port) = self.port(frame.get("port"))?;
                match port.0 {
                    Port::Unbound | Port::Interdomain { .. } => port.1 = vcpu,
                    _ => return Err(EINVAL),
                }
            }
            "unmask" => {
                let (number, _) = self.port(frame.get("port"))?;
                self.unmask(platform, number)?;
            }
            "reset" => {
                is_self(frame.get("dom"))?;
                self.ports.truncate(1);
            }
            _ => return Err(ENOSYS),
        }
        Ok(0)
    }
}
