//! The guest's time while the guest is held. Cases named `long_...` make a part of their run here, and all
//! of it in `make soak`.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use nix::sys::signal::Signal;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vmm::machine::{Config, Guest};

/// Words for Debian's kernel that has both processors busy, timers pending and watchdogs that bark soon.
const WATCHED: &str = "quiet~vmm.run=held~watchdog_thresh=1~rcupdate.rcu_cpu_stall_timeout=3";

/// A busy Debian guest whose watchdogs bark after seconds is held by a debugger, for longer than that. Nobody
/// in it notices, and none of its timers is lost or late.
pub fn debian(c: &mut Context) -> Check {
    held(c, WATCHED)?;
    match c.isa {
        // Without kvm-clock, whose reader forgives steps back. The time-stamp counter's frequency a kernel finds
        // out by timers that emulation makes uncertain; where it does not trust the counter, as in a nest of two
        // processors, it takes the ACPI timer, which goes over after 4.7 s.
        arch::Isa::X86_64 => {
            let plain = format!("{WATCHED}~no-kvmclock~tsc_early_khz={}", tsc_khz()?);
            stepped(c, &plain)?;
            stepped(c, &format!("{plain}~tsc=reliable"))
        }
        arch::Isa::Aarch64 => stepped(c, WATCHED),
    }
}

/// What the host's time-stamp counter counts in a millisecond.
pub fn tsc_khz() -> Result<u32, String> {
    let guest = Guest::new(&Config::default(), Box::new(io::sink())).map_err(|error| error.to_string())?;
    let tsc = guest.vcpus().call(0, |vcpu| vcpu.tsc()).flatten();
    tsc.map(|(_, khz)| khz).ok_or("no time-stamp counter".into())
}

/// A guest that runs, with a client that has attached.
fn start(c: &Context, cmdline: &str) -> Result<(Process, Client), String> {
    let (kernel, initrd) = (c.kernel("6.12"), c.initrd());
    let socket = c.work.join("gdb.sock");
    let arguments = format!("--gdb unix:{{}} --kernel {{}} --initrd {{}} --cpus 2 --cmdline {cmdline}");
    let vmm = c.start(Wiring::Pipes, &arguments, &[&socket, &kernel, &initrd])?;
    let mut client = Client::attach(&socket, c.limit(60))?;
    client.run()?;
    Ok((vmm, client))
}

/// The hundredths of a second that the guest has said, each time that it did.
fn said(vmm: &Process) -> Vec<u64> {
    let text = vmm.output.text();
    // What is not whole yet has no full stop.
    text.split("guest: beat ").skip(1).filter_map(|rest| rest.split_once('.')?.0.parse().ok()).collect()
}

/// How much the guest's time has grown since it was held, beyond what passes between two beats of it. Where
/// many run on one processor that is a lot.
fn grown(vmm: &Process, held_at: usize) -> Result<u64, String> {
    let beats = said(vmm);
    let gap = |at: usize| beats.get(at).zip(beats.get(at.checked_sub(1)?)).map(|(now, then)| now - then);
    let usual = (1..held_at).filter_map(gap).max().ok_or("too few beats")?;
    Ok(gap(held_at).ok_or("no beat after the hold")?.saturating_sub(usual))
}

/// Waits for the guest to say its time again `count` times.
fn beats(c: &Context, vmm: &mut Process, count: u32) -> Check {
    (0..count).try_for_each(|_| vmm.expect("guest: beat", c.limit(30)))
}

/// Has the guest say what its timers and its kernel made of it.
fn ask(c: &mut Context, vmm: &mut Process, mut client: Client) -> Check {
    let ended = vmm
        .expect("guest: timer 13 took", c.limit(60))
        .and_then(|()| vmm.send("end\n"))
        .and_then(|()| vmm.expect("guest: complaints=", c.limit(30)))
        .and_then(|()| client.reply().map(drop))
        .and_then(|()| vmm.wait(c.limit(30)).map(drop));
    c.keep("vmm", vmm);
    ended?;
    let text = vmm.output.text();
    check(text.contains("complaints=0"), || format!("the guest's kernel complains:\n{text}"))?;
    for line in text.lines().filter_map(|line| line.split_once("guest: timer ")) {
        let mut words = line.1.split_whitespace();
        let (length, took) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        // Behind the full stop there may be an echo.
        let took = took.split('.').next().unwrap_or_default();
        let number = |word: &str| word.parse::<u64>().map_err(|_| format!("no number in {line:?}"));
        let (length, took) = (number(length)? * 100, number(took)?);
        // In a nest, processes that are started take a while, and two processors are busy; a timer that has
        // been lost or ran on takes as long as the guest was held.
        check((length..=length + 400).contains(&took), || {
            format!("a timer of {length} hundredths took {took}:\n{text}")
        })?;
    }
    Ok(())
}

