//! The machine's devices, and what KVM and this process give them.

use crate::machine::guest_ram::GuestRam;
use arch::Isa;
use arch::board::Board;
use devices::bus::Shared;
use devices::platform::serial::Serial;
use devices::platform::{self, Extra};
use devices::rack::{Console, Line, Rack, Resources};
use devices::ram::Ram;
use kvm::{HOST_ISA, InterruptLine, Vm};
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

impl Resources for Giver<'_> {
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

/// What the guest's firmware is to tell of.
pub fn board(isa: Isa, extras: &[Extra]) -> Board {
    platform::board(isa, extras).expect("a test fits all devices of every machine")
}

/// Makes the devices; the serial port among them is the console.
pub fn fit(extras: &[Extra], vm: &Vm, ram: &Arc<GuestRam>, console: Console) -> (Rack, Shared<Serial>) {
    let mut rack = Rack::new(HOST_ISA);
    let mut giver = Giver { vm, ram, console: Some(console) };
    let serial = platform::fit(&mut rack, &mut giver, extras);
    let serial = serial.expect("a test fits all devices of every machine");
    (rack, serial.expect("every machine has a serial port"))
}
