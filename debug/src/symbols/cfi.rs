//! Call frame information of a file: how to get from a function to its caller.
//!
//! It is in a section of its own (`.debug_frame` of a kernel, `.eh_frame` of a program), some megabytes of a distribution's
//! kernel: nothing else of the debug information is read for it.
//!
//! Sources: DWARF 5, section 6.4; Linux Standard Base Core Specification, "Exception Frames" (`.eh_frame`).

use super::file::ElfFile;
use super::metered::{Bytes, Work};
use super::symbol::SymbolsError;
use crate::linux::unwind::cfi::{Row, Rule, registers};
use arch::Isa;
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, Register, RegisterRule, UnwindContext,
    UnwindSection, Vendor,
};
use std::fmt;

/// Bytes of a section that are read: a kernel's with everything switched on has less.
const MOST_BYTES: u64 = 256 << 20;
/// Functions that are known, at most.
const MOST_FUNCTIONS: usize = 4 << 20;
/// Work that finding all functions takes at most: a distribution's kernel has 45,000, of some ten reads each...
const MOST_WORK_AT_FIRST: u64 = 1 << 28;
/// ...and work for one of them: the longest of a kernel's has some thousand instructions.
const MOST_WORK: u64 = 1 << 20;

/// Where a function is said to be, and where that stands.
#[derive(Clone, Copy, Debug)]
struct Function {
    begin: u64,
    end: u64,
    at: usize,
}

/// A section.
#[derive(Clone, Debug)]
enum Section {
    Debug(DebugFrame<Bytes>),
    Eh(EhFrame<Bytes>),
}

/// What a file says of frames.
pub(super) struct CallFrames {
    isa: Isa,
    work: Work,
    section: Section,
    bases: BaseAddresses,
    /// In the order of where they begin.
    functions: Vec<Function>,
}

impl fmt::Debug for CallFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFrames").field("functions", &self.functions.len()).finish_non_exhaustive()
    }
}

impl CallFrames {
    /// Those of a file.
    pub fn of(file: &ElfFile, isa: Isa) -> Result<CallFrames, SymbolsError> {
        let work = Work::default();
        work.allow(MOST_WORK_AT_FIRST);
        let bytes = |name| Ok::<_, SymbolsError>(Bytes::new(file.section(name, MOST_BYTES)?, &work, 1));
        let vendor = match isa {
            Isa::X86_64 => Vendor::Default,
            Isa::Aarch64 => Vendor::AArch64,
        };
        let debug = bytes(".debug_frame")?;
        let mut bases = BaseAddresses::default();
        let (section, functions) = if gimli::Reader::is_empty(&debug) {
            bases = bases.set_eh_frame(file.address(".eh_frame")?);
            let mut section = EhFrame::from(bytes(".eh_frame")?);
            section.set_address_size(8);
            section.set_vendor(vendor);
            let functions = functions(&section, &bases)?;
            (Section::Eh(section), functions)
        } else {
            let mut section = DebugFrame::from(debug);
            section.set_address_size(8);
            section.set_vendor(vendor);
            let functions = functions(&section, &bases)?;
            (Section::Debug(section), functions)
        };
        Ok(CallFrames { isa, work, section, bases, functions })
    }

    /// What is known at an instruction, as linked; `None` where nothing is, or nothing that can be followed.
    pub fn at(&self, address: u64) -> Option<Row> {
        let behind = self.functions.partition_point(|function| function.begin <= address);
        let function = self.functions[..behind].last().filter(|function| address < function.end)?;
        self.work.allow(MOST_WORK);
        match &self.section {
            Section::Debug(section) => self.row(section, function.at, address),
            Section::Eh(section) => self.row(section, function.at, address),
        }
    }

    fn row<S: UnwindSection<Bytes>>(&self, section: &S, at: usize, address: u64) -> Option<Row> {
        let cie = |section: &S, bases: &BaseAddresses, at| section.cie_from_offset(bases, at);
        // What is damaged says nothing of the function.
        let function = section.fde_from_offset(&self.bases, S::Offset::from(at), cie).ok()?;
        let mut context = UnwindContext::new();
        let row = function.unwind_info_for_address(section, &self.bases, &mut context, address).ok()?;
        let frame = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => (register.0, *offset),
            CfaRule::Expression(_) => return None,
        };
        let (fp, pc) = registers(self.isa);
        // What nothing is said of is as it was (DWARF leaves that to each architecture's ABI, and these two have it so).
        let pc = rule(row.register(Register(pc)).unwrap_or(RegisterRule::SameValue))?;
        let fp = rule(row.register(Register(fp)).unwrap_or(RegisterRule::SameValue))?;
        Some(Row { frame, pc, fp })
    }
}

/// All functions of a section. One that is damaged ends them.
fn functions<S: UnwindSection<Bytes>>(
    section: &S,
    bases: &BaseAddresses,
) -> Result<Vec<Function>, SymbolsError> {
    let mut all = Vec::new();
    let mut entries = section.entries(bases);
    // A zero ends what a program has, and what is behind something damaged is not known.
    loop {
        let entry = match entries.next() {
            Ok(Some(entry)) => entry,
            Err(gimli::Error::Io) => return Err(SymbolsError::TooMuchWork),
            Ok(None) | Err(_) => break,
        };
        let CieOrFde::Fde(partial) = entry else { continue };
        let at = partial.offset();
        match partial.parse(|section, bases, at| section.cie_from_offset(bases, at)) {
            Ok(function) if function.len() > 0 => {
                let (begin, end) = (function.initial_address(), function.end_address());
                all.push(Function { begin, end, at });
            }
            Ok(_) => {}
            Err(gimli::Error::Io) => return Err(SymbolsError::TooMuchWork),
            Err(_) => continue,
        }
        if all.len() > MOST_FUNCTIONS {
            let (what, most) = ("functions with frames".to_string(), MOST_FUNCTIONS as u64);
            return Err(SymbolsError::TooLarge { what, size: most + 1, most });
        }
    }
    all.sort_by_key(|function| (function.begin, function.end));
    Ok(all)
}

/// A rule that can be followed; `None` of one that is a program of its own.
fn rule(rule: RegisterRule<usize>) -> Option<Rule> {
    Some(match rule {
        RegisterRule::Undefined => Rule::Lost,
        RegisterRule::SameValue => Rule::Same,
        RegisterRule::Offset(offset) => Rule::Saved(offset),
        RegisterRule::ValOffset(offset) => Rule::Address(offset),
        RegisterRule::Register(register) => Rule::Register(register.0),
        RegisterRule::Expression(_)
        | RegisterRule::ValExpression(_)
        | RegisterRule::Architectural
        | RegisterRule::Constant(_) => return None,
    })
}
