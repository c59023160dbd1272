//! Whether an answer is shown in colour.

use std::ffi::OsStr;
use std::io::{self, IsTerminal};

/// When it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// At a terminal, unless the environment says no.
    Auto,
    Always,
    Never,
}

impl Colour {
    /// How it is written.
    pub const WORDS: &[&str] = &["auto", "always", "never"];

    /// Parses the word.
    ///
    /// # Errors
    /// How it is written.
    pub fn parse(text: &str) -> Result<Colour, String> {
        match text {
            "auto" => Ok(Colour::Auto),
            "always" => Ok(Colour::Always),
            "never" => Ok(Colour::Never),
            _ => Err("write auto, always or never".into()),
        }
    }

    /// Whether what goes to standard output is.
    pub fn is_wanted(self) -> bool {
        let (no_color, term) = (std::env::var_os("NO_COLOR"), std::env::var_os("TERM"));
        self.decide(io::stdout().is_terminal(), no_color.as_deref(), term.as_deref())
    }

    /// By what standard output is, and by `NO_COLOR` (<https://no-color.org>) and `TERM`.
    fn decide(self, is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
        let is_refused =
            no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb");
        match self {
            Colour::Auto => is_terminal && !is_refused,
            Colour::Always => true,
            Colour::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_colours_unless_somebody_says_no() {
        let auto = |is_terminal, no_color: Option<&str>, term: Option<&str>| {
            Colour::Auto.decide(is_terminal, no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(auto(true, None, Some("xterm")) && auto(true, Some(""), None));
        assert!(!auto(false, None, Some("xterm")));
        assert!(!auto(true, Some("1"), Some("xterm")) && !auto(true, None, Some("dumb")));
        assert!(Colour::Always.decide(false, Some(OsStr::new("1")), None));
        assert!(!Colour::Never.decide(true, None, None));
        for word in Colour::WORDS {
            assert!(Colour::parse(word).is_ok(), "{word}");
        }
        assert!(Colour::parse("yes").is_err());
    }
}
