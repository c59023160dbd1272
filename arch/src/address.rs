//! Addresses of a guest.
//!
//! They are 64 bits wide whatever the host is, and never native pointers: a guest-physical
//! address indexes the guest's memory, a guest-virtual one means something only together
//! with the page tables of a vCPU.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on; `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The first address at or above this one that is a multiple of `alignment`
            /// (a power of two, in bytes); `None` past the end of the address space.
            pub const fn align_up(self, alignment: u64) -> Option<Self> {
                debug_assert!(alignment.is_power_of_two());
                match self.0.checked_add(alignment - 1) {
                    Some(sum) => Some(Self(sum & !(alignment - 1))),
                    None => None,
                }
            }

            /// The last address at or below this one that is a multiple of `alignment`
            /// (a power of two, in bytes).
            pub const fn align_down(self, alignment: u64) -> Self {
                debug_assert!(alignment.is_power_of_two());
                Self(self.0 & !(alignment - 1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// A guest-physical address, in bytes.
    GuestPhys
);
address!(
    /// A guest-virtual address, in bytes, as an instruction of the guest would use it.
    GuestVirt
);

/// A range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// First byte.
    pub start: GuestPhys,
    /// Length in bytes.
    pub size: u64,
}

impl PhysRange {
    /// The range of `size` bytes from `start`.
    pub const fn new(start: u64, size: u64) -> Self {
        PhysRange { start: GuestPhys(start), size }
    }

    /// The address after the last byte. Ranges that this crate makes do not wrap.
    pub const fn end(&self) -> GuestPhys {
        GuestPhys(self.start.0 + self.size)
    }

    /// Whether all of `size` bytes from `start` lie in this range.
    pub const fn contains(&self, start: GuestPhys, size: u64) -> bool {
        start.0 >= self.start.0
            && match start.0.checked_add(size) {
                Some(end) => end <= self.end().0,
                None => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_goes_both_ways_and_does_not_wrap() {
        assert_eq!(GuestPhys(0x1001).align_up(0x1000), Some(GuestPhys(0x2000)));
        assert_eq!(GuestPhys(0x1000).align_up(0x1000), Some(GuestPhys(0x1000)));
        assert_eq!(GuestPhys(0x1fff).align_down(0x1000), GuestPhys(0x1000));
        assert_eq!(GuestPhys(u64::MAX).align_up(0x1000), None);
        assert_eq!(GuestVirt(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn a_range_contains_only_what_fits_whole() {
        let range = PhysRange::new(0x1000, 0x1000);
        assert!(range.contains(GuestPhys(0x1000), 0x1000));
        assert!(!range.contains(GuestPhys(0x1000), 0x1001));
        assert!(!range.contains(GuestPhys(0xfff), 2));
        assert!(!range.contains(GuestPhys(0x1800), u64::MAX));
    }
}
