//! `ps`: the tasks of a Linux kernel in the guest, by what the kernel has in its own memory.

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::task::{Task, Tasks};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::{Location, Stacks};
use std::fmt;

/// `ps`.
pub const PS: Command =
    Command::new("ps", "", "the kernel's tasks: number, parent, state, processor, name, and where it sleeps");

/// Tasks, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Them.
    pub tasks: Tasks,
    /// Where each sleeps, in their order; what lacks at the end is not known.
    pub sleeps_in: Vec<Option<Location>>,
}

impl Listed {
    fn each(&self) -> impl Iterator<Item = (&Task, Option<&Location>)> {
        let places = self.sleeps_in.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        self.tasks.all.iter().zip(places)
    }
}

/// Tasks of which it is looked where they sleep, at most: a guest may have more than there is time for.
const MOST_LOOKED_AT: usize = 10_000;

/// A number that may not be known.
fn known(number: Option<u32>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}

/// A name as `ps` has it: the kernel's own in brackets.
pub(crate) fn name(task: &Task) -> String {
    if task.is_of_kernel { format!("[{}]", task.comm) } else { task.comm.clone() }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>7} {:>7} {:>7} S {:>3} {:<18} NAME", "PID", "PROCESS", "PARENT", "CPU", "TASK")?;
        for (task, place) in self.each() {
            let Task { address, pid, tgid, .. } = task;
            let (parent, cpu, state) = (known(task.parent), known(task.cpu), task.state.letter());
            let on = if task.is_on_cpu == Some(true) { " (on it)" } else { "" };
            let name = name(task);
            write!(f, "{pid:>7} {tgid:>7} {parent:>7} {state} {cpu:>3} {address:#018x} ")?;
            match place {
                Some(place) => writeln!(f, "{name:<16} in {}", place.symbol)?,
                None => writeln!(f, "{name}{on}")?,
            }
        }
        Ok(())
    }
}

impl Value for Listed {
    fn json(&self) -> Json {
        let task = |(task, place): (&Task, Option<&Location>)| {
            json!({
                "pid": task.pid, "process": task.tgid, "parent": task.parent, "name": task.comm,
                "state": task.state.letter().to_string(), "cpu": task.cpu, "on_cpu": task.is_on_cpu,
                "of_kernel": task.is_of_kernel, "task": hex(task.address),
                "sleeps_in": place.map(|place| place.symbol.as_str()),
            })
        };
        json!({ "tasks": self.each().map(task).collect::<Vec<_>>(), "remarks": self.tasks.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.tasks.remarks.is_empty()).then(|| self.tasks.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let view = operator.view();
    let listed = of_kernel(&view, |info| {
        let tasks = view.kernel_tasks(info)?;
        // A kernel that nobody can unwind has tasks as well.
        let sleeps_in = Stacks::new(view, info).map_or_else(
            |_| Vec::new(),
            |stacks| tasks.all.iter().take(MOST_LOOKED_AT).map(|task| stacks.sleeps_in(task)).collect(),
        );
        Ok(Listed { tasks, sleeps_in })
    })?;
    Ok(Box::new(listed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::task::TaskState;

    #[test]
    fn tasks_in_words_and_as_json() {
        let init = Task {
            address: 0xffff_8880_0010_0000,
            pid: 1,
            tgid: 1,
            parent: Some(0),
            comm: "init".into(),
            state: TaskState::Sleeping,
            cpu: Some(1),
            is_on_cpu: Some(false),
            is_of_kernel: false,
            mm: 0xffff_8880_0020_0000,
        };
        let worker = Task {
            pid: 12,
            tgid: 12,
            parent: None,
            comm: "kworker/0:1".into(),
            state: TaskState::Running,
            cpu: None,
            is_on_cpu: Some(true),
            is_of_kernel: true,
            mm: 0,
            ..init.clone()
        };
        let remarks = ["the list breaks off", "a task is left out"].map(String::from).to_vec();
        let place = Location { symbol: "do_wait".into(), offset: 0x5d, module: None };
        let listed =
            Listed { tasks: Tasks { all: vec![init, worker], remarks }, sleeps_in: vec![Some(place)] };
        let expected = "    PID PROCESS  PARENT S CPU TASK               NAME\n\
                        \x20     1       1       0 S   1 0xffff888000100000 init             in do_wait\n\
                        \x20    12      12       - R   - 0xffff888000100000 [kworker/0:1] (on it)\n";
        assert_eq!(listed.to_string(), expected);
        assert_eq!(listed.shortfall().as_deref(), Some("the list breaks off; a task is left out"));
        assert_eq!(Listed::default().shortfall(), None);
        let json = listed.json();
        assert_eq!(json["tasks"][1]["name"], "kworker/0:1");
        assert_eq!(json["tasks"][1]["cpu"], Json::Null);
        assert_eq!(
            (&json["tasks"][0]["sleeps_in"], &json["tasks"][1]["sleeps_in"]),
            (&json!("do_wait"), &Json::Null)
        );
        assert_eq!(json["remarks"][0], "the list breaks off");
    }
}
