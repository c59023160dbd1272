//! A vCPU's registers by the register table, through KVM's ioctls.
//!
//! What is asked for is read with as few ioctls as there are banks; what KVM does not give
//! stays absent.

use super::ISA;
use crate::error::{KvmError, ioctl};
use arch::bytes::array_at;
use arch::paging::Regime;
use arch::paging::x86::Paging;
use arch::register::{Bank, RegisterFile, Source, XsaveComponent, table, x86_64};
use arch::x86::debug_registers::slots;
use debug::arming::DebugRegisters;
use debug::disassemble::OperatingMode;
use debug::machine::{Abilities, Code};
use kvm_bindings as kvm;
use kvm_ioctls::{Error as Errno, Kvm, SyncReg, VcpuFd};
use std::cell::{Cell, OnceCell};

/// The XSAVE area's `XSTATE_BV`: which components are not in their initial state (Intel SDM
/// vol. 1, "XSAVE Header").
const XSTATE_BV: usize = 512;

/// Paging is on (Intel SDM vol. 3, "Control Registers").
const CR0_PG: u64 = 1 << 31;

/// Structures of KVM that are plain numbers without padding between them.
trait Plain: Sized {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

macro_rules! plain {
    ($($name:ty),*) => {$(
        impl Plain for $name {
            fn bytes(&self) -> &[u8] {
                // SAFETY: the structure is `repr(C)` and its fields fill it (explicit padding
                // is a field), so each byte is initialised; the length is its size.
                unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
            }

            fn bytes_mut(&mut self) -> &mut [u8] {
                // SAFETY: as above, and every pattern of bits is a value of every field.
                unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Self>()) }
            }
        }
    )*};
}

plain!(kvm::kvm_regs, kvm::kvm_sregs, kvm::kvm_debugregs);

/// Where the components of the extended state are in the XSAVE area that KVM shows, and which
/// of them the guest may use.
#[derive(Clone, Copy, Debug, Default)]
struct XsaveLayout {
    offsets: [Option<usize>; 8],
}

const fn number(component: XsaveComponent) -> usize {
    match component {
        XsaveComponent::Legacy => 0,
        XsaveComponent::Avx => 2,
        XsaveComponent::Opmask => 5,
        XsaveComponent::ZmmHigh => 6,
        XsaveComponent::Zmm16 => 7,
    }
}

impl XsaveLayout {
    /// The layout of this vCPU: offsets are the processor's, in the standard format (Intel SDM
    /// vol. 2, CPUID leaf 0DH); what there is follows the guest's CPUID.
    fn new(vcpu: &VcpuFd) -> XsaveLayout {
        let mut layout = XsaveLayout::default();
        layout.offsets[0] = Some(0);
        let entries = vcpu.get_cpuid2(kvm::KVM_MAX_CPUID_ENTRIES);
        let enabled = entries.ok().and_then(|entries| {
            let leaf = entries.as_slice().iter().find(|entry| entry.function == 0xd && entry.index == 0)?;
            Some(leaf.eax)
        });
        for component in 2..8u32 {
            let leaf = super::host_cpuid(0xd, component);
            if enabled.is_some_and(|enabled| enabled >> component & 1 != 0) && leaf.eax > 0 {
                layout.offsets[component as usize] = Some(leaf.ebx as usize);
            }
        }
        layout
    }

    fn place(&self, component: XsaveComponent, offset: u16) -> Option<usize> {
        Some(self.offsets[number(component)]? + usize::from(offset))
    }
}

/// Whether KVM hands registers over with each exit (KVM API, `KVM_CAP_SYNC_REGS`).
pub fn can_sync(kvm_fd: &Kvm) -> bool {
    let both = kvm::KVM_SYNC_X86_REGS | kvm::KVM_SYNC_X86_SREGS;
    let there = kvm_fd.check_extension_raw(u64::from(kvm::KVM_CAP_SYNC_REGS));
    u32::try_from(there).is_ok_and(|there| there & both == both)
}

/// What is `size` bytes from `offset` on, at most eight.
fn number_in(sregs: &kvm::kvm_sregs, offset: u16, size: u8) -> Option<u64> {
    let (mut word, start) = ([0; 8], usize::from(offset));
    let bytes = sregs.bytes().get(start..start + usize::from(size))?;
    word.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(u64::from_le_bytes(word))
}

