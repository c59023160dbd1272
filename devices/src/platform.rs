//! The devices of a machine without a bus that is looked through: each in a file, with what firmware says of it.

pub mod acpi_power;
pub mod cmos;
pub mod exit;
pub mod i8042;
pub mod pci_config;
pub mod pl031;
pub mod pm_timer;
pub mod port92;
pub mod pvpanic;
pub mod reset_control;
pub mod serial;
pub mod test_device;
