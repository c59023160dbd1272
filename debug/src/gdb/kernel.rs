//! What a session knows of the target's Linux kernel, live or dumped.

use super::session::Session;
use crate::cancel::Cancelled;
use crate::dump::kernel::kernel_regime;
use crate::linux::{self, VmCoreInfo};
use crate::memory::{self, Space};
use crate::target::Machine;
use arch::register::Bank;
use arch::{GuestVirt, Isa};
use std::borrow::Cow;

impl<M: Machine> Session<M> {
    /// Where the guest's Linux kernel is mapped, if one is ([`linux::text`]).
    pub fn kernel_text(&self) -> Option<u64> {
        let (regime, _) = self.tables(self.current).ok()?;
        let vbar = match self.isa() {
            Isa::Aarch64 => self.machine.registers(self.current, &[Bank::System]).ok()?.get("VBAR_EL1"),
            Isa::X86_64 => Some(0),
        };
        match vbar {
            Some(vbar) => linux::text(self.isa(), &regime, self.machine.memory(), vbar),
            None => self.kernel_info().ok()?.and_then(|info| info.image_start()),
        }
    }

    /// How far the guest's kernel has moved from where it was linked, bytes.
    pub fn kernel_slide(&self) -> Option<u64> {
        self.kernel_info().ok()?.and_then(|info| info.slide())
    }

    /// The guest kernel's description of itself.
    ///
    /// # Errors
    /// [`Cancelled`], while it is looked for.
    pub fn kernel_info(&self) -> Result<Option<Cow<'_, VmCoreInfo>>, Cancelled> {
        if let Some(info) = self.machine.kernel_info() {
            return Ok(Some(Cow::Borrowed(info)));
        }
        let found = VmCoreInfo::find(self.machine.memory(), &mut || self.cancel.check())?;
        Ok(found.map(Cow::Owned))
    }

    /// The guest kernel's log. A vCPU may translate otherwise than the kernel just now (in user space with
    /// tables of its own, or reset); then others are asked, and the kernel's description.
    ///
    /// # Errors
    /// [`linux::LogError`], of the vCPU that is looked at.
    pub fn kernel_log(&self, info: &VmCoreInfo) -> Result<Vec<String>, linux::LogError> {
        let vcpus = std::iter::once(self.current).chain(0..self.machine.vcpus());
        let by_registers = vcpus.filter_map(|vcpu| self.regime(vcpu).ok());
        let by_info = kernel_regime(self.isa(), info);
        let mut first = None;
        for regime in by_registers.chain(by_info) {
            let space = Space::Virtual(regime);
            let state = self.engine.state();
            let read = |at: u64, bytes: &mut [u8]| {
                if self.cancel.check().is_err() {
                    return 0;
                }
                memory::read(self.machine.memory(), &space, Some(&state.table), GuestVirt(at), bytes)
            };
            match info.log(read) {
                Ok(lines) => return Ok(lines),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(linux::LogError::NotMapped(0)))
    }
}
