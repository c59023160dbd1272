//! Memory and registers of contexts.

use super::Debuggee;
use crate::context::listen::{Change, Notice};
use crate::context::mode::Unable;
use crate::context::space::{Address, Canonical, Missing, Partial, Space};
use crate::context::tree::{Group, Id};
use crate::machine::{Machine, MachineError};
use crate::memory::{self, Translation};
use crate::view::View;
use arch::paging::Fault;
use arch::register::{Bank, RegisterFile};
use arch::{GuestPhys, GuestVirt, Isa};

impl<M: Machine> Debuggee<M> {
    /// Reads memory or ports as a context sees them. What is planted is not seen.
    ///
    /// Ports are read as the guest would, a piece of 4, 2 or 1 bytes at a time, as they are aligned.
    ///
    /// # Errors
    /// [`Partial`]: how many bytes are good, and why the next is not. Of a guest that runs physical memory can be
    /// read.
    pub fn read(&self, context: Id, address: impl Into<Address>, bytes: &mut [u8]) -> Result<(), Partial> {
        let address = address.into();
        if address.space == Space::Ports {
            return self
                .ports(address, bytes.len(), |port, range| self.machine.read_port(port, &mut bytes[range]));
        }
        let (view, space) = self.looks(context, address)?;
        let good = view.read_in(&space, address.address, bytes);
        self.all_of(&space, address, good, bytes.len())
    }

    /// Writes them likewise, whatever the page's permissions are. What is written over a planted instruction is what
    /// is seen there, and what is there when that has gone.
    ///
    /// # Errors
    /// [`Partial`]: how many bytes were written, and why the next was not.
    pub fn write(&mut self, context: Id, address: impl Into<Address>, bytes: &[u8]) -> Result<(), Partial> {
        let address = address.into();
        if let Some(why) = self.machine.read_only() {
            return Err(Partial { good: 0, address, missing: Missing::ReadOnly(why) });
        }
        if address.space == Space::Ports {
            return self
                .ports(address, bytes.len(), |port, range| self.machine.write_port(port, &bytes[range]));
        }
        let (_, space) = self.looks(context, address)?;
        let good = self.write_in(&space, address.address, bytes);
        let stop = self.tree.group(context, Group::Stop).unwrap_or(context);
        self.listeners.tell(&Notice::Changed(stop, Change::Memory(address, good as u64)));
        self.all_of(&space, address, good, bytes.len())
    }

    /// Writes memory of a space; how many bytes were written.
    pub(crate) fn write_in(&self, space: &Translation, address: u64, bytes: &[u8]) -> usize {
        let mut requests = self.engine.requests();
        let table = Some(&mut requests.table);
        memory::write(self.machine.memory(), space, table, GuestVirt(address), bytes)
    }

    /// Reads a little-endian word of 8 bytes.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_u64(&self, context: Id, address: impl Into<Address>) -> Result<u64, Partial> {
        let mut bytes = [0; 8];
        self.read(context, address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The one place that an address means.
    ///
    /// # Errors
    /// [`Missing`]: there is none.
    pub fn canonical(&self, context: Id, address: impl Into<Address>) -> Result<Canonical, Missing> {
        let address = address.into();
        let (view, space) = self.looks(context, address).map_err(|partial| partial.missing)?;
        let memory = view.memory();
        let at = address.address;
        let shares = self.tree.group(context, Group::Stop).unwrap_or(context);
        let (place, block) = match space {
            Translation::Physical => {
                let mut ranges = memory.ranges().into_iter();
                let around = ranges.find(|range| range.contains(GuestPhys(at), 1));
                let range = around.ok_or(Missing::NotRam(GuestPhys(at)))?;
                (GuestPhys(at), range.start.0..range.end().0)
            }
            Translation::Virtual(regime) => {
                let mapping = regime.translate(memory, GuestVirt(at))?;
                let start = at & !(mapping.page_size - 1);
                if memory.read(mapping.address, &mut [0]) == 0 {
                    let absence = memory.absence(mapping.address).map(Missing::Absent);
                    return Err(absence.unwrap_or(Missing::NotRam(mapping.address)));
                }
                (mapping.address, start..start.saturating_add(mapping.page_size))
            }
        };
        Ok(Canonical { context: shares, place, block })
    }

    /// Reads registers of a vCPU that stands still; of a task those that it has saved where it sleeps, or those of the
    /// vCPU that it is on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn registers(&self, context: Id, banks: &[Bank]) -> Result<RegisterFile, MachineError> {
        if let Some(registers) = self.task_registers(context) {
            return registers;
        }
        self.machine.registers(self.vcpu_of(context)?, banks)
    }

