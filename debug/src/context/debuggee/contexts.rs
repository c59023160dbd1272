//! The tree of contexts, what each is doing, and what it is told to do.

use super::Debuggee;
use crate::abilities::SoftwareBreakpoints;
use crate::context::mode::{Mode, Resume, Unable};
use crate::context::stop::{ContextState, Stop, Stopped};
use crate::context::tree::{Context, Group, Id, Kind};
use crate::machine::{Action, Activity, Ended, Machine, MachineError, StopReason};
use nix::poll::PollTimeout;
#[cfg(not(miri))]
use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Why a context was not resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// It cannot do that.
    #[error(transparent)]
    Unable(#[from] Unable),
    /// It could, but the machine does not.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Why there is no stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The guest runs on.
    #[error("the guest has not stopped within {0:?}")]
    TimedOut(Duration),
    /// It has ended.
    #[error("the guest has ended: {}", .0.text)]
    Ended(Ended),
    /// It stands still, and nothing has been asked of it.
    #[error("the guest stands still: resume it first")]
    Standing,
    /// Nobody has it, and it runs.
    #[error("nobody debugs the guest now: attach to it first")]
    Detached,
    /// The system does not let it wait; in words.
    #[error("cannot wait for the guest: {0}")]
    System(String),
}

impl<M: Machine> Debuggee<M> {
    /// The context of the whole guest.
    pub fn root(&self) -> Id {
        self.tree.root()
    }

    /// A context by its id.
    pub fn context(&self, id: Id) -> Option<&Context> {
        self.tree.get(id)
    }

    /// The context of a vCPU, by its number.
    pub fn vcpu(&self, number: u32) -> Option<Id> {
        self.tree.vcpu(number)
    }

    /// The contexts that are parts of one.
    pub fn children(&self, id: Id) -> Vec<Id> {
        self.tree.children(id)
    }

    /// The context that one is a part of.
    pub fn parent(&self, id: Id) -> Option<Id> {
        self.tree.get(id)?.parent
    }

    /// The context that stands for a group that a context is in.
    pub fn group(&self, id: Id, group: Group) -> Option<Id> {
        self.tree.group(id, group)
    }

    /// What a context is doing, as of the last look at the guest.
    ///
    /// # Errors
    /// [`Unable::NoContext`].
    pub fn state(&self, id: Id) -> Result<ContextState, Unable> {
        self.tree.get(id).ok_or(Unable::NoContext)?;
        if let Some(ended) = &self.ended {
            return Ok(ContextState::Ended(ended.clone()));
        }
        if self.is_running || !self.is_attached() {
            return Ok(ContextState::Running);
        }
        let vcpu = self.tree.vcpu_of(id);
        if vcpu.is_some_and(|vcpu| self.machine.activity(vcpu) == Activity::NotStarted) {
            return Ok(ContextState::NotStarted);
        }
        Ok(ContextState::Stopped(self.stopped.clone().unwrap_or_else(|| self.held())))
    }

    /// Whether a context can be resumed like this now; the answer is by the kind of thing that is in the way.
    ///
    /// # Errors
    /// [`Unable`].
    pub fn can(&self, id: Id, resume: impl Into<Resume>) -> Result<(), Unable> {
        let Resume { mode, is_backwards } = resume.into();
        self.tree.get(id).ok_or(Unable::NoContext)?;
        if !self.machine.can_run() {
            return Err(Unable::NeverRuns);
        }
        if is_backwards {
            return Err(Unable::Backwards);
        }
        if mode.range().is_some_and(std::ops::Range::is_empty) {
            return Err(Unable::EmptyRange);
        }
        let host = self.machine.abilities();
        if mode.is_step() && !host.single_step {
            return Err(Unable::NoSteps);
        }
        let has_breakpoints = host.software != SoftwareBreakpoints::None || host.breakpoints > 0;
        if mode.runs_to_returns() && !has_breakpoints {
            return Err(Unable::NoBreakpoints);
        }
        let is_task = matches!(self.tree.get(id).map(|it| it.kind), Some(Kind::Task(_)));
        if mode == Mode::UntilActive && (!is_task || !has_breakpoints) {
            return Err(Unable::UntilActive);
        }
        if mode.is_step() && self.stepper(id).is_none() {
            return Err(if is_task { Unable::Task } else { Unable::ManyVcpus });
        }
        if self.ended.is_some() {
            return Err(Unable::Ended);
        }
        if !self.is_attached() {
            return Err(Unable::Detached);
        }
        if self.is_running {
            return Err(Unable::Running);
        }
        if mode == Mode::UntilActive {
            return self.activation(id).map(drop);
        }
        let is_not_started = |vcpu| self.machine.activity(vcpu) == Activity::NotStarted;
        match mode.is_step() && self.stepper(id).is_some_and(is_not_started) {
            true => Err(Unable::NotStarted),
            false => Ok(()),
        }
    }

    /// The vCPU that makes a context's step: of a machine the only one.
    fn stepper(&self, id: Id) -> Option<u32> {
        let only = || (id == self.tree.root() && self.machine.vcpus() == 1).then_some(0);
        self.tree.vcpu_of(id).or_else(only)
    }

