//! What the machine does for Xen's family.

use super::timers::{Line, Timers};
use crate::machine::guest_ram::GuestRam;
use crate::machine::mailbox::Mailbox;
use arch::hypercall::Abi;
use devices::bus::Device;
use devices::hypercall::xen::{Delivery, Platform};
use devices::platform::serial::Serial;
use devices::ram::Ram;
use devices::tell;
use kvm::{Interrupter, XenAttribute, XenEvents, XenVcpuAttribute, kick};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine, for Xen.
#[derive(Debug)]
pub struct LivePlatform {
    pub ram: GuestRam,
    pub serial: Arc<Mutex<Serial>>,
    pub interrupter: Interrupter,
    pub vcpus: u32,
    pub timers: Arc<Timers>,
    /// KVM's delivery of events, if it has any.
    pub delivery: Option<Arc<KvmDelivery>>,
}

/// How long a vCPU waits here at most: it does not see its interrupts meanwhile.
const LONGEST_WAIT: Duration = Duration::from_millis(1);
/// How often a vCPU that waits looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_micros(50);

impl LivePlatform {
    fn serial(&self) -> MutexGuard<'_, Serial> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platform for LivePlatform {
    fn console_write(&self, bytes: &[u8]) {
        self.serial().print(bytes);
    }

    fn console_read(&self, bytes: &mut [u8]) -> usize {
        const DATA: u64 = 0;
        const LINE_STATUS: u64 = 5;
        let mut serial = self.serial();
        let mut count = 0;
        for byte in bytes {
            let mut status = [0];
            serial.read(LINE_STATUS, &mut status);
            if status[0] & 1 == 0 {
                break;
            }
            serial.read(DATA, std::slice::from_mut(byte));
            count += 1;
        }
        count
    }

    fn ram(&self) -> &dyn Ram {
        &self.ram
    }

    fn vcpus(&self) -> u32 {
        self.vcpus
    }

    fn interrupt(&self, vcpu: u32, number: u32, pending: u64) {
        if let Err(error) = self.timers.raise(&self.interrupter, Line { vcpu, number, pending }) {
            tell!(Warn, "an event for vCPU {vcpu} is lost: {error}");
        }
    }

    fn now(&self) -> u64 {
        self.timers.now()
    }

    fn wall(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn set_timer(&self, vcpu: u32, at: Option<u64>) {
        self.timers.set(vcpu, at);
    }

    fn wait(&self, until: Option<u64>, is_over: &dyn Fn() -> bool) {
        let end = Instant::now() + LONGEST_WAIT;
        let is_due = || until.is_some_and(|until| until <= self.now());
        while !is_over() && !is_due() && !kick::is_pending() && Instant::now() < end {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn delivery(&self) -> Option<&dyn Delivery> {
        self.delivery.as_deref().map(|delivery| delivery as &dyn Delivery)
    }
}

/// KVM's own delivery of events.
///
/// What is a vCPU's can be told only by its thread, which gets a message; until it has, events for
/// this vCPU go by the way of a host without.
#[derive(Debug)]
pub struct KvmDelivery {
    events: XenEvents,
    /// For each vCPU, once their threads are there.
    mailboxes: OnceLock<Vec<Mailbox>>,
    /// KVM knows the shared page.
    is_shared: AtomicBool,
    /// KVM knows where this vCPU's `struct vcpu_info` is.
    is_placed: Arc<[AtomicBool]>,
}

impl KvmDelivery {
    pub fn new(events: XenEvents, vcpus: u32) -> KvmDelivery {
        let is_placed = (0..vcpus).map(|_| AtomicBool::default()).collect();
        KvmDelivery { events, mailboxes: OnceLock::new(), is_shared: AtomicBool::default(), is_placed }
    }

    /// The vCPUs' threads have been started.
    pub fn introduce(&self, mailboxes: Vec<Mailbox>) {
        // There is one set of threads.
        self.mailboxes.set(mailboxes).ok();
    }

    /// Has a vCPU's thread tell KVM.
    fn tell(&self, vcpu: u32, attribute: XenVcpuAttribute) {
        let is_placed = Arc::clone(&self.is_placed);
        let mailbox = self.mailboxes.get().and_then(|mailboxes| mailboxes.get(vcpu as usize));
        let Some(mailbox) = mailbox else { return };
        mailbox.post(move |vcpu| match vcpu.set_xen_attribute(attribute) {
            Ok(()) if matches!(attribute, XenVcpuAttribute::Info { .. }) => {
                if let Some(is_placed) = is_placed.get(vcpu.id() as usize) {
                    is_placed.store(true, Ordering::Release);
                }
            }
            Ok(()) => {}
            Err(error) => tell!(Warn, "vCPU {}: KVM does not deliver its events: {error}", vcpu.id()),
        });
    }

    fn set(&self, attribute: XenAttribute) -> bool {
        let result = self.events.set(attribute);
        if let Err(error) = &result {
            tell!(Warn, "KVM does not deliver events: {error}");
        }
        result.is_ok()
    }
}

impl Delivery for KvmDelivery {
    fn share(&self, address: u64, abi: Abi) -> bool {
        let is_shared = self.set(XenAttribute::LongMode(abi == Abi::X86_64))
            && self.set(XenAttribute::SharedInfo { address });
        self.is_shared.store(is_shared, Ordering::Release);
        is_shared
    }

    fn place(&self, vcpu: u32, info: u64) {
        self.tell(vcpu, XenVcpuAttribute::Info { address: info });
    }

    fn set_vector(&self, vcpu: u32, vector: u8) {
        self.tell(vcpu, XenVcpuAttribute::Vector(vector));
    }

    fn set_callback(&self, vector: u8) -> bool {
        self.set(XenAttribute::Vector(vector))
    }

    fn send(&self, vcpu: u32, port: u32) -> bool {
        let is_placed = self.is_placed.get(vcpu as usize);
        let is_ready = self.is_shared.load(Ordering::Acquire)
            && is_placed.is_some_and(|is_placed| is_placed.load(Ordering::Acquire));
        is_ready
            && match self.events.send(vcpu, port) {
                Ok(()) => true,
                Err(error) => {
                    tell!(Warn, "KVM does not deliver an event to vCPU {vcpu}: {error}");
                    false
                }
            }
    }
}
