//! vCPUs that stay in one place with interrupts off: a kernel that hangs so says nothing of it any more.

use std::time::Duration;

/// How often vCPUs are looked at, and how often one is found in its place until that is called a hang.
pub const EVERY: Duration = Duration::from_secs(1);
pub const TIMES: u32 = 8;
/// Bytes around an instruction that are one place: a loop.
const PLACE: u64 = 1024;

/// What has been seen of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    at: u64,
    times: u32,
}

/// What has been seen of all vCPUs.
#[derive(Clone, Debug, Default)]
pub struct Stuck {
    vcpus: Vec<Option<Seen>>,
}

impl Stuck {
    /// Where each vCPU is now that is at work with interrupts off; the first that has been there for too long, and its
    /// place.
    pub fn look(&mut self, places: &[Option<u64>]) -> Option<(usize, u64)> {
        self.vcpus.resize(places.len(), None);
        for (seen, place) in self.vcpus.iter_mut().zip(places) {
            *seen = match (*seen, *place) {
                (_, None) => None,
                (Some(seen), Some(now)) if seen.at.abs_diff(now) < PLACE => {
                    Some(Seen { times: seen.times + 1, ..seen })
                }
                (_, Some(now)) => Some(Seen { at: now, times: 1 }),
            };
        }
        let is_stuck = |(vcpu, seen): (usize, &Option<Seen>)| {
            seen.filter(|seen| seen.times >= TIMES).map(|seen| (vcpu, seen.at))
        };
        self.vcpus.iter().enumerate().find_map(is_stuck)
    }

    /// It was not looked for a while: nothing is known.
    pub fn forget(&mut self) {
        self.vcpus.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_for_long_is_a_hang() {
        let mut stuck = Stuck::default();
        for time in 1..TIMES {
            assert_eq!(stuck.look(&[None, Some(0x1000 + u64::from(time))]), None);
        }
        assert_eq!(stuck.look(&[None, Some(0x1000)]), Some((1, 0x1001)));
    }

    #[test]
    fn whoever_moves_or_listens_does_not_hang() {
        let mut stuck = Stuck::default();
        for time in 0..10 * TIMES {
            let moves = 0x1000 + u64::from(time) * PLACE;
            let listens = (time % (TIMES - 1) != 0).then_some(0x1000);
            assert_eq!(stuck.look(&[Some(moves), listens]), None);
        }
        stuck.look(&[Some(1)]);
        stuck.forget();
        for _ in 1..TIMES {
            assert_eq!(stuck.look(&[Some(1)]), None);
        }
    }
}
