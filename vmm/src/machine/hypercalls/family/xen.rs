//! Xen's family: its console is the serial port, its events and timers are KVM's or our own.

mod platform;
pub(super) mod timers;

use super::{FamilyFacts, Helper, Made, Parts};
use crate::machine::mailbox::Mailbox;
use arch::hypercall::XEN_HVC;
use debug::threads;
use devices::hypercall::xen::{Xen, table};
use platform::{KvmDelivery, LivePlatform};
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;
use timers::{Clock, Held, Timers};

pub(super) const FAMILY: FamilyFacts = FamilyFacts {
    name: "xen",
    remark: "",
    table,
    convention: arch::hypercall::xen,
    is_called_as_xen: true,
    hvc: Some(XEN_HVC),
    make,
};

fn make(parts: &Parts<'_>) -> io::Result<Made> {
    let Parts { vm, ram, serial, vcpus } = *parts;
    let events = vm.xen_events();
    let delivery = events.clone().map(|events| Arc::new(KvmDelivery::new(events, vcpus)));
    let clock = events.map_or_else(|| Clock::Since(Instant::now(), Held::default()), Clock::Kvm);
    let timers = Arc::new(Timers::new(vcpus, clock));
    let platform = LivePlatform {
        ram: ram.clone(),
        serial: Arc::clone(serial),
        interrupter: vm.interrupter(),
        vcpus,
        timers: Arc::clone(&timers),
        delivery: delivery.clone(),
    };
    let xen = Arc::new(Xen::new(Box::new(platform)));
    let (weak, its_timers) = (Arc::downgrade(&xen), Arc::clone(&timers));
    let (ram, interrupter) = (ram.clone(), vm.interrupter());
    let thread = Builder::new().name("xen-timers".into());
    let thread = threads::start("timers", thread, move || its_timers.run(&weak, &ram, &interrupter))?;
    let helper = XenHelper { timers, thread: Some(thread), delivery };
    Ok(Made { family: xen, helper: Some(Box::new(helper)) })
}

/// The thread that waits for the guest's timers, and what has KVM deliver events.
struct XenHelper {
    timers: Arc<Timers>,
    /// Taken when it ends.
    thread: Option<JoinHandle<()>>,
    delivery: Option<Arc<KvmDelivery>>,
}

impl Helper for XenHelper {
    fn introduce(&self, mailboxes: Vec<Mailbox>) {
        if let Some(delivery) = &self.delivery {
            delivery.introduce(mailboxes);
        }
    }

    fn timers(&self) -> Option<&Arc<Timers>> {
        Some(&self.timers)
    }
}

impl Drop for XenHelper {
    fn drop(&mut self) {
        self.timers.stop();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread of the guest's timers ended with a panic");
        }
    }
}
