//! How a guest ends its run by its own doing.

/// What a guest has asked for: of a device, of its hypervisor by a call, or of its firmware. Whoever serves it hands
/// this on; what becomes of the run is the monitor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switches the machine off.
    PowerOff,
    /// It resets the machine.
    Reset,
    /// It says that it has crashed.
    Crash,
    /// It ends the run with this value.
    Exit(u32),
}
