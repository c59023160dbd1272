//! vCPUs that stay in one place with interrupts off, and write to no device there: a kernel that hangs so says nothing of
//! it any more. One that prints much by a serial port is in one place as well.

use crate::machine::DeafPlace;
use std::time::Duration;

/// How often vCPUs are looked at.
pub const EVERY: Duration = Duration::from_secs(1);
/// How long one has to have run in its place until that is called a hang.
pub const LIMIT: Duration = Duration::from_secs(8);
/// Before the guest runs a program that is so many times as long: a kernel begins with interrupts off, and on an emulated
/// or nested processor it is long in the loops that write over its own instructions.
pub const BOOT_FACTOR: u32 = 4;
/// Bytes around an instruction that are one place: a loop.
const PLACE: u64 = 1024;

/// What has been seen of all vCPUs: where each was first found in the place that it is in.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    vcpus: Vec<Option<DeafPlace>>,
}

impl Stuck {
    /// Where each vCPU is now; the first that has run in its place for `limit`, and its place.
    pub fn look(&mut self, places: &[Option<DeafPlace>], limit: Duration) -> Option<(usize, u64)> {
        self.vcpus.resize(places.len(), None);
        let mut found = None;
        for (vcpu, (first, now)) in self.vcpus.iter_mut().zip(places).enumerate() {
            let stays = match (&first, now) {
                (Some(first), Some(now)) => {
                    first.at.abs_diff(now.at) < PLACE && first.device_writes == now.device_writes
                }
                _ => false,
            };
            if !stays {
                *first = *now;
            }
            if let (Some(first), Some(now)) = (first, now)
                && now.ran.saturating_sub(first.ran) >= limit
            {
                found = found.or(Some((vcpu, first.at)));
            }
        }
        found
    }

    /// It was not looked for a while: nothing is known.
    pub fn forget(&mut self) {
        self.vcpus.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(at: u64, milliseconds: u64) -> Option<DeafPlace> {
        Some(DeafPlace { at, ran: Duration::from_millis(milliseconds), device_writes: 3 })
    }

    #[test]
    fn one_place_for_long_is_a_hang() {
        let mut stuck = Stuck::default();
        for time in 0..8 {
            assert_eq!(stuck.look(&[None, place(0x1000 + time, 500 + 1000 * time)], LIMIT), None);
        }
        assert_eq!(stuck.look(&[None, place(0x1010, 8500)], LIMIT), Some((1, 0x1000)));
        assert_eq!(stuck.look(&[None, place(0x1010, 9500)], BOOT_FACTOR * LIMIT), None);
    }

    #[test]
    fn who_is_given_no_processor_does_not_hang() {
        let mut stuck = Stuck::default();
        for time in 0..100 {
            assert_eq!(stuck.look(&[place(0x1000, 10 * time)], LIMIT), None);
        }
    }

    #[test]
    fn whoever_moves_listens_or_prints_does_not_hang() {
        let mut stuck = Stuck::default();
        for time in 0..80 {
            let moves = place(0x1000 + time * PLACE, 1000 * time);
            let listens = place(0x1000, 1000 * time).filter(|_| time % 7 != 0);
            let prints = place(0x1000, 1000 * time).map(|place| DeafPlace { device_writes: time, ..place });
            assert_eq!(stuck.look(&[moves, listens, prints], LIMIT), None);
        }
        stuck.look(&[place(1, 0)], LIMIT);
        stuck.forget();
        assert_eq!(stuck.look(&[place(1, 9000)], LIMIT), None);
    }
}
