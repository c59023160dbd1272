//! A pause in accepting connections when the system cannot give one.
//!
//! A client that waits keeps its listener readable, so whoever polls that and cannot accept, because there
//! are no descriptors left for instance, would try for ever. It leaves the listener alone for a while
//! instead; the client waits meanwhile.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// How long a listener is left alone.
const LENGTH: Duration = Duration::from_millis(200);

/// A pause, or none.
#[derive(Debug, Default)]
pub struct Pause {
    until: Option<Instant>,
}

impl Pause {
    /// Looks at an error of `accept`: one that says that nobody is there (any more) is none; after every
    /// other, trying again at once would fail again. Whether there is a pause now.
    pub fn after(&mut self, error: &io::Error, now: Instant) -> bool {
        let is_over = matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
        );
        if !is_over {
            self.until = Some(now + LENGTH);
        }
        !is_over
    }

    /// How much of it is left; `None` when connections may be accepted.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until.filter(|until| *until > now).map(|until| until - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_away_by_itself_is_a_reason_to_wait() {
        let (now, mut pause) = (Instant::now(), Pause::default());
        for kind in [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted] {
            assert!(!pause.after(&kind.into(), now));
        }
        assert_eq!(pause.left(now), None);
        // EMFILE and ENFILE.
        for number in [24, 23] {
            assert!(pause.after(&io::Error::from_raw_os_error(number), now));
            assert_eq!(pause.left(now), Some(LENGTH));
            assert_eq!(pause.left(now + LENGTH), None);
        }
    }
}
