//! The target description: which registers there are, told to gdb and lldb as XML that is
//! made of the register table.
//!
//! Source: GDB manual, "Target Descriptions", "Standard Target Features".

mod described;
mod types;

pub use described::{Believed, Described};

use arch::Isa;
use arch::register::{Feature, Group, Register, RegisterFile, table};
use types::{push, types};

/// Rows of RAX to RSP, and of R8 to R15, which only 64-bit code has.
const WIDE_ONLY: std::ops::Range<usize> = 8..16;
/// The row of RIP, which is the last that 32-bit code has half of.
const RIP: usize = 16;

/// Registers that a target has, by gdb's numbers: rows of the register table, in its order.
/// A standard feature is there when all of its registers are; of our own, those that are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterSet {
    isa: Isa,
    has: Vec<bool>,
    /// In bytes.
    sizes: Vec<usize>,
    /// Z registers are described, and with them what V registers are.
    has_sve: bool,
    described: Described,
}

impl RegisterSet {
    /// The registers that could be read.
    pub fn new(file: &RegisterFile) -> RegisterSet {
        let isa = file.isa();
        let rows = table(isa);
        let is_whole = |feature: Feature| {
            let mut rows = rows.iter().enumerate().filter(|(_, row)| row.feature == feature);
            rows.all(|(index, _)| file.has(index))
        };
        let has_sve = isa == Isa::Aarch64 && is_whole(Feature::Aarch64Sve);
        let has = rows
            .iter()
            .enumerate()
            .map(|(index, row)| match row.feature {
                // gdb takes one of the two features, and makes V registers of Z registers.
                Feature::Aarch64Fpu if has_sve => row.group == Group::Float,
                Feature::X86System | Feature::Aarch64System => file.has(index),
                // gdb refuses a description without these.
                Feature::X86Core | Feature::X86Sse | Feature::Aarch64Core => true,
                feature => is_whole(feature),
            })
            .collect();
        let size = |(index, row): (usize, &Register)| match file.bytes(index) {
            Some(value) if row.is_scalable() => value.len(),
            _ => row.bytes(),
        };
        let sizes = rows.iter().enumerate().map(size).collect();
        RegisterSet { isa, has, sizes, has_sve, described: Described::Whole }
    }

    /// The feature that a register is described in.
    fn feature(&self, register: &Register) -> Feature {
        match register.feature {
            Feature::Aarch64Fpu if self.has_sve => Feature::Aarch64Sve,
            feature => feature,
        }
    }

    /// Describes them as another architecture from now on.
    pub fn describe_as(&mut self, described: Described) {
        self.described = described;
    }

    /// Whether 32-bit or 16-bit code is described.
    pub fn is_narrow(&self) -> bool {
        self.isa == Isa::X86_64 && self.described != Described::Whole
    }

    /// Bytes of a register as it is described: 32-bit code has the lower halves.
    pub fn size(&self, row: usize) -> usize {
        let whole = self.sizes[row];
        if self.is_narrow() && row <= RIP { 4 } else { whole }
    }

    /// Whether the register of a row is described.
    pub fn contains(&self, row: usize) -> bool {
        let has = self.has.get(row).copied().unwrap_or(false);
        if !self.is_narrow() {
            return has;
        }
        let Register { feature, name, .. } = &table(self.isa)[row];
        let is_wide = match feature {
            Feature::X86Core => WIDE_ONLY.contains(&row),
            // XMM8 to XMM15.
            Feature::X86Sse => {
                matches!(*name, "xmm8" | "xmm9") || name.starts_with("xmm1") && *name != "xmm1"
            }
            Feature::X86System => false,
            _ => true,
        };
        has && !is_wide
    }

    /// Rows in a `g` packet: the core registers that every stop shows. gdb asks for the rest
    /// one by one when it needs them.
    pub fn general(&self) -> impl Iterator<Item = usize> {
        let rows = table(self.isa).iter();
        let count = rows.take_while(|row| matches!(row.group, Group::General | Group::Segment)).count();
        (0..count).filter(|row| self.contains(*row))
    }

    /// The description.
    pub fn xml(&self) -> String {
        let architecture = self.described.name(self.isa);
        let mut xml = format!(
            "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
             <architecture>{architecture}</architecture>"
        );
        let mut feature = None;
        for (row, register) in table(self.isa).iter().enumerate() {
            if !self.contains(row) {
                continue;
            }
            let its_feature = self.feature(register);
            if feature != Some(its_feature) {
                if feature.is_some() {
                    xml.push_str("</feature>");
                }
                feature = Some(its_feature);
                let (name, types) = (its_feature.name(), types(its_feature, self.vector_bits()));
                push(&mut xml, format_args!("<feature name=\"{name}\">{types}"));
            }
            self.push_register(&mut xml, row, register);
        }
        if feature.is_some() {
            xml.push_str("</feature>");
        }
        xml.push_str("</target>");
        xml
    }

    /// The length of Z registers; none without them.
    fn vector_bits(&self) -> usize {
        let scalable = table(self.isa).iter().position(Register::is_scalable);
        scalable.map_or(0, |row| 8 * self.sizes[row])
    }

