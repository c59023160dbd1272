//! The families of hypercalls, and what the machine has to know of each; what their calls mean is in
//! `devices::hypercall`.
//!
//! To add one: its file here, with its `FAMILY`; and its line in `FAMILIES`, with `mod`.

mod kvm;
mod xen;

use crate::machine::guest_ram::GuestRam;
use crate::machine::mailbox::Mailbox;
use ::kvm::Vm;
use arch::hypercall::{Abi, Convention};
use devices::hypercall::Family;
use devices::hypercall::table::Table;
use devices::platform::serial::Serial;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
pub(in crate::machine) use xen::timers::Timers;

/// All of them, in the order of `--help`.
const FAMILIES: &[FamilyFacts] = &[xen::FAMILY, kvm::FAMILY];

/// What the machine has to know of a family.
pub(super) struct FamilyFacts {
    /// As in `--hypercalls`.
    pub name: &'static str,
    /// What `--help` says of it behind its name; empty where that says it.
    pub remark: &'static str,
    /// Its calls.
    pub table: fn() -> &'static Table,
    /// Where its calls have their number, their arguments and their result.
    pub convention: fn(Abi) -> Convention,
    /// x86: guests find and call it as they do Xen: by leaves of CPUID, by a page of code that they ask for by an MSR,
    /// and with Xen's registers, which KVM hands over.
    pub is_called_as_xen: bool,
    /// aarch64: the immediate of the `HVC` that makes its calls; `None` where KVM answers them, and none is seen.
    pub hvc: Option<u16>,
    /// Makes it, for a machine.
    pub make: fn(&Parts<'_>) -> io::Result<Made>,
}

/// What of a machine the families need.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Parts<'a> {
    /// Its virtual machine.
    pub vm: &'a Vm,
    /// Its RAM.
    pub ram: &'a GuestRam,
    /// Its serial port, which is the console.
    pub serial: &'a Arc<Mutex<Serial>>,
    /// How many vCPUs it has.
    pub vcpus: u32,
}

/// A family, made for a machine.
pub(super) struct Made {
    /// What answers its calls.
    pub family: Arc<dyn Family>,
    /// What else it does, if that is anything.
    pub helper: Option<Box<dyn Helper>>,
}

/// What a family does beside answering calls; its end is the machine's.
pub(super) trait Helper: Send + Sync {
    /// The vCPUs' threads have been started; none has run its guest.
    fn introduce(&self, mailboxes: Vec<Mailbox>);

    /// The guest's timers, which stand still while the guest is held.
    fn timers(&self) -> Option<&Arc<Timers>>;
}

/// Which family.
#[derive(Clone, Copy)]
pub struct FamilyName(&'static FamilyFacts);

impl FamilyName {
    /// The names that there are.
    pub const NAMES: &'static [&'static str] = {
        const NAMES: [&str; FAMILIES.len()] = {
            let mut names = [""; FAMILIES.len()];
            let mut index = 0;
            while index < names.len() {
                names[index] = FAMILIES[index].name;
                index += 1;
            }
            names
        };
        &NAMES
    };

    /// All of them, as `--help` has them.
    pub fn list() -> String {
        let names: Vec<String> = FAMILIES
            .iter()
            .map(|family| match family.remark {
                "" => family.name.to_string(),
                remark => format!("{} ({remark})", family.name),
            })
            .collect();
        names.join(" or ")
    }

    /// The family of a name, as in `--hypercalls`.
    pub fn named(name: &str) -> Option<FamilyName> {
        FAMILIES.iter().find(|family| family.name == name).map(FamilyName)
    }

    /// As in `--hypercalls`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Its calls.
    pub fn table(self) -> &'static Table {
        (self.0.table)()
    }

    /// What the machine has to know of it.
    pub(super) fn facts(self) -> &'static FamilyFacts {
        self.0
    }

    /// Whether guests find it as they find Xen.
    pub(in crate::machine) fn is_called_as_xen(self) -> bool {
        self.0.is_called_as_xen
    }

    /// Whether an aarch64 guest's calls can be seen.
    pub(in crate::machine) fn is_seen_on_aarch64(self) -> bool {
        self.0.hvc.is_some()
    }
}

impl PartialEq for FamilyName {
    fn eq(&self, other: &FamilyName) -> bool {
        self.name() == other.name()
    }
}

impl Eq for FamilyName {}

impl fmt::Debug for FamilyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_names_of_their_own_and_are_found_by_them() {
        for (index, name) in FamilyName::NAMES.iter().enumerate() {
            let family = FamilyName::named(name).unwrap();
            assert_eq!(
                (family.name(), FamilyName::NAMES.iter().position(|n| n == name)),
                (*name, Some(index))
            );
            assert!(!family.table().calls.is_empty());
        }
        assert!(FamilyName::named("xyzzy").is_none());
    }
}
