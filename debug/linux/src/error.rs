//! Why a kernel's log is not read.

use crate::reader::NotThere;

/// Why a log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The kernel's description lacks something.
    #[error("the kernel's VMCOREINFO does not tell {0} (its log is read from Linux 5.10 on)")]
    Lacks(String),
    /// Memory is not mapped.
    #[error("the log is not mapped at {0:#x} now")]
    NotMapped(u64),
    /// What is there makes no sense.
    #[error("the log's ring buffer is damaged")]
    Nonsense,
}

impl From<NotThere> for LogError {
    fn from(NotThere(at): NotThere) -> LogError {
        LogError::NotMapped(at)
    }
}
