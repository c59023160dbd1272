//! Exception syndromes: `ESR_ELx` taken apart.
//!
//! Source: Arm ARM (DDI 0487), `ESR_EL1` and `ESR_EL2`: field `EC`, and the `ISS` encodings
//! "Exceptions from a BRK instruction", "... from a Software Step exception", "... from a
//! Watchpoint exception", "... from a Breakpoint or Vector Catch debug exception".

const EC_SHIFT: u32 = 26;
/// `IL`: the instruction had 32 bits.
pub const IL: u64 = 1 << 25;

/// Unknown reason.
pub const EC_UNKNOWN: u64 = 0x00;
/// `SVC` in AArch64 state.
pub const EC_SVC64: u64 = 0x15;
/// `HVC` in AArch64 state.
pub const EC_HVC64: u64 = 0x16;
/// Breakpoint, from a lower exception level.
pub const EC_BREAKPOINT_LOWER: u64 = 0x30;
/// Breakpoint, from the level it is taken to.
pub const EC_BREAKPOINT_CURRENT: u64 = 0x31;
/// Software step, from a lower exception level.
pub const EC_SOFTWARE_STEP_LOWER: u64 = 0x32;
/// Software step, from the level it is taken to.
pub const EC_SOFTWARE_STEP_CURRENT: u64 = 0x33;
/// Watchpoint, from a lower exception level.
pub const EC_WATCHPOINT_LOWER: u64 = 0x34;
/// Watchpoint, from the level it is taken to.
pub const EC_WATCHPOINT_CURRENT: u64 = 0x35;
/// `BKPT` in AArch32 state.
pub const EC_BKPT32: u64 = 0x38;
/// `BRK` in AArch64 state.
pub const EC_BRK64: u64 = 0x3c;

/// IFSC and DFSC of a debug exception.
const FSC_DEBUG: u64 = 0b10_0010;
/// ISS of a watchpoint: a write.
const WNR: u64 = 1 << 6;
/// ISS of a watchpoint: a cache maintenance instruction.
const CM: u64 = 1 << 8;
/// ISS of a software step: EX is valid.
const ISV: u64 = 1 << 24;
/// ISS of a software step: the instruction stepped was a load-exclusive.
const EX: u64 = 1 << 6;

/// A debug exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugException {
    /// A `BRK` instruction with its immediate.
    Brk(u16),
    /// A `BKPT` instruction of AArch32 state with its immediate.
    Bkpt32(u16),
    /// A software step has been done. `load_exclusive` says that the instruction was a
    /// load-exclusive, as far as the processor tells.
    SoftwareStep {
        /// The instruction stepped was a load-exclusive.
        load_exclusive: bool,
    },
    /// A breakpoint register matched.
    Breakpoint,
    /// A watchpoint matched; the address is in `FAR_ELx`.
    Watchpoint {
        /// Store (or cache maintenance) rather than load.
        is_write: bool,
        /// By a cache maintenance instruction.
        is_cache_maintenance: bool,
    },
}

/// The exception class, bits 31 to 26.
pub fn class(esr: u64) -> u64 {
    esr >> EC_SHIFT & 0x3f
}

/// Decodes the syndrome of a debug exception that EL2 was told; `None` for every other class.
pub fn decode(esr: u64) -> Option<DebugException> {
    let iss = esr & 0x1ff_ffff;
    let comment = u16::try_from(iss & 0xffff).unwrap_or(0);
    Some(match class(esr) {
        EC_BRK64 => DebugException::Brk(comment),
        EC_BKPT32 => DebugException::Bkpt32(comment),
        EC_SOFTWARE_STEP_LOWER | EC_SOFTWARE_STEP_CURRENT => {
            DebugException::SoftwareStep { load_exclusive: iss & ISV != 0 && iss & EX != 0 }
        }
        EC_BREAKPOINT_LOWER | EC_BREAKPOINT_CURRENT => DebugException::Breakpoint,
        EC_WATCHPOINT_LOWER | EC_WATCHPOINT_CURRENT => {
            DebugException::Watchpoint { is_write: iss & WNR != 0, is_cache_maintenance: iss & CM != 0 }
        }
        _ => return None,
    })
}

impl DebugException {
    /// The syndrome that the exception has when it is taken to EL1 from EL1
    /// (`from_lower == false`) or from EL0.
    pub fn syndrome(self, from_lower: bool) -> u64 {
        let class = |lower, current| if from_lower { lower } else { current };
        let (class, iss) = match self {
            DebugException::Brk(comment) => (EC_BRK64, u64::from(comment)),
            DebugException::Bkpt32(comment) => (EC_BKPT32, u64::from(comment)),
            DebugException::SoftwareStep { load_exclusive } => (
                class(EC_SOFTWARE_STEP_LOWER, EC_SOFTWARE_STEP_CURRENT),
                FSC_DEBUG | ISV | if load_exclusive { EX } else { 0 },
            ),
            DebugException::Breakpoint => (class(EC_BREAKPOINT_LOWER, EC_BREAKPOINT_CURRENT), FSC_DEBUG),
            DebugException::Watchpoint { is_write, is_cache_maintenance } => (
                class(EC_WATCHPOINT_LOWER, EC_WATCHPOINT_CURRENT),
                FSC_DEBUG | if is_write { WNR } else { 0 } | if is_cache_maintenance { CM } else { 0 },
            ),
        };
        class << EC_SHIFT | IL | iss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_debug_class_decodes_and_encodes() {
        for (esr, from_lower, exception) in [
            (0xf200_0000, true, DebugException::Brk(0)),
            (0xf200_0800, false, DebugException::Brk(0x800)),
            (0xf200_ffff, true, DebugException::Brk(0xffff)),
            (0xe200_0001, true, DebugException::Bkpt32(1)),
            (0xcb00_0022, true, DebugException::SoftwareStep { load_exclusive: false }),
            (0xcf00_0062, false, DebugException::SoftwareStep { load_exclusive: true }),
            (0xc200_0022, true, DebugException::Breakpoint),
            (0xc600_0022, false, DebugException::Breakpoint),
            (0xd200_0022, true, DebugException::Watchpoint { is_write: false, is_cache_maintenance: false }),
            (0xd600_0062, false, DebugException::Watchpoint { is_write: true, is_cache_maintenance: false }),
            (0xd600_0162, false, DebugException::Watchpoint { is_write: true, is_cache_maintenance: true }),
        ] {
            assert_eq!(decode(esr), Some(exception), "{esr:#x}");
            assert_eq!(exception.syndrome(from_lower), esr, "{exception:?}");
        }
    }

    #[test]
    fn other_classes_are_not_debug_exceptions() {
        for class in 0..0x40 {
            let is_debug = matches!(class, 0x30..=0x35 | 0x38 | 0x3c);
            assert_eq!(decode(class << 26 | IL).is_some(), is_debug, "{class:#x}");
        }
    }

    #[test]
    fn a_step_without_a_valid_syndrome_is_no_load_exclusive() {
        assert_eq!(decode(0xca00_0062), Some(DebugException::SoftwareStep { load_exclusive: false }));
    }
}
