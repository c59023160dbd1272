//! What is known of the kernel in a dump by what it has in its own memory, beside what crash knows by its debugging
//! information.

use super::{Built, Gdb, Opened, Said, core};
use crate::context::check;
use arch::Isa;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A task of `vmm core ps --json`: number, processor, address, state, name.
fn of_ours(task: &serde_json::Value) -> String {
    let text = |name: &str| task[name].as_str().unwrap_or_default();
    let name = if task["of_kernel"] == true { format!("[{}]", text("name")) } else { text("name").into() };
    let address = text("task").trim_start_matches("0x");
    format!("{} {} {address} {} {name}", task["pid"], task["cpu"], text("state"))
}

/// The same of a line of crash's `ps`.
fn of_crash(line: &str) -> Option<String> {
    let words: Vec<&str> = line.trim_start_matches('>').split_whitespace().collect();
    let [pid, _, cpu, address, state, _, _, _, name @ ..] = &words[..] else { return None };
    pid.parse::<u32>().ok()?;
    let state = match *state {
        "RU" | "NE" => "R",
        "IN" => "S",
        "UN" => "D",
        "ID" => "I",
        "ZO" => "Z",
        "ST" => "T",
        "PA" => "P",
        _ => return None,
    };
    Some(format!("{pid} {cpu} {address} {state} {}", name.join(" ")))
}

/// The addresses of stacks in the words of crash's `foreach bt`, by the tasks' numbers; without those of idle tasks.
fn stacks_of_crash(said: &str) -> BTreeMap<u64, Vec<u64>> {
    let mut all: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut pid = None;
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["PID:", number, ..] => {
                let number = number.parse().ok().filter(|number| *number != 0);
                // What is asked for once more is there already.
                pid = number.filter(|number| !all.contains_key(number));
            }
            [frame, _, _, "at", address, ..] if frame.starts_with('#') => {
                if let (Some(pid), Ok(address)) = (pid, u64::from_str_radix(address, 16)) {
                    all.entry(pid).or_default().push(address);
                }
            }
            _ => {}
        }
    }
    all
}

/// The numbers of processes that `ps` has, without the idle ones.
fn processes(path: &Path) -> Result<BTreeSet<u64>, String> {
    let said = core(Built::Here, path, &["ps", "--json"])?.well()?;
    let json = said.text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    let listed: serde_json::Value =
        serde_json::from_str(json).map_err(|error| format!("{error} in {}", said.text))?;
    let tasks = listed["tasks"].as_array().ok_or("there are no tasks")?;
    let leaders = tasks.iter().filter(|task| task["pid"] == task["process"] && task["pid"] != 0);
    Ok(leaders.filter_map(|task| task["pid"].as_u64()).collect())
}

impl Opened {
    /// The tasks that crash has by the kernel's debugging information are those that we have by what the kernel keeps
    /// in memory.
    pub(super) fn has_the_tasks_of(&self, crash: &Said) -> Result<(), String> {
        let ours = core(Built::Here, &self.core, &["ps", "--json"])?.well()?;
        let json = ours.text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        let listed: serde_json::Value =
            serde_json::from_str(json).map_err(|error| format!("{error} in {}", ours.text))?;
        let remarks = &listed["remarks"];
        check(remarks.as_array().is_some_and(Vec::is_empty), || format!("something is amiss: {remarks}"))?;
        let tasks = listed["tasks"].as_array().ok_or("there are none")?;
        let ours: BTreeSet<_> = tasks.iter().filter(|task| task["pid"] != 0).map(of_ours).collect();
        let theirs: BTreeSet<_> =
            crash.text.lines().filter_map(of_crash).filter(|task| !task.starts_with("0 ")).collect();
        check(theirs.len() > 20, || format!("crash lists no tasks:\n{}", crash.text))?;
        check(ours == theirs, || {
            let (more, less) = (ours.difference(&theirs), theirs.difference(&ours));
            format!("only ours: {:?}; only crash's: {:?}", more.collect::<Vec<_>>(), less.collect::<Vec<_>>())
        })
    }

    /// The stacks that crash has by the kernel's debugging information, of all tasks but the idle ones, are those that we
    /// have by the kernel's own tables: address by address.
    pub(super) fn has_the_stacks_of(&self, crash: &Said) -> Result<(), String> {
        let ours = core(Built::Here, &self.core, &["bt", "all", "--json"])?;
        let ours = match (self.isa, self.series) {
            // Debian's keeps no symbols of data: its tasks are those of the list that a processor's is in, and its modules
            // are not known, which is said.
            (Isa::Aarch64, "6.1") => {
                ours.has(&["the kernel has no symbol 'modules' in memory (CONFIG_KALLSYMS_ALL)"])?;
                ours
            }
            _ => ours.well()?,
        };
        let json = ours.text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
        let all: serde_json::Value =
            serde_json::from_str(json).map_err(|error| format!("{error} in {}", ours.text))?;
        let theirs = stacks_of_crash(&crash.text);
        let (mut compared, mut frames) = (0, 0);
        for stack in all["stacks"].as_array().ok_or("there are none")? {
            let Some(theirs) = theirs.get(&stack["pid"].as_u64().unwrap_or(0)) else { continue };
            let its = stack["frames"].as_array().ok_or("a stack without frames")?;
            let address = |it: &serde_json::Value| {
                u64::from_str_radix(it["pc"].as_str()?.trim_start_matches("0x"), 16).ok()
            };
            let ours: Vec<u64> = its.iter().filter_map(address).collect();
            let is_same = match self.isa {
                Isa::X86_64 => ours == *theirs,
                // It tells of the calls and not of what is behind them, and leaves out where a thread of the kernel's
                // begins.
                Isa::Aarch64 => {
                    let calls: Vec<u64> = ours.iter().map(|pc| pc - 4).collect();
                    calls.starts_with(theirs) && calls.len() <= theirs.len() + 1
                }
            };
            check(is_same, || format!("{stack}, and crash has {theirs:x?}"))?;
            (compared, frames) = (compared + 1, frames + ours.len());
        }
        check(compared > 20 && frames > 100, || format!("only {compared} stacks and {frames} frames"))
    }

