//! A vCPU's registers by the register table, through KVM's ioctls: one `KVM_GET_ONE_REG` or
//! `KVM_SET_ONE_REG` each.

use super::{ISA, core_register, system_register};
use crate::error::KvmError;
use arch::aarch64::debug_registers::Pair;
use arch::aarch64::exception_entry::pstate;
use arch::paging::Regime;
use arch::paging::aarch64::Paging;
use arch::register::{Bank, RegisterFile, Scalable, Source, at_stop, table};
use debug::arming::DebugRegisters;
use debug::machine::{Abilities, Code};
use kvm_bindings as kvm;
use kvm_ioctls::{Error as Errno, Kvm, VcpuFd};
use std::cell::{OnceCell, RefCell};

/// `struct kvm_regs`: offset of `fp_regs.vregs`, of its `fpsr` and `fpcr`.
const VREGS: u64 = 336;
const FPSR: u64 = VREGS + 32 * 16;
const FPCR: u64 = FPSR + 4;
/// Bytes of a Z register as KVM hands it over, whatever the vector length is.
const Z_SIZE: usize = 256;

const fn core(size: u64, offset: u64) -> u64 {
    kvm::KVM_REG_ARM64 | size | kvm::KVM_REG_ARM_CORE as u64 | (offset / 4)
}

/// Bytes of a P register, likewise.
const P_SIZE: usize = Z_SIZE / 8;

/// KVM's name of a scalable register (`KVM_REG_ARM64_SVE_ZREG(n, 0)`, `_PREG`, `_FFR`), and the
/// bytes that it hands over.
const fn scalable(register: Scalable) -> (u64, usize) {
    const SVE: u64 = kvm::KVM_REG_ARM64 | kvm::KVM_REG_ARM64_SVE as u64;
    const P: u64 = SVE | kvm::KVM_REG_SIZE_U256;
    match register {
        Scalable::Vector(index) => (SVE | kvm::KVM_REG_SIZE_U2048 | (index as u64) << 5, Z_SIZE),
        Scalable::Predicate(index) => (P | 0x400 | (index as u64) << 5, P_SIZE),
        Scalable::FirstFault => (P | 0x600, P_SIZE),
    }
}

/// `KVM_REG_ARM64_SVE_VLS`: a bit for each vector length in units of 128 bits, from one on.
const SVE_LENGTHS: u64 = kvm::KVM_REG_ARM64 | kvm::KVM_REG_ARM64_SVE as u64 | kvm::KVM_REG_SIZE_U512 | 0xffff;
/// `ZCR_EL1`; `LEN` in bits 3 to 0 is one less than the length wished for, in those units.
const ZCR_EL1: u64 = system_register(3, 0, 1, 2, 0);

/// KVM's name of a 64-bit register; `None` for those that are read another way.
fn id(source: Source) -> Option<u64> {
    match source {
        Source::Core(offset) => Some(core_register(usize::from(offset))),
        Source::System(encoding) => Some(
            kvm::KVM_REG_ARM64
                | kvm::KVM_REG_SIZE_U64
                | kvm::KVM_REG_ARM64_SYSREG as u64
                | u64::from(encoding),
        ),
        _ => None,
    }
}

/// SP is `SP_EL0` or `SP_EL1`: EL0, or EL1 with PSTATE.SP clear, uses the former.
fn stack_pointer(state: u64) -> u64 {
    let uses_el1 = state & pstate::MODE == pstate::EL1H;
    core_register(if uses_el1 { 34 } else { 31 } * 8)
}

const PSTATE: u64 = core_register(33 * 8);

/// KVM has no way to hand registers over with an exit here.
pub fn can_sync(_: &Kvm) -> bool {
    false
}

/// Makes the error of a register that KVM refused.
pub(super) fn refused(register: &'static str) -> impl FnOnce(Errno) -> KvmError {
    move |source| KvmError::Register { register, source }
}

/// Access to a vCPU's registers. What has been read since the guest was left is not asked of
/// KVM again.
#[derive(Debug)]
pub struct Registers {
    /// KVM's names of 64-bit registers, and their values.
    known: RefCell<Vec<(u64, u64)>>,
    /// The vector lengths that the vCPU has, a bit for each; none without SVE.
    vector_lengths: OnceCell<u64>,
}

impl Registers {
    /// Access to the registers of one vCPU.
    pub fn new(_: bool) -> Registers {
        Registers { known: RefCell::default(), vector_lengths: OnceCell::new() }
    }

    /// Nothing to do: see [`can_sync`].
    pub fn sync(&self, _: bool) {}

    /// Called before the guest is entered.
    pub fn enter(&self, _: &mut VcpuFd) {
        self.forget();
    }

