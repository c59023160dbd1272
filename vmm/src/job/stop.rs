//! Ending many runs before they have ended themselves: a signal, also for a process that is the first of a container, which
//! no signal ends that it does not hear.

use super::report_file::Temporary;
use super::signals::PASSED;
use crate::run::signals::is_ignored;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, exit};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long the end waits for what is to be removed.
const LONGEST: Duration = Duration::from_secs(1);

/// What ends them, and what there is to be ended.
#[derive(Debug, Default)]
pub struct Stop {
    state: Mutex<State>,
    /// What goes with the process when a signal ends it.
    pub temporary: Temporary,
}

#[derive(Debug, Default)]
struct State {
    /// What has ended them.
    by: Option<Signal>,
    /// Some have begun, and whoever runs them tells what came of it.
    has_begun: bool,
    /// Processes that nobody has waited for yet.
    running: Vec<Pid>,
}

/// The exit code of a process that a signal ends, as a shell has it.
pub fn code_of(signal: Signal) -> u8 {
    128 + u8::try_from(signal as i32).unwrap_or(0)
}

impl Stop {
    /// One that signals of this process are for, from here on. The first ends the runs, or the process if there are none yet;
    /// the second the process.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn by_signals() -> io::Result<Arc<Stop>> {
        let signals: SigSet = PASSED.into_iter().filter(|signal| !is_ignored(*signal)).collect();
        signals.thread_block()?;
        let stop = Arc::<Stop>::default();
        let its_own = Arc::clone(&stop);
        thread::Builder::new().name("signals".into()).spawn(move || {
            while let Ok(signal) = signals.wait() {
                if !its_own.end(signal) {
                    its_own.clear_up();
                    exit(code_of(signal).into());
                }
            }
        })?;
        Ok(stop)
    }

    /// Removes what is temporary, if the host answers in time; none of it is made from here on.
    fn clear_up(self: &Arc<Self>) {
        let (stop, (sender, removed)) = (Arc::clone(self), channel());
        let clear = move || {
            let _held = stop.temporary.remove();
            // Whoever waits for it may have gone on without it.
            sender.send(()).ok();
            loop {
                thread::park();
            }
        };
        let begun = thread::Builder::new().name("clear up".into()).spawn(clear);
        if begun.is_err() || removed.recv_timeout(LONGEST).is_err() {
            log::debug!("a report that is not whole may be left over beside it");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has ended them, if something has.
    pub fn by(&self) -> Option<Signal> {
        self.state().by
    }

    /// Ends those that run, and has no more begin; `false` where there is nobody who would tell of that, or is told for the
    /// second time.
    pub fn end(&self, signal: Signal) -> bool {
        let mut state = self.state();
        if !state.has_begun || state.by.is_some() {
            return false;
        }
        state.by = Some(signal);
        for pid in &state.running {
            // Nobody has waited for it: the number is its own. One that has ended just now is not to be ended.
            if let Err(error) = kill(*pid, Signal::SIGKILL) {
                log::warn!("a run cannot be ended: {error}");
            }
        }
        true
    }

    /// From here on whoever runs them tells what came of it.
    pub fn begin(&self) {
        self.state().has_begun = true;
    }

    /// Begins a process, which does not outlive this one; none where all are to end.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Option<Running<'_>>> {
        // SAFETY: the closure makes two system calls.
        unsafe {
            // Nobody waits for it when this process has gone. Another signal would be its command's, the first time. What is
            // blocked here is not there.
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(SigSet::all().thread_unblock()?)
            });
        }
        let mut state = self.state();
        if state.by.is_some() {
            return Ok(None);
        }
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        state.running.push(pid);
        Ok(Some(Running { child, pid, stop: self }))
    }
}

/// A process that does not outlive its value.
#[derive(Debug)]
pub struct Running<'a> {
    /// The process.
    pub child: Child,
    pid: Pid,
    stop: &'a Stop,
}

impl Running<'_> {
    /// Waits for its end.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        // It can be ended until then, and its number is its own as long as it is not waited for otherwise.
        while let Err(error) = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            if error != nix::errno::Errno::EINTR {
                return Err(error.into());
            }
        }
        self.forget();
        self.child.wait()
    }

    fn forget(&self) {
        self.stop.state().running.retain(|pid| *pid != self.pid);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.forget();
        // One that was waited for is not there to be killed any more.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            log::warn!("a run cannot be ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_process_does_not_outlive_its_value() {
        let stop = Stop::default();
        let child = stop.spawn(Command::new("sleep").arg("1000")).unwrap().unwrap();
        let pid = child.pid;
        drop(child);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
        let mut child = stop.spawn(&mut Command::new("true")).unwrap().unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_signal_ends_what_runs_and_nothing_more_begins() {
        let stop = Stop::default();
        // Nobody would tell of it.
        assert!(!stop.end(Signal::SIGTERM));
        stop.begin();
        let mut child = stop.spawn(Command::new("sleep").arg("1000")).unwrap().unwrap();
        assert!(stop.end(Signal::SIGTERM) && !stop.end(Signal::SIGINT));
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert!(stop.spawn(&mut Command::new("true")).unwrap().is_none());
        assert_eq!(stop.by().map(code_of), Some(143));
    }
}
