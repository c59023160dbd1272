//! What has been said of a disk that fails: a guest asks again and again, and its disk stays full.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What failures of a disk, by the sort of request, have been told. All queues of the disk have the same.
#[derive(Debug, Default)]
pub struct Told {
    failures: Mutex<BTreeSet<(u32, Option<i32>)>>,
    /// There are some: most disks have none, and each request asks.
    has_any: AtomicBool,
}

impl Told {
    /// A request of a sort has failed; whether that is news: none of the sort has failed so since the last that
    /// succeeded. Errors that are not the system's are one.
    pub fn is_news(&self, sort: u32, error: &io::Error) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_any.store(true, Ordering::SeqCst);
        failures.insert((sort, error.raw_os_error()))
    }

    /// One has succeeded.
    pub fn has_succeeded(&self, sort: u32) {
        if self.has_any.load(Ordering::SeqCst) {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.retain(|(failed, _)| *failed != sort);
            self.has_any.store(!failures.is_empty(), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_news_until_one_succeeds() {
        let (told, full, bad) =
            (Told::default(), io::Error::from_raw_os_error(28), io::Error::from_raw_os_error(5));
        let news = |sort, error| [told.is_news(sort, error), told.is_news(sort, error)];
        assert_eq!([news(1, &full), news(1, &bad), news(0, &bad)], [[true, false]; 3]);
        told.has_succeeded(1);
        assert_eq!(
            [news(0, &bad), news(1, &full), news(1, &bad)],
            [[false, false], [true, false], [true, false]]
        );
    }
}
