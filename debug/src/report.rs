//! The report that is printed when a vCPU cannot go on: what it was about to do, and its
//! registers.

#[cfg(feature = "disassembly")]
use crate::disassemble::{OperatingMode, disassemble};
#[cfg(any(test, feature = "disassembly"))]
use arch::Isa;
use arch::register::{Group, RegisterFile};
use std::fmt::Write;

/// A vCPU at the moment it stopped for good.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// Its number.
    pub vcpu: u32,
    /// Its registers, as far as they could be read.
    pub registers: &'a RegisterFile,
    /// The bytes at its program counter, as far as they could be read.
    pub code: &'a [u8],
}

impl Report<'_> {
    /// How the vCPU decodes its instructions: from CR0.PE, EFER.LMA and the code segment's
    /// descriptor, of which the base tells real mode from protected mode well enough.
    #[cfg(feature = "disassembly")]
    fn mode(&self) -> OperatingMode {
        const CR0_PE: u64 = 1 << 0;
        const EFER_LMA: u64 = 1 << 10;
        match self.registers.isa() {
            Isa::Aarch64 => OperatingMode::Bits64,
            Isa::X86_64 => {
                let get = |name| self.registers.get(name).unwrap_or(0);
                if get("efer") & EFER_LMA != 0 {
                    OperatingMode::Bits64
                } else if get("cr0") & CR0_PE != 0 {
                    OperatingMode::Protected32
                } else {
                    OperatingMode::Real16
                }
            }
        }
    }

    /// The report, several lines, without a final newline.
    pub fn text(&self) -> String {
        self.text_of(&[Group::General, Group::Segment, Group::System])
    }

    /// The report with other groups of registers.
    pub fn text_of(&self, groups: &[Group]) -> String {
        let mut text = String::new();
        let pc = self.registers.pc().unwrap_or(0);
        let _ = write!(text, "vCPU {} at {pc:#x}", self.vcpu);
        if !self.code.is_empty() {
            let bytes: Vec<String> = self.code.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = write!(text, ": {}", bytes.join(" "));
            #[cfg(feature = "disassembly")]
            match disassemble(self.registers.isa(), self.mode(), self.code) {
                Some(instruction) => {
                    let _ = write!(text, "  {}", instruction.text);
                }
                None => text.push_str("  (not an instruction)"),
            }
        }
        for group in groups {
            let cells: Vec<String> = self
                .registers
                .rows()
                .filter(|(_, register)| register.group == *group)
                .filter_map(|(row, register)| {
                    let bytes = self.registers.bytes(row)?;
                    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
                    Some(format!("{:>9}={digits}", register.name))
                })
                .collect();
            for line in cells.chunks(4) {
                let _ = write!(text, "\n{}", line.join(" "));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_instruction_and_the_registers_that_were_read() {
        let mut registers = RegisterFile::new(Isa::X86_64);
        registers.set("rip", 0x100_0000);
        registers.set("efer", 0x500);
        registers.set("cs", 0x10);
        let text = Report { vcpu: 2, registers: &registers, code: &[0x0f, 0x0b, 0x90] }.text();
        assert!(text.starts_with("vCPU 2 at 0x1000000: 0f 0b 90"), "{text}");
        assert_eq!(text.contains("  ud2"), cfg!(feature = "disassembly"), "{text}");
        assert!(text.contains("rip=0000000001000000"), "{text}");
        assert!(text.contains("cs=00000010"), "{text}");
        assert!(!text.contains("rax"), "{text}");
    }

    #[cfg(feature = "disassembly")]
    #[test]
    fn the_mode_follows_the_control_registers() {
        let mut registers = RegisterFile::new(Isa::X86_64);
        let mode = |registers: &RegisterFile| Report { vcpu: 0, registers, code: &[] }.mode();
        assert_eq!(mode(&registers), OperatingMode::Real16);
        registers.set("cr0", 1);
        assert_eq!(mode(&registers), OperatingMode::Protected32);
        registers.set("efer", 0x500);
        assert_eq!(mode(&registers), OperatingMode::Bits64);
        assert_eq!(mode(&RegisterFile::new(Isa::Aarch64)), OperatingMode::Bits64);
    }
}
