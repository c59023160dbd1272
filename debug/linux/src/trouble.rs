//! What in a kernel's log tells that something is wrong.
//!
//! The words are those of Linux's own messages, from 4.19 on. Who can write to the log can say them as well.

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

            /// What a line that tells of it has in it.
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
        ": 0000 [#", "traps: Missing ENDBR", "BUG: Bad page ", "BUG: Bad rss-counter";
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
        "WARNING: possible irq lock inversion", "-unsafe lock order detected", "held lock freed",
        "BUG: Invalid wait context", "WARNING: suspicious RCU usage", "BUG: sleeping function called from invalid context",
        "BUG: scheduling while atomic";
    /// Memory that is lost.
    Leak = "leak": "kmemleak: ";
}

/// What a kernel says when it hangs: lockups (kernel/watchdog.c), stalls (kernel/rcu/tree_stall.h), tasks
/// (kernel/hung_task.c), and what panics of these begin with.
const HANGS: &[&str] = &[
    "BUG: soft lockup",
    "Watchdog detected hard LOCKUP",
    "watchdog: CPU",
    "detected stall",
    "self-detected stall",
    "detected expedited stalls",
    "blocked for more than",
    "BUG: workqueue lockup",
];
/// What it says when it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// What a line is a sign of, of these troubles.
pub fn sign(line: &str, troubles: &[Trouble]) -> Option<Sign> {
    let has = |patterns: &[&str]| patterns.iter().any(|pattern| line.contains(pattern));
    if is_panic(line) {
        return Some(Sign::Panic);
    }
    if has(HANGS) {
        return Some(Sign::Hang);
    }
    troubles.iter().copied().find(|trouble| has(trouble.patterns())).map(Sign::Trouble)
}

/// Whether a line says that the kernel has panicked.
pub fn is_panic(line: &str) -> bool {
    line.contains(PANIC)
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
        for hang in HANGS {
            assert_eq!(sign(hang, &[]), Some(Sign::Hang));
        }
        assert_eq!(sign("all is well", &all), None);
        // As kernels before 6.10 begin one of the processor's that nobody expects (arch/x86/kernel/dumpstack.c), and of a
        // program's fault it is another line that has no number of oopses.
        let oops = Some(Sign::Trouble(Trouble::Oops));
        assert_eq!(sign("[    4.2] divide error: 0000 [#1] PREEMPT SMP PTI", &all), oops);
        assert_eq!(sign("traps: a.out[99] trap divide error ip:401106 sp:7ffd error:0 in a.out", &all), None);
    }
}
