//! PCI: a bus of functions, which a guest finds by their configuration spaces.
//!
//! A function ([`Function`]) has a configuration space ([`config`]), registers behind its base addresses, and
//! interrupts that are messages ([`msix`]); it knows nothing of where the guest has put any of it. The bus ([`bus`])
//! has the functions and their addresses, and is reached by three ranges of the machine: the configuration spaces in
//! memory (ECAM), the same by x86's ports, and the window in which base addresses lie.
//!
//! There is one bus, 0, and each device on it has one function. Source: PCI Express Base Specification 5.0 (PCIe),
//! which includes what was PCI's.

pub mod bus;
pub mod config;
pub mod msix;

use crate::End;
use crate::state::{Misfit, Saved, Unanswered};
use config::Config;

/// A function of a device.
///
/// Offsets count from the start of the range behind a base address, in bytes. Data is as wide as the access,
/// little-endian, and a read that there is nothing for leaves it as it is: all ones.
pub trait Function: Send {
    /// Name for the log.
    fn name(&self) -> &'static str;

    /// Its configuration space.
    fn config(&self) -> &Config;

    /// The same, which the guest writes to.
    fn config_mut(&mut self) -> &mut Config;

    /// Serves a read of the configuration space.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest has written to so many bytes of the configuration space from an offset: for what is more there than
    /// memory.
    fn configured(&mut self, offset: usize, size: usize);

    /// Serves a read of what is behind a base address; `data` holds ones.
    fn read(&mut self, bar: usize, offset: u64, data: &mut [u8]);

    /// Serves a write.
    fn write(&mut self, bar: usize, offset: u64, data: &[u8]) -> Option<End>;

    /// Where the guest has put what is behind a base address: the first byte, guest-physical; `None` for nowhere.
    fn placed(&mut self, bar: usize, at: Option<u64>);

    /// Its state, while the guest is held.
    ///
    /// # Errors
    /// [`Unanswered`].
    fn save(&mut self) -> Result<Saved, Unanswered>;

    /// Puts it back. Whoever does so tells it then where its registers are ([`Self::placed`]).
    ///
    /// # Errors
    /// [`Misfit`].
    fn restore(&mut self, saved: &Saved) -> Result<(), Misfit>;
}
