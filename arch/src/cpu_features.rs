//! The syntax of `--cpu-features`: names with a sign, separated by commas.
//!
//! Which bits a name stands for is in [`crate::x86::features`] and
//! [`crate::aarch64::features`].

use crate::Isa;
use thiserror::Error;

/// One switch: a feature is hidden from the guest, or the guest must have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSwitch {
    /// The feature's name, lower case, as `/proc/cpuinfo` of Linux spells it.
    pub name: String,
    /// `true` for `+name`, `false` for `-name`.
    pub enable: bool,
}

/// What is wrong with a list of features.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FeatureError {
    /// A word without sign, or a sign without word.
    #[error("'{0}' has no sign: write +{0} or -{0}")]
    NoSign(String),
    /// Nothing between two commas.
    #[error("the list of features has an empty entry")]
    Empty,
    /// No feature of that name.
    #[error("unknown {isa} CPU feature '{name}'{hint}")]
    Unknown {
        /// The architecture that was looked at.
        isa: Isa,
        /// The name as given.
        name: String,
        /// A similar name, worded as a question, or nothing.
        hint: String,
    },
    /// `+name` on a host without it.
    #[error("this host's KVM cannot give the guest CPU feature '{0}'")]
    NotOnHost(String),
    /// A template whose level the host does not reach.
    #[error(
        "this host's KVM cannot give the guest all of CPU template {template}: {missing} missing (take another \
         template, or do without: {without})"
    )]
    TemplateNotOnHost {
        /// The template.
        template: String,
        /// The features that are not there, with their verb.
        missing: String,
        /// The option that does without them.
        without: String,
    },
    /// A built-in template of the other architecture.
    #[error(
        "CPU template '{name}' is for {of}, and this guest is {isa}: the built-in ones are {known}; a path to a JSON \
         file works too"
    )]
    TemplateOfOther {
        /// The guest's architecture.
        isa: Isa,
        /// The template's.
        of: Isa,
        /// The name as given.
        name: String,
        /// What there is.
        known: String,
    },
    /// No template of that name.
    #[error(
        "unknown {isa} CPU template '{name}': the built-in ones are {known}; a path to a JSON file works too"
    )]
    UnknownTemplate {
        /// The architecture that was looked at.
        isa: Isa,
        /// The name as given.
        name: String,
        /// What there is.
        known: String,
    },
}

/// The error for a template that there is not for an architecture, whose own are `known`.
pub fn unknown_template(isa: Isa, name: &str, known: &[&str]) -> FeatureError {
    // Built-in templates are named for the levels that architectures have.
    const LEVELS: [(&str, Isa); 2] = [("x86-64-", Isa::X86_64), ("armv", Isa::Aarch64)];
    let (name, known) = (name.to_string(), known.join(", "));
    match LEVELS.iter().find(|(begin, of)| *of != isa && name.starts_with(begin)) {
        Some((_, of)) => FeatureError::TemplateOfOther { isa, of: *of, name, known },
        None => FeatureError::UnknownTemplate { isa, name, known },
    }
}

/// The error for a template of which the host lacks features.
pub fn template_not_on_host(template: &str, missing: &[&str]) -> FeatureError {
    /// Switches that a person would type.
    const MOST: usize = 6;
    let plural = if missing.len() == 1 { "is" } else { "are" };
    let switches: Vec<String> = missing.iter().map(|name| format!("-{name}")).collect();
    FeatureError::TemplateNotOnHost {
        template: template.to_string(),
        missing: format!("{} {plural}", missing.join(", ")),
        without: match switches.len() <= MOST {
            true => format!("--cpu-features {}", switches.join(",")),
            false => "--cpu-features -NAME,...".to_string(),
        },
    }
}

/// Parses `-cx16,+avx2`.
///
/// # Errors
/// [`FeatureError::NoSign`] or [`FeatureError::Empty`]; names are not looked up here.
pub fn parse(list: &str) -> Result<Vec<FeatureSwitch>, FeatureError> {
    list.split(',')
        .map(|word| {
            let word = word.trim();
            let enable = match word.as_bytes().first() {
                None => return Err(FeatureError::Empty),
                Some(b'+') => true,
                Some(b'-') => false,
                Some(_) => return Err(FeatureError::NoSign(word.to_string())),
            };
            match &word[1..] {
                "" => Err(FeatureError::Empty),
                name => Ok(FeatureSwitch { name: name.to_ascii_lowercase(), enable }),
            }
        })
        .collect()
}

/// Words a hint for an unknown name: the known name that shares the longest prefix with it,
/// if that is at least half of the name.
pub fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let shared = |other: &str| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    known
        .filter(|other| !other.is_empty() && shared(other) * 2 >= name.len().max(2))
        .max_by_key(|other| (shared(other), usize::MAX - other.len()))
        .map(|other| format!("; did you mean '{other}'?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_parsed_with_their_signs() {
        let switch = |name: &str, enable| FeatureSwitch { name: name.into(), enable };
        assert_eq!(parse("-cx16,+AVX2"), Ok(vec![switch("cx16", false), switch("avx2", true)]));
        assert_eq!(parse("cx16"), Err(FeatureError::NoSign("cx16".into())));
        assert_eq!(parse("-cx16,"), Err(FeatureError::Empty));
        assert_eq!(parse("-"), Err(FeatureError::Empty));
    }

    #[test]
    fn hints_name_something_close_or_nothing() {
        let known = ["avx2", "avx512f", "sse4_2"];
        assert_eq!(hint("avx512", known.into_iter()), "; did you mean 'avx512f'?");
        assert_eq!(hint("frob", known.into_iter()), "");
    }

    #[test]
    fn a_template_of_the_other_architecture_is_called_that() {
        for (isa, name, is_others) in [
            (Isa::X86_64, "armv8.0", true),
            (Isa::Aarch64, "x86-64-v2", true),
            (Isa::X86_64, "x86-64-v9", false),
            (Isa::Aarch64, "armv9.9", false),
            (Isa::X86_64, "skylake", false),
        ] {
            let text = unknown_template(isa, name, &["host", "one"]).to_string();
            assert!(text.contains("the built-in ones are host, one"), "{text}");
            assert_eq!(text.contains(&format!("and this guest is {isa}")), is_others, "{text}");
        }
    }
}