    /// Reads one of them, of up to 64 bits, by its name in [the table](arch::register::table), as `rdi` or `x0`.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn register(&self, context: Id, name: &str) -> Result<u64, MachineError> {
        let bank = self.bank(name)?;
        let value = self.registers(context, &[bank])?.get(name);
        value.ok_or_else(|| MachineError::Host(format!("the host does not give register {name}")))
    }

    /// Writes one.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn set_register(&mut self, context: Id, name: &str, value: u64) -> Result<(), MachineError> {
        self.bank(name)?;
        let mut file = RegisterFile::new(self.isa());
        file.set(name, value);
        self.set_registers(context, &file)
    }

    /// Writes every register that the file has a value for, of a vCPU.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn set_registers(&mut self, context: Id, file: &RegisterFile) -> Result<(), MachineError> {
        self.machine.set_registers(self.vcpu_of(context)?, file)?;
        self.listeners.tell(&Notice::Changed(context, Change::Registers));
        Ok(())
    }

    /// The linear address of the instruction that a vCPU executes next, or a task where it goes on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn pc(&self, context: Id) -> Result<u64, MachineError> {
        let lacks = || MachineError::Host("the host does not give the program counter".into());
        if let Some(registers) = self.task_registers(context) {
            return registers?.pc().ok_or_else(lacks);
        }
        let vcpu = self.vcpu_of(context)?;
        let pc = self.machine.at_stop(vcpu)?.pc().ok_or_else(lacks)?;
        Ok(self.machine.code(vcpu)?.linear(pc))
    }

    /// The stack pointer of a vCPU or a task.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn stack(&self, context: Id) -> Result<u64, MachineError> {
        self.register(context, if self.isa() == Isa::X86_64 { "rsp" } else { "sp" })
    }

    fn bank(&self, name: &str) -> Result<Bank, MachineError> {
        let row = arch::register::row(self.isa(), name);
        let row = row.ok_or_else(|| MachineError::Host(format!("{} has no register {name}", self.isa())))?;
        Ok(arch::register::table(self.isa())[row].bank())
    }

    fn vcpu_of(&self, context: Id) -> Result<u32, MachineError> {
        let vcpu = self.tree.vcpu_of(context);
        vcpu.ok_or_else(|| MachineError::Host(format!("{context} is no vCPU: it has no registers")))
    }

    /// How a context looks at an address of RAM. The machine as a whole looks at virtual ones as the vCPU does that
    /// stopped last.
    fn looks(&self, context: Id, address: Address) -> Result<(View<'_>, Translation), Partial> {
        let refused = |missing| Partial { good: 0, address, missing };
        if self.tree.get(context).is_none() {
            return Err(refused(Unable::NoContext.into()));
        }
        let view = self.view().through(self.tree.vcpu_of(context).unwrap_or(self.current));
        let space = match address.space {
            Space::Physical => Translation::Physical,
            Space::Ports => return Err(refused(Unable::NoPorts.into())),
            Space::Virtual if !self.is_attached() => return Err(refused(Unable::Detached.into())),
            Space::Virtual if self.is_running => return Err(refused(Unable::Running.into())),
            Space::Virtual => self
                .virtual_space(&view, context, address.address)
                .map_err(|words| refused(Missing::Host(words)))?,
        };
        Ok((view, space))
    }

    /// What a virtual address means to a context; in words, why nobody knows.
    fn virtual_space(&self, view: &View<'_>, context: Id, address: u64) -> Result<Translation, String> {
        if let Some(space) = self.task_space(context, address) {
            return space;
        }
        let (regime, _) = view.translation().map_err(|error| error.to_string())?;
        Ok(Translation::Virtual(regime))
    }

    /// Whether an access was done to its end.
    fn all_of(&self, space: &Translation, from: Address, good: usize, wanted: usize) -> Result<(), Partial> {
        if good == wanted {
            return Ok(());
        }
        let next = from.address.checked_add(good as u64);
        let address = Address { address: next.unwrap_or(u64::MAX), ..from };
        let missing = next.map_or(Missing::End, |next| self.missing(space, next));
        Err(Partial { good, address, missing })
    }

    fn missing(&self, space: &Translation, at: u64) -> Missing {
        let memory = self.machine.memory();
        match space.locate(memory, GuestVirt(at)) {
            Ok((place, _)) => memory.absence(place).map_or(Missing::NotRam(place), Missing::Absent),
            Err(fault @ Fault::NoTable { at, .. }) => {
                memory.absence(at).map_or(fault.into(), Missing::Absent)
            }
            Err(fault) => fault.into(),
        }
    }

    /// Goes through ports, each piece as wide as it can be.
    fn ports(
        &self,
        from: Address,
        length: usize,
        mut access: impl FnMut(u16, std::ops::Range<usize>) -> Result<(), MachineError>,
    ) -> Result<(), Partial> {
        let mut done = 0;
        while done < length {
            let next = from.address.saturating_add(done as u64);
            let fail = |missing| Partial { good: done, address: Address { address: next, ..from }, missing };
            let port = u16::try_from(next).map_err(|_| fail(Missing::End))?;
            let fits = |width: &usize| *width <= length - done && next.is_multiple_of(*width as u64);
            let width = [4, 2, 1].into_iter().find(fits).unwrap_or(1);
            access(port, done..done + width).map_err(|error| {
                fail(match error {
                    MachineError::Unsupported(_) => Missing::Unable(Unable::NoPorts),
                    other => Missing::Host(other.to_string()),
                })
            })?;
            done += width;
        }
        Ok(())
    }
}
