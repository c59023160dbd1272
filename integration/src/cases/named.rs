//! Guests with names, found and asked from a shell.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use arch::Isa;
use serde_json::Value;
use std::time::Instant;

/// They are listed, stopped, looked at, let go on and ended, by their names.
pub fn guests(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("loop", false)?, c.limit(20));
    c.run("ls", &[], limit)?.expect_output("no guest with a name runs")?;
    let count = c.length.of(6, 50);
    let mut guests: Vec<Process> = Vec::new();
    for number in 0..count {
        let line = format!("--name guest-{number} --memory 32M --kernel {{}}");
        guests.push(c.start(Wiring::Pipes, &line, &[&guest])?);
    }
    let begin = Instant::now();
    while listed(c)?.len() < guests.len() {
        check(begin.elapsed() < limit, || "not all guests are listed".into())?;
    }
    let begin = Instant::now();
    c.run("ls", &[], limit)?.expect_output("guest-0")?;
    let listed_in = begin.elapsed();
    for info in listed(c)? {
        check(info["state"] == "running" && info["memory"] == 32u64 << 20, || info.to_string())?;
    }
    // One stands still, and is looked at meanwhile; the others run.
    let begin = Instant::now();
    for number in 0..count {
        c.run(&format!("stop guest-{number}"), &[], limit)?.expect_code(0)?;
    }
    let figures = format!("{count} guests: listed in {listed_in:?}, stopped in {:?}\n", begin.elapsed());
    c.kept.push(("figures".into(), figures.into_bytes()));
    check(listed(c)?.iter().all(|info| info["state"] == "stopped"), || "not all are stopped".into())?;
    let counter = if c.isa == Isa::X86_64 { "rax" } else { "x0" };
    let looks = |c: &mut Context| -> Result<String, String> {
        let looked = c.run("monitor guest-0 --json regs", &[], limit)?;
        looked.expect_code(0)?;
        let registers: Value = serde_json::from_str(&looked.output).map_err(|error| error.to_string())?;
        Ok(registers[counter].to_string())
    };
    let before = looks(c)?;
    check(before.contains("0x") && looks(c)? == before, || format!("it does not stand still: {before}"))?;
    c.run("cont guest-0", &[], limit)?.expect_code(0)?;
    let again = c.run("cont guest-0", &[], limit)?;
    again.expect_code(8)?;
    again.expect_one_line("nobody has stopped it")?;
    let begin = Instant::now();
    while looks(c)? == before {
        check(begin.elapsed() < limit, || format!("it does not go on: {before}"))?;
    }
    // One ends while it stands still, too.
    for (number, process) in guests.iter_mut().enumerate() {
        c.run(&format!("quit guest-{number}"), &[], limit)?.expect_output("it ends")?;
        process.wait(limit)?;
    }
    c.run("ls", &[], limit)?.expect_output("no guest with a name runs")?;
    let nobody = c.run("monitor guest-0 regs", &[], limit)?;
    nobody.expect_code(8)?;
    nobody.expect_one_line("no guest of the name guest-0 runs")
}

/// What `vmm ls` says of each.
fn listed(c: &mut Context) -> Result<Vec<Value>, String> {
    let limit = c.limit(20);
    let listed = c.run("ls --json", &[], limit)?;
    listed.expect_code(0)?;
    serde_json::from_str(&listed.output).map_err(|error| format!("{error}: {}", listed.output))
}
