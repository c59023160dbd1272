//! What threads are to a debugger: vCPUs, or vCPUs and the tasks of the guest's Linux kernel that sleep.
//!
//! A debugger asks for the list at a stop, and holds on to it until the next one; so what threads are changes at a stop
//! only, and the tasks of a stop are looked for when it asks first.

use super::Session;
use super::chosen::Chosen;
use super::ids::Ids;
use super::{ids, tasks::Listed};
use crate::command::ThreadKind;
use crate::machine::Machine;
use crate::memory::Translation;
use crate::reply::Refusal;
use arch::words::counted;

/// What threads are to the debugger.
#[derive(Debug, Default)]
pub struct Threads {
    /// From the next stop on.
    wanted: ThreadKind,
    /// Now.
    is: ThreadKind,
    ids: Ids,
    /// The tasks of this stop; or in words, why there are none. `None` until somebody asks.
    listed: Option<Result<Listed, String>>,
    /// The task that registers and memory are looked at of; `None`: it is the current vCPU.
    chosen: Option<Chosen>,
    /// The task that was chosen for `c` and `s`.
    resumes: Option<u32>,
    /// How many tasks' ids have been told of a list that is told in pieces.
    told_ids: usize,
    /// What was said of a list last.
    said: String,
}

impl Threads {
    /// A stop: what was of the last one is over.
    pub(super) fn stop(&mut self) {
        self.forget();
        self.is = self.wanted;
    }

    /// The guest runs.
    pub(super) fn forget(&mut self) {
        (self.listed, self.chosen, self.resumes) = (None, None, None);
    }

    /// The task that was chosen to be looked at.
    pub fn chosen(&self) -> Option<&Chosen> {
        self.chosen.as_ref()
    }

    /// The task that was chosen for `c` and `s`.
    pub fn resumes(&self) -> Option<u32> {
        self.resumes
    }

    /// Tasks are threads.
    pub fn has_tasks(&self) -> bool {
        self.is == ThreadKind::Tasks
    }

    /// The tasks of this stop are still to be looked for.
    pub fn is_to_look(&self) -> bool {
        self.has_tasks() && self.listed.is_none()
    }

    fn listed(&self) -> Option<&Listed> {
        self.listed.as_ref()?.as_ref().ok()
    }
}

impl<M: Machine> Session<M> {
    /// The tasks of this stop, if they are threads.
    pub fn tasks(&mut self) -> Option<&Listed> {
        if self.threads.is_to_look() {
            let found = Listed::of(&self.debuggee.view(), &mut self.threads.ids);
            // What was broken off is looked for again.
            if found.is_err() && self.debuggee.cancel.is_cancelled() {
                return None;
            }
            self.say_what_lacks(&found);
            self.threads.listed = Some(found);
        }
        self.threads.listed()
    }

    /// Says, once, what of a list is not there.
    fn say_what_lacks(&mut self, found: &Result<Listed, String>) {
        let lacks = match found {
            Ok(listed) => what_is_left_out(listed),
            Err(why) => format!("threads are vCPUs only: {why}\n"),
        };
        if lacks != self.threads.said {
            self.debuggee.say(&lacks);
            self.threads.said = lacks;
        }
    }

    /// Whether a thread-id is that of a task that sleeps.
    pub fn has_task(&mut self, id: u32) -> bool {
        self.tasks().is_some_and(|listed| listed.has(id))
    }

    /// Has a vCPU looked at.
    pub fn choose_vcpu(&mut self, vcpu: u32) {
        (self.debuggee.current, self.threads.chosen) = (vcpu, None);
    }

    /// Has a task looked at; whether it is there.
    pub fn choose_task(&mut self, id: u32) -> bool {
        self.tasks();
        let view = self.debuggee.view();
        let chosen = self.threads.listed().and_then(|listed| listed.choose(&view, id));
        let is_there = chosen.is_some();
        if is_there {
            self.threads.chosen = chosen;
        }
        is_there
    }

    /// Has a vCPU, all of them, or a task go on with `c` and `s`.
    pub fn choose_to_resume(&mut self, vcpu: Option<u32>, task: Option<u32>) {
        (self.chosen, self.threads.resumes) = (vcpu, task);
    }

