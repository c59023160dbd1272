//! KVM's own family: shown, and answered by "there is no such call".

use super::{FamilyFacts, Made};
use devices::hypercall::kvm::{Kvm, table};
use std::sync::Arc;

pub(super) const FAMILY: FamilyFacts = FamilyFacts {
    name: "kvm",
    remark: "shown only",
    table,
    convention: arch::hypercall::kvm,
    is_called_as_xen: false,
    hvc: None,
    make: |_| Ok(Made { family: Arc::new(Kvm), helper: None }),
};
