//! What hypercalls cost: calls a second by each way out of the guest, traced and not, against a
//! bare exit of the same guest; and what such an exit, of a guest that nobody debugs, costs against a loop that does
//! nothing but `KVM_RUN`.

use crate::context::{Check, Context};
use crate::process::{Process, Wiring};
use arch::Isa;
use kvm::probe::bare_exits;
use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

/// Exits, and calls, of a round of the guest.
const COUNT: u32 = 4000;
/// Its rounds.
const ROUNDS: u32 = 5;

/// Exits and calls a second, the best of the rounds.
fn once(c: &Context, words: &str) -> Result<(f64, f64), String> {
    let limit = Duration::from_secs(60);
    let guest = c.guest("calls", false)?;
    let mut command = Command::new(&c.vmm);
    command.args(["--memory", "64M", "--hypercalls", words, "--kernel"]).arg(&guest);
    let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let (mut exits, mut calls) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        process.expect("a", limit)?;
        let begin = Instant::now();
        process.expect("b", limit)?;
        let middle = Instant::now();
        process.expect("c", limit)?;
        exits = exits.max(f64::from(COUNT) / (middle - begin).as_secs_f64());
        calls = calls.max(f64::from(COUNT) / middle.elapsed().as_secs_f64());
    }
    Ok((exits, calls))
}

/// A line for each way out of the guest.
///
/// # Errors
/// When the guest does not do what it should.
pub fn lines(c: &Context) -> Result<String, String> {
    let transports: &[&str] = if c.isa == Isa::X86_64 { &["auto", "page"] } else { &["auto"] };
    let trace = c.work.join("trace");
    let mut text = format!(
        "  {:10}{:>12}{:>22}{:>12}{:>12}{:>22}{:>12}\n",
        "transport",
        "bare loop",
        "of a bare loop's time",
        "bare exit",
        "untraced",
        "of a bare exit's time",
        "traced"
    );
    for transport in transports {
        let before = bare_exits(ROUNDS, COUNT)?;
        let (exits, untraced) = once(c, &format!("xen,trace=off,transport={transport}"))?;
        let (_, traced) = once(c, &format!("xen,trace={},transport={transport}", trace.display()))?;
        let bare = before.max(bare_exits(ROUNDS, COUNT)?);
        // Writing to a String cannot fail.
        writeln!(
            text,
            "  {transport:10}{bare:12.0}{:>20.1} %{exits:12.0}{untraced:12.0}{:>20.1} %{traced:12.0}  /s  (aim: at most 105 %)",
            100.0 * bare / exits,
            100.0 * exits / untraced
        )
        .ok();
    }
    Ok(text)
}

/// The same within a nest.
///
/// # Errors
/// As [`lines`].
pub fn vmm(c: &mut Context) -> Check {
    let text = lines(c)?;
    c.kept.push(("figures".into(), text.into_bytes()));
    Ok(())
}