/// Access to a vCPU's registers. What has been read since the guest was left is not asked of
/// KVM again.
#[derive(Debug)]
pub struct Registers {
    layout: OnceCell<XsaveLayout>,
    can_sync: bool,
    /// KVM is to hand over registers with each exit.
    syncs: Cell<bool>,
    /// Also when nobody asks for it.
    always_syncs: Cell<bool>,
    /// It did, and nobody has written any since.
    is_synced: Cell<bool>,
    /// `regs` has been changed; KVM takes it with the next entry, or by [`Self::flush`].
    is_dirty: Cell<bool>,
    regs: Cell<Option<kvm::kvm_regs>>,
    sregs: Cell<Option<kvm::kvm_sregs>>,
    /// What the vCPU had when it last left the guest with paging on is kept, here.
    keeps: Cell<bool>,
    before: Cell<Option<(kvm::kvm_regs, kvm::kvm_sregs)>>,
}

impl Registers {
    /// Access to the registers of one vCPU.
    pub fn new(can_sync: bool) -> Registers {
        Registers {
            layout: OnceCell::new(),
            can_sync,
            syncs: Cell::new(false),
            always_syncs: Cell::new(false),
            is_synced: Cell::new(false),
            is_dirty: Cell::new(false),
            regs: Cell::new(None),
            sregs: Cell::new(None),
            keeps: Cell::new(false),
            before: Cell::new(None),
        }
    }

    /// Has KVM hand over registers with each exit from now on, if it can: for a vCPU that is
    /// debugged, whose exits look at them.
    pub fn sync(&self, on: bool) {
        self.syncs.set(on && self.can_sync || self.always_syncs.get());
    }

    /// Called before the guest is entered.
    pub fn enter(&self, vcpu: &mut VcpuFd) {
        if self.is_dirty.take()
            && let Some(regs) = self.regs.get()
        {
            vcpu.sync_regs_mut().regs = regs;
            vcpu.set_sync_dirty_reg(SyncReg::Register);
        }
        if self.keeps.get() && self.is_synced.get() {
            let synced = vcpu.sync_regs();
            if synced.sregs.cr0 & CR0_PG != 0 {
                self.before.set(Some((synced.regs, synced.sregs)));
            }
        }
        self.forget();
        for register in [SyncReg::Register, SyncReg::SystemRegister] {
            if self.syncs.get() {
                vcpu.set_sync_valid_reg(register);
            } else {
                vcpu.clear_sync_valid_reg(register);
            }
        }
    }

    /// Called when `KVM_RUN` has returned, with whatever.
    pub fn leave(&self) {
        self.is_synced.set(self.syncs.get());
    }

    /// Hands over registers that KVM was to take with the next entry, before something else looks
    /// at them or changes them.
    pub fn flush(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        match (self.is_dirty.take(), self.regs.get()) {
            (true, Some(regs)) => vcpu.set_regs(&regs).map_err(refused_bank("KVM_SET_REGS", general())),
            _ => Ok(()),
        }
    }

