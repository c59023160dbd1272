//! Trying something that may not come back.
//!
//! A host's KVM may not do what it says, and a guest that tries it may run for ever. So a try is made on
//! a thread of its own, with a machine of its own. One that takes too long is kicked out of the guest, and
//! kept out: its kick is never cleared, so `immediate_exit` stays set, and whoever runs its vCPU gives up
//! when it sees that ([`is_over`]). What cannot be got out of the host's kernel either is left there, which
//! costs a thread and no time of a processor that is ours to save.

use crate::kick;
use debug::threads;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// How often one that takes too long is kicked, and how many times.
const KICK_AGAIN: Duration = Duration::from_millis(20);
const MOST_KICKS: u32 = 50;

/// Runs `attempt` on a thread of its own, `limit` at most.
///
/// # Errors
/// Why it has no result.
pub fn attempt<R: Send + 'static>(
    limit: Duration,
    attempt: impl FnOnce() -> Result<R, String> + Send + 'static,
) -> Result<R, String> {
    kick::install_handler().map_err(|error| error.to_string())?;
    let (sender, results) = channel();
    let handle = threads::start("attempt", Builder::new().name("attempt".into()), move || {
        kick::unblock();
        kick::clear();
        // Nobody waits for the result any more when the time is over.
        sender.send(attempt()).ok();
    })
    .map_err(|error| format!("cannot start a thread: {error}"))?;
    match results.recv_timeout(limit) {
        Ok(result) => return result,
        Err(RecvTimeoutError::Disconnected) => return Err("it ended without an answer".into()),
        Err(RecvTimeoutError::Timeout) => {}
    }
    for _ in 0..MOST_KICKS {
        // SAFETY: the handle is there, and not joined.
        unsafe { kick::Thread::of(&handle).kick() };
        if !matches!(results.recv_timeout(KICK_AGAIN), Err(RecvTimeoutError::Timeout)) {
            break;
        }
    }
    Err(format!("no answer within {} s", limit.as_secs_f32()))
}

/// Whether the time of the attempt on this thread is over; asked when its vCPU was interrupted.
pub fn is_over() -> bool {
    kick::is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;
    use std::thread;

    #[test]
    fn an_answer_is_an_answer() {
        assert_eq!(attempt(Duration::from_secs(60), || Ok(5)), Ok(5));
        assert_eq!(attempt(Duration::from_secs(60), || Err::<(), _>("no".into())), Err("no".into()));
    }

    #[test]
    fn one_that_hangs_is_kicked_and_ends() {
        let (ended, ends): (_, Receiver<()>) = channel();
        let result = attempt(Duration::from_millis(10), move || {
            let _ended = ended;
            while !is_over() {
                thread::park_timeout(Duration::from_millis(1));
            }
            Ok(())
        });
        assert!(result.unwrap_err().contains("no answer within"));
        assert_eq!(ends.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected));
    }
}
