//! AArch64 CPU features by name.
//!
//! A feature is a field of an ID register; hiding it writes the value that means "not
//! implemented". Some features are not fields that KVM lets us write but options of a vCPU.
//! Names are those of Linux `/proc/cpuinfo` where it has one, else the architecture's
//! FEAT name in lower case. Fields: Arm ARM (DDI 0487), chapter D24, "AArch64 System
//! Register Descriptions".

use crate::Isa;
use crate::cpu_features::{FeatureError, FeatureSwitch, hint, template_not_on_host, unknown_template};

/// An ID register by its encoding in MRS (all have op0 3, op1 0, CRn 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdRegister {
    /// Name in the Arm ARM.
    pub name: &'static str,
    /// CRm of its encoding.
    pub crm: u8,
    /// op2 of its encoding.
    pub op2: u8,
}

const fn id_register(name: &'static str, crm: u8, op2: u8) -> IdRegister {
    IdRegister { name, crm, op2 }
}

/// Processor feature register 0.
pub const ID_AA64PFR0_EL1: IdRegister = id_register("ID_AA64PFR0_EL1", 4, 0);
/// Processor feature register 1.
pub const ID_AA64PFR1_EL1: IdRegister = id_register("ID_AA64PFR1_EL1", 4, 1);
/// Instruction set attribute register 0.
pub const ID_AA64ISAR0_EL1: IdRegister = id_register("ID_AA64ISAR0_EL1", 6, 0);
/// Instruction set attribute register 1.
pub const ID_AA64ISAR1_EL1: IdRegister = id_register("ID_AA64ISAR1_EL1", 6, 1);
/// Instruction set attribute register 2.
pub const ID_AA64ISAR2_EL1: IdRegister = id_register("ID_AA64ISAR2_EL1", 6, 2);
/// Memory model feature register 1.
pub const ID_AA64MMFR1_EL1: IdRegister = id_register("ID_AA64MMFR1_EL1", 7, 1);
/// Memory model feature register 2.
pub const ID_AA64MMFR2_EL1: IdRegister = id_register("ID_AA64MMFR2_EL1", 7, 2);

/// Every ID register that a feature or a template file may name.
pub const ID_REGISTERS: [IdRegister; 7] = [
    ID_AA64PFR0_EL1,
    ID_AA64PFR1_EL1,
    ID_AA64ISAR0_EL1,
    ID_AA64ISAR1_EL1,
    ID_AA64ISAR2_EL1,
    ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1,
];

/// A feature that is an option of a vCPU (`KVM_ARM_VCPU_INIT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuOption {
    /// Scalable Vector Extension.
    Sve,
    /// Pointer authentication, addresses and generic.
    PointerAuthentication,
    /// Performance monitors.
    PerformanceMonitors,
}

/// How a feature is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// By an option of the vCPU.
    Option(VcpuOption),
    /// By writing `off` to a 4-bit field that starts at bit `shift`.
    Field {
        /// The register.
        register: IdRegister,
        /// Lowest bit of the field.
        shift: u8,
        /// The value for "not implemented": 0, or 0xf in fields that count from there.
        off: u8,
        /// The largest value that does not have the feature; what is below stays as it is.
        without: u8,
    },
}

struct Feature {
    name: &'static str,
    /// The architecture version that made it mandatory or first had it: 80 is Armv8.0.
    since: u8,
    switch: Switch,
}

const fn field(name: &'static str, since: u8, register: IdRegister, shift: u8) -> Feature {
    Feature { name, since, switch: Switch::Field { register, shift, off: 0, without: 0 } }
}

/// A feature that is the second step of a field whose first step is another feature.
const fn step(name: &'static str, since: u8, register: IdRegister, shift: u8, without: u8) -> Feature {
    Feature { name, since, switch: Switch::Field { register, shift, off: without, without } }
}

