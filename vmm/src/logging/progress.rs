//! How far something is that takes long.

use debug::dump::write::Progress;
use std::time::{Duration, Instant};

/// Says how far something is, now and then.
#[derive(Debug)]
pub struct Reporter {
    next: Instant,
}

impl Reporter {
    /// How often.
    const INTERVAL: Duration = Duration::from_secs(1);

    /// The first word comes after a while: what is quick needs none.
    pub fn new() -> Reporter {
        Reporter { next: Instant::now() + Reporter::INTERVAL }
    }

    /// The percentage, if it is time to tell it.
    pub fn percent(&mut self, progress: Progress) -> Option<u64> {
        let now = Instant::now();
        (now >= self.next).then(|| {
            self.next = now + Reporter::INTERVAL;
            u64::try_from(u128::from(progress.done) * 100 / u128::from(progress.total.max(1))).unwrap_or(100)
        })
    }
}

impl Default for Reporter {
    fn default() -> Reporter {
        Reporter::new()
    }
}