    /// The data that gdb has by the kernel's debugging information is what we have by the kernel's own types; and of the
    /// list of processes we have those that `ps` has.
    pub(super) fn has_the_data_of_gdb(&self) -> Result<(), String> {
        let printed = |expression: &str| -> Result<Vec<serde_json::Value>, String> {
            let said = core(Built::Here, &self.core, &["print", expression, "--json"])?.well()?;
            let json = said.text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
            let found: serde_json::Value =
                serde_json::from_str(json).map_err(|error| format!("{error} in {}", said.text))?;
            Ok(found["things"].as_array().cloned().unwrap_or_default())
        };
        let number = |thing: &serde_json::Value| {
            let value = &thing["value"];
            let text = value["address"].as_str().or(value.as_str());
            let address = text.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
            address.or(value.as_u64()).or(value.as_i64().map(i64::cast_unsigned))
        };
        // Numbers, addresses, arrays, a bit field, what is behind an address, and what each processor has of its own.
        let parts = [
            "flags",
            "prio",
            "static_prio",
            "nr_cpus_allowed",
            "cpus_mask.bits[0]",
            "stack",
            "tasks.next",
            "sched_class",
            "se.on_rq",
            "signal->nr_threads",
            "signal->thread_head.next",
            "sched_reset_on_fork",
            "in_iowait",
            "files->count.counter",
        ];
        let theirs: Vec<String> = parts
            .iter()
            .map(|part| format!(r#"printf "data %lu\n", (unsigned long)init_task.{part}"#))
            .collect();
        let symbols = format!("add-symbol-file {} -o {}", self.vmlinux.display(), self.slide()?);
        let file = format!("target core {}", self.core.display());
        let commands: Vec<&str> =
            [symbols.as_str(), &file].into_iter().chain(theirs.iter().map(String::as_str)).collect();
        let said = Gdb::Newer.run(&commands)?.well()?;
        let theirs: Vec<u64> =
            said.text.lines().filter_map(|line| line.strip_prefix("data ")?.parse().ok()).collect();
        check(theirs.len() == parts.len(), || format!("gdb does not say all:\n{}", said.text))?;
        for (part, theirs) in parts.iter().zip(theirs) {
            let things = printed(&format!("((struct task_struct *)init_task)->{part}"))?;
            let ours = things.first().and_then(number);
            check(ours == Some(theirs), || format!("{part}: {things:?}, and gdb has {theirs:#x}"))?;
        }
        let listed = processes(&self.core)?;
        let list = "list(&((struct task_struct *)init_task)->tasks, struct task_struct, tasks).pid";
        let found: Option<BTreeSet<u64>> = printed(list)?.iter().map(number).collect();
        check(found.as_ref() == Some(&listed), || format!("processes {found:?}, and ps has {listed:?}"))?;
        let names = printed("list(modules, struct module, list).name")?;
        check(names.iter().all(|name| name["value"].is_string()), || format!("{names:?}"))?;
        let busy = printed("per_cpu(runqueues, 1).cpu")?;
        check(busy.first().and_then(number) == Some(1), || format!("processor 1 is another: {busy:?}"))
    }

    /// Without a file, the kernel's own table has the names that the file has, and where they are.
    pub(super) fn has_names_without_a_file(&self) -> Result<(), String> {
        // Debian's 6.1 for aarch64 keeps no symbols of data.
        for name in ["schedule", "start_kernel", "vprintk"] {
            let address = self.slid_symbol(name)?;
            let said = core(Built::Here, &self.core, &["sym", name])?.well()?;
            said.has(&[&format!("{name} is at {address:#x}, of ")])?;
            let inside = format!("{:#x}", address + 4);
            let said = core(Built::Here, &self.core, &["sym", &inside])?.well()?;
            said.has(&[&format!("{inside} is {name}+0x4, of ")])?;
        }
        let said = core(Built::Here, &self.core, &["sym", "0xfffffffffffff000"])?;
        check(said.code != 0, || format!("an address in a symbol: {}", said.text))?;
        said.has(&["0xfffffffffffff000 is in no symbol"])
    }
}