const FEATURES: &[Feature] = &[
    Feature { name: "sve", since: 82, switch: Switch::Option(VcpuOption::Sve) },
    Feature { name: "paca", since: 83, switch: Switch::Option(VcpuOption::PointerAuthentication) },
    Feature { name: "pmuv3", since: 80, switch: Switch::Option(VcpuOption::PerformanceMonitors) },
    field("aes", 80, ID_AA64ISAR0_EL1, 4),
    step("pmull", 80, ID_AA64ISAR0_EL1, 4, 1),
    field("sha1", 80, ID_AA64ISAR0_EL1, 8),
    field("sha2", 80, ID_AA64ISAR0_EL1, 12),
    step("sha512", 82, ID_AA64ISAR0_EL1, 12, 1),
    field("crc32", 81, ID_AA64ISAR0_EL1, 16),
    field("atomics", 81, ID_AA64ISAR0_EL1, 20),
    field("asimdrdm", 81, ID_AA64ISAR0_EL1, 28),
    field("sha3", 82, ID_AA64ISAR0_EL1, 32),
    field("sm3", 82, ID_AA64ISAR0_EL1, 36),
    field("sm4", 82, ID_AA64ISAR0_EL1, 40),
    field("asimddp", 82, ID_AA64ISAR0_EL1, 44),
    field("asimdfhm", 82, ID_AA64ISAR0_EL1, 48),
    field("flagm", 84, ID_AA64ISAR0_EL1, 52),
    step("flagm2", 85, ID_AA64ISAR0_EL1, 52, 1),
    field("rng", 85, ID_AA64ISAR0_EL1, 60),
    field("dcpop", 82, ID_AA64ISAR1_EL1, 0),
    field("jscvt", 83, ID_AA64ISAR1_EL1, 12),
    field("fcma", 83, ID_AA64ISAR1_EL1, 16),
    field("lrcpc", 83, ID_AA64ISAR1_EL1, 20),
    step("ilrcpc", 84, ID_AA64ISAR1_EL1, 20, 1),
    field("frint", 85, ID_AA64ISAR1_EL1, 32),
    field("sb", 85, ID_AA64ISAR1_EL1, 36),
    field("bf16", 86, ID_AA64ISAR1_EL1, 44),
    field("i8mm", 86, ID_AA64ISAR1_EL1, 52),
    field("mops", 88, ID_AA64ISAR2_EL1, 16),
    field("dit", 84, ID_AA64PFR0_EL1, 48),
    field("bti", 85, ID_AA64PFR1_EL1, 0),
    field("ssbs", 85, ID_AA64PFR1_EL1, 4),
    field("mte", 85, ID_AA64PFR1_EL1, 8),
    field("pan", 81, ID_AA64MMFR1_EL1, 20),
    field("uscat", 84, ID_AA64MMFR2_EL1, 32),
];

/// What each version of the architecture asks of a processor, of what we name: the version, and the features
/// that are mandatory from it on (Arm ARM, chapter A2, "Armv8-A Architecture Extensions").
const MANDATORY: &[(u8, &[&str])] = &[
    (81, &["crc32", "atomics", "asimdrdm", "pan"]),
    (82, &["dcpop"]),
    (83, &["paca", "jscvt", "fcma", "lrcpc"]),
    (84, &["asimddp", "flagm", "dit", "uscat", "ilrcpc"]),
];

/// The built-in templates: all the host has, or nothing beyond one version of the
/// architecture.
pub const TEMPLATES: [&str; 6] = ["host", "armv8.0", "armv8.1", "armv8.2", "armv8.3", "armv8.4"];

/// What a selection asks of KVM: options to leave out and fields to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The template it is made from.
    pub template: String,
    /// What that template's version of the architecture is made of: the host has to have it.
    pub level: Vec<LevelFeature>,
    /// Options not to be switched on.
    pub without_options: Vec<VcpuOption>,
    /// Options that must be there.
    pub required_options: Vec<VcpuOption>,
    /// Fields to lower to "not implemented".
    pub hidden: Vec<HiddenField>,
    /// Fields that must have a feature, with the value they must exceed.
    pub required: Vec<HiddenField>,
}

/// A feature that a version of the architecture is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelFeature {
    /// Its name, for messages.
    pub name: &'static str,
    /// Where it shows.
    pub switch: Switch,
}

/// A field of an ID register with the feature it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenField {
    /// The feature's name, for messages.
    pub name: &'static str,
    /// The register.
    pub register: IdRegister,
    /// Lowest bit of the 4-bit field.
    pub shift: u8,
    /// The value to write.
    pub off: u8,
    /// The largest value that does not have the feature.
    pub without: u8,
}

