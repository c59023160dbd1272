//! The vCPU that made a call, as families see it.

use crate::machine::guest_ram::GuestRam;
use arch::GuestVirt;
use debug::memory::{self, Translation};
use devices::hypercall::{Caller, Tsc};
use kvm::Vcpu;
use std::cell::OnceCell;

/// A vCPU, and the memory that its guest-virtual addresses lead to.
pub(super) struct GuestCaller<'a> {
    vcpu: &'a Vcpu,
    ram: &'a GuestRam,
    /// Asked for when it is needed first.
    space: OnceCell<Option<Translation>>,
}

impl<'a> GuestCaller<'a> {
    pub(super) fn new(vcpu: &'a Vcpu, ram: &'a GuestRam) -> GuestCaller<'a> {
        GuestCaller { vcpu, ram, space: OnceCell::new() }
    }

    fn space(&self) -> Option<&Translation> {
        self.space.get_or_init(|| self.vcpu.regime().ok().map(Translation::Virtual)).as_ref()
    }
}

impl Caller for GuestCaller<'_> {
    fn vcpu(&self) -> u32 {
        self.vcpu.id()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.space().map_or(0, |space| memory::read(self.ram, space, None, GuestVirt(address), bytes))
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.space().map_or(0, |space| memory::write(self.ram, space, None, GuestVirt(address), bytes))
    }

    fn tsc(&self) -> Option<Tsc> {
        let (value, khz) = self.vcpu.tsc()?;
        Some(Tsc { value, khz })
    }
}
