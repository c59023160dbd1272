//! Virtio devices, with Debian's drivers.

use super::linux::boot;
use crate::context::{Check, Context, check};
use arch::Isa;

/// The guest finds the device on its PCI bus, and gets what it asks for by messages, or by a line where nobody takes those.
pub fn entropy(c: &mut Context) -> Check {
    let series = if c.name.ends_with("6_1") { "6.1" } else { "6.12" };
    let run = boot(c, series, "--entropy --cmdline loglevel=7~vmm.run=entropy", 2, 256)?;
    run.expect_code(0)?;
    for line in [
        "guest: pci 0000:00:00.0 0x1b36:0x0008",
        "guest: pci 0000:00:01.0 0x1af4:0x1044",
        "guest: source virtio_rng.0",
        "guest: random bytes=6400 same=no",
    ] {
        run.expect_output(line)?;
    }
    let (name, by) = match c.isa {
        Isa::X86_64 => ("virtio0-input", "MSI"),
        Isa::Aarch64 if c.name.starts_with("gic_v2") => ("virtio0", "GIC-0"),
        Isa::Aarch64 => ("virtio0-input", "ITS"),
    };
    let mut interrupts = run.output.lines().filter(|line| line.contains(name));
    check(interrupts.any(|line| line.contains(by)), || {
        format!("it does not interrupt by {by}:\n{}", run.output)
    })
}