    /// Ids of tasks that have not been told of the list that began last, `most` of them.
    pub fn next_tasks(&mut self, most: usize, is_first: bool) -> Vec<u32> {
        let from = if is_first { 0 } else { self.threads.told_ids };
        let ids: Vec<u32> =
            self.tasks().map_or(&[][..], Listed::ids).iter().skip(from).take(most).copied().collect();
        self.threads.told_ids = from + ids.len();
        ids
    }

    /// The thread that is looked at, as the debugger wants its id.
    pub fn looked_at(&self) -> String {
        match &self.threads.chosen {
            Some(chosen) => self.task_id(chosen.id),
            None => self.thread_id(self.debuggee.current),
        }
    }

    /// A task's thread-id, as the debugger wants it.
    pub fn task_id(&self, id: u32) -> String {
        let process = if self.names_process { "p01." } else { "" };
        format!("{process}{id:x}")
    }

    /// Reads memory as the thread sees it that is looked at; how many bytes are good.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        match self.space(address) {
            Ok(space) => self.view().read_in(&space, address, buffer),
            Err(_) => 0,
        }
    }

    /// Why a byte cannot be read, where that is more than that nothing is mapped.
    pub fn absence(&self, address: u64) -> Option<String> {
        match self.space(address) {
            Ok(space) => self.view().absence_in(&space, address),
            Err(why) => Some(format!("{address:#x}: {why}")),
        }
    }

    /// What an address means to the thread that is looked at.
    ///
    /// # Errors
    /// In words, where nobody knows.
    pub fn space(&self, address: u64) -> Result<Translation, String> {
        match &self.threads.chosen {
            Some(chosen) if !self.debuggee.is_physical => chosen.space(self.isa(), address),
            _ => Ok(self.view().space()),
        }
    }

    /// What threads are, in a line; with `wanted`, they are that from the next stop on. A dump comes to none, so there it
    /// is at once.
    ///
    /// # Errors
    /// [`Refusal::Senseless`], where nobody knows of tasks.
    pub(in crate::gdb) fn threads_are(&mut self, wanted: Option<ThreadKind>) -> Result<String, Refusal> {
        if wanted == Some(ThreadKind::Tasks) && cfg!(not(feature = "linux")) {
            return Err(Refusal::Senseless("this debugger was built without what it knows of Linux".into()));
        }
        self.threads.wanted = wanted.unwrap_or(self.threads.wanted);
        if !self.debuggee.machine.can_run() && self.threads.is != self.threads.wanted {
            (self.threads.is, self.threads.listed) = (self.threads.wanted, None);
        }
        let mut line = format!("threads are {}", words(self.threads.is));
        if self.threads.has_tasks() {
            line.push_str(&self.how_many());
        }
        if self.threads.wanted != self.threads.is {
            line.push_str(&format!("; from the next stop on, {}", words(self.threads.wanted)));
        }
        Ok(line)
    }

    /// How many tasks are threads, or why none is.
    fn how_many(&mut self) -> String {
        self.tasks();
        match &self.threads.listed {
            None => " (it was broken off)".into(),
            Some(Err(why)) => format!(" (none: {why})"),
            Some(Ok(listed)) => {
                let left_out = match listed.left_out() {
                    0 => String::new(),
                    count => format!(", and {count} left out"),
                };
                format!(" ({}{left_out}; ids: {} and the pid)", listed.ids().len(), ids::EACH)
            }
        }
    }
}

/// What of a list is not there.
fn what_is_left_out(listed: &Listed) -> String {
    /// Lines of what is broken, on a console that nobody has asked.
    const MOST: usize = 5;
    let mut text = String::new();
    if listed.left_out() > 0 {
        text.push_str(&format!("{} more sleep and are no threads\n", counted(listed.left_out(), "task")));
    }
    for remark in listed.remarks().iter().take(MOST) {
        text.push_str(&format!("threads may lack: {remark}\n"));
    }
    let more = listed.remarks().len().saturating_sub(MOST);
    if more > 0 {
        text.push_str(&format!("{more} more of that kind: monitor ps\n"));
    }
    text
}

fn words(kind: ThreadKind) -> &'static str {
    match kind {
        ThreadKind::Cpus => "vCPUs",
        ThreadKind::Tasks => "vCPUs and tasks that sleep",
    }
}