    fn push_register(&self, xml: &mut String, row: usize, register: &Register) {
        let Register { name, kind, .. } = register;
        let bits = 8 * self.size(row);
        let (name, kind) = match *kind {
            kind if self.is_narrow() && row <= RIP => {
                (format!("e{}", &name[1..]), if kind == "int64" { "int32" } else { kind })
            }
            kind => ((*name).to_string(), kind),
        };
        push(xml, format_args!("<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{row}\""));
        // gdb knows the groups of its own registers.
        if matches!(register.feature, Feature::X86System | Feature::Aarch64System) {
            push(xml, format_args!(" group=\"{}\"", register.group.name()));
        } else if register.group == Group::Float {
            xml.push_str(" group=\"float\"");
        }
        xml.push_str("/>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disassemble::OperatingMode;

    fn full(isa: Isa) -> RegisterFile {
        let mut file = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate() {
            file.set_bytes(row, &vec![0; register.bytes().min(64)]);
        }
        file
    }

    #[test]
    fn descriptions_are_balanced_and_name_what_is_there() {
        for isa in Isa::ALL {
            let xml = RegisterSet::new(&full(isa)).xml();
            assert_eq!(xml.matches("<feature").count(), xml.matches("</feature>").count());
            // With Z registers, V registers are not described.
            let hidden = if isa == Isa::Aarch64 { 32 } else { 0 };
            assert_eq!(xml.matches("<reg ").count(), table(isa).len() - hidden);
            assert!(xml.ends_with("</target>"));
        }
    }

    #[test]
    fn a_feature_is_there_whole_or_not_at_all() {
        let mut file = RegisterFile::new(Isa::X86_64);
        for (row, register) in table(Isa::X86_64).iter().enumerate() {
            if register.name != "ymm3h" && register.name != "lstar" {
                file.set_bytes(row, &[]);
            }
        }
        let xml = RegisterSet::new(&file).xml();
        assert!(!xml.contains("i386.avx\"") && xml.contains("i386.avx512"), "{xml}");
        assert!(!xml.contains("lstar") && xml.contains("\"star\""));
        assert!(RegisterSet::new(&RegisterFile::new(Isa::X86_64)).xml().contains("name=\"rip\""));
    }

    #[test]
    fn scalable_vectors_have_the_length_of_the_machine_and_stand_for_the_others() {
        let xml = RegisterSet::new(&full(Isa::Aarch64)).xml();
        for part in [
            "<reg name=\"z31\" bitsize=\"512\" type=\"svev\"",
            "<vector id=\"svep\" type=\"uint8\" count=\"8\"/>",
            "<vector id=\"vsf\" type=\"ieee_single\" count=\"16\"/>",
            "aarch64.sve\"",
            "\"fpcr\"",
            "\"vg\"",
        ] {
            assert!(xml.contains(part), "{part}");
        }
        assert!(!xml.contains("aarch64.fpu\"") && !xml.contains("\"v31\""));
        let (mut without, isa) = (RegisterFile::new(Isa::Aarch64), Isa::Aarch64);
        for (row, register) in table(isa).iter().enumerate().filter(|(_, row)| !row.is_scalable()) {
            without.set_bytes(row, &vec![0; register.bytes()]);
        }
        let xml = RegisterSet::new(&without).xml();
        assert!(xml.contains("aarch64.fpu\"") && xml.contains("\"v31\"") && !xml.contains("aarch64.sve\""));
    }

    #[test]
    fn narrower_code_has_the_lower_halves() {
        let mut set = RegisterSet::new(&full(Isa::X86_64));
        set.describe_as(Described::I386);
        let xml = set.xml();
        for part in ["<architecture>i386<", "name=\"eax\" bitsize=\"32\"", "name=\"eip\"", "xmm7", "cr3"] {
            assert!(xml.contains(part), "{part}");
        }
        for part in ["\"rax\"", "\"r8\"", "xmm8", "xmm15", "ymm0h", "fs_base\" bitsize=\"64\" type=\"int\""] {
            assert!(!xml.contains(part), "{part}");
        }
        let size: usize = set.general().map(|row| set.size(row)).sum();
        assert_eq!(size, 16 * 4);
    }

    #[test]
    fn the_description_is_what_the_kernels_file_says() {
        use Believed::{Narrow, Unknown, Wide};
        use Described::{I386, I8086, Whole};
        for (believed, mode, is_long, described) in [
            (Wide, OperatingMode::Protected32, false, Whole),
            (Wide, OperatingMode::Bits64, true, Whole),
            (Narrow, OperatingMode::Protected32, false, I386),
            (Narrow, OperatingMode::Real16, false, I386),
            (Narrow, OperatingMode::Protected32, true, Whole),
            (Unknown, OperatingMode::Real16, false, I8086),
            (Unknown, OperatingMode::Protected32, false, I386),
            (Unknown, OperatingMode::Bits64, true, Whole),
        ] {
            assert_eq!(believed.describes(mode, is_long), described, "{believed:?} {mode:?} {is_long}");
        }
    }

    #[test]
    fn a_g_packet_has_the_core() {
        for (isa, count) in [(Isa::X86_64, 24), (Isa::Aarch64, 34)] {
            assert!(RegisterSet::new(&full(isa)).general().eq(0..count));
        }
    }
}
