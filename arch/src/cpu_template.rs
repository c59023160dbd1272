//! CPU template files: what `--cpu-template PATH` reads. `vmm/cpu-templates` has
//! examples.
//!
//! A template starts from a built-in one, switches features, then clears and sets bits of
//! single registers. This module is the model and its checks; the caller has parsed JSON
//! into it with serde.

use crate::aarch64::features::{IdRegister, Selection, id_register_by_name};
use crate::cpu_features::{self, FeatureError};
use crate::x86::cpuid::{Cpuid, Register};
use crate::x86::features;
use serde::Deserialize;
use std::fmt;
use thiserror::Error;

/// A template file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CpuTemplate {
    /// `x86_64` or `aarch64`.
    pub isa: String,
    /// The built-in template to start from; `host` where it is missing.
    #[serde(default = "host")]
    pub base: String,
    /// Switches as `--cpu-features` takes them.
    #[serde(default)]
    pub features: Option<String>,
    /// Edits of CPUID, x86_64 only.
    #[serde(default)]
    pub cpuid: Vec<CpuidEdit>,
    /// Edits of ID registers, aarch64 only.
    #[serde(default)]
    pub id_registers: Vec<IdRegisterEdit>,
}

fn host() -> String {
    "host".into()
}

/// Clears, then sets, bits in one register of one CPUID leaf.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CpuidEdit {
    /// EAX of the question.
    pub leaf: Number,
    /// ECX of the question.
    #[serde(default)]
    pub subleaf: Number,
    /// `eax`, `ebx`, `ecx` or `edx`.
    pub register: String,
    /// Bits to clear.
    #[serde(default)]
    pub clear: Number,
    /// Bits to set.
    #[serde(default)]
    pub set: Number,
}

/// Clears, then sets, bits in one ID register.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct IdRegisterEdit {
    /// Name as the Arm ARM has it, for example `ID_AA64ISAR0_EL1`.
    pub register: String,
    /// Bits to clear.
    #[serde(default)]
    pub clear: Number,
    /// Bits to set.
    #[serde(default)]
    pub set: Number,
}

/// A number written as JSON number or as a string in hex: `7` or `"0x7"`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(try_from = "NumberText")]
pub struct Number(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberText {
    Number(u64),
    Text(String),
}

impl TryFrom<NumberText> for Number {
    type Error = String;

    fn try_from(text: NumberText) -> Result<Number, String> {
        match text {
            NumberText::Number(number) => Ok(Number(number)),
            NumberText::Text(text) => {
                let digits =
                    text.strip_prefix("0x").ok_or_else(|| format!("'{text}' does not start with 0x"))?;
                u64::from_str_radix(&digits.replace('_', ""), 16)
                    .map(Number)
                    .map_err(|_| format!("'{text}' is not a hexadecimal number"))
            }
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why a template cannot be applied.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A template for the other architecture.
    #[error("the CPU template is for {0}, and this guest is {1}: take one whose \"isa\" is {1}")]
    WrongIsa(String, crate::Isa),
    /// A name in it is unknown.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// A register is unknown.
    #[error("the CPU template names an unknown register '{0}'")]
    Register(String),
    /// A number is too wide for its place.
    #[error("the CPU template has {0} where 32 bits fit")]
    TooWide(Number),
}

/// An ID register edit with the register looked up: clear, then set.
pub type IdRegisterMask = (IdRegister, u64, u64);

impl CpuTemplate {
    /// A template that is only a built-in name and switches.
    pub fn built_in(isa: crate::Isa, base: &str, features: Option<&str>) -> CpuTemplate {
        CpuTemplate {
            isa: isa.name().into(),
            base: base.into(),
            features: features.map(str::to_string),
            cpuid: Vec::new(),
            id_registers: Vec::new(),
        }
    }

    fn check_isa(&self, isa: crate::Isa) -> Result<(), TemplateError> {
        if self.isa != isa.name() {
            return Err(TemplateError::WrongIsa(self.isa.clone(), isa));
        }
        Ok(())
    }

    fn switches(&self) -> Result<Vec<cpu_features::FeatureSwitch>, FeatureError> {
        self.features.as_deref().map_or(Ok(Vec::new()), cpu_features::parse)
    }

    /// Applies the template to what an x86 host supports.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn apply_x86(&self, cpuid: &mut Cpuid) -> Result<(), TemplateError> {
        self.check_isa(crate::Isa::X86_64)?;
        let switches = self.switches()?;
        features::apply_template(cpuid, &self.base, &switches)?;
        features::apply_switches(cpuid, &switches)?;
        let word = |number: Number| u32::try_from(number.0).map_err(|_| TemplateError::TooWide(number));
        for edit in &self.cpuid {
            let register = match edit.register.to_ascii_lowercase().as_str() {
                "eax" => Register::Eax,
                "ebx" => Register::Ebx,
                "ecx" => Register::Ecx,
                "edx" => Register::Edx,
                _ => return Err(TemplateError::Register(edit.register.clone())),
            };
            let (leaf, subleaf) = (word(edit.leaf)?, word(edit.subleaf)?);
            cpuid.clear(leaf, subleaf, register, word(edit.clear)?);
            if edit.set.0 != 0 {
                cpuid.set(leaf, subleaf, register, word(edit.set)?);
            }
        }
        Ok(())
    }

    /// What the template asks of an aarch64 host.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn select_aarch64(&self) -> Result<(Selection, Vec<IdRegisterMask>), TemplateError> {
        self.check_isa(crate::Isa::Aarch64)?;
        let mut selection = Selection::from_template(&self.base)?;
        selection.apply_switches(&self.switches()?)?;
        let edits = self
            .id_registers
            .iter()
            .map(|edit| {
                let register = id_register_by_name(&edit.register)
                    .ok_or_else(|| TemplateError::Register(edit.register.clone()))?;
                Ok((register, edit.clear.0, edit.set.0))
            })
            .collect::<Result<_, TemplateError>>()?;
        Ok((selection, edits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn cpuid_edits_come_after_features() {
        let mut template = CpuTemplate::built_in(Isa::X86_64, "host", Some("-cx16"));
        template.cpuid.push(CpuidEdit {
            leaf: Number(1),
            subleaf: Number(0),
            register: "ECX".into(),
            clear: Number(1),
            set: Number(1 << 13),
        });
        let mut cpuid = Cpuid::default();
        cpuid.set(1, 0, Register::Ecx, 1 | 1 << 13);
        template.apply_x86(&mut cpuid).unwrap();
        assert_eq!(cpuid.entry(1, 0).unwrap().ecx, 1 << 13);
        template.cpuid[0].set = Number(1 << 32);
        assert_eq!(template.apply_x86(&mut cpuid), Err(TemplateError::TooWide(Number(1 << 32))));
        template.cpuid[0].register = "rax".into();
        assert_eq!(template.apply_x86(&mut cpuid), Err(TemplateError::Register("rax".into())));
    }

    #[test]
    fn the_wrong_architecture_is_refused() {
        let template = CpuTemplate::built_in(Isa::Aarch64, "host", None);
        let error = template.apply_x86(&mut Cpuid::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the CPU template is for aarch64, and this guest is x86_64: take one whose \"isa\" is x86_64"
        );
        assert!(template.select_aarch64().is_ok());
    }
}
