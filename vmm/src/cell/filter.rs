//! Filters of system calls (seccomp(2)), made of the table.

use super::table::{self, Group, Kind, Limit, PRCTLS};
use arch::Isa;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// The filter of a kind of thread. What it forbids is a signal to the thread (SIGSYS).
///
/// # Errors
/// What the compiler says of the table.
pub fn program(isa: Isa, kind: Kind) -> Result<BpfProgram, BackendError> {
    let groups = table::groups(kind);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in groups.iter().flat_map(Group::calls) {
        // None: the architecture has no such call.
        if let Some(number) = table::number_of(isa, call) {
            rules.insert(number, Vec::new());
        }
    }
    let mut limited = |call: &str, limits: &mut dyn Iterator<Item = &Limit>| {
        let rules_of = limits.map(rule).collect::<Result<Vec<_>, _>>()?;
        table::number_of(isa, call).map(|number| rules.insert(number, rules_of));
        Ok::<_, BackendError>(())
    };
    limited("prctl", &mut PRCTLS.iter())?;
    limited("ioctl", &mut ioctls(&groups).into_iter())?;
    let target = match isa {
        Isa::X86_64 => TargetArch::x86_64,
        Isa::Aarch64 => TargetArch::aarch64,
    };
    SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, target)?.try_into()
}

/// What `ioctl` may be asked for: KVM's first, as they are the most frequent.
fn ioctls(groups: &[Group]) -> Vec<&'static Limit> {
    let mut all: Vec<&Limit> = Vec::new();
    let (kvm, other): (Vec<&Limit>, Vec<&Limit>) =
        groups.iter().flat_map(|group| group.ioctls).partition(|limit| limit.value & 0xff00 == 0xae00);
    for limit in kvm.into_iter().chain(other) {
        if !all.iter().any(|its| (its.mask, its.value) == (limit.mask, limit.value)) {
            all.push(limit);
        }
    }
    all
}

fn rule(limit: &Limit) -> Result<SeccompRule, BackendError> {
    let operator = SeccompCmpOp::MaskedEq(limit.mask);
    // What the kernel looks at of a request or an option has 32 bits.
    SeccompRule::new(vec![SeccompCondition::new(
        limit.argument,
        SeccompCmpArgLen::Dword,
        operator,
        limit.value,
    )?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use table::TABLE;

    #[test]
    fn every_filter_can_be_made_for_both_architectures() {
        for isa in [Isa::X86_64, Isa::Aarch64] {
            for row in TABLE {
                let program = program(isa, row.kind).unwrap();
                // Linux, linux/bpf_common.h: BPF_MAXINSNS.
                assert!(program.len() > 50 && program.len() <= 4096, "{}: {}", row.name, program.len());
            }
        }
    }

    #[test]
    fn a_vcpus_first_request_is_to_run() {
        let first = ioctls(&table::groups(Kind::Vcpu))[0];
        assert_eq!(first.name, "KVM_RUN");
        // Whatever another group has of KVM's, a vCPU makes no machine and maps no memory.
        for forbidden in [0xae01_u64, 0xae41, 0xae46] {
            assert!(ioctls(&table::groups(Kind::Vcpu)).iter().all(|it| forbidden & it.mask != it.value));
        }
    }
}