fn held(c: &mut Context, cmdline: &str) -> Check {
    let (mut vmm, mut client) = start(c, cmdline)?;
    let stops = c.length().of(1, 3);
    let length = Duration::from_secs(c.length().of(8, 45));
    let mut run = || -> Check {
        for stop in 0..stops {
            beats(c, &mut vmm, 4)?;
            client.interrupt()?;
            let held_at = said(&vmm).len();
            std::thread::sleep(length);
            if stop == 0 {
                let clock = monitor(&mut client, "clock")?;
                check(clock.contains("stands still"), || format!("monitor clock: {clock}"))?;
            }
            client.run()?;
            beats(c, &mut vmm, 2)?;
            let grown = grown(&vmm, held_at)?;
            check(grown < 100, || format!("uptime grew by {grown} hundredths over {length:?}"))?;
        }
        Ok(())
    };
    let result = run();
    if result.is_err() {
        c.keep("vmm", &vmm);
    }
    result?;
    ask(c, &mut vmm, client)
}

/// Thousands of steps: what each holds the guest for is little, and all of it a lot.
fn stepped(c: &mut Context, cmdline: &str) -> Check {
    let (mut vmm, mut client) = start(c, cmdline)?;
    let steps = c.length().of(1000, 10_000);
    let mut run = || -> Check {
        beats(c, &mut vmm, 4)?;
        client.interrupt()?;
        let held_at = said(&vmm).len();
        for step in 0..steps {
            let stop = client.ask("vCont;s:p1.1")?;
            check(stop.starts_with("T05"), || format!("step {step} ends with {stop}"))?;
        }
        client.run()?;
        beats(c, &mut vmm, 2)?;
        let grown = grown(&vmm, held_at)?;
        check(grown < 100, || format!("uptime grew by {grown} hundredths over {steps} steps"))
    };
    let result = run();
    if result.is_err() {
        c.keep("vmm", &vmm);
    }
    result?;
    ask(c, &mut vmm, client)
}

/// What a `monitor` command says.
fn monitor(client: &mut Client, command: &str) -> Result<String, String> {
    let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
    client.console(&format!("qRcmd,{hex}"))
}

