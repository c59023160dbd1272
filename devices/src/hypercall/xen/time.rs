//! Time as an x86 guest reads it without a call: a line through the time-stamp counter.
//!
//! Source: Xen, `xen/include/public/xen.h` (`struct vcpu_time_info`, `struct shared_info`).

use super::platform::Platform;
use crate::hypercall::caller::Tsc;

/// `XEN_PVCLOCK_TSC_STABLE_BIT`: the line is the same on all vCPUs.
const STABLE: u8 = 1;

/// `struct vcpu_time_info`, 32 bytes: `now` nanoseconds are at the counter's value. The version is
/// even, as the line does not change.
pub fn time_info(tsc: Tsc, now: u64) -> [u8; 32] {
    let (multiplier, shift) = scale(tsc.khz);
    let mut info = [0; 32];
    info[0..4].copy_from_slice(&2u32.to_le_bytes());
    info[8..16].copy_from_slice(&tsc.value.to_le_bytes());
    info[16..24].copy_from_slice(&now.to_le_bytes());
    info[24..28].copy_from_slice(&multiplier.to_le_bytes());
    info[28] = shift.to_le_bytes()[0];
    info[29] = STABLE;
    info
}

/// Multiplier and shift by which nanoseconds are `(ticks << shift) * multiplier >> 32`, the
/// multiplier with all of its bits in use.
fn scale(khz: u32) -> (u32, i8) {
    let hz = u128::from(khz.max(1)) * 1000;
    // 2^32 * 10^9 / hz, made to fit.
    let mut multiplier = (1_000_000_000u128 << 64) / hz;
    let mut shift = -32i8;
    while multiplier >= 1 << 32 {
        multiplier >>= 1;
        shift += 1;
    }
    (u32::try_from(multiplier).unwrap_or(u32::MAX), shift)
}

/// `wc_version`, `wc_sec` and `wc_nsec` of the shared page: the time of day at time 0.
pub fn wall_clock(platform: &dyn Platform) -> [u8; 12] {
    let nanos = platform.wall().saturating_sub(platform.now());
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let mut clock = [0; 12];
    clock[0..4].copy_from_slice(&2u32.to_le_bytes());
    clock[4..8].copy_from_slice(&seconds.to_le_bytes()[..4]);
    clock[8..12].copy_from_slice(&rest.to_le_bytes()[..4]);
    clock
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds() {
        for khz in [1, 32_768, 999_999, 1_000_000, 2_600_000, 4_294_967_295] {
            let (multiplier, shift) = scale(khz);
            let ticks: u128 = u128::from(khz) * 1000;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let nanos = (shifted * u128::from(multiplier)) >> 32;
            assert!(nanos.abs_diff(1_000_000_000) < 1000, "{khz} kHz: {nanos} {multiplier} {shift}");
        }
    }
}
