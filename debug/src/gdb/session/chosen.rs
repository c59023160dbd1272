//! A task that sleeps, which the debugger looks at: what it is shown instead of a processor.

use crate::memory::Translation;
use crate::view::{NO_KERNEL_SPACE, is_kernels};
use arch::Isa;
use arch::register::RegisterFile;

/// The task that the debugger has chosen, as of this stop.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Its thread-id.
    pub id: u32,
    /// What it is called in words: `task 42 bash`.
    pub words: String,
    /// The registers that it has saved; others have no value.
    pub registers: RegisterFile,
    /// What the kernel's addresses mean.
    pub kernel: Option<Translation>,
    /// What addresses of user space mean to it; or in words, why it has none.
    pub user: Result<Translation, String>,
}

impl Chosen {
    /// What an address means to it.
    ///
    /// # Errors
    /// In words, where nobody knows: another task's memory is never shown for it.
    pub fn space(&self, isa: Isa, address: u64) -> Result<Translation, String> {
        match is_kernels(isa, address) {
            true => self.kernel.ok_or_else(|| NO_KERNEL_SPACE.to_string()),
            false => self.user.clone(),
        }
    }
}
