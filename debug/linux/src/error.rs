//! Why a kernel's log is not read.

use crate::reader::NotThere;

/// Why a log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The kernel's description lacks something.
    #[error("the kernel's VMCOREINFO does not tell {0}, for its log")]
    Lacks(String),
    /// Records from a number on are wanted, and they have no numbers.
    #[error(
        "a log before Linux 5.10 has no numbers without the kernel's symbols log_first_seq and log_next_seq \
         (CONFIG_KALLSYMS_ALL): what came since one cannot be told"
    )]
    Unnumbered,
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
