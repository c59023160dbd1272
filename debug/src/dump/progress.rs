//! How far a work on a dump is, for whoever waits for it.

/// How far a dump is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the guest's memory that are done.
    pub done: u64,
    /// Bytes of it in all.
    pub total: u64,
}
