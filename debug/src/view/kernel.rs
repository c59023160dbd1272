//! What is seen of the guest's Linux kernel, live or dumped.

use super::View;
use crate::cancel::Cancelled;
use crate::linux::described::{self, Anchor, Scope};
use crate::linux::translate::kernel_regime;
use crate::linux::{self, Described, VmCoreInfo};
use crate::memory::Space;
use arch::Isa;
use arch::register::Bank;
use std::borrow::Cow;

impl<'a> View<'a> {
    /// Where the guest's Linux kernel is mapped, if one is ([`linux::text`]).
    pub fn kernel_text(&self) -> Option<u64> {
        let (regime, _) = self.translation().ok()?;
        let vbar = match self.isa() {
            Isa::Aarch64 => self.machine.registers(self.vcpu, &[Bank::System]).ok()?.get("VBAR_EL1"),
            Isa::X86_64 => Some(0),
        };
        match vbar {
            Some(vbar) => linux::text(self.isa(), &regime, self.memory(), vbar),
            None => self.kernel(Scope::Running).ok()?.info.as_ref().and_then(VmCoreInfo::image_start),
        }
    }

    /// How far the guest's kernel has moved from where it was linked, bytes.
    pub fn kernel_slide(&self) -> Option<u64> {
        self.kernel(Scope::Running).ok()?.info.as_ref().and_then(VmCoreInfo::slide)
    }

    /// The kernels that have described themselves in the guest's memory.
    ///
    /// # Errors
    /// [`Cancelled`], while they are looked for.
    pub fn kernel(&self, scope: Scope) -> Result<Cow<'a, Described>, Cancelled> {
        if let Some(known) = self.machine.kernel() {
            return Ok(Cow::Borrowed(known));
        }
        let registers = |vcpu| self.machine.registers(vcpu, &[Bank::System]).ok();
        let anchors: Vec<Anchor> = (0..self.machine.vcpus())
            .filter_map(|vcpu| registers(vcpu).as_ref().and_then(Anchor::new))
            .collect();
        let mut go_on = || self.cancel.check();
        described::find(self.isa(), self.memory(), &anchors, scope, &mut go_on).map(Cow::Owned)
    }

    /// The last lines of the guest kernel's log, `most` of them. A vCPU may translate otherwise than the kernel just
    /// now (in user space with tables of its own, or reset); then others are asked, and the kernel's description.
    ///
    /// # Errors
    /// [`linux::LogError`], of the vCPU that is looked through.
    pub fn kernel_log(&self, info: &VmCoreInfo, most: usize) -> Result<Vec<String>, linux::LogError> {
        let vcpus = std::iter::once(self.vcpu).chain(0..self.machine.vcpus());
        let by_registers = vcpus.filter_map(|vcpu| self.machine.regime(vcpu).ok());
        let by_info = kernel_regime(self.isa(), info);
        let mut first = None;
        for regime in by_registers.chain(by_info) {
            let space = Space::Virtual(regime);
            let read = |at: u64, bytes: &mut [u8]| match self.cancel.check() {
                Ok(()) => self.read_in(&space, at, bytes),
                Err(_) => 0,
            };
            match info.log(read, most) {
                Ok(lines) => return Ok(lines),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(linux::LogError::NotMapped(0)))
    }
}
