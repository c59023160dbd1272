//! The tasks of the guest's Linux kernel, as they are at a stop: what runs on each vCPU, and what sleeps.

use super::chosen::Chosen;
use super::ids::Ids;
use crate::command::kernel::of_kernel;
use crate::command::tasks::name;
use crate::linux::VmCoreInfo;
use crate::linux::task::{Task, TaskState, Tasks};
use crate::machine::Activity;
use crate::view::{OnVcpu, Stacks, View};
use arch::register::RegisterFile;
use std::collections::HashMap;

/// Tasks that are listed at most: a guest may have more than a debugger has time for.
const MOST: usize = 10_000;

/// A task that sleeps.
#[derive(Debug)]
struct Sleeper {
    task: Task,
    /// The function that it sleeps in, if that is known.
    place: Option<String>,
}

/// The tasks of a stop.
#[derive(Debug)]
pub struct Listed {
    info: VmCoreInfo,
    sleepers: HashMap<u32, Sleeper>,
    ids: Vec<u32>,
    left_out: usize,
    /// What of the kernel's lists could not be had, a line each.
    remarks: Vec<String>,
    /// By vCPU.
    on: Vec<Option<String>>,
}

/// Whether no processor is at a task.
fn is_asleep(task: &Task) -> bool {
    match task.is_on_cpu {
        Some(is_on) => !is_on,
        None => task.state != TaskState::Running,
    }
}

impl Listed {
    /// Looks for them.
    ///
    /// # Errors
    /// In words, what lacks for that. Also when it is broken off.
    pub fn of(view: &View<'_>, ids: &mut Ids) -> Result<Listed, String> {
        of_kernel(view, |info| {
            let Tasks { all: tasks, remarks } = view.kernel_tasks(info)?;
            let types = view.kernel_types(info)?;
            let member = |task: &Task, name: &str| view.of_task_struct(info, &types, task, name);
            // A kernel that nobody can unwind has tasks as well.
            let stacks = Stacks::new(*view, info).ok();
            let mut listed = Listed {
                info: info.clone(),
                sleepers: HashMap::new(),
                ids: Vec::new(),
                left_out: 0,
                remarks,
                on: (0..view.machine.vcpus()).map(|vcpu| on(view, info, &tasks, vcpu)).collect(),
            };
            let has_stack = |task: &Task| member(task, "stack").is_ok_and(|stack| stack != 0);
            let all: Vec<Task> =
                tasks.into_iter().filter(|task| is_asleep(task) && has_stack(task)).collect();
            listed.left_out = all.len().saturating_sub(MOST);
            let began = |task: &Task| member(task, "start_time").unwrap_or(0);
            let told: Vec<_> =
                all.iter().take(MOST).map(|task| (task.pid, (task.address, began(task)))).collect();
            for (task, id) in all.into_iter().zip(ids.give(&told)) {
                let Some(id) = id else {
                    listed.left_out += 1;
                    continue;
                };
                let place = stacks.as_ref().and_then(|stacks| stacks.sleeps_in(&task));
                let place = place.map(|place| place.symbol);
                listed.sleepers.insert(id, Sleeper { task, place });
                listed.ids.push(id);
            }
            Ok(listed)
        })
        .map_err(|refusal| refusal.to_string())
    }

    /// The thread-ids of those that sleep, in the kernel's order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether an id is that of one of them.
    pub fn has(&self, id: u32) -> bool {
        self.sleepers.contains_key(&id)
    }

    /// How many more sleep that are not listed.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// What of the kernel's lists could not be had, so that tasks may lack; a line each.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The task that runs on a vCPU.
    pub fn on(&self, vcpu: u32) -> Option<&str> {
        self.on.get(vcpu as usize)?.as_deref()
    }

    /// What is told of one that sleeps: its name, and that with its state and where it sleeps.
    pub fn told(&self, id: u32) -> Option<(String, String)> {
        let Sleeper { task, place } = self.sleepers.get(&id)?;
        let name = name(task);
        let place = place.as_ref().map_or_else(String::new, |place| format!(", in {place}"));
        let what = format!("{name}, {}{place}", task.state.letter());
        Some((name, what))
    }

    /// What a debugger is shown that looks at one.
    pub fn choose(&self, view: &View<'_>, id: u32) -> Option<Chosen> {
        let task = &self.sleepers.get(&id)?.task;
        let saved = view.saved_registers(&self.info, task);
        Some(Chosen {
            id,
            words: words(task),
            registers: saved.unwrap_or_else(|_| RegisterFile::new(view.isa())),
            kernel: view.kernel_space(&self.info, task),
            user: view.user_space(&self.info, task),
        })
    }
}

fn words(task: &Task) -> String {
    format!("task {} {}", task.pid, name(task))
}

/// What runs on a vCPU. Where neither its registers nor the list say, it is what idles there.
fn on(view: &View<'_>, info: &VmCoreInfo, tasks: &[Task], vcpu: u32) -> Option<String> {
    let is_told = tasks.iter().any(|task| task.is_on_cpu.is_some());
    if view.machine.activity(vcpu) == Activity::NotStarted {
        return None;
    }
    match view.on_vcpu(info, tasks, vcpu) {
        Some(OnVcpu::Task(task)) => Some(words(task)),
        Some(OnVcpu::Unlisted(pid, name)) => Some(format!("task {pid} {name}")),
        Some(OnVcpu::Idle(name)) => Some(format!("task 0 [{name}]")),
        None => is_told.then(|| format!("task 0 [swapper/{vcpu}]")),
    }
}
