//! A limit for messages that a guest, or a client, can provoke as often as it likes.

use std::time::{Duration, Instant};

/// Lets some messages through per period and counts the rest.
#[derive(Debug)]
pub struct RateLimit {
    allowed: u32,
    period: Duration,
    period_start: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    /// Lets `allowed` messages through in each `period`.
    pub const fn new(allowed: u32, period: Duration) -> RateLimit {
        RateLimit { allowed, period, period_start: None, used: 0, suppressed: 0 }
    }

    /// Whether a message may pass at `now`, and how many did not since the last that did.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.period_start.is_none_or(|start| now.duration_since(start) >= self.period) {
            self.period_start = Some(now);
            self.used = 0;
        }
        if self.used == self.allowed {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// What stands behind a message that passed after `missed` others did not; nothing for 0.
pub fn missed_in_words(missed: u64) -> String {
    if missed == 0 { String::new() } else { format!(" ({missed} like it were not shown)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_counted_and_told_later() {
        let mut limit = RateLimit::new(2, Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!([limit.admit(start), limit.admit(start), limit.admit(start)], [Some(0), Some(0), None]);
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(2));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(0));
        assert_eq!(
            (missed_in_words(0), missed_in_words(2)),
            (String::new(), " (2 like it were not shown)".into())
        );
    }
}