    /// Resumes a context, and with it the others of its [intercept group](Group::Intercept), which run.
    ///
    /// # Errors
    /// [`ResumeError`]; then nothing runs. What [`Self::can`] answers is one of them.
    pub fn resume(&mut self, id: Id, resume: impl Into<Resume>) -> Result<(), ResumeError> {
        self.resume_with(id, resume.into(), false)
    }

    /// Resumes a vCPU alone: the others stay where they are. One that waits for another then waits for ever.
    ///
    /// # Errors
    /// [`ResumeError`]; then nothing runs.
    pub fn resume_alone(&mut self, id: Id, resume: impl Into<Resume>) -> Result<(), ResumeError> {
        self.resume_with(id, resume.into(), true)
    }

    fn resume_with(&mut self, id: Id, resume: Resume, is_alone: bool) -> Result<(), ResumeError> {
        self.can(id, resume.clone())?;
        if resume.mode == Mode::UntilActive {
            let (at, holds) = self.activation(id)?;
            return Ok(self.begin_activation(at, holds)?);
        }
        match self.stepper(id) {
            Some(vcpu) => self.begin_step(vcpu, &resume.mode, is_alone && self.tree.vcpu_of(id).is_some())?,
            None => self.run(&vec![Action::Run; self.machine.vcpus() as usize])?,
        }
        Ok(())
    }

    /// Stops the guest, if it runs; why it stands still.
    ///
    /// # Errors
    /// [`WaitError::Ended`], [`WaitError::Detached`].
    pub fn suspend(&mut self) -> Result<Stopped, WaitError> {
        if !self.is_attached() && self.ended.is_none() {
            self.tell_if_left();
            return Err(WaitError::Detached);
        }
        if !self.is_running && self.ended.is_none() {
            return Ok(self.stopped.clone().unwrap_or_else(|| self.held()));
        }
        let stop = match &self.ended {
            Some(ended) => Stop::Ended(ended.clone()),
            None => self.interrupt(),
        };
        self.stopped_or(stop)
    }

    /// The next stop, if the guest has come to one. It does not wait, and is for loops that wait for
    /// [`Machine::event_fd`] by themselves.
    ///
    /// # Errors
    /// [`WaitError::Ended`], [`WaitError::Detached`], [`WaitError::Standing`].
    pub fn poll(&mut self) -> Result<Option<Stopped>, WaitError> {
        if let Some(ended) = &self.ended {
            return Err(WaitError::Ended(ended.clone()));
        }
        if !self.is_attached() {
            self.tell_if_left();
            return Err(WaitError::Detached);
        }
        if !self.is_running {
            return Err(WaitError::Standing);
        }
        match self.next_stop() {
            Some(stop) => self.stopped_or(stop).map(Some),
            None => Ok(None),
        }
    }

    fn stopped_or(&mut self, stop: Stop) -> Result<Stopped, WaitError> {
        // Whoever steps goes on stepping, as likely as not, and its time is taken when it does.
        if !matches!(stop, Stop::Vcpu(_, StopReason::Step)) {
            self.machine.stays();
        }
        match (stop, &self.stopped) {
            (Stop::Ended(ended), _) => Err(WaitError::Ended(ended)),
            (Stop::Vcpu(..), Some(stopped)) => Ok(stopped.clone()),
            (Stop::Vcpu(..), None) => Err(WaitError::Standing),
        }
    }

    /// Waits for the next stop, for `limit` at most. What the guest does meanwhile needs no more of this thread than a
    /// step over functions takes.
    ///
    /// # Errors
    /// [`WaitError`].
    pub fn wait(&mut self, limit: Duration) -> Result<Stopped, WaitError> {
        let until = Instant::now().checked_add(limit);
        loop {
            if let Some(stopped) = self.poll()? {
                return Ok(stopped);
            }
            let left = until.map_or(limit, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(WaitError::TimedOut(limit));
            }
            // Rounded up, or it would spin through the last part.
            let most = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1)))
                .unwrap_or(PollTimeout::MAX);
            await_readable(self.machine.event_fd(), most)?;
        }
    }

    /// Resumes a context, and waits for the next stop.
    ///
    /// # Errors
    /// [`GoError`].
    pub fn go_until(
        &mut self,
        id: Id,
        resume: impl Into<Resume>,
        limit: Duration,
    ) -> Result<Stopped, GoError> {
        self.resume(id, resume)?;
        Ok(self.wait(limit)?)
    }
}

/// Waits until there is something to read.
#[cfg(not(miri))]
fn await_readable(fd: BorrowedFd<'_>, most: PollTimeout) -> Result<(), WaitError> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, most) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(WaitError::System(error.to_string())),
    }
}

/// Miri has no poll(2): whoever waits lets others run, and looks again.
#[cfg(miri)]
fn await_readable(_: BorrowedFd<'_>, _: PollTimeout) -> Result<(), WaitError> {
    (0..40).for_each(|_| std::thread::yield_now());
    Ok(())
}

/// Why a context that was to be resumed has not come to a stop.
#[derive(Debug, thiserror::Error)]
pub enum GoError {
    /// It was not resumed.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// It was, and did not stop.
    #[error(transparent)]
    Wait(#[from] WaitError),
}
