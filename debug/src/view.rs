//! A machine that stands still, as somebody sees it who looks at it: through one of its vCPUs, and without the
//! instructions that a debugger has planted.
//!
//! A gdb session, a shell on a dump and a client of a control socket each make one of what they hold, for as long
//! as they look: it borrows all, and costs nothing to make.

#[cfg(feature = "linux")]
mod asleep;
#[cfg(feature = "linux")]
mod current;
#[cfg(feature = "linux")]
mod kernel;
#[cfg(feature = "linux")]
mod locks;
#[cfg(feature = "linux")]
mod mm;
#[cfg(feature = "linux")]
pub mod module_names;
#[cfg(feature = "linux")]
pub mod module_types;
#[cfg(feature = "linux")]
mod mounts;
mod pages;
#[cfg(feature = "linux")]
mod stack;

#[cfg(feature = "linux")]
pub use current::OnVcpu;
#[cfg(feature = "linux")]
pub use locks::Waits;
pub use pages::Page;
#[cfg(feature = "linux")]
pub use stack::{Location, Stacks};

use crate::breakpoint::{Kind, Place};
use crate::cancel::Cancel;
use crate::engine::Engine;
use crate::machine::{Activity, Machine, MachineError, Tables};
use crate::memory::{self, Translation};
use crate::ram::Memory;
use arch::aarch64::exception_entry;
use arch::paging::{Fault, Regime};
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, GuestVirt, Isa};

/// A machine, seen through a vCPU.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The machine.
    pub machine: &'a dyn Machine,
    /// What knows of breakpoints: what they have planted is not seen.
    pub engine: &'a Engine,
    /// The vCPU whose registers and page tables count.
    pub vcpu: u32,
    /// Addresses are guest-physical.
    pub is_physical: bool,
    /// What is asked by whatever takes long, whether it is still wanted.
    pub cancel: &'a Cancel,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("vcpu", &self.vcpu).finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    /// The same through another vCPU.
    #[must_use]
    pub fn through(self, vcpu: u32) -> View<'a> {
        View { vcpu, ..self }
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.machine.isa()
    }

    /// The guest's RAM, with whatever is planted in it.
    pub fn memory(&self) -> &'a dyn Memory {
        self.machine.memory()
    }

    /// How addresses are translated, and by whose tables: the vCPU's own, or before the guest has started it, those
    /// of another.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn translation(&self) -> Result<(Regime, Tables), MachineError> {
        let (regime, whose) = self.machine.translation(self.vcpu)?;
        if whose != Tables::Own || regime.is_on() || self.machine.activity(self.vcpu) != Activity::NotStarted
        {
            return Ok((regime, whose));
        }
        let other = |vcpu| Some((self.machine.regime(vcpu).ok()?, vcpu));
        let found = (0..self.machine.vcpus()).filter_map(other).find(|(regime, _)| regime.is_on());
        Ok(found.map_or((regime, whose), |(regime, vcpu)| (regime, Tables::Vcpu(vcpu))))
    }

    /// How a process translates whose top-level table is at `table`.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn user_regime(&self, table: GuestPhys) -> Result<Regime, MachineError> {
        let registers = self.machine.registers(self.vcpu, &[Bank::System])?;
        self.process(&registers, table).ok_or(MachineError::Unsupported(
            "neither registers nor the kernel's description say how it translates",
        ))
    }

    #[cfg(feature = "linux")]
    fn process(&self, registers: &RegisterFile, table: GuestPhys) -> Option<Regime> {
        use crate::linux::{described::Scope, translate};
        translate::user_regime(registers, None, table).or_else(|| {
            let known = self.kernel(Scope::Running).ok()?;
            translate::user_regime(registers, known.info.as_ref(), table)
        })
    }

    #[cfg(not(feature = "linux"))]
    fn process(&self, registers: &RegisterFile, table: GuestPhys) -> Option<Regime> {
        let mut file = registers.clone();
        file.set(
            match self.isa() {
                Isa::X86_64 => "cr3",
                Isa::Aarch64 => "TTBR0_EL1",
            },
            table.0,
        );
        Regime::new(&file).ok()
    }

    /// Where the guest's kernel is mapped: nobody knows.
    #[cfg(not(feature = "linux"))]
    pub(crate) fn kernel_text(&self) -> Option<u64> {
        None
    }

    /// How far the guest's kernel has moved: nobody knows.
    #[cfg(not(feature = "linux"))]
    pub(crate) fn kernel_slide(&self) -> Option<u64> {
        None
    }

    /// What addresses mean.
    pub fn space(&self) -> Translation {
        if self.is_physical {
            return Translation::Physical;
        }
        self.translation().map_or(Translation::Physical, |(regime, _)| Translation::Virtual(regime))
    }

    /// Reads memory; how many bytes are good.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.read_in(&self.space(), address, buffer)
    }

    /// Reads memory of a space; how many bytes are good.
    pub fn read_in(&self, space: &Translation, address: u64, buffer: &mut [u8]) -> usize {
        let requests = self.engine.requests();
        memory::read(self.memory(), space, Some(&requests.table), GuestVirt(address), buffer)
    }

    /// Why the dump that is looked at has not got a byte that the guest had, if that is so.
    pub fn absence(&self, address: u64) -> Option<String> {
        self.absence_in(&self.space(), address)
    }

    /// The same of a space.
    pub fn absence_in(&self, space: &Translation, address: u64) -> Option<String> {
        let memory = self.memory();
        let place = match space.locate(memory, GuestVirt(address)) {
            Ok((place, _)) => place,
            Err(Fault::NoTable { at, .. }) => at,
            Err(_) => return None,
        };
        memory.absence(place).map(|why| format!("{address:#x}: {why}"))
    }

    /// How a breakpoint would be noticed that was asked for now.
    pub fn place(&self, kind: Kind, address: GuestVirt) -> Place {
        self.engine.place(kind, self.memory(), &self.space(), address, || self.fetch_vector(address))
    }

    /// Where the abort of a fetch from an address goes that is refused, with the vectors of the vCPU as it is now; on x86
    /// it is not needed.
    fn fetch_vector(&self, address: GuestVirt) -> Option<u64> {
        if self.isa() == Isa::X86_64 {
            return None;
        }
        let file = self.machine.registers(self.vcpu, &[Bank::General, Bank::System]).ok()?;
        let (vbar, now) = (file.get("VBAR_EL1")?, file.get("cpsr")?);
        // Whose page it is tells who fetches: the vCPU may be elsewhere meanwhile.
        let is_users = match self.space() {
            Translation::Virtual(regime) if regime.is_on() => {
                regime.translate(self.memory(), address).map(|mapping| mapping.permissions.user).ok()
            }
            _ => None,
        };
        Some(exception_entry::vector(
            vbar,
            is_users.map_or(now, |is_users| exception_entry::pstate_of_fetch(is_users, now)),
        ))
    }
}

/// Why a task's memory of the kernel's cannot be looked at.
pub(crate) const NO_KERNEL_SPACE: &str = "nothing tells how the kernel translates";

/// Whether an address is in the kernel's half: on aarch64 bit 55 tells which tables it is translated by, as the byte above
/// may have a tag (Arm ARM (DDI 0487), "Address tagging").
pub(crate) fn is_kernels(isa: Isa, address: u64) -> bool {
    let bit = match isa {
        Isa::X86_64 => 63,
        Isa::Aarch64 => 55,
    };
    address >> bit & 1 != 0
}
