//! KVM's own hypercalls, decoded only: the second family, and the example of how one is added.

use super::call::Call;
use super::family::{Answer, Family};
use super::table::Table;
use std::sync::LazyLock;

static TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::parse(include_str!("kvm/kvm.calls")).expect("the tests parse it"));

/// KVM's calls.
pub fn table() -> &'static Table {
    &TABLE
}

/// `KVM_ENOSYS` (Linux, `include/uapi/linux/kvm_para.h`).
const KVM_ENOSYS: i64 = 1000;

/// `KVM_EFAULT`.
const KVM_EFAULT: i64 = 14;

/// KVM's hypercalls. None is answered: a guest that is told of none of them needs none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kvm;

impl Family for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn table(&self) -> &'static Table {
        &TABLE
    }

    fn answer(&self, _: &mut Call<'_>) -> Answer {
        self.unknown().into()
    }

    fn unknown(&self) -> i64 {
        -KVM_ENOSYS
    }

    fn fault(&self) -> i64 {
        -KVM_EFAULT
    }

    fn error(&self, result: i64) -> Option<&'static str> {
        match -result {
            KVM_ENOSYS => Some("KVM_ENOSYS"),
            KVM_EFAULT => Some("KVM_EFAULT"),
            22 => Some("KVM_EINVAL"),
            7 => Some("KVM_E2BIG"),
            1 => Some("KVM_EPERM"),
            95 => Some("KVM_EOPNOTSUPP"),
            _ => None,
        }
    }
}
