//! What is seen of the guest's Linux kernel, live or dumped.

use super::View;
use crate::cancel::Cancelled;
use crate::linux::described::{self, Anchor, Scope};
use crate::linux::kallsyms::{self, KallsymsError, Place};
use crate::linux::reader::Reader;
use crate::linux::task::{TaskLayout, Tasks};
use crate::linux::translate::kernel_regime;
use crate::linux::{self, Described, VmCoreInfo, btf};
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
        let found = self.as_kernel(info, |read| info.log(read, most));
        found.map_or(Err(linux::LogError::NotMapped(0)), |found| found.map(|(lines, _)| lines))
    }

    /// What `look` finds in memory as the kernel sees it, and in which space that is: one vCPU may see it, and another
    /// not. `None` where there is nothing to translate by; where nobody sees it, the first error.
    fn as_kernel<T, E>(
        &self,
        info: &VmCoreInfo,
        look: impl Fn(&dyn Fn(u64, &mut [u8]) -> usize) -> Result<T, E>,
    ) -> Option<Result<(T, Space), E>> {
        let vcpus = std::iter::once(self.vcpu).chain(0..self.machine.vcpus());
        let by_registers = vcpus.filter_map(|vcpu| self.machine.regime(vcpu).ok());
        let by_info = kernel_regime(self.isa(), info);
        let mut first = None;
        for regime in by_registers.chain(by_info) {
            let space = Space::Virtual(regime);
            match look(&|at, bytes| self.read_unless_cancelled(&space, at, bytes)) {
                Ok(found) => return Some(Ok((found, space))),
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map(Err)
    }

    fn read_unless_cancelled(&self, space: &Space, at: u64, bytes: &mut [u8]) -> usize {
        match self.cancel.check() {
            Ok(()) => self.read_in(space, at, bytes),
            Err(Cancelled) => 0,
        }
    }

    /// The kernel's tasks, by its own symbols and types.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn kernel_tasks(&self, info: &VmCoreInfo) -> Result<Tasks, String> {
        let place = Place::described(info).ok_or_else(|| KallsymsError::Lacks.to_string())?;
        let found = self.as_kernel(info, |read| kallsyms::symbols(&place, read));
        let found = found.ok_or("nothing tells how the kernel translates")?;
        let (symbols, space) = found.map_err(|error| error.to_string())?;
        let address = |name| {
            let lacks = || format!("'{name}' is not among the symbols that the kernel has in memory");
            symbols.address(name).ok_or_else(lacks)
        };
        let read = |at: u64, bytes: &mut [u8]| self.read_unless_cancelled(&space, at, bytes);
        let reader = Reader::new(&read);
        let (begin, end) = (address("__start_BTF")?, address("__stop_BTF")?);
        let size = end.checked_sub(begin).filter(|size| *size <= MOST_TYPES);
        let size =
            size.and_then(|size| usize::try_from(size).ok()).ok_or("the kernel's types are too large")?;
        let mut bytes = vec![0; size];
        reader.bytes(begin, &mut bytes).map_err(|error| error.to_string())?;
        let types = btf::types(&bytes).map_err(|error| format!("the kernel's types: {error}"))?;
        let layout = TaskLayout::new(&types).map_err(|error| error.to_string())?;
        let tasks = layout.tasks(address("init_task")?, &reader, &mut || self.cancel.check());
        tasks.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// Bytes of types that are read at most: a distribution's kernel has five million.
const MOST_TYPES: u64 = 64 << 20;