impl HiddenField {
    /// Whether the feature shows in a register's value. A field of 0xf is "not implemented"
    /// in the fields that are signed, and none of ours counts that far otherwise.
    pub fn is_shown(&self, value: u64) -> bool {
        let field = value >> self.shift & 0xf;
        field > u64::from(self.without) && field != 0xf
    }

    /// The register's value with the feature hidden.
    pub fn hide(&self, value: u64) -> u64 {
        if self.is_shown(value) {
            value & !(0xf << self.shift) | u64::from(self.off) << self.shift
        } else {
            value
        }
    }
}

impl Selection {
    /// Makes a selection from a built-in template.
    ///
    /// # Errors
    /// [`FeatureError::UnknownTemplate`].
    pub fn from_template(template: &str) -> Result<Selection, FeatureError> {
        let version = match template {
            "host" => u8::MAX,
            "armv8.0" => 80,
            "armv8.1" => 81,
            "armv8.2" => 82,
            "armv8.3" => 83,
            "armv8.4" => 84,
            _ => {
                return Err(unknown_template(Isa::Aarch64, template, &TEMPLATES));
            }
        };
        let mut selection = Selection { template: template.to_string(), ..Selection::default() };
        for feature in FEATURES.iter().filter(|feature| feature.since > version) {
            selection.hide(feature);
        }
        if template != "host" {
            let names: Vec<_> =
                MANDATORY.iter().filter(|(from, _)| *from <= version).flat_map(|(_, names)| *names).collect();
            let level = FEATURES.iter().filter(|feature| names.contains(&&feature.name));
            selection.level =
                level.map(|feature| LevelFeature { name: feature.name, switch: feature.switch }).collect();
        }
        Ok(selection)
    }

    /// Checks that the host has what the template's version of the architecture is made of: `value` gives the
    /// ID registers of a vCPU, `has` tells which options it can have.
    ///
    /// # Errors
    /// [`FeatureError::TemplateNotOnHost`]; what `value` fails with.
    pub fn check_level<E: From<FeatureError>>(
        &self,
        mut value: impl FnMut(IdRegister) -> Result<u64, E>,
        has: impl Fn(VcpuOption) -> bool,
    ) -> Result<(), E> {
        let mut missing = Vec::new();
        for LevelFeature { name, switch } in &self.level {
            let there = match *switch {
                Switch::Option(option) => has(option),
                Switch::Field { register, shift, off, without } => {
                    HiddenField { name, register, shift, off, without }.is_shown(value(register)?)
                }
            };
            if !there {
                missing.push(*name);
            }
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(template_not_on_host(&self.template, &missing).into()),
        }
    }

    /// Adds what `--cpu-features` says.
    ///
    /// # Errors
    /// [`FeatureError::Unknown`].
    pub fn apply_switches(&mut self, switches: &[FeatureSwitch]) -> Result<(), FeatureError> {
        for switch in switches {
            let feature = FEATURES.iter().find(|feature| feature.name == switch.name).ok_or_else(|| {
                FeatureError::Unknown {
                    isa: Isa::Aarch64,
                    name: switch.name.clone(),
                    hint: hint(&switch.name, FEATURES.iter().map(|feature| feature.name)),
                }
            })?;
            if switch.enable {
                self.require(feature);
            } else {
                self.hide(feature);
            }
        }
        Ok(())
    }

    fn hide(&mut self, feature: &Feature) {
        // What is a further step in its field goes along.
        self.level.retain(|other| match (feature.switch, other.switch) {
            (
                Switch::Field { register, shift, without, .. },
                Switch::Field { register: of, shift: at, without: below, .. },
            ) => (register, shift) != (of, at) || below < without,
            (this, other) => this != other,
        });
        match feature.switch {
            Switch::Option(option) => self.without_options.push(option),
            Switch::Field { register, shift, off, without } => {
                self.hidden.push(HiddenField { name: feature.name, register, shift, off, without });
            }
        }
    }

    fn require(&mut self, feature: &Feature) {
        match feature.switch {
            Switch::Option(option) => {
                self.without_options.retain(|without| *without != option);
                self.required_options.push(option);
            }
            Switch::Field { register, shift, off, without } => {
                self.hidden.retain(|hidden| hidden.name != feature.name);
                self.required.push(HiddenField { name: feature.name, register, shift, off, without });
            }
        }
    }
}