    /// Called when `KVM_RUN` has returned, with whatever.
    pub fn leave(&self) {}

    /// Nothing to do: registers are written at once.
    pub fn flush(&self, _: &VcpuFd) -> Result<(), KvmError> {
        Ok(())
    }

    /// Writes a few registers by their rows.
    pub fn write_rows(&self, vcpu: &VcpuFd, values: &[(usize, u64)]) -> Result<(), KvmError> {
        let mut others: Option<RegisterFile> = None;
        for &(row, value) in values {
            match self.write_core(vcpu, row, value) {
                Some(written) => written?,
                None => others.get_or_insert_with(|| RegisterFile::new(ISA)).set_row(row, value),
            }
        }
        others.map_or(Ok(()), |others| self.write(vcpu, &others))
    }

    /// Forgets what has been read: something else has changed registers.
    pub fn forget(&self) {
        self.known.borrow_mut().clear();
    }

    fn get(&self, vcpu: &VcpuFd, id: u64) -> Option<u64> {
        self.try_get(vcpu, id).ok()
    }

    fn try_get(&self, vcpu: &VcpuFd, id: u64) -> Result<u64, Errno> {
        if let Some((_, value)) = self.known.borrow().iter().find(|(known, _)| *known == id) {
            return Ok(*value);
        }
        let value = super::get(vcpu, id)?;
        self.known.borrow_mut().push((id, value));
        Ok(value)
    }

    /// Reads a register that there must be.
    fn need(&self, vcpu: &VcpuFd, id: u64, register: &'static str) -> Result<u64, KvmError> {
        self.try_get(vcpu, id).map_err(refused(register))
    }

    /// Reads the registers that a stop is told with, and no others: each is a call.
    pub fn at_stop(&self, vcpu: &VcpuFd) -> RegisterFile {
        let mut file = RegisterFile::new(ISA);
        for row in at_stop(ISA) {
            if let Some(value) = self.read_row(vcpu, row) {
                file.set_row(row, value);
            }
        }
        file
    }

    /// Reads the registers of some banks.
    pub fn read(&self, vcpu: &VcpuFd, banks: &[Bank]) -> RegisterFile {
        let mut file = RegisterFile::new(ISA);
        for (row, register) in table(ISA).iter().enumerate() {
            if !banks.contains(&register.bank()) {
                continue;
            }
            match register.source {
                Source::StackPointer => {
                    let value = self.get(vcpu, PSTATE).and_then(|state| self.get(vcpu, stack_pointer(state)));
                    if let Some(value) = value {
                        file.set_row(row, value);
                    }
                }
                Source::Vector(index) => {
                    if let Some(bytes) = self.read_vector(vcpu, index) {
                        file.set_bytes(row, &bytes);
                    }
                }
                Source::Scalable(which) => {
                    if let Some(bytes) = self.read_scalable(vcpu, which) {
                        file.set_bytes(row, &bytes);
                    }
                }
                Source::VectorGranules => {
                    if let Some(granules) = self.vector_granules(vcpu) {
                        file.set_row(row, granules);
                    }
                }
                Source::Fpsr | Source::Fpcr => {
                    let offset = if register.source == Source::Fpsr { FPSR } else { FPCR };
                    let mut bytes = [0; 4];
                    if vcpu.get_one_reg(core(kvm::KVM_REG_SIZE_U32, offset), &mut bytes).is_ok() {
                        file.set_bytes(row, &bytes);
                    }
                }
                Source::PointerMask { is_high, is_code } => {
                    if self.has_pointer_authentication(vcpu)
                        && let Ok(Regime::Aarch64(paging)) = self.regime(vcpu)
                    {
                        file.set_row(row, paging.pointer_mask(is_high, is_code));
                    }
                }
                source => {
                    if let Some(value) = id(source).and_then(|id| self.get(vcpu, id)) {
                        file.set_row(row, value);
                    }
                }
            }
        }
        file
    }

