//! The register tables: one row describes one register of a target, for every use of it.
//!
//! From a row come its place in gdb's target description and packets (`debug::gdb`), the
//! report of a failed vCPU (`debug::report`), `monitor regs`, the notes of core files
//! ([`note`]), and the way KVM names it (crate `kvm`). The order of rows is the
//! order of gdb's register numbers.
//!
//! Tables: [`x86_64::TABLE`], [`aarch64::TABLE`]. Values: [`RegisterFile`].

pub mod aarch64;
pub mod note;
pub mod x86_64;

use crate::Isa;
use note::Note;

/// What kind of register a row is, and how a report groups it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// General purpose, instruction pointer, flags.
    General,
    /// x86 segment selectors and bases.
    Segment,
    /// Control and system registers.
    System,
    /// Floating point and its control.
    Float,
    /// Vectors.
    Vector,
    /// The guest's own debug registers.
    Debug,
}

impl Group {
    /// All groups, in the order a report has them.
    pub const ALL: [Group; 6] =
        [Group::General, Group::Segment, Group::System, Group::Float, Group::Vector, Group::Debug];

    /// Its name in `monitor regs` and in gdb's `info registers NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Group::General => "general",
            Group::Segment => "segment",
            Group::System => "system",
            Group::Float => "float",
            Group::Vector => "vector",
            Group::Debug => "debug",
        }
    }
}

/// A feature of a gdb target description (GDB manual, "Standard Target Features"), or one of
/// our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `org.gnu.gdb.i386.core`.
    X86Core,
    /// `org.gnu.gdb.i386.sse`.
    X86Sse,
    /// `org.gnu.gdb.i386.segments`.
    X86Segments,
    /// `org.gnu.gdb.i386.avx`.
    X86Avx,
    /// `org.gnu.gdb.i386.avx512`.
    X86Avx512,
    /// Our own: system registers of x86.
    X86System,
    /// `org.gnu.gdb.aarch64.core`.
    Aarch64Core,
    /// `org.gnu.gdb.aarch64.fpu`.
    Aarch64Fpu,
    /// `org.gnu.gdb.aarch64.sve`, which takes the place of the former: V registers are the low
    /// ends of Z registers.
    Aarch64Sve,
    /// `org.gnu.gdb.aarch64.pauth_v2`, which gdb knows from version 14 on; the first version of
    /// the feature has no masks for a kernel's addresses.
    Aarch64PointerAuthentication,
    /// Our own: system registers of aarch64.
    Aarch64System,
}

impl Feature {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::X86Core => "org.gnu.gdb.i386.core",
            Feature::X86Sse => "org.gnu.gdb.i386.sse",
            Feature::X86Segments => "org.gnu.gdb.i386.segments",
            Feature::X86Avx => "org.gnu.gdb.i386.avx",
            Feature::X86Avx512 => "org.gnu.gdb.i386.avx512",
            Feature::X86System => "org.vmm.x86_64.system",
            Feature::Aarch64Core => "org.gnu.gdb.aarch64.core",
            Feature::Aarch64Fpu => "org.gnu.gdb.aarch64.fpu",
            Feature::Aarch64Sve => "org.gnu.gdb.aarch64.sve",
            Feature::Aarch64PointerAuthentication => "org.gnu.gdb.aarch64.pauth_v2",
            Feature::Aarch64System => "org.vmm.aarch64.system",
        }
    }
}

/// A component of the extended state (Intel SDM vol. 1, "Managing State Using the XSAVE
/// Feature Set"); the legacy area counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XsaveComponent {
    /// The first 512 bytes: x87 and SSE, in FXSAVE's format.
    Legacy,
    /// High halves of YMM0 to YMM15, component 2.
    Avx,
    /// Mask registers, component 5.
    Opmask,
    /// High halves of ZMM0 to ZMM15, component 6.
    ZmmHigh,
    /// ZMM16 to ZMM31, component 7.
    Zmm16,
}

