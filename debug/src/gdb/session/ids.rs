//! Thread-ids of the guest's tasks.
//!
//! A task's id is [`EACH`] and its pid, so that one sees the other in it; it stays the same for as long as the task is
//! there. A pid that another task has got since counts from the next multiple of [`EACH`] on: a debugger that has not
//! been told that the first task has gone does not take the second one for it.

use std::collections::{HashMap, HashSet};

/// What ids of tasks are counted from. vCPUs' are far below.
pub const EACH: u32 = 10_000_000;
/// `PID_MAX_LIMIT`: Linux has no larger pids (`include/linux/threads.h`).
const MOST_PID: u32 = 1 << 22;
/// How often a pid may have been got before its first id is given again; all ids have 31 bits.
const MOST_TIMES: u32 = 200;
/// Pids that are remembered, at most; then those without a task are forgotten.
const MOST_KNOWN: usize = 1 << 16;

/// What tells a task from all others that have its pid: where it is, and when it began.
pub type Identity = (u64, u64);

/// The ids that have been given.
#[derive(Debug, Default)]
pub struct Ids(HashMap<u32, (Identity, u32)>);

/// Whether a thread-id may be a task's.
pub fn may_be_task(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| (EACH..=i32::MAX.unsigned_abs()).contains(id))
}

impl Ids {
    /// The ids of all tasks that there are, by their pids. A task without an id has a pid that Linux has not, or one that
    /// too many have.
    pub fn give(&mut self, tasks: &[(u32, Identity)]) -> Vec<Option<u32>> {
        let mut taken = HashSet::new();
        let ids = tasks.iter().map(|(pid, identity)| self.one(*pid, *identity, &mut taken)).collect();
        if self.0.len() > MOST_KNOWN {
            let pids: HashSet<u32> = tasks.iter().map(|(pid, _)| *pid).collect();
            self.0.retain(|pid, _| pids.contains(pid));
        }
        ids
    }

    fn one(&mut self, pid: u32, identity: Identity, taken: &mut HashSet<u32>) -> Option<u32> {
        if pid > MOST_PID {
            return None;
        }
        let (known, times) = self.0.entry(pid).or_insert((identity, 0));
        if *known != identity {
            (*known, *times) = (identity, (*times + 1) % MOST_TIMES);
        }
        let id = EACH * (*times + 1) + pid;
        taken.insert(id).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_keeps_its_id_and_none_has_that_of_another() {
        let mut ids = Ids::default();
        let (first, second) = ((0x1000, 5), (0x2000, 6));
        assert_eq!(ids.give(&[(1, first), (42, second)]), [Some(10_000_001), Some(10_000_042)]);
        assert_eq!(ids.give(&[(42, second)]), [Some(10_000_042)]);
        // The same place, at another time.
        assert_eq!(ids.give(&[(42, (0x2000, 7)), (1, first)]), [Some(20_000_042), Some(10_000_001)]);
        assert_eq!(ids.give(&[(42, (0x2000, 7))]), [Some(20_000_042)]);
    }

    #[test]
    fn whatever_a_guest_says_ids_differ_and_fit() {
        let mut ids = Ids::default();
        let alike: Vec<(u32, Identity)> = (0..1000).map(|at| (MOST_PID, (at, 0))).collect();
        let given: Vec<u32> = ids.give(&alike).into_iter().flatten().collect();
        assert_eq!(given.len(), MOST_TIMES as usize);
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
        assert!(given.iter().all(|id| may_be_task((*id).into()) == Some(*id)));
        assert_eq!(ids.give(&[(MOST_PID + 1, (0, 0)), (u32::MAX, (0, 0))]), [None, None]);
        for id in [0, 1, 9_999_999, 1 << 31, u64::MAX] {
            assert_eq!(may_be_task(id), None, "{id}");
        }
    }

    #[test]
    fn so_many_are_remembered() {
        let mut ids = Ids::default();
        for round in 0..4 {
            let all: Vec<(u32, Identity)> = (0..30_000).map(|pid| (round * 30_000 + pid, (1, 1))).collect();
            ids.give(&all);
            assert!(ids.0.len() <= MOST_KNOWN + all.len());
        }
    }
}
