//! What a guest causes us to say.
//!
//! A guest decides how often a device has something to say of it, so every place that says such a
//! thing does it by [`tell!`](crate::tell), and nothing else here logs (`make layering` looks): each place has a
//! limit of its own, and what is over it is counted and told with the next message that passes. What is
//! said waits on the thread, so that nothing is logged with a device locked, until the thread that serves
//! the guest has unlocked everything and calls [`deliver`].
//!
//! The words go to whatever `log` has been given. The logger of the command never waits
//! (`vmm::logging`); whoever embeds the monitor chooses one that does not, either.

use crate::rate_limit::{RateLimit, missed_in_words};
#[doc(hidden)]
pub use log::Level;
use log::Record;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Messages of one place that pass in a second.
pub const ALLOWED: u32 = 20;

/// One place in the code that has something to say of a guest.
#[derive(Debug)]
pub struct CallSite {
    limit: Mutex<RateLimit>,
    module: &'static str,
    file: &'static str,
    line: u32,
}

/// What has been said and not delivered.
#[derive(Debug)]
struct Word {
    place: &'static CallSite,
    level: Level,
    text: String,
}

thread_local! {
    static HAS_WORDS: Cell<bool> = const { Cell::new(false) };
    static WORDS: RefCell<Vec<Word>> = const { RefCell::new(Vec::new()) };
}

impl CallSite {
    /// The place that `tell!` stands at.
    pub const fn new(module: &'static str, file: &'static str, line: u32) -> CallSite {
        let limit = Mutex::new(RateLimit::new(ALLOWED, Duration::from_secs(1)));
        CallSite { limit, module, file, line }
    }

    /// Says something, if anybody listens and the limit is not reached.
    pub fn tell(&'static self, level: Level, text: fmt::Arguments<'_>) {
        if level > log::max_level() {
            return;
        }
        let admitted = self.limit.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        let Some(missed) = admitted else { return };
        let text = format!("{text}{}", missed_in_words(missed));
        WORDS.with_borrow_mut(|words| words.push(Word { place: self, level, text }));
        HAS_WORDS.set(true);
    }
}

/// Says something of a guest at a level of `log`: `tell!(Warn, "vCPU {id} …")`. It is logged when the
/// thread calls [`deliver`].
#[macro_export]
macro_rules! tell {
    ($level:ident, $($text:tt)+) => {{
        static PLACE: $crate::guest_log::CallSite =
            $crate::guest_log::CallSite::new(module_path!(), file!(), line!());
        PLACE.tell($crate::guest_log::Level::$level, format_args!($($text)+));
    }};
}

/// Whether this thread has said something that is not delivered.
pub fn has_words() -> bool {
    HAS_WORDS.get()
}

/// Logs what this thread has said. The caller holds no lock that a guest's progress depends on.
pub fn deliver() {
    if HAS_WORDS.replace(false) {
        for word in WORDS.take() {
            let Word { place, level, text } = word;
            log::logger().log(
                &Record::builder()
                    .args(format_args!("{text}"))
                    .level(level)
                    .target(place.module)
                    .module_path_static(Some(place.module))
                    .file_static(Some(place.file))
                    .line(Some(place.line))
                    .build(),
            );
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Takes what this thread has said.
    pub(crate) fn said() -> Vec<String> {
        HAS_WORDS.set(false);
        WORDS.take().into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn a_place_says_so_much_and_counts_the_rest() {
        log::set_max_level(log::LevelFilter::Info);
        for number in 0..1000 {
            crate::tell!(Warn, "for the {number}th time");
            // Another place has a limit of its own; one that nobody listens to has nothing to say.
            crate::tell!(Debug, "unheard");
        }
        crate::tell!(Info, "else");
        let said = said();
        assert_eq!(said.len(), ALLOWED as usize + 1, "{said:?}");
        assert_eq!((said[0].as_str(), said[20].as_str()), ("for the 0th time", "else"));
        deliver();
    }
}
