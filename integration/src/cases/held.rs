//! The guest's time while the guest is held. Cases named `long_...` make a part of their run here, and all
//! of it in `make soak`.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use crate::rsp::Client;
use std::time::Duration;

/// Words for Debian's kernel that has both processors busy, timers pending and watchdogs that bark soon.
const WATCHED: &str = "quiet~vmm.run=held~watchdog_thresh=1~rcupdate.rcu_cpu_stall_timeout=3";

/// A busy Debian guest whose watchdogs bark after seconds is held by a debugger, for longer than that. Nobody
/// in it notices, and none of its timers is lost or late.
pub fn debian(c: &mut Context) -> Check {
    held(c, WATCHED)?;
    if c.isa == arch::Isa::X86_64 {
        // By the time-stamp counter alone.
        return stepped(c, &format!("{WATCHED}~no-kvmclock"));
    }
    stepped(c, WATCHED)
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
    let stops = c.length.of(1, 3);
    let length = Duration::from_secs(c.length.of(8, 45));
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
    let steps = c.length.of(1000, 10_000);
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
