//! What an argument may be, for shells that complete it (`completions`).

use crate::control::names;
use crate::machine::looks;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use debug::reply::Command;

/// These words.
pub fn words(words: &'static [&'static str]) -> ArgValueCandidates {
    ArgValueCandidates::new(move || words.iter().map(CompletionCandidate::new).collect())
}

/// Names of guests that run.
pub fn guests() -> ArgValueCandidates {
    let guests = || names::all().0.into_iter().map(CompletionCandidate::new).collect();
    ArgValueCandidates::new(guests)
}

/// Commands of `monitor` that look at a guest.
pub fn commands() -> ArgValueCandidates {
    let candidate = |command: Command| CompletionCandidate::new(command.name).help(Some(command.what.into()));
    ArgValueCandidates::new(move || debug::command::common().filter(looks).map(candidate).collect())
}
