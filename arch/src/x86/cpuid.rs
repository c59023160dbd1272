//! What a guest reads with the CPUID instruction, as a value that can be edited.
//!
//! The monitor starts from what the host's KVM supports, applies a template and switches
//! ([`super::features`]), then makes one copy per vCPU with its identity and topology.
//! Sources: Intel SDM vol. 2, "CPUID"; AMD APM vol. 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`.

/// One of the four registers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// The answer to one leaf and subleaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question, where it matters.
    pub subleaf: u32,
    /// Whether ECX of the question matters for this leaf.
    pub has_subleaf: bool,
    /// Answer.
    pub eax: u32,
    /// Answer.
    pub ebx: u32,
    /// Answer.
    pub ecx: u32,
    /// Answer.
    pub edx: u32,
}

impl Entry {
    /// One register of the answer.
    pub fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// All answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpuid {
    /// In no particular order; leaf and subleaf are unique.
    pub entries: Vec<Entry>,
}

/// Leaf 1 ECX: the guest runs under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: the local APIC timer has TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 EDX: leaf 1 EBX[23:16] is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0xb and 0x1f ECX[15:8]: level types.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

impl Cpuid {
    /// The entry for a leaf and subleaf.
    pub fn entry(&self, leaf: u32, subleaf: u32) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf)
    }

    fn entry_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf)
    }

    /// Puts an entry in the place of the one for the same leaf and subleaf, if there is one.
    pub fn replace(&mut self, entry: Entry) {
        match self.entry_mut(entry.leaf, entry.subleaf) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// Clears the bits of `mask` in one register; an absent entry stays absent.
    pub fn clear(&mut self, leaf: u32, subleaf: u32, register: Register, mask: u32) {
        if let Some(entry) = self.entry_mut(leaf, subleaf) {
            *entry.get_mut(register) &= !mask;
        }
    }

    /// Sets the bits of `mask` in one register; an absent entry is made.
    pub fn set(&mut self, leaf: u32, subleaf: u32, register: Register, mask: u32) {
        if self.entry(leaf, subleaf).is_none() {
            let has_subleaf = subleaf != 0 || matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f);
            self.entries.push(Entry { leaf, subleaf, has_subleaf, ..Entry::default() });
        }
        if let Some(entry) = self.entry_mut(leaf, subleaf) {
            *entry.get_mut(register) |= mask;
        }
    }

    /// What every guest of ours has, whatever its template: a visible hypervisor, and
    /// TSC-deadline mode where KVM emulates it (`KVM_CAP_TSC_DEADLINE_TIMER`; it is missing
    /// from KVM's own list because it needs the in-kernel APIC).
    pub fn set_platform(&mut self, tsc_deadline: bool) {
        self.set(1, 0, Register::Ecx, HYPERVISOR);
        if tsc_deadline {
            self.set(1, 0, Register::Ecx, TSC_DEADLINE);
        }
    }

    /// The answers for vCPU `id` of `count`: its APIC id, and one package of `count` cores
    /// with one thread each.
    pub fn for_vcpu(&self, id: u32, count: u32) -> Cpuid {
        let mut cpuid = self.clone();
        // Bits of the APIC id that number cores, rounded up as the manual wants.
        let core_bits = u32::BITS - (count - 1).leading_zeros();
        for entry in &mut cpuid.entries {
            match entry.leaf {
                1 => {
                    entry.ebx = entry.ebx & 0xffff | id << 24 | count.min(255) << 16;
                    entry.edx = entry.edx & !HTT | if count > 1 { HTT } else { 0 };
                }
                // Deterministic cache parameters: EAX[31:26] cores per package, EAX[25:14]
                // threads that share this cache, both minus one. Zero EAX[4:0] ends the list.
                4 if entry.eax & 0x1f != 0 => {
                    let level = entry.eax >> 5 & 7;
                    let sharers = if level >= 3 { (1 << core_bits) - 1 } else { 0 };
                    let cores = ((1u32 << core_bits) - 1).min(0x3f);
                    entry.eax = entry.eax & 0x3fff | cores << 26 | (sharers & 0xfff) << 14;
                }
                // The same of AMD's, without the package's cores.
                0x8000_001d if entry.eax & 0x1f != 0 => {
                    let level = entry.eax >> 5 & 7;
                    let sharers = if level >= 3 { count - 1 } else { 0 };
                    entry.eax = entry.eax & 0x3fff | (sharers & 0xfff) << 14;
                }
                0xb | 0x1f => {
                    let (shift, logical, level) = match entry.subleaf {
                        0 => (0, 1, LEVEL_SMT),
                        1 => (core_bits, count, LEVEL_CORE),
                        _ => (0, 0, 0),
                    };
                    entry.eax = shift;
                    entry.ebx = logical;
                    entry.ecx = entry.subleaf & 0xff | level << 8;
                    entry.edx = id;
                }
                // Core count and how many bits of the APIC id number cores.
                0x8000_0008 => {
                    entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (count - 1).min(255);
                }
                // Extended APIC id; one thread a core, one node.
                0x8000_001e => {
                    entry.eax = id;
                    entry.ebx = id & 0xff;
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        cpuid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Cpuid {
        let leaf = |leaf, subleaf, eax| Entry { leaf, subleaf, has_subleaf: true, eax, ..Entry::default() };
        Cpuid {
            entries: vec![
                leaf(1, 0, 0),
                leaf(4, 0, 0x0400_0021), // L1, data
                leaf(4, 3, 0x0400_0063), // L3, unified
                leaf(4, 4, 0),
                leaf(0xb, 0, 0),
                leaf(0xb, 1, 0),
                leaf(0xb, 2, 0),
                leaf(0x8000_0008, 0, 0),
                leaf(0x8000_001e, 0, 0),
            ],
        }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_everywhere() {
        let vcpu = host().for_vcpu(5, 8);
        let word = |leaf, subleaf, register| vcpu.entry(leaf, subleaf).unwrap().get(register);
        assert_eq!(word(1, 0, Register::Ebx) >> 24, 5);
        assert_eq!(word(1, 0, Register::Ebx) >> 16 & 0xff, 8);
        assert_ne!(word(1, 0, Register::Edx) & HTT, 0);
        for subleaf in 0..3 {
            assert_eq!(word(0xb, subleaf, Register::Edx), 5);
        }
        assert_eq!(word(0x8000_001e, 0, Register::Eax), 5);
    }

    #[test]
    fn topology_is_one_package_of_single_thread_cores() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (8, 3), (16, 4)] {
            let vcpu = host().for_vcpu(0, count);
            let smt = vcpu.entry(0xb, 0).unwrap();
            assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
            let core = vcpu.entry(0xb, 1).unwrap();
            assert_eq!((core.eax, core.ebx, core.ecx), (bits, count, 0x201));
            assert_eq!(vcpu.entry(0xb, 2).unwrap().ebx, 0);
            let l1 = vcpu.entry(4, 0).unwrap().eax;
            let l3 = vcpu.entry(4, 3).unwrap().eax;
            assert_eq!((l1 >> 14 & 0xfff, l3 >> 14 & 0xfff), (0, (1 << bits) - 1));
            assert_eq!((l1 & 0x3fff, l3 & 0x3fff), (0x21, 0x63));
            assert_eq!(vcpu.entry(4, 4).unwrap().eax, 0);
            assert_eq!(vcpu.entry(0x8000_0008, 0).unwrap().ecx, bits << 12 | (count - 1));
        }
    }

    #[test]
    fn an_entry_is_replaced_and_not_doubled() {
        let entry = |eax| Entry { leaf: 0x8000_0002, eax, ..Entry::default() };
        let mut cpuid = Cpuid::default();
        cpuid.replace(entry(1));
        cpuid.replace(entry(2));
        assert_eq!(cpuid.entries, [entry(2)]);
    }

    #[test]
    fn edits_make_and_keep_entries() {
        let mut cpuid = Cpuid::default();
        cpuid.clear(7, 0, Register::Ebx, 1);
        assert_eq!(cpuid.entries, []);
        cpuid.set_platform(true);
        assert_eq!(cpuid.entry(1, 0).unwrap().ecx, HYPERVISOR | TSC_DEADLINE);
        cpuid.clear(1, 0, Register::Ecx, HYPERVISOR);
        assert_eq!(cpuid.entry(1, 0).unwrap().ecx, TSC_DEADLINE);
    }
}
