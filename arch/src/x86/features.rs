//! x86 CPU features by name, and the feature levels that templates are made of.
//!
//! Names are those of Linux `/proc/cpuinfo`. Bits: Intel SDM vol. 2, "CPUID"; AMD APM vol. 3,
//! appendix E; levels: x86-64 psABI, "Micro-Architecture Levels".

use super::cpuid::{Cpuid, Register};
use crate::Isa;
use crate::cpu_features::{FeatureError, FeatureSwitch, hint, template_not_on_host, unknown_template};

/// The feature bits of one register of one CPUID leaf, from bit 0 up; `""` is a bit we do
/// not name.
struct Block {
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static [&'static str],
}

const fn block(leaf: u32, subleaf: u32, register: Register, names: &'static [&'static str]) -> Block {
    Block { leaf, subleaf, register, names }
}

#[rustfmt::skip]
const BLOCKS: &[Block] = &[
    block(1, 0, Register::Edx, &[
        "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge", "mca",
        "cmov", "pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx", "fxsr", "sse", "sse2", "ss", "ht",
        "tm", "ia64", "pbe",
    ]),
    block(1, 0, Register::Ecx, &[
        "pni", "pclmulqdq", "dtes64", "monitor", "ds_cpl", "vmx", "smx", "est", "tm2", "ssse3", "cid", "sdbg",
        "fma", "cx16", "xtpr", "pdcm", "", "pcid", "dca", "sse4_1", "sse4_2", "x2apic", "movbe", "popcnt",
        "tsc_deadline_timer", "aes", "xsave", "", "avx", "f16c", "rdrand", "hypervisor",
    ]),
    block(7, 0, Register::Ebx, &[
        "fsgsbase", "tsc_adjust", "sgx", "bmi1", "hle", "avx2", "", "smep", "bmi2", "erms", "invpcid", "rtm",
        "cqm", "", "mpx", "rdt_a", "avx512f", "avx512dq", "rdseed", "adx", "smap", "avx512ifma", "",
        "clflushopt", "clwb", "intel_pt", "avx512pf", "avx512er", "avx512cd", "sha_ni", "avx512bw", "avx512vl",
    ]),
    block(7, 0, Register::Ecx, &[
        "", "avx512vbmi", "umip", "pku", "ospke", "waitpkg", "avx512_vbmi2", "shstk", "gfni", "vaes",
        "vpclmulqdq", "avx512_vnni", "avx512_bitalg", "tme", "avx512_vpopcntdq", "", "la57", "", "", "", "",
        "", "rdpid", "", "bus_lock_detect", "cldemote", "", "movdiri", "movdir64b", "enqcmd", "sgx_lc", "pks",
    ]),
    block(7, 0, Register::Edx, &[
        "", "", "avx512_4vnniw", "avx512_4fmaps", "fsrm", "uintr", "", "", "avx512_vp2intersect", "", "md_clear",
        "", "", "", "serialize", "hybrid_cpu", "tsxldtrk", "", "pconfig", "arch_lbr", "ibt", "", "amx_bf16",
        "avx512_fp16", "amx_tile", "amx_int8", "spec_ctrl", "intel_stibp", "flush_l1d", "arch_capabilities",
        "core_capabilities", "spec_ctrl_ssbd",
    ]),
    block(7, 1, Register::Eax, &[
        "", "", "", "", "avx_vnni", "avx512_bf16", "", "cmpccxadd", "", "", "fzrm", "fsrs", "fsrc", "", "", "",
        "", "fred", "lkgs", "wrmsrns", "", "amx_fp16", "hreset", "avx_ifma", "", "", "lam",
    ]),
    block(0xd, 1, Register::Eax, &["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd"]),
    block(0x4000_0001, 0, Register::Eax, &[
        "kvmclock", "kvm_nopiodelay", "kvm_mmu", "kvm_clocksource2", "kvm_asyncpf", "kvm_steal_time",
        "kvm_pv_eoi", "kvm_pv_unhalt", "", "kvm_pv_tlb_flush", "kvm_asyncpf_vmexit", "kvm_pv_send_ipi",
        "kvm_poll_control", "kvm_pv_sched_yield", "kvm_asyncpf_int", "kvm_msi_ext_dest_id",
    ]),
    block(0x8000_0001, 0, Register::Edx, &[
        "", "", "", "", "", "", "", "", "", "", "", "syscall", "", "", "", "", "", "", "", "mp", "nx", "",
        "mmxext", "", "", "fxsr_opt", "pdpe1gb", "rdtscp", "", "lm", "3dnowext", "3dnow",
    ]),
    block(0x8000_0001, 0, Register::Ecx, &[
        "lahf_lm", "cmp_legacy", "svm", "extapic", "cr8_legacy", "abm", "sse4a", "misalignsse",
        "3dnowprefetch", "osvw", "ibs", "xop", "skinit", "wdt", "", "lwp", "fma4", "tce", "", "nodeid_msr", "",
        "tbm", "topoext", "perfctr_core", "perfctr_nb", "", "bpext", "ptsc", "perfctr_llc", "mwaitx",
    ]),
    block(0x8000_0007, 0, Register::Edx, &["", "", "", "", "", "", "", "", "constant_tsc"]),
    block(0x8000_0008, 0, Register::Ebx, &[
        "clzero", "irperf", "xsaveerptr", "", "rdpru", "", "", "", "", "wbnoinvd", "", "", "ibpb", "", "ibrs",
        "stibp", "", "stibp_always_on", "", "", "", "", "", "ppin", "amd_ssbd", "virt_ssbd", "amd_ssb_no",
    ]),
];

