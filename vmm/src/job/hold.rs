//! Keeping the guest of a job that went wrong, so that somebody can look at it.

use super::verdict::Verdict;
use super::ways::{Way, Ways};
use std::time::Duration;

/// When the guest is kept, and how long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldOn {
    ways: Ways,
    /// How long; until somebody ends it where nothing is said.
    pub limit: Option<Duration>,
}

impl HoldOn {
    /// As it is written: `panic,oops,hang,fail[=TIME]`.
    ///
    /// # Errors
    /// What has to be written.
    pub fn parse(text: &str, time: impl Fn(&str) -> Result<Duration, String>) -> Result<HoldOn, String> {
        let (list, limit) = match text.rsplit_once('=') {
            Some((list, limit)) => (list, Some(time(limit)?)),
            None => (text, None),
        };
        Ok(HoldOn { ways: Ways::parse(list)?, limit })
    }

    /// Whether a guest is kept at all.
    pub fn is_asked_for(&self) -> bool {
        self.ways != Ways::default()
    }

    /// Whether a kernel that has panicked is to stay, instead of resetting itself.
    pub fn keeps_panics(&self) -> bool {
        self.ways.has(Way::Panic)
    }

    /// Whether a guest is kept of which this came.
    pub fn holds(&self, verdict: &Verdict) -> bool {
        self.ways.include(verdict)
    }
}

/// Whether a guest that is kept stands still: what the kernel was in the middle of is to be seen. Where only a command
/// has failed, the guest runs on, and more commands can.
pub fn stands_still(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Panic(_) | Verdict::Trouble(..) | Verdict::Hang(_) | Verdict::NoUserSpace)
}

/// What somebody can do with it, a line each; whether `gdb` is served already, and the first process `is_up`, which runs
/// commands.
pub fn ways_in(name: &str, verdict: &Verdict, has_gdb: bool, is_up: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if !has_gdb {
        lines.push(format!("vmm gdb {name} :1234       and in gdb: target remote :1234"));
    }
    // One whose root could not be made, or whose first process is not understood, has nobody who would answer.
    if is_up && !stands_still(verdict) && !matches!(verdict, Verdict::NoRoot(_) | Verdict::Lost) {
        lines.push(format!("vmm exec {name} -- sh      a shell in it"));
    }
    lines
        .push(format!("vmm monitor {name} why     what its kernel is doing, and more by vmm monitor {name}"));
    lines.push(format!("vmm dump {name} PATH       a dump of it"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::StoppedBy;

    #[test]
    fn what_is_kept() {
        let time = |text: &str| text.parse().map(Duration::from_secs).map_err(|_| "no time".to_string());
        let all = HoldOn::parse("panic,oops,hang,fail=60", time).unwrap();
        assert_eq!(all.limit, Some(Duration::from_secs(60)));
        let hang = HoldOn::parse("hang", time).unwrap();
        assert!(hang.is_asked_for() && !HoldOn::default().is_asked_for());
        assert!(all.keeps_panics() && !hang.keeps_panics() && hang.limit.is_none());
        for (verdict, is_kept, by_hang) in [
            (Verdict::Command(0), false, false),
            (Verdict::Command(1), true, false),
            (Verdict::Panic(None), true, false),
            (Verdict::Hang("x".into()), true, true),
            (Verdict::TimeOver, true, false),
            (Verdict::Stopped(StoppedBy::Console), false, false),
        ] {
            assert_eq!((all.holds(&verdict), hang.holds(&verdict)), (is_kept, by_hang), "{verdict}");
        }
        for (wrong, says) in [("panics", "'panics' is none of"), ("", "'' is none of"), ("hang=x", "no time")]
        {
            assert!(HoldOn::parse(wrong, time).unwrap_err().contains(says));
        }
        let command = ways_in("a", &Verdict::Command(1), true, true);
        assert!(command[0].starts_with("vmm exec a") && command.len() == 3);
        assert!(ways_in("a", &Verdict::Panic(None), false, true)[0].starts_with("vmm gdb a"));
        // Where nobody would answer, nobody is sent.
        for (verdict, is_up) in [
            (Verdict::NoRoot("x".into()), true),
            (Verdict::NoRoot("x".into()), false),
            (Verdict::Lost, true),
            (Verdict::TimeOver, false),
        ] {
            let ways = ways_in("a", &verdict, false, is_up);
            assert!(ways.iter().all(|line| !line.contains("vmm exec")), "{ways:?}");
        }
    }
}
