//! What in a kernel's log tells that something is wrong.
//!
//! The words are those of Linux's own messages, from 4.19 on, and stand where a message begins: behind the time, and what the
//! part of the kernel that says them puts in front of all that it says. The kernel prints names that users choose, as a
//! program's that ends by a signal. Who can write to the log can say them as well, and a name that has an end of line in it.

/// What a line tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The kernel has panicked.
    Panic,
    /// It has noticed that it hangs.
    Hang,
    /// Something goes wrong, and it goes on.
    Trouble(Trouble),
}

/// Makes of a table of troubles the enumeration, its names, and what lines have in them.
macro_rules! troubles {
    ($($(#[$doc:meta])* $name:ident = $word:literal: $($pattern:literal),+;)*) => {
        /// What goes wrong in a kernel that goes on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Trouble {
            $($(#[$doc])* $name,)*
        }

        impl Trouble {
            /// All of them, by their words.
            pub const ALL: &[(&str, Trouble)] = &[$(($word, Trouble::$name)),*];

            /// What a message that tells of it begins with; of [`ANYWHERE`], what it has in it.
            fn patterns(self) -> &'static [&'static str] {
                match self {
                    $(Trouble::$name => &[$($pattern),+],)*
                }
            }

            /// Its word.
            pub fn word(self) -> &'static str {
                match self {
                    $(Trouble::$name => $word,)*
                }
            }
        }
    };
}

troubles! {
    /// A fault in the kernel that ended what it was doing.
    Oops = "oops": "Oops: ", "Oops[", "BUG: unable to handle", "BUG: kernel NULL pointer", "kernel BUG at ",
        "Internal error: ", "general protection fault, probably", "general protection fault: 0", "Unable to handle kernel",
        ": 0000 [#", "traps: Missing ENDBR: ", "BUG: Bad page ", "BUG: Bad rss-counter";
    /// `WARN_ON`.
    Warn = "warn": "WARNING: CPU: ", "WARNING: ";
    /// An address sanitizer.
    Kasan = "kasan": "BUG: KASAN: ", "BUG: KFENCE: ", "BUG: KMSAN: ";
    /// A sanitizer of undefined behaviour.
    Ubsan = "ubsan": "UBSAN: ";
    /// A race.
    Kcsan = "kcsan": "BUG: KCSAN: ";
    /// Locks that are taken the wrong way.
    Lockdep = "lockdep": "WARNING: possible circular locking", "WARNING: possible recursive locking",
        "WARNING: inconsistent lock state", "WARNING: bad unlock balance", "INFO: possible circular locking",
        "WARNING: possible irq lock inversion", "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected",
        "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", "WARNING: held lock freed", "BUG: held lock freed",
        "BUG: Invalid wait context", "WARNING: suspicious RCU usage", "BUG: sleeping function called from invalid context",
        "BUG: scheduling while atomic";
    /// Memory that is lost.
    Leak = "leak": "kmemleak: ";
}

/// What is looked for within a message: of an exception of the processor's that nobody expects its name is in front of that
/// (arch/x86/kernel/dumpstack.c), and of some an address as well.
const ANYWHERE: &[&str] = &[": 0000 [#"];

/// What a kernel says when it hangs: lockups (kernel/watchdog.c, kernel/watchdog_perf.c, kernel/workqueue.c).
const HANGS: &[&str] = &["BUG: soft lockup", "Watchdog detected hard LOCKUP", "BUG: workqueue lockup"];
/// What it says of stalls behind the name of a kind of RCU (kernel/rcu/tree_stall.h, tree_exp.h, tasks.h).
const STALLS: &[&str] = &["detected stall", "self-detected stall", "detected expedited stalls"];
/// What it says of a task, whose name is its user's (kernel/hung_task.c).
const TASK: &str = "INFO: task ";
const BLOCKED: &str = " blocked for more than ";
/// What it says of a processor, with its number behind (arch/powerpc/kernel/watchdog.c; kernel/watchdog.c from 6.11 on).
const PROCESSOR: &str = "watchdog: CPU";
/// What it says when it panics (kernel/panic.c), and at the end of that.
const PANIC: &str = "Kernel panic - not syncing";

/// What stands in front of messages: of these parts of the kernel (`pr_fmt`), and of how urgent they are; lockdep has some in
/// brackets, and a panic its end.
const FRONTS: &[&str] =
    &["watchdog: ", "NMI watchdog: ", "rcu: ", "workqueue: ", "INFO: ", "[ ", "---[ end "];

/// A message without what stands in front of it, and with each less of that.
fn messages(line: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(message(line)), |text| {
        FRONTS.iter().find_map(|front| text.strip_prefix(front)).map(str::trim_start)
    })
}

