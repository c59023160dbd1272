//! How urgent a record of the log is, and who has written it.
//!
//! Source: syslog(3); dmesg(1) of util-linux for the names and for how several are written; Linux,
//! `kernel/printk/printk.c` (`printk_caller_id`).

use std::fmt;

/// How urgent a record is, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The system is unusable.
    Emergency,
    /// Something has to be done at once.
    Alert,
    /// A critical condition.
    Critical,
    /// An error.
    Error,
    /// A warning.
    Warning,
    /// Normal, and worth noticing.
    Notice,
    /// Said by the way.
    Info,
    /// For whoever debugs.
    Debug,
}

impl Level {
    /// All of them, the most urgent first, by the names that dmesg(1) has for them.
    pub const ALL: [(Level, &'static str); 8] = [
        (Level::Emergency, "emerg"),
        (Level::Alert, "alert"),
        (Level::Critical, "crit"),
        (Level::Error, "err"),
        (Level::Warning, "warn"),
        (Level::Notice, "notice"),
        (Level::Info, "info"),
        (Level::Debug, "debug"),
    ];

    /// By its number: 0 is the most urgent, 7 the least.
    pub fn of_number(number: u8) -> Option<Level> {
        Level::ALL.get(usize::from(number)).map(|(level, _)| *level)
    }

    /// By its name.
    pub fn of_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|(_, known)| *known == name).map(|(level, _)| level)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Level::ALL[self as usize].1
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Some of the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels(u8);

impl Levels {
    /// All of them.
    pub const ALL: Levels = Levels(u8::MAX);

    /// As dmesg(1) has them: names with commas between, a `+` behind one for it and all that are more urgent, in front of
    /// one for it and all that are less.
    ///
    /// # Errors
    /// How they are written.
    pub fn parse(text: &str) -> Result<Levels, String> {
        text.split(',').try_fold(Levels(0), |levels, word| Ok(Levels(levels.0 | bits(word)?)))
    }

    /// Whether a level is one of them.
    pub fn has(self, level: Level) -> bool {
        self.0 & level.bit() != 0
    }
}

fn bits(word: &str) -> Result<u8, String> {
    let (name, rest) = match (word.strip_prefix('+'), word.strip_suffix('+')) {
        (Some(name), _) => (name, Some(false)),
        (None, Some(name)) => (name, Some(true)),
        (None, None) => (word, None),
    };
    let level = Level::of_name(name).ok_or_else(|| {
        let names = Level::ALL.map(|(_, name)| name).join(", ");
        format!("'{word}' is no level: there are {names}, with a + behind one for all above it, in front for all below")
    })?;
    let more_urgent = level.bit() - 1;
    Ok(match rest {
        None => level.bit(),
        Some(true) => level.bit() | more_urgent,
        Some(false) => !more_urgent,
    })
}

/// Who has written a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A task, by its number.
    Task(u32),
    /// What was not in a task, by its processor: an interrupt.
    Cpu(u32),
}

impl Caller {
    const OF_CPU: u32 = 0x8000_0000;

    /// As the log has it.
    pub fn of_id(id: u32) -> Caller {
        if id & Caller::OF_CPU == 0 { Caller::Task(id) } else { Caller::Cpu(id & !Caller::OF_CPU) }
    }

    /// By its words, as the kernel prints them: `T1` or `C0`.
    pub fn of_words(words: &str) -> Option<Caller> {
        let number = |digits: &str| digits.parse().ok();
        match words.split_at_checked(1)? {
            ("T", digits) => number(digits).map(Caller::Task),
            ("C", digits) => number(digits).map(Caller::Cpu),
            _ => None,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Task(number) => write!(f, "T{number}"),
            Caller::Cpu(number) => write!(f, "C{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_written_as_for_dmesg() {
        for (text, expected) in [
            ("emerg", &["emerg"][..]),
            ("err,warn", &["err", "warn"]),
            ("err+", &["emerg", "alert", "crit", "err"]),
            ("+notice", &["notice", "info", "debug"]),
            ("debug+", &["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"]),
            ("+emerg", &["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"]),
            ("emerg+,debug", &["emerg", "debug"]),
        ] {
            let levels = Levels::parse(text).unwrap();
            let has = Level::ALL.into_iter().filter(|(level, _)| levels.has(*level));
            assert_eq!(has.map(|(_, name)| name).collect::<Vec<_>>(), expected, "{text}");
        }
        for text in ["", "error", "err,", "+", "err-", "3"] {
            assert!(Levels::parse(text).is_err_and(|why| why.contains("there are emerg, alert")), "{text}");
        }
    }

    #[test]
    fn a_level_has_a_number_and_a_name() {
        for (number, (level, name)) in (0..).zip(Level::ALL) {
            assert_eq!((Level::of_number(number), Level::of_name(name)), (Some(level), Some(level)));
            assert_eq!(level.name(), name);
        }
        assert_eq!((Level::of_number(8), Level::of_name("warning")), (None, None));
        assert!(Level::Emergency < Level::Debug);
    }

    #[test]
    fn callers_are_tasks_or_processors() {
        for (id, words) in [(0, "T0"), (1234, "T1234"), (0x8000_0000, "C0"), (0x8000_0003, "C3")] {
            let caller = Caller::of_id(id);
            assert_eq!((caller.to_string().as_str(), Caller::of_words(words)), (words, Some(caller)));
        }
        for words in ["", "T", "X1", "T-1", "é1"] {
            assert_eq!(Caller::of_words(words), None);
        }
    }
}
