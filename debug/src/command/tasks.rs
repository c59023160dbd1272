//! `ps`: the tasks of a Linux kernel in the guest, by what the kernel has in its own memory.

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::task::{Task, Tasks};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use std::fmt;

/// `ps`.
pub const PS: Command = Command::new("ps", "", "the kernel's tasks: number, parent, state, processor, name");

/// Tasks, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed(pub Tasks);

/// A number that may not be known.
fn known(number: Option<u32>) -> String {
    number.map_or_else(|| "-".into(), |number| number.to_string())
}

/// A name as `ps` has it: the kernel's own in brackets.
fn name(task: &Task) -> String {
    if task.is_of_kernel { format!("[{}]", task.comm) } else { task.comm.clone() }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>7} {:>7} {:>7} S {:>3} {:<18} NAME", "PID", "PROCESS", "PARENT", "CPU", "TASK")?;
        for task in &self.0.all {
            let Task { address, pid, tgid, .. } = task;
            let (parent, cpu, state) = (known(task.parent), known(task.cpu), task.state.letter());
            let on = if task.is_on_cpu == Some(true) { " (on it)" } else { "" };
            writeln!(
                f,
                "{pid:>7} {tgid:>7} {parent:>7} {state} {cpu:>3} {address:#018x} {}{on}",
                name(task)
            )?;
        }
        Ok(())
    }
}

impl Value for Listed {
    fn json(&self) -> Json {
        let task = |task: &Task| {
            json!({
                "pid": task.pid, "process": task.tgid, "parent": task.parent, "name": task.comm,
                "state": task.state.letter().to_string(), "cpu": task.cpu, "on_cpu": task.is_on_cpu,
                "of_kernel": task.is_of_kernel, "task": hex(task.address),
            })
        };
        json!({ "tasks": self.0.all.iter().map(task).collect::<Vec<_>>(), "remarks": self.0.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.0.remarks.is_empty()).then(|| self.0.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let view = operator.view();
    let tasks = of_kernel(&view, |info| view.kernel_tasks(info))?;
    Ok(Box::new(Listed(tasks)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::task::State;

    #[test]
    fn tasks_in_words_and_as_json() {
        let init = Task {
            address: 0xffff_8880_0010_0000,
            pid: 1,
            tgid: 1,
            parent: Some(0),
            comm: "init".into(),
            state: State::Sleeping,
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
            state: State::Running,
            cpu: None,
            is_on_cpu: Some(true),
            is_of_kernel: true,
            mm: 0,
            ..init.clone()
        };
        let remarks = ["the list breaks off", "a task is left out"].map(String::from).to_vec();
        let listed = Listed(Tasks { all: vec![init, worker], remarks });
        let expected = "    PID PROCESS  PARENT S CPU TASK               NAME\n\
                        \x20     1       1       0 S   1 0xffff888000100000 init\n\
                        \x20    12      12       - R   - 0xffff888000100000 [kworker/0:1] (on it)\n";
        assert_eq!(listed.to_string(), expected);
        assert_eq!(listed.shortfall().as_deref(), Some("the list breaks off; a task is left out"));
        assert_eq!(Listed::default().shortfall(), None);
        let json = listed.json();
        assert_eq!(json["tasks"][1]["name"], "kworker/0:1");
        assert_eq!(json["tasks"][1]["cpu"], Json::Null);
        assert_eq!(json["remarks"][0], "the list breaks off");
    }
}
