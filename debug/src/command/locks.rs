//! `locks`: who waits for which lock of a Linux kernel in the guest, and who has it.

use super::kernel::of_kernel;
use super::operator::Operator;
use super::tasks::name;
use crate::linux::lock::{self, Holder, LockKind, Wait};
use crate::linux::task::Task;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::{Location, Stacks, Waits};
use arch::words::{counted, verb};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

/// `locks`.
pub const LOCKS: Command =
    Command::new("locks", "", "who waits for which of the kernel's locks, who has it, and deadlocks");

/// Tasks that wait for a lock, as many as are told.
const MOST_TOLD: usize = 500;

/// A task, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its number.
    pub pid: u32,
    /// Its name, the kernel's own in brackets.
    pub name: String,
    /// Where it sleeps, if it does and that is known.
    pub sleeps_in: Option<Location>,
}

/// Who has a lock, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// A task.
    Task(Who),
    /// Somebody who is in no list of tasks, where one's `struct task_struct` would be.
    Unknown(u64),
    /// Readers; the lock does not tell who.
    Readers,
    /// Nobody just now.
    Nobody,
    /// The lock does not tell.
    Untold,
}

/// A task that waits for a lock, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The task.
    pub who: Who,
    /// What kind of lock.
    pub kind: LockKind,
    /// Where the lock is, guest-virtual.
    pub lock: u64,
    /// Which variable that is, of one that is no part of something else.
    pub variable: Option<Location>,
    /// Who has it.
    pub held_by: HeldBy,
    /// It does not sleep, but is on a processor and spins.
    pub spins: bool,
}

/// Who waits for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    /// Each task that waits for a lock.
    pub waiting: Vec<Waiting>,
    /// Deadlocks: tasks, each of which waits for the next one, and the last for the first.
    pub deadlocks: Vec<Vec<Who>>,
    /// What of tasks could not be had, a line each.
    pub remarks: Vec<String>,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} {}", self.pid, self.name)
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let does = if self.spins { "spins" } else { "waits" };
        write!(f, "{} {does} for the {} at {:#x}", self.who, self.kind.words(), self.lock)?;
        if let Some(Location { symbol, offset, module }) = &self.variable {
            let behind = if *offset == 0 { String::new() } else { format!("+{offset:#x}") };
            let module = module.as_ref().map_or_else(String::new, |module| format!(" [{module}]"));
            write!(f, " ({symbol}{behind}{module})")?;
        }
        if let Some(place) = &self.who.sleeps_in {
            write!(f, ", in {}", place.symbol)?;
        }
        match &self.held_by {
            HeldBy::Task(who) => {
                write!(f, "; {who} has it")?;
                who.sleeps_in.as_ref().map_or(Ok(()), |place| write!(f, ", and sleeps in {}", place.symbol))
            }
            HeldBy::Unknown(at) => write!(f, "; the task at {at:#x} has it, which is in no list of tasks"),
            HeldBy::Readers => f.write_str("; readers have it, and it does not tell who"),
            HeldBy::Nobody => f.write_str("; nobody has it just now"),
            HeldBy::Untold => f.write_str("; it does not tell who has it"),
        }
    }
}

impl Locks {
    /// The deadlocks, a line each.
    pub(super) fn circles(&self) -> impl Iterator<Item = String> {
        self.deadlocks.iter().map(|circle| {
            let others: Vec<String> =
                circle.iter().skip(1).chain(circle.first()).map(ToString::to_string).collect();
            let first = circle.first().map(ToString::to_string).unwrap_or_default();
            format!("deadlock: {first} waits for {}", others.join(", which waits for "))
        })
    }
}

impl fmt::Display for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.waiting.is_empty() && self.remarks.is_empty() {
            return writeln!(f, "no task is found that waits for a lock");
        }
        self.waiting.iter().try_for_each(|waiting| writeln!(f, "{waiting}"))?;
        self.circles().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Value for Locks {
    fn json(&self) -> Json {
        let who = |it: &Who| {
            let place = it.sleeps_in.as_ref().map(|place| place.symbol.as_str());
            json!({ "pid": it.pid, "name": it.name, "sleeps_in": place })
        };
        let waiting = |it: &Waiting| {
            let (holder, held_by) = match &it.held_by {
                HeldBy::Task(task) => (who(task), "task"),
                HeldBy::Unknown(at) => (json!({ "task": hex(*at) }), "unknown"),
                HeldBy::Readers => (Json::Null, "readers"),
                HeldBy::Nobody => (Json::Null, "nobody"),
                HeldBy::Untold => (Json::Null, "untold"),
            };
            let kind = match it.kind {
                LockKind::Mutex => "mutex",
                LockKind::WoundWait => "ww_mutex",
                LockKind::Read | LockKind::Write => "rw_semaphore",
                LockKind::Semaphore => "semaphore",
                LockKind::Spinlock => "spinlock",
                LockKind::RtMutex => "rt_mutex",
                LockKind::SleepingSpinlock => "rt_spinlock",
                LockKind::ReadLock | LockKind::WriteLock => "rt_rwlock",
            };
            json!({
                "task": who(&it.who), "kind": kind, "to_write": matches!(it.kind, LockKind::Write | LockKind::WriteLock),
                "spins": it.spins, "lock": hex(it.lock),
                "variable": it.variable.as_ref().map(|place| place.symbol.as_str()),
                "module": it.variable.as_ref().and_then(|place| place.module.as_deref()),
                "held_by": held_by, "holder": holder,
            })
        };
        json!({
            "waiting": self.waiting.iter().map(waiting).collect::<Vec<_>>(),
            "deadlocks": self.deadlocks.iter().map(|it| it.iter().map(who).collect::<Vec<_>>()).collect::<Vec<_>>(),
            "remarks": self.remarks,
        })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.remarks.is_empty()).then(|| self.remarks.join("; "))
    }
}