    /// Writes every register that the file has a value for. Registers that KVM refuses are an
    /// error only when their value would change.
    pub fn write(&self, vcpu: &VcpuFd, file: &RegisterFile) -> Result<(), KvmError> {
        for (row, register) in file.rows() {
            let name = register.name;
            let no_value = || KvmError::NoValue(name);
            match register.source {
                Source::Vector(index) => {
                    let bytes = file.bytes(row).ok_or_else(no_value)?;
                    self.write_vector(vcpu, index, &bytes).map_err(refused(name))?;
                }
                Source::Scalable(which) => {
                    let mut bytes = file.bytes(row).ok_or_else(no_value)?;
                    let (id, size) = scalable(which);
                    bytes.resize(size, 0);
                    vcpu.set_one_reg(id, &bytes).map_err(refused(name))?;
                }
                Source::Fpsr | Source::Fpcr => {
                    let offset = if register.source == Source::Fpsr { FPSR } else { FPCR };
                    let bytes = file.bytes(row).ok_or_else(no_value)?;
                    vcpu.set_one_reg(core(kvm::KVM_REG_SIZE_U32, offset), &bytes).map_err(refused(name))?;
                }
                // They follow from others; gdb writes them all back as they were after a call.
                Source::VectorGranules | Source::PointerMask { .. } => {
                    if self.read_row(vcpu, row) != file.get_row(row) {
                        return Err(no_value());
                    }
                }
                source => {
                    let value = file.get_row(row).ok_or_else(no_value)?;
                    let id = match source {
                        // PSTATE comes behind SP in the table; a file with both has the new one.
                        Source::StackPointer => {
                            let state = file.get("cpsr").or_else(|| self.get(vcpu, PSTATE)).unwrap_or(0);
                            stack_pointer(state)
                        }
                        source => id(source).ok_or_else(no_value)?,
                    };
                    self.known.borrow_mut().retain(|(known, _)| *known != id);
                    if let Err(error) = vcpu.set_one_reg(id, &value.to_le_bytes())
                        && self.get(vcpu, id) != Some(value)
                    {
                        return Err(refused(name)(error));
                    }
                }
            }
        }
        Ok(())
    }

    /// PC and PSTATE, which run control asks for at every stop.
    pub fn pc_and_flags(&self, vcpu: &VcpuFd) -> Result<(u64, u64), KvmError> {
        let read = |id, name| self.need(vcpu, id, name);
        Ok((read(super::PC, "pc")?, read(PSTATE, "cpsr")?))
    }

    /// PC, and the `TTBRn_EL1` that translates it.
    pub fn pc_and_base(&self, vcpu: &VcpuFd) -> Result<(u64, u64), KvmError> {
        let read = |id, name| self.need(vcpu, id, name);
        let pc = read(super::PC, "pc")?;
        let upper = pc >> 55 & 1;
        Ok((pc, read(system_register(3, 0, 2, 0, upper), "TTBRn_EL1")?))
    }

    /// Whether it is at EL1.
    pub fn is_privileged(&self, vcpu: &VcpuFd) -> bool {
        self.get(vcpu, PSTATE).is_some_and(|state| state & pstate::MODE != 0)
    }

    /// Nothing to do: see [`can_sync`].
    pub fn always_sync(&self) {}

    /// Nothing to do: a reset is a call of PSCI, which leaves registers as they are.
    pub fn keep_before(&self) {}

    /// There is nothing else than what there is now.
    pub fn with_before<R>(&self, _: &VcpuFd, _: impl FnOnce() -> R) -> Option<R> {
        None
    }

    /// Writes a register that is in `struct kvm_regs`; `None` for others.
    fn write_core(&self, vcpu: &VcpuFd, row: usize, value: u64) -> Option<Result<(), KvmError>> {
        let Source::Core(_) = table(ISA).get(row)?.source else { return None };
        let id = id(table(ISA)[row].source)?;
        self.known.borrow_mut().retain(|(known, _)| *known != id);
        let written = vcpu.set_one_reg(id, &value.to_le_bytes()).map(drop);
        Some(written.map_err(refused(table(ISA)[row].name)))
    }

    /// Reads one register by its row.
    pub fn read_row(&self, vcpu: &VcpuFd, row: usize) -> Option<u64> {
        match table(ISA).get(row)?.source {
            Source::StackPointer => self.get(vcpu, stack_pointer(self.get(vcpu, PSTATE)?)),
            Source::Core(_) | Source::System(_) => self.get(vcpu, id(table(ISA)[row].source)?),
            _ => self.read(vcpu, &[table(ISA)[row].bank()]).get_row(row),
        }
    }

    /// Whether the vCPU has pointer authentication (Arm ARM (DDI 0487), `ID_AA64ISAR1_EL1.APA`
    /// and `.API`, `ID_AA64ISAR2_EL1.APA3`).
    fn has_pointer_authentication(&self, vcpu: &VcpuFd) -> bool {
        let field = |op2, shift: u32, bits: u64| {
            let id = self.get(vcpu, system_register(3, 0, 0, 6, op2)).unwrap_or(0);
            id >> shift & bits != 0
        };
        field(1, 4, 0xff) || field(2, 12, 0xf)
    }

    /// All code is 64 bits wide here, and its addresses are as they are. (32-bit code at EL0 is
    /// not stepped over otherwise.)
    pub fn code(&self, _: &VcpuFd) -> Result<Code, KvmError> {
        Ok(Code::FLAT_64)
    }

