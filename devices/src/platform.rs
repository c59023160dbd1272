//! The devices that machines have: each in a file, with what firmware says of it and how it is made.

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

use crate::bus::Shared;
use crate::rack::{Rack, Resources, Unconnected};
use acpi_power::AcpiPower;
use arch::Isa;
use arch::board::{Board, BoardError};
use cmos::Cmos;
use exit::ExitDevice;
use i8042::I8042;
use pci_config::PciConfig;
use pl031::Pl031;
use pm_timer::PmTimer;
use port92::Port92;
use pvpanic::Pvpanic;
use serial::Serial;

/// A device that a machine has only if it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// [`exit`].
    Exit,
    /// [`pvpanic`].
    Pvpanic,
    /// [`test_device`]; on x86_64 only.
    Test,
}

/// Fits a machine's devices, in the order in which firmware tells of them; the serial port, which is the guest's
/// console. A device that a machine of this architecture has not is left out.
///
/// # Errors
/// [`BoardError`], when two devices have one place.
pub fn fit(
    rack: &mut Rack,
    resources: &mut dyn Resources,
    extras: &[Extra],
) -> Result<Option<Shared<Serial>>, BoardError> {
    let serial = rack.add::<Serial>(resources)?;
    rack.add::<Cmos>(resources)?;
    rack.add::<Pl031>(resources)?;
    rack.add::<I8042>(resources)?;
    rack.add::<Port92>(resources)?;
    rack.add::<PciConfig>(resources)?;
    rack.add::<AcpiPower>(resources)?;
    rack.add::<PmTimer>(resources)?;
    let has = |extra| extras.contains(&extra);
    if has(Extra::Exit) {
        rack.add::<ExitDevice>(resources)?;
    }
    if has(Extra::Pvpanic) {
        rack.add::<Pvpanic>(resources)?;
    }
    if has(Extra::Test) {
        test_device::fit(rack, resources)?;
    }
    Ok(serial)
}

/// What firmware tells of such a machine.
///
/// # Errors
/// [`BoardError`], when two devices have one place.
pub fn board(isa: Isa, extras: &[Extra]) -> Result<Board, BoardError> {
    let mut rack = Rack::new(isa);
    fit(&mut rack, &mut Unconnected, extras)?;
    Ok(rack.board)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::board::FixedRegister;

    const ALL: [Extra; 3] = [Extra::Exit, Extra::Pvpanic, Extra::Test];

    #[test]
    fn every_machine_has_room_for_all_of_its_devices() {
        for (isa, count) in [(Isa::X86_64, 13), (Isa::Aarch64, 4)] {
            let board = board(isa, &ALL).unwrap();
            assert_eq!(board.nodes().len(), count, "{isa}");
            assert_eq!(board.console().map(|node| node.name), Some("serial"));
            for extra in ALL {
                let without: Vec<Extra> = ALL.into_iter().filter(|other| *other != extra).collect();
                let without = super::board(isa, &without).unwrap().nodes().len();
                let is_there = (isa, extra) != (Isa::Aarch64, Extra::Test);
                assert_eq!(without < count, is_there, "{isa}: {extra:?}");
            }
        }
        let pc = board(Isa::X86_64, &[]).unwrap();
        for register in [
            FixedRegister::SleepControl,
            FixedRegister::SleepStatus,
            FixedRegister::Reset,
            FixedRegister::Timer,
        ] {
            assert!(pc.fixed(register).is_some(), "{register:?}");
        }
    }

    /// A guest can write to every device at every place, by any width, and no device falls over.
    #[test]
    fn devices_take_accesses_of_any_kind() {
        for isa in Isa::ALL {
            let mut rack = Rack::new(isa);
            fit(&mut rack, &mut Unconnected, &ALL).unwrap();
            for node in rack.board.nodes() {
                for registers in &node.registers {
                    let bus = match registers.space {
                        arch::board::RegisterSpace::Ports => &rack.ports,
                        arch::board::RegisterSpace::Memory => &rack.mmio,
                    };
                    for offset in [0, 1, registers.size / 2, registers.size - 1] {
                        let address = registers.start + offset % registers.size;
                        for width in [1, 2, 4, 8, 64] {
                            assert!(bus.read(address, &mut vec![0; width]), "{}", node.name);
                            assert!(bus.write(address, &vec![0xa5; width]).is_ok(), "{}", node.name);
                        }
                    }
                    assert!(bus.read(registers.start + registers.size - 1, &mut []), "{}", node.name);
                }
            }
        }
    }
}