/// Words who of some tasks waits for what.
pub(super) fn locks(stacks: &Stacks<'_>, tasks: &[Task]) -> Locks {
    let Waits { found: waits, idle, others, is_cut } = stacks.waits(tasks);
    let mut remarks = stacks.remarks().to_vec();
    if others > 0 {
        let (who, verb) = (counted(others, "task"), verb(others, "is", "are"));
        remarks.push(format!("{who} more {verb} in functions that wait for locks: for which is not known"));
    }
    if is_cut {
        remarks.push("more wait for locks than are looked at".into());
    }
    if waits.len() > MOST_TOLD {
        remarks
            .push(format!("{} wait for locks: the first {MOST_TOLD} are told", counted(waits.len(), "task")));
    }
    let by_address: HashMap<u64, &Task> = tasks.iter().map(|task| (task.address, task)).collect();
    // Many may wait for one.
    let known: RefCell<HashMap<u64, Who>> = RefCell::default();
    let who = |address: u64| {
        let made = || match by_address.get(&address) {
            Some(task) => Who { pid: task.pid, name: name(task), sleeps_in: stacks.sleeps_in(task) },
            // What waits and what has a lock was found by these tasks, and those that idle.
            None => {
                let name =
                    idle.iter().find(|(idle, _)| *idle == address).map(|(_, name)| format!("[{name}]"));
                Who { pid: 0, name: name.unwrap_or_else(|| "?".into()), sleeps_in: None }
            }
        };
        known.borrow_mut().entry(address).or_insert_with(made).clone()
    };
    let waiting = |wait: &Wait| Waiting {
        who: who(wait.task),
        kind: wait.kind,
        lock: wait.lock,
        spins: wait.spins,
        variable: stacks.variable(wait.lock),
        held_by: match wait.holder {
            Holder::Task(task) => HeldBy::Task(who(task)),
            Holder::Unknown(at) => HeldBy::Unknown(at),
            Holder::Readers => HeldBy::Readers,
            Holder::Nobody => HeldBy::Nobody,
            Holder::Untold => HeldBy::Untold,
        },
    };
    let circles = lock::circles(&waits);
    Locks {
        waiting: waits.iter().take(MOST_TOLD).map(waiting).collect(),
        deadlocks: circles.into_iter().map(|circle| circle.into_iter().map(who).collect()).collect(),
        remarks,
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let view = operator.view();
    let found = of_kernel(&view, |info| {
        let (stacks, tasks) = (Stacks::new(view, info)?, view.kernel_tasks(info)?);
        let mut found = locks(&stacks, &tasks.all);
        found.remarks.extend(tasks.remarks);
        Ok(found)
    })?;
    Ok(Box::new(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(pid: u32, name: &str, place: Option<&str>) -> Who {
        let sleeps_in = place.map(|symbol| Location { symbol: symbol.into(), offset: 4, module: None });
        Who { pid, name: name.into(), sleeps_in }
    }

    #[test]
    fn who_waits_in_words_and_as_json() {
        let variable = Location { symbol: "big".into(), offset: 0, module: Some("wedge".into()) };
        let (ab, ba) = (who(55, "[ab]", Some("take_ab")), who(56, "[ba]", Some("take_ba")));
        let first = Waiting {
            who: ab.clone(),
            kind: LockKind::Mutex,
            lock: 0xffff_0010,
            variable: Some(variable.clone()),
            held_by: HeldBy::Task(ba.clone()),
            spins: false,
        };
        let within = Location { offset: 8, module: None, ..variable };
        let write = Waiting {
            kind: LockKind::Write,
            variable: Some(within),
            held_by: HeldBy::Readers,
            ..first.clone()
        };
        let spins = Waiting {
            who: who(7, "[spin]", None),
            kind: LockKind::Spinlock,
            variable: None,
            held_by: HeldBy::Untold,
            spins: true,
            ..first.clone()
        };
        let locks = Locks {
            waiting: vec![first, write, spins],
            deadlocks: vec![vec![ab, ba]],
            remarks: vec!["a list is broken".into()],
        };
        let expected = "task 55 [ab] waits for the mutex at 0xffff0010 (big [wedge]), in take_ab; task 56 [ba] has it, and \
                        sleeps in take_ba\n\
                        task 55 [ab] waits for the rw_semaphore, to write, at 0xffff0010 (big+0x8), in take_ab; readers have \
                        it, and it does not tell who\n\
                        task 7 [spin] spins for the spinlock at 0xffff0010; it does not tell who has it\n\
                        deadlock: task 55 [ab] waits for task 56 [ba], which waits for task 55 [ab]\n";
        assert_eq!(locks.to_string(), expected);
        let json = locks.json();
        let first = &json["waiting"][0];
        assert_eq!((&first["kind"], &first["variable"]), (&json!("mutex"), &json!("big")));
        assert_eq!((&first["holder"]["pid"], &first["task"]["sleeps_in"]), (&json!(56), &json!("take_ab")));
        assert_eq!(
            (&json["waiting"][1]["to_write"], &json["waiting"][1]["held_by"]),
            (&json!(true), &json!("readers"))
        );
        assert_eq!(json["deadlocks"][0][1]["pid"], 56);
        assert_eq!(locks.shortfall().as_deref(), Some("a list is broken"));
        assert_eq!(Locks::default().to_string(), "no task is found that waits for a lock\n");
    }
}
