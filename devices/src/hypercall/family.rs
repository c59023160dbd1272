//! What a family of hypercalls is: its calls, and the answers to them.

use super::call::Call;
use super::table::Table;
use crate::End;

/// What a call does to the machine, besides its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The vCPU waits for an interrupt.
    Halt,
    /// The guest ends.
    End(End),
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the result register.
    pub result: i64,
    /// What else is to be done.
    pub effect: Effect,
}

impl From<i64> for Answer {
    fn from(result: i64) -> Answer {
        Answer { result, effect: Effect::None }
    }
}

/// A family of hypercalls.
pub trait Family: Send + Sync + std::fmt::Debug {
    /// Its name, for `--hypercalls`.
    fn name(&self) -> &'static str;

    /// Its calls.
    fn table(&self) -> &'static Table;

    /// Answers a call of the table.
    fn answer(&self, call: &mut Call<'_>) -> Answer;

    /// The result of a call that is not in the table.
    fn unknown(&self) -> i64;

    /// The result of a call whose memory cannot be written.
    fn fault(&self) -> i64;

    /// The name of an error that a call results in.
    fn error(&self, result: i64) -> Option<&'static str>;
}