/// What is behind the time of a line, and who wrote it. On a console it may go on in a line that a program has begun.
fn message(line: &str) -> &str {
    let line = line.trim_start();
    // The level, as a kernel's console has it that is told to show it.
    let behind_level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let line = match behind_level {
        Some((level, rest)) if is_number(level) => rest.trim_start(),
        _ => line,
    };
    let first = line.match_indices('[').find_map(|(at, _)| behind_time(&line[at..]));
    let mut text = first.unwrap_or(line).trim_start();
    // The caller, with `CONFIG_PRINTK_CALLER`.
    if let Some((caller, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']'))
        && caller.trim_start().strip_prefix(['T', 'C']).is_some_and(is_number)
    {
        text = rest.trim_start();
    }
    text
}

/// What is behind a time in brackets, if a text begins with one: `[    1.234567]`.
fn behind_time(text: &str) -> Option<&str> {
    let (time, rest) = text.strip_prefix('[')?.split_once(']')?;
    let (seconds, parts) = time.trim().split_once('.')?;
    (is_number(seconds) && is_number(parts)).then_some(rest)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a message is about a program, whose name it begins with: `NAME[PID]: segfault at ...` (arch/x86/mm/fault.c,
/// arch/arm64/kernel/traps.c), and what a program says by itself.
fn is_of_program(text: &str) -> bool {
    /// Bytes of a name, at most (`TASK_COMM_LEN`, with its zero).
    const LONGEST: usize = 15;
    text.match_indices('[').take_while(|(at, _)| *at <= LONGEST).any(|(at, _)| {
        let rest = text[at + 1..].split_once(']');
        rest.is_some_and(|(pid, rest)| is_number(pid) && rest.starts_with(": "))
    })
}

fn is_hang(text: &str) -> bool {
    let is_stall = || {
        let (kind, rest) = text.split_once(' ').unwrap_or_default();
        kind.contains("rcu") && STALLS.iter().any(|stall| rest.starts_with(stall))
    };
    let is_processor = || {
        let rest = text.strip_prefix(PROCESSOR).and_then(|rest| rest.strip_prefix([' ', '#']));
        rest.and_then(|rest| rest.split_once(' ')).is_some_and(|(number, _)| is_number(number))
    };
    let is_task = text.starts_with(TASK) && text.contains(BLOCKED);
    is_task || HANGS.iter().any(|hang| text.starts_with(hang)) || is_stall() || is_processor()
}

/// What a line is a sign of, of these troubles.
pub fn sign(line: &str, troubles: &[Trouble]) -> Option<Sign> {
    if is_of_program(message(line)) {
        return None;
    }
    if is_panic(line) {
        return Some(Sign::Panic);
    }
    if messages(line).any(is_hang) {
        return Some(Sign::Hang);
    }
    let has = |pattern: &&str| match ANYWHERE.contains(pattern) {
        true => line.contains(*pattern),
        false => messages(line).any(|text| text.starts_with(*pattern)),
    };
    let found = troubles.iter().copied().find(|trouble| trouble.patterns().iter().any(&has));
    found.map(Sign::Trouble)
}

/// Whether a line says that the kernel has panicked.
pub fn is_panic(line: &str) -> bool {
    messages(line).any(|text| text.starts_with(PANIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_signs_of_what_is_looked_for() {
        let all: Vec<Trouble> = Trouble::ALL.iter().map(|(_, trouble)| *trouble).collect();
        for (word, trouble) in Trouble::ALL {
            assert_eq!(trouble.word(), *word);
            for pattern in trouble.patterns() {
                let line = format!("[    1.0] {pattern}!");
                assert!(sign(&line, &all).is_some(), "{line}");
                assert_eq!(sign(&line, &[]), None, "{line}");
            }
        }
        assert_eq!(sign("[    1.0] Kernel panic - not syncing: why", &[]), Some(Sign::Panic));
        assert_eq!(sign("all is well", &all), None);
        // As kernels before 6.10 begin one of the processor's that nobody expects (arch/x86/kernel/dumpstack.c), and of a
        // program's fault it is another line that has no number of oopses.
        let oops = Some(Sign::Trouble(Trouble::Oops));
        assert_eq!(sign("[    4.2] divide error: 0000 [#1] PREEMPT SMP PTI", &all), oops);
        assert_eq!(sign("traps: a.out[99] trap divide error ip:401106 sp:7ffd error:0 in a.out", &all), None);
    }
    /// As kernels from 4.19 on say them.
    #[test]
    fn signs_are_known_with_all_that_stands_in_front_of_them() {
        for line in [
            "[   36.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [swapper/0:1]",
            "[  705.633252][   C14] watchdog: BUG: soft lockup - CPU#14 stuck for 101s! [ping:17825]",
            "<0>[  148.225355] NMI watchdog: Watchdog detected hard LOCKUP on cpu 2",
            "watchdog: Watchdog detected hard LOCKUP on cpu 3",
            "[   22.727193] INFO: rcu_sched self-detected stall on CPU",
            "[13059.632827] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[   75.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[  706.999058][  T309] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 14-... }",
            "[   99.0] INFO: rcu_tasks detected stalls on tasks:",
            "[ 5267.189211] INFO: task repro.sh:11219 blocked for more than 30 seconds.",
            "[  242.1] INFO: task a b [c]: d:7 blocked for more than 120 seconds.",
            "[   62.1] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 30s!",
            "[   62.1] watchdog: CPU 5 self-detected hard LOCKUP @ 0xc000",
        ] {
            assert_eq!(sign(line, &[]), Some(Sign::Hang), "{line}");
        }
        for line in [
            "Kernel panic - not syncing: why",
            "[    1.0][    T1] Kernel panic - not syncing: why",
            "[    1.0] ---[ end Kernel panic - not syncing: why ]---",
            // A program had not ended its line.
            "guest login: [   12.345678] Kernel panic - not syncing: why",
            "              Kernel panic - not syncing: in a record's second line",
        ] {
            assert_eq!(sign(line, &[]), Some(Sign::Panic), "{line}");
        }
        let all: Vec<Trouble> = Trouble::ALL.iter().map(|(_, trouble)| *trouble).collect();
        for line in ["[    1.0] [ BUG: Invalid wait context ]", "[    1.0] WARNING: held lock freed!"] {
            assert!(sign(line, &all).is_some(), "{line}");
        }
    }

    /// The kernel prints names that anybody chooses.
    #[test]
    fn names_of_programs_and_files_are_no_signs() {
        let all: Vec<Trouble> = Trouble::ALL.iter().map(|(_, trouble)| *trouble).collect();
        for line in [
            "[    4.2] detected stall[123]: segfault at 0 ip 0000000000401106 sp 00007ffd error 4 in a",
            "[    4.2][  T123] detected stall[123]: segfault at 0 ip 0000000000401106 sp 00007ffd error 4 in a",
            "[    4.2] watchdog: CPU 5[123]: segfault at 0 ip 0 sp 0 error 4",
            "[    4.2] WARNING: [[12]: segfault at 0 ip 0 sp 0 error 4",
            "[    4.2] x: 0000 [#1[12]: segfault at 0 ip 0 sp 0 error 4",
            "[    4.2] traps: detected stall[99] trap divide error ip:401106 sp:7ffd error:0 in a.out",
            "[    4.2] traps: Missing ENDBR[99] trap divide error ip:401106 sp:7ffd error:0 in a.out",
            "[    4.2] process 'x/Kernel panic - not syncing' started with executable stack",
            "[    4.2] process 'x/[    1.0] Kernel panic - not syncing' started with executable stack",
            "[    4.2] systemd[1]: Kernel panic - not syncing",
            "[    4.2] x blocked for more than 3 seconds",
        ] {
            assert_eq!(sign(line, &all), None, "{line}");
            assert!(!is_panic(line), "{line}");
        }
    }
}