/// Where a register's value is found, in KVM's terms (KVM API: `KVM_GET_REGS`,
/// `KVM_GET_SREGS`, `KVM_GET_MSRS`, `KVM_GET_XSAVE`, `KVM_GET_DEBUGREGS`, `KVM_GET_ONE_REG`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// x86: the 64-bit word of `struct kvm_regs`, by index.
    Regs(u8),
    /// x86: `struct kvm_sregs`, offset and size in bytes.
    Sregs(u16, u8),
    /// x86: what a segment is ([`x86_64::access_rights`]), offset in bytes of its `type` in
    /// `struct kvm_sregs`.
    SegmentAccess(u16),
    /// x86: a model-specific register.
    Msr(u32),
    /// x86: a component of the XSAVE area, offset in it and size in bytes.
    Xsave(XsaveComponent, u16, u8),
    /// x86: the x87 tag word, which the XSAVE area holds in short.
    X87Tag,
    /// x86: the 64-bit word of `struct kvm_debugregs`, by index.
    DebugRegs(u8),
    /// aarch64: `struct kvm_regs`, offset in bytes.
    Core(u16),
    /// aarch64: SP, which is `SP_EL0` or `SP_EL1`.
    StackPointer,
    /// aarch64: a system register by its encoding, as `KVM_REG_ARM64_SYSREG` has it:
    /// op0, op1, CRn, CRm and op2 in 2, 3, 4, 4 and 3 bits.
    System(u16),
    /// aarch64: V0 to V31.
    Vector(u8),
    /// aarch64: a register whose size is the vector length, or an eighth of it.
    Scalable(Scalable),
    /// aarch64: the vector length in use, in 64-bit granules. It follows from `ZCR_EL1` and
    /// cannot be written.
    VectorGranules,
    /// aarch64: `FPSR`.
    Fpsr,
    /// aarch64: `FPCR`.
    Fpcr,
    /// aarch64: the bits of a pointer in which an authentication code stands: of the half of the
    /// address space that bit 55 selects. It follows from `TCR_EL1` and cannot be written.
    PointerMask {
        /// The upper half, a kernel's.
        is_high: bool,
        /// Of pointers to code; those to data may have a top byte that is ignored.
        is_code: bool,
    },
}

/// A register of the Scalable Vector Extension (Arm ARM (DDI 0487), "SVE registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalable {
    /// Z0 to Z31, of the vector length.
    Vector(u8),
    /// P0 to P15, of an eighth of it.
    Predicate(u8),
    /// FFR, of an eighth of it.
    FirstFault,
}

/// Registers that one request gets together: what a caller that needs a few asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// General registers.
    General,
    /// Segments, control and system registers.
    System,
    /// Floating point and vectors.
    Float,
    /// x86 model-specific registers.
    Msr,
    /// The guest's own debug registers.
    Debug,
}

impl Bank {
    /// All of them.
    pub const ALL: [Bank; 5] = [Bank::General, Bank::System, Bank::Float, Bank::Msr, Bank::Debug];
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Name, as gdb has it; else as the architecture's manual has it, in lower case.
    pub name: &'static str,
    /// Width in bits in gdb's packets; of a [scalable](Source::Scalable) register the largest.
    pub bits: u32,
    /// Group.
    pub group: Group,
    /// Where it is described to gdb.
    pub feature: Feature,
    /// gdb's type for it.
    pub kind: &'static str,
    /// Where its value is.
    pub source: Source,
    /// Where core files have it, if they do.
    pub places: [Option<NotePlace>; 2],
}

/// Where the note of a core file has a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotePlace {
    /// The note.
    pub note: Note,
    /// Offset in it, bytes.
    pub offset: u16,
    /// Size there, bytes, which may be another than in gdb's packets.
    pub size: u16,
}

/// Makes a row.
const fn describe(
    name: &'static str,
    bits: u32,
    group: Group,
    feature: Feature,
    kind: &'static str,
    source: Source,
) -> Register {
    Register { name, bits, group, feature, kind, source, places: [None; 2] }
}

impl Register {
    /// A row with a further place in core files.
    const fn at(mut self, note: Note, offset: u16, size: u16) -> Register {
        let place = if self.places[0].is_none() { &mut self.places[0] } else { &mut self.places[1] };
        *place = Some(NotePlace { note, offset, size });
        self
    }

    /// Where a note has it: offset and size in bytes.
    pub fn place(&self, note: Note) -> Option<(usize, usize)> {
        let place = self.places.into_iter().flatten().find(|place| place.note == note)?;
        Some((place.offset.into(), place.size.into()))
    }

    /// Size in bytes in gdb's packets; of a [scalable](Source::Scalable) register the largest.
    pub const fn bytes(&self) -> usize {
        (self.bits / 8) as usize
    }

    /// Whether its size differs from machine to machine.
    pub const fn is_scalable(&self) -> bool {
        matches!(self.source, Source::Scalable(_))
    }

