//! Dumps of live guests, which are looked at where the tests run ([`crate::tools`]).

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use std::path::Path;
use std::process::Command;

/// Has a Debian guest of two vCPUs, with KASLR, write a dump while it runs; it goes on.
fn debian(c: &mut Context, series: &str) -> Check {
    let (kernel, initrd, limit) = (c.kernel(series), c.initrd(), c.limit(60));
    let words = "--name dumped --kernel {} --initrd {} --memory 256M --cpus 2 --cmdline vmm.run=naps";
    let mut vmm = c.start(Wiring::Pipes, words, &[&kernel, &initrd])?;
    let up = vmm.expect("guest: up", limit);
    c.keep("vmm", &vmm);
    up?;
    let core = c.work.join("core");
    dump(c, "dumped", &core)?;
    let info = c.run("core {} info", &[&core], limit)?;
    info.expect_code(0)?;
    info.expect_output("format: ELF core of vmm")?;
    info.expect_output(&format!("release: {series}"))?;
    c.export(&core)
}

/// `vmm dump`.
fn dump(c: &mut Context, name: &str, path: &Path) -> Check {
    let mut command = Command::new(&c.vmm);
    command.args(["dump", name]).arg(path);
    let mut process = Process::start("dump", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let code = process.wait(c.limit(60));
    c.keep("dump", &process);
    check(code? == 0, || format!("no dump: {}", process.errors.text()))
}

pub fn debian_6_12(c: &mut Context) -> Check {
    debian(c, "6.12")
}

pub fn debian_6_1(c: &mut Context) -> Check {
    debian(c, "6.1")
}