    /// Writes a few registers by their rows: general ones with the next entry, if KVM takes them
    /// so (KVM API, `KVM_CAP_SYNC_REGS`, `kvm_dirty_regs`).
    pub fn write_rows(&self, vcpu: &VcpuFd, values: &[(usize, u64)]) -> Result<(), KvmError> {
        let mut regs = self.regs(vcpu)?;
        let mut others: Option<RegisterFile> = None;
        for &(row, value) in values {
            match table(ISA).get(row).map(|register| register.source) {
                Some(Source::Regs(index)) => {
                    let start = usize::from(index) * 8;
                    regs.bytes_mut()[start..start + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => others.get_or_insert_with(|| RegisterFile::new(ISA)).set_row(row, value),
            }
        }
        self.regs.set(Some(regs));
        self.is_dirty.set(true);
        if !self.is_synced.get() {
            self.flush(vcpu)?;
        }
        others.map_or(Ok(()), |others| self.write(vcpu, &others))
    }

    /// Forgets what has been read: something else has changed registers.
    pub fn forget(&self) {
        self.is_dirty.set(false);
        self.is_synced.set(false);
        self.regs.set(None);
        self.sregs.set(None);
    }

    fn layout(&self, vcpu: &VcpuFd) -> &XsaveLayout {
        self.layout.get_or_init(|| XsaveLayout::new(vcpu))
    }

    fn regs(&self, vcpu: &VcpuFd) -> Result<kvm::kvm_regs, KvmError> {
        if let Some(regs) = self.regs.get() {
            return Ok(regs);
        }
        let regs = match self.is_synced.get() {
            true => vcpu.sync_regs().regs,
            false => vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?,
        };
        self.regs.set(Some(regs));
        Ok(regs)
    }

    fn sregs(&self, vcpu: &VcpuFd) -> Result<kvm::kvm_sregs, KvmError> {
        if let Some(sregs) = self.sregs.get() {
            return Ok(sregs);
        }
        let sregs = match self.is_synced.get() {
            true => vcpu.sync_regs().sregs,
            false => vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?,
        };
        self.sregs.set(Some(sregs));
        Ok(sregs)
    }

    /// RIP and RFLAGS, which run control asks for at every stop.
    pub fn pc_and_flags(&self, vcpu: &VcpuFd) -> Result<(u64, u64), KvmError> {
        let regs = self.regs(vcpu)?;
        Ok((regs.rip, regs.rflags))
    }

    /// RIP and CR3.
    pub fn pc_and_base(&self, vcpu: &VcpuFd) -> Result<(u64, u64), KvmError> {
        Ok((self.regs(vcpu)?.rip, self.sregs(vcpu)?.cr3))
    }

    /// Whether it is in ring 0.
    pub fn is_privileged(&self, vcpu: &VcpuFd) -> bool {
        self.sregs(vcpu).is_ok_and(|sregs| sregs.cs.selector & 3 == 0)
    }

    /// Has KVM hand over registers with each exit, whoever switches that on and off.
    pub fn always_sync(&self) {
        self.always_syncs.set(self.can_sync);
        self.syncs.set(self.can_sync);
    }

    /// Keeps, from now on, what the vCPU had when it last left the guest with paging on, if KVM hands
    /// registers over with each exit: a guest that restarts or faults three times loses it.
    pub fn keep_before(&self) {
        self.always_sync();
        self.keeps.set(self.can_sync);
    }

    /// Has `look` see the vCPU as it was when it last left the guest with paging on, if paging is off now and
    /// that was kept.
    pub fn with_before<R>(&self, vcpu: &VcpuFd, look: impl FnOnce() -> R) -> Option<R> {
        let is_on = self.sregs(vcpu).is_ok_and(|sregs| sregs.cr0 & CR0_PG != 0);
        let (regs, sregs) = self.before.get().filter(|_| !is_on)?;
        self.flush(vcpu).ok()?;
        let now = (self.regs.replace(Some(regs)), self.sregs.replace(Some(sregs)));
        let seen = look();
        self.regs.set(now.0);
        self.sregs.set(now.1);
        Some(seen)
    }

    /// Reads one register by its row.
    pub fn read_row(&self, vcpu: &VcpuFd, row: usize) -> Option<u64> {
        match table(ISA).get(row)?.source {
            Source::Regs(index) => Some(word_at(self.regs(vcpu).ok()?.bytes(), usize::from(index))),
            Source::Sregs(offset, size) => number_in(&self.sregs(vcpu).ok()?, offset, size),
            _ => self.read(vcpu, &[table(ISA)[row].bank()]).get_row(row),
        }
    }

    /// How the vCPU reads its code now (Intel SDM vol. 3, "Code-Segment Descriptor", L and D).
    pub fn code(&self, vcpu: &VcpuFd) -> Result<Code, KvmError> {
        const EFER_LMA: u64 = 1 << 10;
        let sregs = self.sregs(vcpu)?;
        let is_long = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
        let mode = match (is_long, sregs.cs.db) {
            (true, _) => OperatingMode::Bits64,
            (false, 0) => OperatingMode::Real16,
            (false, _) => OperatingMode::Protected32,
        };
        Ok(Code { mode, base: sregs.cs.base })
    }

    /// What the guest has in DR0 to DR3 and DR7.
    pub fn own_debug_registers(&self, vcpu: &VcpuFd, _: &Abilities) -> Result<DebugRegisters, KvmError> {
        let registers = vcpu.get_debug_regs().map_err(ioctl("KVM_GET_DEBUGREGS"))?;
        Ok(DebugRegisters::X86(slots(registers.dr7, registers.db)))
    }

    /// How the vCPU translates now.
    pub fn regime(&self, vcpu: &VcpuFd) -> Result<Regime, KvmError> {
        let sregs = self.sregs(vcpu)?;
        Ok(Regime::X86(Paging::new(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)))
    }

    /// Reads the registers that a stop is told with: all general ones, which KVM gives at once.
    pub fn at_stop(&self, vcpu: &VcpuFd) -> RegisterFile {
        self.read(vcpu, &[Bank::General])
    }

    /// Reads the registers of some banks.
    pub fn read(&self, vcpu: &VcpuFd, banks: &[Bank]) -> RegisterFile {
        let mut file = RegisterFile::new(ISA);
        let regs = wants(banks, Bank::General).then(|| self.regs(vcpu).ok()).flatten();
        let wants_sregs = wants(banks, Bank::System);
        let sregs = wants_sregs.then(|| self.sregs(vcpu).ok()).flatten();
        let area = wants(banks, Bank::Float).then(|| area(vcpu).ok()).flatten();
        let debug = wants(banks, Bank::Debug).then(|| vcpu.get_debug_regs().ok()).flatten();
        for (row, register) in table(ISA).iter().enumerate() {
            match register.source {
                Source::Regs(index) => {
                    if let Some(regs) = &regs {
                        file.set_row(row, word_at(regs.bytes(), usize::from(index)));
                    }
                }
                Source::Sregs(offset, size) => {
                    if let Some(value) = sregs.as_ref().and_then(|sregs| number_in(sregs, offset, size)) {
                        file.set_row(row, value);
                    }
                }
                Source::SegmentAccess(offset) => {
                    if let Some(bytes) =
                        sregs.as_ref().and_then(|sregs| array_at(sregs.bytes(), offset.into()))
                    {
                        file.set_row(row, x86_64::access_rights(bytes).into());
                    }
                }
                Source::DebugRegs(index) => {
                    if let Some(debug) = &debug {
                        file.set_row(row, word_at(debug.bytes(), usize::from(index)));
                    }
                }
                Source::Xsave(component, offset, size) => {
                    let place = self.layout(vcpu).place(component, offset);
                    if let (Some(area), Some(start)) = (&area, place)
                        && let Some(bytes) = area.get(start..start + usize::from(size))
                    {
                        file.set_bytes(row, bytes);
                    }
                }
                Source::X87Tag => {
                    if let Some(area) = &area {
                        let (registers, top, abridged) = x87(area);
                        file.set_row(row, x86_64::full_tag_word(abridged, &registers, top).into());
                    }
                }
                _ => {}
            }
        }
        if wants(banks, Bank::Msr) {
            read_msrs(vcpu, &mut file);
        }
        file
    }

    /// Writes every register that the file has a value for.
    pub fn write(&self, vcpu: &VcpuFd, file: &RegisterFile) -> Result<(), KvmError> {
        self.flush(vcpu)?;
        let banks: Vec<Bank> = Bank::ALL
            .into_iter()
            .filter(|bank| file.rows().any(|(_, register)| register.bank() == *bank))
            .collect();
        if wants(&banks, Bank::System) {
            let mut sregs = self.sregs(vcpu)?;
            for (row, register) in file.rows() {
                let Some(value) = file.get_row(row) else { continue };
                let mut put = |offset: u16, bytes: &[u8]| {
                    let start = usize::from(offset);
                    sregs.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
                };
                match register.source {
                    Source::Sregs(offset, size) => put(offset, &value.to_le_bytes()[..usize::from(size)]),
                    Source::SegmentAccess(offset) => {
                        let rights = u32::try_from(value).unwrap_or(0);
                        put(offset, &x86_64::access_bytes(rights));
                    }
                    _ => {}
                }
            }
            // KVM may change what it takes.
            self.forget();
            vcpu.set_sregs(&sregs).map_err(refused_bank("KVM_SET_SREGS", names(file, Bank::System)))?;
        }
        if wants(&banks, Bank::General) {
            let mut regs = self.regs(vcpu)?;
            for (row, register) in file.rows() {
                if let (Source::Regs(index), Some(value)) = (register.source, file.get_row(row)) {
                    let start = usize::from(index) * 8;
                    regs.bytes_mut()[start..start + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            self.regs.set(None);
            vcpu.set_regs(&regs).map_err(refused_bank("KVM_SET_REGS", names(file, Bank::General)))?;
            self.regs.set(Some(regs));
        }
        if wants(&banks, Bank::Float) {
            write_float(vcpu, self.layout(vcpu), file)?;
        }
        if wants(&banks, Bank::Debug) {
            let mut debug = vcpu.get_debug_regs().map_err(ioctl("KVM_GET_DEBUGREGS"))?;
            for (row, register) in file.rows() {
                if let (Source::DebugRegs(index), Some(value)) = (register.source, file.get_row(row)) {
                    let start = usize::from(index) * 8;
                    debug.bytes_mut()[start..start + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            vcpu.set_debug_regs(&debug)
                .map_err(refused_bank("KVM_SET_DEBUGREGS", names(file, Bank::Debug)))?;
        }
        for (row, index) in msr_rows() {
            let Some(data) = file.get_row(row) else { continue };
            let entry = kvm::kvm_msr_entry { index, data, ..Default::default() };
            let msrs = kvm::Msrs::from_entries(&[entry]).map_err(|_| KvmError::Missing("room for an MSR"))?;
            if vcpu.set_msrs(&msrs).map_err(ioctl("KVM_SET_MSRS"))? != 1 {
                return Err(KvmError::Msr { register: table(ISA)[row].name, value: data });
            }
        }
        Ok(())
    }
}

/// Makes the error of an ioctl that sets several registers.
fn refused_bank(
    call: &'static str,
    registers: impl Iterator<Item = &'static str>,
) -> impl FnOnce(Errno) -> KvmError {
    // Words are made only when they are needed.
    move |source| KvmError::Registers { call, registers: registers.collect::<Vec<_>>().join(", "), source }
}

/// Names of the registers of a bank that a file has values for.
fn names(file: &RegisterFile, bank: Bank) -> impl Iterator<Item = &'static str> {
    file.rows().filter(move |(_, register)| register.bank() == bank).map(|(_, register)| register.name)
}

/// Names of the general registers, of which some have been changed.
fn general() -> impl Iterator<Item = &'static str> {
    table(ISA).iter().filter(|register| register.bank() == Bank::General).map(|register| register.name)
}

fn wants(banks: &[Bank], bank: Bank) -> bool {
    banks.contains(&bank)
}

/// The XSAVE area as bytes.
fn area(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let xsave = vcpu.get_xsave()?;
    Ok(xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// ST0 to ST7, the status word's top of stack, and the abridged tag word.
fn x87(area: &[u8]) -> ([[u8; 10]; 8], u8, u8) {
    let registers = std::array::from_fn(|index| {
        let start = 32 + 16 * index;
        std::array::from_fn(|byte| area[start + byte])
    });
    (registers, area[3] >> 3 & 7, area[4])
}

/// The 64-bit word of a structure of words.
fn word_at(bytes: &[u8], index: usize) -> u64 {
    arch::bytes::u64_at(bytes, index * 8).unwrap_or(0)
}

fn msr_rows() -> impl Iterator<Item = (usize, u32)> {
    table(ISA).iter().enumerate().filter_map(|(row, register)| match register.source {
        Source::Msr(index) => Some((row, index)),
        _ => None,
    })
}

/// Reads MSRs in one go; KVM stops at the first that it does not have, which is left out.
fn read_msrs(vcpu: &VcpuFd, file: &mut RegisterFile) {
    let mut rows: Vec<(usize, u32)> = msr_rows().collect();
    while !rows.is_empty() {
        let entries: Vec<kvm::kvm_msr_entry> =
            rows.iter().map(|&(_, index)| kvm::kvm_msr_entry { index, ..Default::default() }).collect();
        let Ok(mut msrs) = kvm::Msrs::from_entries(&entries) else { return };
        let Ok(count) = vcpu.get_msrs(&mut msrs) else { return };
        for (&(row, _), entry) in rows.iter().zip(msrs.as_slice()).take(count) {
            file.set_row(row, entry.data);
        }
        rows.drain(..(count + 1).min(rows.len()));
    }
}

fn write_float(vcpu: &VcpuFd, layout: &XsaveLayout, file: &RegisterFile) -> Result<(), KvmError> {
    let mut xsave = vcpu.get_xsave().map_err(ioctl("KVM_GET_XSAVE"))?;
    let mut area: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut components = word_at(&area, XSTATE_BV / 8);
    for (row, register) in file.rows() {
        match register.source {
            Source::Xsave(component, offset, size) => {
                let Some(start) = layout.place(component, offset) else { continue };
                let (Some(bytes), Some(place)) =
                    (file.bytes(row), area.get_mut(start..start + usize::from(size)))
                else {
                    continue;
                };
                place.copy_from_slice(&bytes[..usize::from(size)]);
                // x87 and SSE are components 0 and 1.
                components |= if component == XsaveComponent::Legacy { 3 } else { 1 << number(component) };
            }
            Source::X87Tag => {
                let full = u16::try_from(file.get_row(row).unwrap_or(0) & 0xffff).unwrap_or(0);
                area[4] = x86_64::abridged_tag_word(full);
                components |= 1;
            }
            _ => {}
        }
    }
    area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&components.to_le_bytes());
    for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: no dynamically enabled feature (AMX) is on, as nothing here asks for one, so the
    // area is no larger than the structure.
    unsafe { vcpu.set_xsave(&xsave) }.map_err(refused_bank("KVM_SET_XSAVE", names(file, Bank::Float)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::register::row;

    #[test]
    fn refused_registers_are_named_with_the_reason() {
        let mut file = RegisterFile::new(ISA);
        file.set("cr0", 1);
        file.set("rip", 2);
        file.set("cr4", 3);
        let failed = refused_bank("KVM_SET_SREGS", names(&file, Bank::System))(Errno::new(libc::EINVAL));
        let text = failed.to_string();
        assert!(text.contains("KVM_SET_SREGS") && text.contains("Invalid argument"), "{text}");
        assert!(text.contains("cr0") && text.contains("cr4") && !text.contains("rip"), "{text}");
        assert!(general().any(|name| name == "rip"));
    }

    #[test]
    fn offsets_of_the_table_are_those_of_the_structures() {
        let name = |offset: u16| {
            table(ISA).iter().find(|register| matches!(register.source, Source::Sregs(at, 8) if at == offset))
        };
        let mut sregs = kvm::kvm_sregs::default();
        (sregs.cr3, sregs.efer, sregs.gdt.base, sregs.fs.base) = (3, 5, 7, 9);
        for (register, value) in [("cr3", 3), ("efer", 5), ("gdt_base", 7), ("fs_base", 9)] {
            let found = row(ISA, register).map(|row| table(ISA)[row].source);
            let Some(Source::Sregs(offset, 8)) = found else { panic!("{register}") };
            assert_eq!(number_in(&sregs, offset, 8), Some(value), "{register}");
            assert!(name(offset).is_some());
        }
        let selectors = kvm::kvm_segment { selector: 0x1234, type_: 0xff, ..Default::default() };
        sregs.cs = selectors;
        let cs = row(ISA, "cs").map(|row| table(ISA)[row].source);
        let Some(Source::Sregs(offset, size)) = cs else { panic!("{cs:?}") };
        assert_eq!(number_in(&sregs, offset, size), Some(0x1234));
        assert_eq!(number_in(&sregs, u16::MAX, 1), None);
        let segment = kvm::kvm_segment { type_: 11, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
        let sregs = kvm::kvm_sregs { cs: segment, ldt: segment, ..Default::default() };
        for register in ["cs_ar", "ldt_ar"] {
            let found = row(ISA, register).map(|row| table(ISA)[row].source);
            let Some(Source::SegmentAccess(offset)) = found else { panic!("{register}") };
            let bytes = array_at(sregs.bytes(), offset.into()).unwrap();
            assert_eq!(x86_64::access_rights(bytes), 0xa09b, "{register}");
        }
        let mut regs = kvm::kvm_regs::default();
        (regs.rsp, regs.rip, regs.rflags, regs.r15) = (1, 2, 3, 4);
        for (register, value) in [("rsp", 1), ("rip", 2), ("eflags", 3), ("r15", 4)] {
            let found = row(ISA, register).map(|row| table(ISA)[row].source);
            let Some(Source::Regs(index)) = found else { panic!("{register}") };
            assert_eq!(word_at(regs.bytes(), usize::from(index)), value, "{register}");
        }
        let mut debug = kvm::kvm_debugregs::default();
        (debug.db[3], debug.dr6, debug.dr7) = (1, 2, 3);
        assert_eq!([3, 4, 5].map(|index| word_at(debug.bytes(), index)), [1, 2, 3]);
    }
}