    /// Which request gets it.
    pub const fn bank(&self) -> Bank {
        match self.source {
            Source::Regs(_) | Source::Core(_) | Source::StackPointer => Bank::General,
            Source::Sregs(..) | Source::SegmentAccess(_) => Bank::System,
            Source::System(_) => match self.group {
                Group::Debug => Bank::Debug,
                _ => Bank::System,
            },
            Source::PointerMask { .. } => Bank::System,
            Source::Msr(_) => Bank::Msr,
            Source::DebugRegs(_) => Bank::Debug,
            Source::Xsave(..)
            | Source::X87Tag
            | Source::Vector(_)
            | Source::Scalable(_)
            | Source::VectorGranules
            | Source::Fpsr
            | Source::Fpcr => Bank::Float,
        }
    }
}

/// The table of an architecture.
pub fn table(isa: Isa) -> &'static [Register] {
    match isa {
        Isa::X86_64 => x86_64::TABLE,
        Isa::Aarch64 => aarch64::TABLE,
    }
}

/// The row of a register, by name.
pub fn row(isa: Isa, name: &str) -> Option<usize> {
    table(isa).iter().position(|register| register.name == name)
}

/// The row of a register that a table is known to have: a constant whose name it has not does not compile.
pub const fn known_row(table: &[Register], name: &str) -> usize {
    let mut row = 0;
    loop {
        if is_same(table[row].name.as_bytes(), name.as_bytes()) {
            return row;
        }
        row += 1;
    }
}

/// Whether two names are the same, where constants are made.
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// A register's value, little-endian; most fit a word.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Word(u64),
    Wide(Box<[u8]>),
}

/// As many values as the general registers of either architecture.
const AT_ONCE: usize = 40;

/// The values of one vCPU's registers; what could not be read is absent rather than zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterFile {
    isa: Isa,
    /// As far as the last one that has been read: general registers come first, and are read most.
    values: Vec<Option<Value>>,
}

impl RegisterFile {
    /// A file in which nothing has been read.
    pub fn new(isa: Isa) -> RegisterFile {
        RegisterFile { isa, values: Vec::new() }
    }

    /// The place of a row's value; none outside the table.
    fn place(&mut self, row: usize) -> Option<&mut Option<Value>> {
        if row >= table(self.isa).len() {
            return None;
        }
        if row >= self.values.len() {
            // One piece of memory for all general registers.
            self.values.reserve(AT_ONCE.saturating_sub(self.values.len()));
            self.values.resize(row + 1, None);
        }
        self.values.get_mut(row)
    }

    /// The architecture.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Stores a value by the register's name. A name that is not in the table is a mistake in
    /// the caller, found by its tests; in a release it is left out.
    pub fn set(&mut self, name: &str, value: u64) {
        let row = row(self.isa, name);
        debug_assert!(row.is_some(), "{} has no register {name}", self.isa);
        if let Some(row) = row {
            self.set_row(row, value);
        }
    }

    /// Stores a value of up to 64 bits by row. A row outside the table is left out.
    pub fn set_row(&mut self, row: usize, value: u64) {
        if let Some(place) = self.place(row) {
            *place = Some(Value::Word(value));
        }
    }

    /// Stores the bytes of a value by row, cut or filled with zeros to the register's size. A
    /// scalable register takes the size of its value.
    pub fn set_bytes(&mut self, row: usize, bytes: &[u8]) {
        let Some(register) = table(self.isa).get(row) else { return };
        if register.bits > 64 {
            let size = if register.is_scalable() { bytes.len() } else { register.bytes() };
            let mut value = vec![0; size.min(register.bytes())];
            let length = value.len().min(bytes.len());
            value[..length].copy_from_slice(&bytes[..length]);
            if let Some(place) = self.place(row) {
                *place = Some(Value::Wide(value.into()));
            }
        } else {
            let mut word = [0; 8];
            let length = register.bytes().min(bytes.len());
            word[..length].copy_from_slice(&bytes[..length]);
            self.set_row(row, u64::from_le_bytes(word));
        }
    }

