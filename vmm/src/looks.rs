//! How often the log of a guest's kernel is looked at by nobody's asking, and how long is waited behind what it says.

use std::time::Duration;

/// How long what is behind a sign in the log is waited for: the rest of what the kernel has to say of it.
pub const AFTER_SIGN: Duration = Duration::from_millis(500);
/// How long a rest is, at least, and how many times as long as what it is after: the guest may stand still for a look, and
/// is not to do so most of the time.
const REST: (Duration, u32) = (Duration::from_secs(1), 10);

/// How long no look is made after one that has taken so long.
pub fn rest_after(took: Duration) -> Duration {
    let (least, times) = REST;
    took.saturating_mul(times).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_runs_ten_times_as_long_as_it_is_looked_at() {
        let after = |took| rest_after(Duration::from_millis(took)).as_millis();
        assert_eq!([0, 99, 100, 101, 3000].map(after), [1000, 1000, 1000, 1010, 30_000]);
        assert_eq!(rest_after(Duration::MAX), Duration::MAX);
    }
}