/// What an operating system needs of the machine whatever the level: kept by every template.
const SYSTEM: &[&str] = &[
    "vme",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "pat",
    "pse36",
    "clflush",
    "ht",
    "x2apic",
    "tsc_deadline_timer",
    "hypervisor",
    "nx",
    "lm",
    "rdtscp",
    "pcid",
    "tsc_adjust",
    "constant_tsc",
    "kvmclock",
    "kvm_nopiodelay",
    "kvm_clocksource2",
    "kvm_asyncpf",
    "kvm_steal_time",
    "kvm_pv_eoi",
    "kvm_pv_unhalt",
    "kvm_pv_tlb_flush",
    "kvm_asyncpf_vmexit",
    "kvm_pv_send_ipi",
    "kvm_poll_control",
    "kvm_pv_sched_yield",
    "kvm_asyncpf_int",
    "spec_ctrl",
    "intel_stibp",
    "arch_capabilities",
    "md_clear",
    "spec_ctrl_ssbd",
    "ibpb",
    "ibrs",
    "stibp",
    "stibp_always_on",
    "amd_ssbd",
    "virt_ssbd",
    "topoext",
    "cmp_legacy",
];
const V1: &[&str] = &["cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"];
const V2: &[&str] = &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"];
const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
/// Ways to save state that go with XSAVE, where the host has them; no level asks for them.
const XSAVE_VARIANTS: &[&str] = &["xsaveopt", "xsavec", "xgetbv1", "xsaves"];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// The built-in templates: all the host has, or one psABI level and nothing beyond it.
pub const TEMPLATES: [&str; 5] = ["host", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"];

/// XSAVE state components that go with a feature (Intel SDM vol. 1, "XSAVE-Supported
/// Features and State-Component Bitmaps"): they leave leaf 0xd together with it.
const XSAVE_COMPONENTS: [(&str, u32); 5] =
    [("avx", 1 << 2), ("mpx", 0b11 << 3), ("avx512f", 0b111 << 5), ("pku", 1 << 9), ("amx_tile", 0b11 << 17)];

/// Features that make no sense without another one, which go when it goes.
const NEEDS: &[(&str, &[&str])] = &[
    ("xsave", &["avx", "xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd", "pku", "mpx", "amx_tile"]),
    ("avx", &["avx2", "fma", "f16c", "vaes", "vpclmulqdq", "avx_vnni", "avx_ifma", "avx512f", "xop", "fma4"]),
    (
        "avx512f",
        &[
            "avx512dq",
            "avx512ifma",
            "avx512pf",
            "avx512er",
            "avx512cd",
            "avx512bw",
            "avx512vl",
            "avx512vbmi",
            "avx512_vbmi2",
            "avx512_vnni",
            "avx512_bitalg",
            "avx512_vpopcntdq",
            "avx512_4vnniw",
            "avx512_4fmaps",
            "avx512_vp2intersect",
            "avx512_fp16",
            "avx512_bf16",
        ],
    ),
    ("amx_tile", &["amx_bf16", "amx_int8", "amx_fp16"]),
];

fn find(name: &str) -> Option<(&'static Block, u32)> {
    BLOCKS.iter().find_map(|block| {
        let bit = block.names.iter().position(|&known| known == name && !known.is_empty())?;
        Some((block, 1 << bit))
    })
}

/// All names, for messages and tests.
pub fn names() -> impl Iterator<Item = &'static str> {
    BLOCKS.iter().flat_map(|block| block.names.iter().copied()).filter(|name| !name.is_empty())
}