    /// The value of a register of up to 64 bits, by name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.get_row(row(self.isa, name)?)
    }

    /// The value of a register of up to 64 bits, by row.
    pub fn get_row(&self, row: usize) -> Option<u64> {
        match self.values.get(row)?.as_ref()? {
            Value::Word(word) => Some(*word),
            Value::Wide(_) => None,
        }
    }

    /// The bytes of a register, as many as gdb's packets have, by row.
    pub fn bytes(&self, row: usize) -> Option<Vec<u8>> {
        let register = table(self.isa).get(row)?;
        Some(match self.values.get(row)?.as_ref()? {
            Value::Word(word) => word.to_le_bytes()[..register.bytes().min(8)].to_vec(),
            Value::Wide(bytes) => bytes.to_vec(),
        })
    }

    /// Takes every value that another file of the same architecture has.
    pub fn take_from(&mut self, other: &RegisterFile) {
        for (row, value) in other.values.iter().enumerate().filter(|(_, value)| value.is_some()) {
            if let Some(place) = self.place(row) {
                place.clone_from(value);
            }
        }
    }

    /// Whether all registers of a bank have a value.
    pub fn has_bank(&self, bank: Bank) -> bool {
        let mut rows = table(self.isa).iter().enumerate().filter(|(_, register)| register.bank() == bank);
        rows.all(|(row, _)| self.has(row))
    }

    /// Whether a register has a value.
    pub fn has(&self, row: usize) -> bool {
        matches!(self.values.get(row), Some(Some(_)))
    }

    /// The address of the next instruction: RIP or PC.
    pub fn pc(&self) -> Option<u64> {
        self.get_row(pc_row(self.isa))
    }

    /// Sets the address of the next instruction.
    pub fn set_pc(&mut self, pc: u64) {
        self.set_row(pc_row(self.isa), pc);
    }

    /// All rows that have a value, in the order of the table.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &'static Register)> {
        table(self.isa).iter().enumerate().filter(|(row, _)| self.has(*row))
    }

    /// All registers of up to 64 bits that have a value, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Register, u64)> {
        self.rows().filter_map(|(row, register)| Some((register, self.get_row(row)?)))
    }
}

/// The row of RIP or PC.
pub const fn pc_row(isa: Isa) -> usize {
    match isa {
        Isa::X86_64 => x86_64::RIP,
        Isa::Aarch64 => aarch64::PC,
    }
}

/// The rows of program counter, stack pointer and frame pointer: what a debugger is told with a stop.
pub const fn at_stop(isa: Isa) -> [usize; 3] {
    const X86: [usize; 3] = [x86_64::RIP, known_row(x86_64::TABLE, "rsp"), known_row(x86_64::TABLE, "rbp")];
    const AARCH64: [usize; 3] =
        [aarch64::PC, known_row(aarch64::TABLE, "sp"), known_row(aarch64::TABLE, "x29")];
    match isa {
        Isa::X86_64 => X86,
        Isa::Aarch64 => AARCH64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_are_where_their_constants_say() {
        for isa in Isa::ALL {
            let mut names: Vec<_> = table(isa).iter().map(|row| row.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{isa}");
            assert!(table(isa).iter().all(|row| row.bits.is_multiple_of(8)), "{isa}");
        }
        assert_eq!(row(Isa::X86_64, "rip"), Some(x86_64::RIP));
        assert_eq!(row(Isa::X86_64, "eflags"), Some(x86_64::EFLAGS));
        assert_eq!(row(Isa::Aarch64, "pc"), Some(aarch64::PC));
        assert_eq!(row(Isa::Aarch64, "cpsr"), Some(aarch64::CPSR));
    }

    #[test]
    fn features_stand_together() {
        // gdb numbers registers in the order of the description, feature by feature.
        for isa in Isa::ALL {
            let mut seen: Vec<Feature> = Vec::new();
            for row in table(isa) {
                if seen.last() != Some(&row.feature) {
                    assert!(!seen.contains(&row.feature), "{}", row.name);
                    seen.push(row.feature);
                }
            }
        }
    }

    #[test]
    fn what_was_not_read_is_absent() {
        let mut file = RegisterFile::new(Isa::X86_64);
        file.set("rip", 0x1000);
        assert_eq!((file.pc(), file.get("rax")), (Some(0x1000), None));
        assert_eq!(file.iter().count(), 1);
    }

    #[test]
    fn bytes_have_the_size_of_the_register() {
        let mut file = RegisterFile::new(Isa::X86_64);
        let (flags, st0) = (x86_64::EFLAGS, row(Isa::X86_64, "st0").unwrap());
        file.set_row(flags, 0x1_0000_0246);
        assert_eq!(file.bytes(flags).unwrap(), [0x46, 2, 0, 0]);
        file.set_bytes(st0, &[1, 2, 3]);
        assert_eq!(file.bytes(st0).unwrap(), [1, 2, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file.get("st0"), None);
        file.set_bytes(flags, &[0x55; 16]);
        assert_eq!(file.get_row(flags), Some(0x5555_5555));
        file.set_row(usize::MAX, 1);
        assert_eq!(file.bytes(usize::MAX), None);
        let (mut file, z0) = (RegisterFile::new(Isa::Aarch64), row(Isa::Aarch64, "z0").unwrap());
        file.set_bytes(z0, &[7; 32]);
        assert_eq!(file.bytes(z0).unwrap(), [7; 32]);
        file.set_bytes(z0, &[7; 1024]);
        assert_eq!(file.bytes(z0).unwrap().len(), 256);
    }
}
