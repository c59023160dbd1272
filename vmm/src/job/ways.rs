//! Ways in which a job goes wrong, as options name them.

use super::verdict::Verdict;

/// A way of going wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel panicked.
    Panic,
    /// Its log has what `--fail-on` names.
    Trouble,
    /// It hangs.
    Hang,
    /// All else but success.
    Fail,
}

const WAYS: [(&str, Way); 4] =
    [("panic", Way::Panic), ("oops", Way::Trouble), ("hang", Way::Hang), ("fail", Way::Fail)];

/// Some of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways(Vec<Way>);

impl Ways {
    /// As they are written: `panic,oops,hang,fail`.
    ///
    /// # Errors
    /// What has to be written.
    pub fn parse(list: &str) -> Result<Ways, String> {
        let one = |word: &str| {
            let way = WAYS.iter().find(|(its, _)| *its == word).map(|(_, way)| *way);
            way.ok_or_else(|| format!("'{word}' is none of panic, oops, hang, fail"))
        };
        list.split(',').map(one).collect::<Result<_, _>>().map(Ways)
    }

    /// Whether this is one of them.
    pub fn has(&self, way: Way) -> bool {
        self.0.contains(&way)
    }

    /// Whether what has come of a job is one of them.
    pub fn include(&self, verdict: &Verdict) -> bool {
        let way = match verdict {
            Verdict::Command(0) | Verdict::Stopped(_) => return false,
            Verdict::Panic(_) => Way::Panic,
            Verdict::Trouble(..) => Way::Trouble,
            Verdict::Hang(_) => Way::Hang,
            Verdict::Command(_)
            | Verdict::Signal(_)
            | Verdict::NotBegun(..)
            | Verdict::Ended(_)
            | Verdict::NoUserSpace
            | Verdict::NoRoot(_)
            | Verdict::Lost
            | Verdict::TimeOver
            | Verdict::Unwritten(_) => Way::Fail,
        };
        self.has(way)
    }
}