/// Whether `cpuid` has the feature; `None` when there is no feature of that name.
pub fn has(cpuid: &Cpuid, name: &str) -> Option<bool> {
    let (block, bit) = find(name)?;
    let entry = cpuid.entry(block.leaf, block.subleaf);
    Some(entry.is_some_and(|entry| entry.get(block.register) & bit != 0))
}

/// Hides a feature, the features that need it and their XSAVE state. Unknown names and
/// absent features change nothing.
fn remove(cpuid: &mut Cpuid, name: &str) {
    if let Some((block, bit)) = find(name) {
        cpuid.clear(block.leaf, block.subleaf, block.register, bit);
        if block.leaf == 1 && block.register == Register::Edx {
            // AMD processors repeat leaf 1 EDX in 0x8000_0001 EDX, but for its own bits.
            let own = 1 << 11 | 1 << 19 | 1 << 20 | 0xfe40_0000 & !(1 << 23 | 1 << 24);
            cpuid.clear(0x8000_0001, 0, Register::Edx, bit & !own);
        }
    }
    for (_, components) in XSAVE_COMPONENTS.iter().filter(|(feature, _)| *feature == name) {
        cpuid.clear(0xd, 0, Register::Eax, *components);
    }
    for (_, dependents) in NEEDS.iter().filter(|(feature, _)| *feature == name) {
        for dependent in *dependents {
            remove(cpuid, dependent);
        }
    }
}

/// Whether a feature is gone when another one is switched off.
fn goes_with(switched_off: &str, name: &str) -> bool {
    let dependents = NEEDS.iter().filter(|(feature, _)| *feature == switched_off);
    switched_off == name || dependents.flat_map(|(_, names)| names.iter()).any(|other| goes_with(other, name))
}

/// Applies a built-in template. What it is made of has to be there, but for what a switch takes away.
///
/// # Errors
/// [`FeatureError::UnknownTemplate`], [`FeatureError::TemplateNotOnHost`].
pub fn apply_template(
    cpuid: &mut Cpuid,
    template: &str,
    switches: &[FeatureSwitch],
) -> Result<(), FeatureError> {
    let levels: &[&[&str]] = match template {
        "host" => return Ok(()),
        "x86-64-v1" => &[V1],
        "x86-64-v2" => &[V1, V2],
        "x86-64-v3" => &[V1, V2, V3],
        "x86-64-v4" => &[V1, V2, V3, V4],
        _ => {
            return Err(unknown_template(Isa::X86_64, template, &TEMPLATES));
        }
    };
    let given_up = |name: &str| switches.iter().any(|switch| !switch.enable && goes_with(&switch.name, name));
    let level = || levels.iter().copied().flatten().copied();
    let missing: Vec<&str> =
        level().filter(|name| has(cpuid, name) != Some(true) && !given_up(name)).collect();
    if !missing.is_empty() {
        return Err(template_not_on_host(template, &missing));
    }
    let has_xsave = levels.contains(&V3);
    let keeps = |name: &str| {
        SYSTEM.contains(&name)
            || level().any(|kept| kept == name)
            || has_xsave && XSAVE_VARIANTS.contains(&name)
    };
    for name in names().filter(|name| !keeps(name)) {
        remove(cpuid, name);
    }
    Ok(())
}