/// A guest's output, which is looked at while it runs.
#[derive(Clone, Debug, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The hexadecimal number behind a name.
    fn number(&self, name: &str) -> Result<u64, String> {
        let text = self.text();
        let hex = text.split_once(name).and_then(|(_, rest)| rest.get(..16));
        let number = hex.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        number.ok_or_else(|| format!("no number behind {name} in {text:?}"))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The period of the timers that are not to lose a tick, ms.
const PERIOD: u64 = 50;

/// Holds of all lengths, with timers running and bytes arriving meanwhile: no tick and no interrupt is lost, and
/// none comes for the time of a hold.
pub fn ticks(c: &mut Context) -> Check {
    if let Err(seen) = kvm::probe::holds_counter() {
        // On such a host the counter runs on, and so do the timers that go by it.
        return check(!c.in_nest && seen.contains("the guest saw"), || format!("held counters: {seen}"));
    }
    let config = Config { kernel: Some(c.guest("ticks", false)?), ..Config::default() };
    let output = Output::default();
    let guest = Guest::new(&config, Box::new(output.clone())).map_err(|error| error.to_string())?;
    guest.resume();
    let deadline = Instant::now() + c.limit(20);
    while !output.text().contains("ready") {
        check(Instant::now() < deadline, || "the guest does not begin".into())?;
        thread::sleep(Duration::from_millis(1));
    }
    let mut chance = c.chance();
    let (mut sent, mut held) = (0, Duration::ZERO);
    for round in 0..c.length().of(150, 1000) {
        let begin = Instant::now();
        guest.pause();
        let paused = Instant::now();
        // Sometimes too short to be worth it, sometimes longer than a timer's period.
        let length = Duration::from_micros(chance.below(if round % 10 == 0 { 60_000 } else { 8000 }));
        thread::sleep(length);
        if round % 5 == 0 {
            guest.input(b"x");
            sent += 1;
        }
        held += paused.elapsed().min(begin.elapsed());
        guest.resume();
        thread::sleep(Duration::from_micros(2000 + chance.below(20_000)));
    }
    guest.input(b"q");
    let ended = guest.wait(c.limit(10)).map(|outcome| outcome.to_string());
    let khz = match c.isa {
        arch::Isa::X86_64 => {
            let tsc = guest.vcpus().call(0, |vcpu| vcpu.tsc()).flatten();
            u64::from(tsc.ok_or("no time-stamp counter")?.1)
        }
        arch::Isa::Aarch64 => output.number("frequency=")? / 1000,
    };
    c.kept.push(("ticks.txt".into(), output.text().into_bytes()));
    check(ended.is_some(), || format!("the guest does not end: {}", output.text()))?;
    let bytes = output.number("bytes=")?;
    check(bytes == sent + 1, || format!("{bytes} bytes have arrived of {}", sent + 1))?;
    let (timer, elapsed) = (output.number("timer=")?, output.number("cycles=")? / khz);
    let expected = elapsed / PERIOD;
    // A host that is busy for longer than a period takes ticks of its own; the holds would be many more.
    let slack = 2 + expected / 20;
    let counts = format!("{timer} ticks in {elapsed} ms, held for {} ms", held.as_millis());
    c.kept.push(("counts.txt".into(), counts.clone().into_bytes()));
    check(timer <= expected + 2 && timer + slack >= expected, || counts.clone())?;
    check(held.as_millis() > u128::from(PERIOD * slack), || format!("the holds were too short: {counts}"))?;
    if c.isa == arch::Isa::X86_64 {
        // KVM starts a whole period of the PIT after each hold, and most periods have a hold.
        let pit = output.number("pit=")?;
        check(pit > elapsed / 12 && pit <= elapsed / 10 + 2, || format!("{pit} ticks of the PIT; {counts}"))?;
        // It stood still as often as the time-stamp counter, in about three seconds.
        let acpi = output.number("acpi=")? * 1000 / 3_579_545;
        check(acpi.abs_diff(elapsed) <= 20 + elapsed / 50, || {
            format!("{acpi} ms by the ACPI timer; {counts}")
        })?;
    }
    Ok(())
}

/// Two who hold the guest at the same time: the look for a panic, which a guest can cause all the time, and dumps
/// by name.
pub fn two_holders(c: &mut Context) -> Check {
    let (kernel, unused, dump) = (c.guest("panic_line", false)?, c.work.join("unused"), c.work.join("core"));
    let name = format!("two-holders-{}", std::process::id());
    let arguments =
        format!("--kernel {{}} --cpus 3 --memory 64M --console none --name {name} --dump-on panic={{}}");
    let mut vmm = c.start(Wiring::Pipes, &arguments, &[&kernel, &unused])?;
    let rounds = c.length().of(8, 200);
    let mut run = || -> Check {
        for round in 0..rounds {
            let limit = c.limit(20);
            let deadline = Instant::now() + limit;
            loop {
                let dumped = c.run(&format!("dump {name} {{}}"), &[&dump], limit)?;
                if dumped.code == 0 {
                    break;
                }
                // The guest may not have its name yet.
                let may_wait = round == 0 && Instant::now() < deadline;
                check(may_wait, || format!("round {round}: {}", dumped.errors))?;
            }
            std::fs::remove_file(&dump).map_err(|error| error.to_string())?;
        }
        vmm.signal(Signal::SIGTERM)?;
        let code = vmm.wait(c.limit(10))?;
        check(code == 22, || format!("vmm ended with {code}"))
    };
    let result = run();
    c.keep("vmm", &vmm);
    result
}
