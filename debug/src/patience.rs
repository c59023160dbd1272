//! Waiting awake, for what comes at once, before going to sleep.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// For how long a receiver looks for a message before it goes to sleep: waking a thread takes longer than a single
/// step, and several times as long where KVM is nested in an emulation, as a step does there. So it is twice as
/// long behind each message that came soon after all, up to [`Patience::MOST`], and half as long behind each that did
/// not, as KVM does for vCPUs that are halted (Linux, `Documentation/virt/kvm/halt-polling.rst`).
#[derive(Debug)]
pub struct Patience(Cell<Duration>);

impl Default for Patience {
    fn default() -> Patience {
        Patience(Cell::new(Patience::LEAST))
    }
}

impl Patience {
    /// Longer than a single step takes on hardware, and than a client's answer to one does.
    pub const LEAST: Duration = Duration::from_micros(50);
    /// What a message that is never to come costs each thread that waits for it, at most: longer than a step takes where
    /// KVM is nested in an emulation, with a client's answer to it.
    pub const MOST: Duration = Duration::from_millis(4);

    /// Looks for something that is expected at once, without going to sleep. Whoever else could run is let run between
    /// two looks. Looks only once where there is no other processor to do the expected thing meanwhile.
    pub fn look<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let found = look();
        if found.is_some() || !has_processors() {
            return found;
        }
        let deadline = Instant::now() + self.0.get();
        loop {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            let found = look();
            if found.is_some() || Instant::now() >= deadline {
                return found;
            }
            std::thread::yield_now();
        }
    }

    /// It has slept, and what it waited for has come after so long, the look before it included.
    pub fn slept(&self, waited: Duration) {
        let now = self.0.get();
        self.0.set(
            if waited <= Patience::MOST { now * 2 } else { now / 2 }.clamp(Patience::LEAST, Patience::MOST),
        );
    }

    /// Looks, then `sleep`s until there is something.
    pub fn wait<T>(&self, look: impl FnMut() -> Option<T>, sleep: impl FnOnce() -> Option<T>) -> Option<T> {
        let begin = Instant::now();
        self.look(look).or_else(|| {
            let found = sleep();
            self.slept(begin.elapsed());
            found
        })
    }
}

/// Whether somebody else can be at work meanwhile. Found out once.
pub fn has_processors() -> bool {
    use std::sync::OnceLock;
    static MORE_THAN_ONE: OnceLock<bool> = OnceLock::new();
    *MORE_THAN_ONE.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_ends() {
        let patience = Patience::default();
        assert_eq!(patience.look(|| Some(1)), Some(1));
        assert_eq!(patience.look(|| None::<()>), None);
        assert_eq!(patience.wait(|| None, || Some(2)), Some(2));
    }

    #[test]
    fn patience_follows_what_comes() {
        let patience = Patience::default();
        let (soon, late) = (Patience::MOST / 2, Patience::MOST * 2);
        let after = |waits: &[Duration]| {
            waits.iter().for_each(|wait| patience.slept(*wait));
            patience.0.get()
        };
        assert_eq!(after(&[late]), Patience::LEAST);
        assert_eq!(after(&[soon, soon]), Patience::LEAST * 4);
        assert_eq!(after(&[late]), Patience::LEAST * 2);
        assert_eq!(after(&[soon; 20]), Patience::MOST);
        assert_eq!(after(&[late; 20]), Patience::LEAST);
    }
}
