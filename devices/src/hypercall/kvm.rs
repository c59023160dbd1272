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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::tests::{Bench, Guest};
    use crate::hypercall::trace::Style;
    use arch::hypercall::Abi;
    use std::sync::Arc;

    #[test]
    fn calls_are_shown_and_unknown() {
        for abi in [Abi::X86_64, Abi::X86_32] {
            let guest = Guest::calling(Arc::new(Kvm), Bench::new(), abi, Style::Lines);
            assert_eq!(guest.call(10, &[3, 0, 0, 0xfd]), -1000);
            for (number, arguments, shown) in [
                (10, [3, 0, 0, 0xfd], "send_ipi(3, 0, 0, 0xfd) = -KVM_ENOSYS"),
                (
                    12,
                    [0x1000, 2, 0x10, 0],
                    "map_gpa_range(0x1000, 2, KVM_MAP_GPA_RANGE_ENCRYPTED) = -KVM_ENOSYS",
                ),
                (77, [0; 4], "hypercall(77) = -KVM_ENOSYS"),
            ] {
                assert_eq!(guest.traced(number, &arguments), shown, "{abi:?}");
            }
        }
        assert!(Kvm.table().calls.iter().all(|call| call.count == call.arguments.len()));
    }

    #[test]
    fn a_guest_may_call_anything() {
        for abi in Abi::ALL {
            Guest::calling(Arc::new(Kvm), Bench::new(), abi, Style::Json).takes_anything();
        }
    }
}
