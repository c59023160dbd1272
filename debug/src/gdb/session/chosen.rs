//! A task that sleeps, which the debugger looks at: what it is shown instead of a processor.

use crate::memory::Translation;
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
            true => self.kernel.ok_or_else(|| "nothing tells how the kernel translates".to_string()),
            false => self.user.clone(),
        }
    }
}

/// Whether an address is in the kernel's half: on aarch64 bit 55 tells which tables it is translated by, as the byte above
/// may have a tag (Arm ARM (DDI 0487), "Address tagging").
fn is_kernels(isa: Isa, address: u64) -> bool {
    let bit = match isa {
        Isa::X86_64 => 63,
        Isa::Aarch64 => 55,
    };
    address >> bit & 1 != 0
}