/// Looks an ID register up by its name, in any case, with or without `_EL1`.
pub fn id_register_by_name(name: &str) -> Option<IdRegister> {
    let name = name.to_ascii_uppercase();
    ID_REGISTERS
        .into_iter()
        .find(|register| register.name == name || register.name.strip_suffix("_EL1") == Some(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_features::parse;

    #[test]
    fn names_are_unique_and_fields_lie_in_their_registers() {
        let mut names: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
        for feature in FEATURES {
            if let Switch::Field { shift, .. } = feature.switch {
                assert!(shift % 4 == 0 && shift <= 60, "{}", feature.name);
            }
        }
    }

    #[test]
    fn hiding_lowers_the_field_and_nothing_else() {
        let mut selection = Selection::default();
        selection.apply_switches(&parse("-atomics,-pmull,-sve").unwrap()).unwrap();
        assert_eq!(selection.without_options, [VcpuOption::Sve]);
        let [atomics, pmull] = &selection.hidden[..] else { panic!("{selection:?}") };
        let isar0 = 0x1021_1110_0021_2120;
        assert_eq!(atomics.hide(isar0), isar0 & !(0xf << 20));
        // PMULL is the second step of the AES field: AES stays.
        assert_eq!(pmull.hide(isar0), isar0 & !(0xf << 4) | 1 << 4);
        assert_eq!(pmull.hide(1 << 4), 1 << 4);
    }

    #[test]
    fn a_template_can_be_widened_by_a_switch() {
        let mut selection = Selection::from_template("armv8.0").unwrap();
        assert!(selection.without_options.contains(&VcpuOption::PointerAuthentication));
        assert!(selection.hidden.iter().any(|field| field.name == "atomics"));
        selection.apply_switches(&parse("+atomics,+sve").unwrap()).unwrap();
        assert!(!selection.hidden.iter().any(|field| field.name == "atomics"));
        assert!(!selection.without_options.contains(&VcpuOption::Sve));
        assert_eq!(selection.required_options, [VcpuOption::Sve]);
        let host = Selection { template: "host".into(), ..Selection::default() };
        assert_eq!(Selection::from_template("host"), Ok(host));
    }

    #[test]
    fn a_template_is_refused_on_a_host_that_does_not_reach_its_version() {
        for name in MANDATORY.iter().flat_map(|(_, names)| *names) {
            assert!(FEATURES.iter().any(|feature| feature.name == *name), "{name}");
        }
        // Everything, but for what came with LRCPC2 and pointer authentication.
        let value = |register: IdRegister| {
            Ok::<u64, FeatureError>(match register {
                ID_AA64ISAR1_EL1 => 0x1111_1111_1111_1111,
                _ => 0x2222_2222_2222_2222,
            })
        };
        let has = |option| option != VcpuOption::PointerAuthentication;
        let check = |template: &str, switches: &str| {
            let mut selection = Selection::from_template(template).unwrap();
            if !switches.is_empty() {
                selection.apply_switches(&parse(switches).unwrap()).unwrap();
            }
            selection.check_level(value, has).map_err(|error| error.to_string())
        };
        for template in ["host", "armv8.0", "armv8.1", "armv8.2"] {
            assert_eq!(check(template, ""), Ok(()), "{template}");
        }
        let error = check("armv8.3", "").unwrap_err();
        assert!(
            error.contains("armv8.3: paca is missing (") && error.contains("--cpu-features -paca"),
            "{error}"
        );
        let error = check("armv8.4", "").unwrap_err();
        assert!(error.contains(": paca, ilrcpc are missing"), "{error}");
        // Who says so does without; the second step of a field goes with the first.
        assert_eq!(check("armv8.4", "-paca,-ilrcpc"), Ok(()));
        assert_eq!(check("armv8.4", "-paca,-lrcpc"), Ok(()));
        assert!(check("armv8.4", "-ilrcpc").is_err());
    }

    #[test]
    fn unknown_names_are_errors() {
        let error = Selection::default().apply_switches(&parse("-atomic").unwrap()).unwrap_err();
        assert!(error.to_string().contains("'atomics'"), "{error}");
        let error = Selection::from_template("armv9.9").unwrap_err().to_string();
        assert!(error.contains("armv8.0"), "{error}");
    }
}
