//! What an argument may be, for shells that complete it (`completions`).

use crate::control::names;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

/// These words.
pub fn words(words: &'static [&'static str]) -> ArgValueCandidates {
    ArgValueCandidates::new(move || words.iter().map(CompletionCandidate::new).collect())
}

/// Names of guests that run.
pub fn guests() -> ArgValueCandidates {
    let guests = || names::all().into_iter().map(CompletionCandidate::new).collect();
    ArgValueCandidates::new(guests)
}