    /// The breakpoints and watchpoints that the guest has armed, if it has switched them on.
    pub fn own_debug_registers(
        &self,
        vcpu: &VcpuFd,
        abilities: &Abilities,
    ) -> Result<DebugRegisters, KvmError> {
        const MDSCR_EL1: u64 = system_register(2, 0, 0, 2, 2);
        const MDE: u64 = 1 << 15;
        let is_on = self.get(vcpu, MDSCR_EL1).is_some_and(|mdscr| mdscr & MDE != 0);
        // DBGBVR, DBGBCR, DBGWVR and DBGWCR are op2 4 to 7, their number is CRm.
        let pairs = |count: usize, op2: u64| {
            (0..if is_on { count as u64 } else { 0 })
                .map(|number| Pair {
                    value: self.get(vcpu, system_register(2, 0, 0, number, op2)).unwrap_or(0),
                    control: self.get(vcpu, system_register(2, 0, 0, number, op2 + 1)).unwrap_or(0),
                })
                .collect()
        };
        Ok(DebugRegisters::Aarch64 {
            breakpoints: pairs(abilities.breakpoints, 4),
            watchpoints: pairs(abilities.watchpoints, 6),
        })
    }

    /// How the vCPU translates now.
    pub fn regime(&self, vcpu: &VcpuFd) -> Result<Regime, KvmError> {
        let read = |crn, op2, name| self.need(vcpu, system_register(3, 0, crn, 0, op2), name);
        let (sctlr, tcr) = (read(1, 0, "SCTLR_EL1")?, read(2, 2, "TCR_EL1")?);
        let (ttbr0, ttbr1) = (read(2, 0, "TTBR0_EL1")?, read(2, 1, "TTBR1_EL1")?);
        Ok(Regime::Aarch64(Paging::new(sctlr, tcr, ttbr0, ttbr1)))
    }

    /// The vector lengths that the vCPU has: bit `n` is `n + 1` times 128 bits.
    fn vector_lengths(&self, vcpu: &VcpuFd) -> u64 {
        *self.vector_lengths.get_or_init(|| {
            let mut lengths = [0; 64];
            let there = vcpu.get_one_reg(SVE_LENGTHS, &mut lengths).is_ok();
            if there { lengths[..8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)) } else { 0 }
        })
    }

    /// The vector length in use, in 64-bit granules: the longest there is that is not longer
    /// than `ZCR_EL1` wishes.
    fn vector_granules(&self, vcpu: &VcpuFd) -> Option<u64> {
        let wished = self.get(vcpu, ZCR_EL1)? & 0xf;
        let lengths = self.vector_lengths(vcpu) & ((2 << wished) - 1);
        (lengths != 0).then(|| 2 * u64::from(lengths.ilog2() + 1))
    }

    fn read_scalable(&self, vcpu: &VcpuFd, register: Scalable) -> Option<Vec<u8>> {
        let longest = 16 * (self.vector_lengths(vcpu).checked_ilog2()? as usize + 1);
        let (id, size) = scalable(register);
        let mut bytes = vec![0; size];
        vcpu.get_one_reg(id, &mut bytes).ok()?;
        bytes.truncate(longest * size / Z_SIZE);
        Some(bytes)
    }

    /// V registers are the low ends of Z registers where the guest has SVE; KVM then gives them
    /// only so.
    fn read_vector(&self, vcpu: &VcpuFd, index: u8) -> Option<Vec<u8>> {
        if let Some(mut bytes) = self.read_scalable(vcpu, Scalable::Vector(index)) {
            bytes.truncate(16);
            return Some(bytes);
        }
        let mut bytes = vec![0; 16];
        vcpu.get_one_reg(v_register(index), &mut bytes).ok()?;
        Some(bytes)
    }

    fn write_vector(&self, vcpu: &VcpuFd, index: u8, bytes: &[u8]) -> Result<(), Errno> {
        let Some(mut wide) = self.read_scalable(vcpu, Scalable::Vector(index)) else {
            return vcpu.set_one_reg(v_register(index), bytes).map(drop);
        };
        wide.resize(Z_SIZE, 0);
        wide[..16].copy_from_slice(bytes);
        vcpu.set_one_reg(scalable(Scalable::Vector(index)).0, &wide).map(drop)
    }
}

const fn v_register(index: u8) -> u64 {
    core(kvm::KVM_REG_SIZE_U128, VREGS + 16 * index as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_registers_are_named_with_the_reason() {
        let text = refused("TTBR0_EL1")(Errno::new(libc::EINVAL)).to_string();
        assert!(text.contains("TTBR0_EL1") && text.contains("Invalid argument"), "{text}");
    }
}
