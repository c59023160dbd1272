//! The machine's devices: which of them the configuration asks for, and what KVM and this process give them.

use crate::config::Config;
use crate::guest_ram::GuestRam;
use crate::kvm::{InterruptLine, Vm};
use arch::Isa;
use arch::board::Board;
use devices::bus::Shared;
use devices::platform::serial::Serial;
use devices::platform::{self, Extra};
use devices::rack::{Console, Host, Line, Rack};
use devices::ram::Ram;
use std::io;
use std::sync::Arc;

/// An interrupt line of KVM's.
struct KvmLine(InterruptLine);

impl Line for KvmLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.trigger().map_err(io::Error::other)
    }

    fn set(&self, level: bool) -> io::Result<()> {
        self.0.set(level).map_err(io::Error::other)
    }
}

/// What devices are given.
struct Giver<'a> {
    vm: &'a Vm,
    ram: &'a Arc<GuestRam>,
    console: Option<Console>,
}

impl Host for Giver<'_> {
    fn line(&self, number: u32) -> Box<dyn Line> {
        Box::new(KvmLine(self.vm.interrupt(number)))
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::<GuestRam>::clone(self.ram)
    }

    fn time(&self) -> Box<dyn Fn() -> u64 + Send> {
        let time = self.vm.time();
        // A host that does not tell has said so before (`kvm::clock`).
        Box::new(move || time.now().unwrap_or_default())
    }

    fn console(&mut self) -> Console {
        let nobody = || Console { output: Box::new(io::sink()), drained: Box::new(|| Ok(())) };
        self.console.take().unwrap_or_else(nobody)
    }
}

/// The devices that not every machine has, and this one is to have.
fn extras(config: &Config) -> Vec<Extra> {
    // Somebody wants to know of the guest's panics.
    let wants_panics = config.dump_on.as_ref().is_some_and(|on| on.panic);
    let list = [
        (Extra::Exit, config.exit_device),
        (Extra::Pvpanic, wants_panics),
        (Extra::Test, config.test_device),
    ];
    list.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(extra, _)| extra).collect()
}

/// What the guest's firmware is to tell of.
pub fn board(isa: Isa, config: &Config) -> Board {
    platform::board(isa, &extras(config)).expect("a test fits all devices of every machine")
}

/// Makes the devices; the serial port among them is the console.
pub fn fit(config: &Config, vm: &Vm, ram: &Arc<GuestRam>, console: Console) -> (Rack, Shared<Serial>) {
    let mut rack = Rack::new(crate::kvm::HOST_ISA);
    let mut giver = Giver { vm, ram, console: Some(console) };
    let serial = platform::fit(&mut rack, &mut giver, &extras(config));
    let serial = serial.expect("a test fits all devices of every machine");
    (rack, serial.expect("every machine has a serial port"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DumpOn;

    #[test]
    fn a_machine_has_what_is_asked_for() {
        let on = DumpOn::parse("panic,timeout=core").unwrap();
        let config = Config::default();
        for (config, wanted) in [
            (config.clone(), &[Extra::Exit][..]),
            (Config { exit_device: false, ..config.clone() }, &[]),
            (Config { dump_on: Some(on.clone()), ..config.clone() }, &[Extra::Exit, Extra::Pvpanic]),
            (Config { dump_on: Some(DumpOn { panic: false, ..on }), ..config.clone() }, &[Extra::Exit]),
            (Config { test_device: true, exit_device: false, ..config }, &[Extra::Test]),
        ] {
            assert_eq!(extras(&config), wanted);
            for isa in Isa::ALL {
                assert_eq!(board(isa, &config).isa(), isa);
            }
        }
    }
}