/// Applies `--cpu-features`.
///
/// # Errors
/// [`FeatureError::Unknown`]; [`FeatureError::NotOnHost`] for a `+name` that is not there.
pub fn apply_switches(cpuid: &mut Cpuid, switches: &[FeatureSwitch]) -> Result<(), FeatureError> {
    for switch in switches {
        match has(cpuid, &switch.name) {
            None => {
                return Err(FeatureError::Unknown {
                    isa: Isa::X86_64,
                    name: switch.name.clone(),
                    hint: hint(&switch.name, names()),
                });
            }
            Some(false) if switch.enable => return Err(FeatureError::NotOnHost(switch.name.clone())),
            Some(true) if !switch.enable => remove(cpuid, &switch.name),
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_features::parse;

    /// A processor with every feature we know.
    fn full() -> Cpuid {
        let mut cpuid = Cpuid::default();
        for block in BLOCKS {
            cpuid.set(block.leaf, block.subleaf, block.register, u32::MAX);
        }
        cpuid.set(0xd, 0, Register::Eax, u32::MAX);
        cpuid
    }

    #[test]
    fn names_are_unique_and_blocks_have_at_most_32_bits() {
        let mut all: Vec<_> = names().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(BLOCKS.iter().all(|block| block.names.len() <= 32));
        for name in [SYSTEM, V1, V2, V3, XSAVE_VARIANTS, V4].concat() {
            assert!(find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn well_known_bits_have_their_names() {
        for (name, leaf, register, bit) in [
            ("sse2", 1, Register::Edx, 26),
            ("cx16", 1, Register::Ecx, 13),
            ("hypervisor", 1, Register::Ecx, 31),
            ("tsc_deadline_timer", 1, Register::Ecx, 24),
            ("avx2", 7, Register::Ebx, 5),
            ("avx512vl", 7, Register::Ebx, 31),
            ("la57", 7, Register::Ecx, 16),
            ("spec_ctrl_ssbd", 7, Register::Edx, 31),
            ("lm", 0x8000_0001, Register::Edx, 29),
            ("nx", 0x8000_0001, Register::Edx, 20),
            ("abm", 0x8000_0001, Register::Ecx, 5),
            ("svm", 0x8000_0001, Register::Ecx, 2),
            ("ibpb", 0x8000_0008, Register::Ebx, 12),
        ] {
            let (block, mask) = find(name).unwrap();
            assert_eq!((block.leaf, block.register, mask), (leaf, register, 1 << bit), "{name}");
        }
    }

    #[test]
    fn switching_off_takes_dependents_and_xsave_state_along() {
        let mut cpuid = full();
        apply_switches(&mut cpuid, &parse("-avx,-cx16").unwrap()).unwrap();
        for gone in ["avx", "avx2", "fma", "avx512f", "avx512vl", "cx16"] {
            assert_eq!(has(&cpuid, gone), Some(false), "{gone}");
        }
        assert_eq!(has(&cpuid, "xsave"), Some(true));
        assert_eq!(cpuid.entry(0xd, 0).unwrap().eax & 0b1110_0100, 0);
    }

    #[test]
    fn templates_keep_their_level_and_the_system_features() {
        let mut cpuid = full();
        apply_template(&mut cpuid, "x86-64-v2", &[]).unwrap();
        for kept in ["sse2", "popcnt", "cx16", "x2apic", "kvmclock", "lm", "nx"] {
            assert_eq!(has(&cpuid, kept), Some(true), "{kept}");
        }
        for gone in ["avx", "xsave", "rdrand", "vmx", "svm", "avx512f"] {
            assert_eq!(has(&cpuid, gone), Some(false), "{gone}");
        }
        let error = apply_template(&mut cpuid, "x86-64-v9", &[]).unwrap_err().to_string();
        assert!(error.contains("x86-64-v3"), "{error}");
    }

    #[test]
    fn a_template_is_refused_on_a_host_that_does_not_reach_its_level() {
        let mut host = full();
        apply_switches(&mut host, &parse("-avx512f,-xsavec,-kvm_pv_eoi").unwrap()).unwrap();
        // What belongs to no level may be missing.
        for template in &TEMPLATES[..4] {
            assert_eq!(apply_template(&mut host.clone(), template, &[]), Ok(()), "{template}");
        }
        let error = apply_template(&mut host.clone(), "x86-64-v4", &[]).unwrap_err().to_string();
        assert!(error.contains("x86-64-v4: avx512f, avx512bw"), "{error}");
        assert!(error.contains("-avx512f,-avx512bw"), "{error}");
        // Who says so does without, and what needs it goes along.
        for given_up in ["-avx512f", "-avx", "-xsave"] {
            let switches = parse(given_up).unwrap();
            assert_eq!(apply_template(&mut host.clone(), "x86-64-v4", &switches), Ok(()), "{given_up}");
        }
        let switches = parse("-avx512bw").unwrap();
        let error = apply_template(&mut host, "x86-64-v4", &switches).unwrap_err().to_string();
        assert!(error.contains(": avx512f, avx512cd, avx512dq, avx512vl are missing"), "{error}");
    }

    #[test]
    fn unknown_and_absent_features_are_errors() {
        let mut cpuid = full();
        let error = apply_switches(&mut cpuid, &parse("-avx512").unwrap()).unwrap_err();
        assert!(error.to_string().contains("did you mean"), "{error}");
        assert_eq!(
            apply_switches(&mut Cpuid::default(), &parse("+avx2").unwrap()),
            Err(FeatureError::NotOnHost("avx2".into()))
        );
        assert_eq!(apply_switches(&mut Cpuid::default(), &parse("-avx2").unwrap()), Ok(()));
    }
}
