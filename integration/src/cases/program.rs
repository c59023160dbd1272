//! A program debugs a guest by itself: tests of kernels in Rust.

use crate::context::{Check, Context};
use arch::Isa;
use debug::breakpoint::Hit;
use debug::context::{Address, Debuggee, Id, Missing, Mode, Notice, Point, TasksError, Unable, WaitError};
use debug::linux::task::Task;
use debug::machine::Machine;
use kvm::{HOST_ISA, probe};
use std::error::Error;
use std::fs;
use std::io;
use std::ops::Range;
use std::time::Duration;

use vmm::machine::{Config, Debugged, Guest};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Fails with what two values are, unless they are the same.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, expected: &T) -> Result<()> {
    match seen == expected {
        true => Ok(()),
        false => Err(format!("{what}: {seen:x?} instead of {expected:x?}").into()),
    }
}

/// The first argument of a function.
fn argument() -> &'static str {
    if HOST_ISA == Isa::X86_64 { "rdi" } else { "x0" }
}

/// A small guest of ours.
pub fn small(c: &mut Context) -> Check {
    let path = c.guest("count", false)?;
    let bytes = fs::read(&path).map_err(|error| error.to_string())?;
    let symbols = crate::guests::symbols(&bytes).ok_or("the guest has no symbols")?;
    let find = |name: &str| {
        let found = symbols.iter().find(|(symbol, _)| symbol == name);
        found.map(|(_, address)| *address).ok_or_else(|| format!("there is no symbol {name}"))
    };
    let places = [find("work")?, find("counter")?, find("again")?];
    let config = Config { kernel: Some(path), ..Config::default() };
    debug_small(&config, places, c.limit(30)).map_err(|error| error.to_string())?;
    leaves_nothing(&config, places, c.limit(30)).map_err(|error| error.to_string())
}

fn debug_small(config: &Config, [work, counter, again]: [u64; 3], limit: Duration) -> Result<()> {
    let machine = Guest::new(config, Box::new(io::sink()))?;
    let mut guest = machine.debug()?;
    let all = guest.root();
    let listener = guest.listeners().add(100);
    ports(&guest)?;
    let tenth = Point::execute(work).when(|hit| hit.register(argument()) == Some(10));
    let tenth = guest.add(tenth)?;
    let stop = guest.go_until(all, Mode::Run, limit)?;
    same("the program counter", &guest.pc(stop.context)?, &work)?;
    same("the breakpoints", &stop.breakpoints, &vec![tenth])?;
    guest.go_until(stop.context, Mode::StepOut, limit)?;
    same("the counter", &guest.read_u64(stop.context, counter)?, &10)?;

    // The rest of the round, and the next one with its call.
    let (vcpu, here) = (stop.context, guest.pc(stop.context)?);
    guest.take_out(tenth);
    guest.go_until(vcpu, Mode::StepOverRange(here..here + 32), limit)?;
    for _ in 0..8 {
        if guest.read_u64(vcpu, counter)? == 11 {
            break;
        }
        guest.go_until(vcpu, Mode::StepOver, limit)?;
    }
    same("the counter after a round", &guest.read_u64(vcpu, counter)?, &11)?;
    let pc = guest.pc(vcpu)?;
    same("it is in the loop", &(again..again + 32).contains(&pc), &true)?;
    if probe::host_debug().watchpoints > 0 {
        let written = guest.add(Point::write(counter, 8))?;
        let stop = guest.go_until(all, Mode::Run, limit)?;
        same("the watchpoint", &stop.breakpoints, &vec![written])?;
        guest.take_out(written);
    }
    guest.resume(all, Mode::Run)?;
    match guest.wait(limit) {
        // 0x20 at the exit device.
        Err(WaitError::Ended(ended)) => same("the end", &ended.code, &0x41)?,
        other => return Err(format!("{other:?} instead of the guest's end").into()),
    }
    drop(guest);
    let heard: Vec<Notice> = std::iter::from_fn(|| listener.take()).collect();
    let count = |wanted: fn(&Notice) -> bool| heard.iter().filter(|notice| wanted(notice)).count();
    let (started, stopped) =
        (count(|it| matches!(it, Notice::Started(_))), count(|it| matches!(it, Notice::Stopped(..))));
    same("starts", &started, &(stopped + 1))?;
    same("ends", &count(|it| matches!(it, Notice::Exited(..))), &1)?;
    same(
        "contexts",
        &count(|it| matches!(it, Notice::Created(_))),
        &count(|it| matches!(it, Notice::Disposed(_))),
    )
}

/// The serial port's state, where it is a port.
fn ports(guest: &Debugged<'_>) -> Result<()> {
    /// Line status: what is to be sent has been (16550, `LSR`).
    const EMPTY: u8 = 0x60;
    let mut state = [0];
    let read = guest.read(guest.root(), Address::port(0x3fd), &mut state);
    match HOST_ISA {
        Isa::X86_64 => {
            read?;
            same("the serial port's state", &state[0], &EMPTY)
        }
        Isa::Aarch64 => {
            let missing = read.map_err(|partial| partial.missing);
            same("ports of aarch64", &missing, &Err(Missing::Unable(Unable::NoPorts)))
        }
    }
}

/// What a program leaves runs on, and may be debugged again.
fn leaves_nothing(config: &Config, [work, _, _]: [u64; 3], limit: Duration) -> Result<()> {
    let machine = Guest::new(config, Box::new(io::sink()))?;
    for _ in 0..2 {
        let mut guest = machine.debug()?;
        let all = guest.root();
        guest.add(Point::execute(work))?;
        guest.go_until(all, Mode::Run, limit)?;
        same("another comes", &machine.debug().is_err(), &true)?;
    }
    let outcome = machine.wait(limit).ok_or("the guest does not run on")?;
    same("the end", &outcome.code(), &0x41)
}

/// What is looked for of Debian's kernel.
pub const SYMBOLS: &[&str] =
    &["fork_init", "setup_arch", "start_kernel", "linux_banner", "free_initmem", "schedule"];

/// Places of a kernel's symbols.
struct Symbols(Vec<(String, Range<u64>)>);

impl Symbols {
    fn read(c: &Context) -> Result<Symbols> {
        let text = fs::read_to_string(c.files.join("symbols"))?;
        let line = |line: &str| {
            let mut words = line.split(' ');
            let (name, address, size) = (words.next()?, words.next()?, words.next()?);
            let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
            Some((name.to_string(), address..address + size.parse::<u64>().ok()?))
        };
        Ok(Symbols(text.lines().filter_map(line).collect()))
    }

    fn get(&self, name: &str) -> Result<Range<u64>> {
        let found = self.0.iter().find(|(symbol, _)| symbol == name);
        Ok(found.map(|(_, place)| place.clone()).ok_or_else(|| format!("there is no symbol {name}"))?)
    }
}

/// Debian's kernel, from its first instruction to the end of its userspace.
pub fn debian(c: &mut Context) -> Check {
    let config = Config {
        kernel: Some(c.kernel("6.12")),
        initrds: vec![c.initrd()],
        cmdline: Some("quiet nokaslr".into()),
        ..Config::default()
    };
    let symbols = Symbols::read(c).map_err(|error| error.to_string())?;
    debug_debian(&config, &symbols, c.limit(60)).map_err(|error| error.to_string())
}

fn debug_debian(config: &Config, symbols: &Symbols, limit: Duration) -> Result<()> {
    let start_kernel = symbols.get("start_kernel")?;
    let machine = Guest::new(config, Box::new(io::sink()))?;
    let mut guest = machine.debug()?;
    let all = guest.root();

    // Nothing is mapped yet where the kernel will be.
    let setup = guest.add(Point::execute(symbols.get("setup_arch")?.start))?;
    let stop = guest.go_until(all, Mode::Run, limit)?;
    let vcpu = stop.context;
    same("the breakpoints", &stop.breakpoints, &vec![setup])?;
    guest.go_until(vcpu, Mode::StepOut, limit)?;
    same("setup_arch returns to start_kernel", &start_kernel.contains(&guest.pc(vcpu)?), &true)?;
    let mut banner = [0; 18];
    guest.read(vcpu, symbols.get("linux_banner")?.start, &mut banner)?;
    same("the banner", &String::from_utf8_lossy(&banner).as_ref(), &"Linux version 6.12")?;
    guest.take_out(setup);

    // Over whatever start_kernel calls.
    for step in 0..30 {
        guest.go_until(vcpu, Mode::StepOver, limit)?;
        let pc = guest.pc(vcpu)?;
        same(&format!("step {step} is in start_kernel"), &start_kernel.contains(&pc), &true)?;
    }
    // Out of a function from within, by a walk.
    let fork_init = symbols.get("fork_init")?;
    let fork = guest.add(Point::execute(fork_init.start))?;
    guest.go_until(all, Mode::Run, limit)?;
    guest.take_out(fork);
    for _ in 0..8 {
        guest.go_until(vcpu, Mode::StepOver, limit)?;
    }
    same("it is in fork_init", &fork_init.contains(&guest.pc(vcpu)?), &true)?;
    guest.go_until(vcpu, Mode::StepOut, limit)?;
    same("fork_init returns to start_kernel", &start_kernel.contains(&guest.pc(vcpu)?), &true)?;

    tasks_of_debian(&mut guest, symbols, limit)?;

    guest.resume(all, Mode::Run)?;
    match guest.wait(limit) {
        Err(WaitError::Ended(ended)) => same("the end", &ended.code, &0),
        other => Err(format!("{other:?} instead of the guest's end").into()),
    }
}

/// The kernel's tasks, once it has described itself.
fn tasks_of_debian<M: Machine>(guest: &mut Debuggee<M>, symbols: &Symbols, limit: Duration) -> Result<()> {
    let all = guest.root();
    same("tasks before the kernel has described itself", &guest.find_tasks(), &Err(TasksError::NoKernel))?;
    let ready = guest.add(Point::execute(symbols.get("free_initmem")?.start))?;
    let stop = guest.go_until(all, Mode::Run, limit)?;
    guest.take_out(ready);
    let named = |guest: &Debuggee<M>, ids: &[Id], is_it: &dyn Fn(&Task) -> bool| {
        let found = ids.iter().copied().find(|id| guest.task(*id).is_some_and(is_it));
        found.ok_or_else(|| format!("no such task among {}", ids.len()))
    };
    let ids = guest.find_tasks()?;
    let first = named(guest, &ids, &|task| task.pid == 1)?;
    same("the first process is active", &guest.can(first, Mode::UntilActive), &Err(Unable::Active))?;
    same("its registers", &guest.stack(first)?, &guest.stack(stop.context)?)?;

    // One that sleeps now, and not for long.
    let rcu = named(guest, &ids, &|task| ["rcu_preempt", "rcu_sched"].contains(&task.comm.as_str()))?;
    let asleep = guest.stack(rcu)?;
    let stop = guest.go_until(rcu, Mode::UntilActive, limit)?;
    same("it is active", &guest.can(rcu, Mode::UntilActive), &Err(Unable::Active))?;
    let awake = guest.stack(stop.context)?;
    same("it goes on on its own stack", &(asleep.abs_diff(awake) < 16 << 10), &true)?;

    // Whoever sleeps comes by, and one task alone is stopped.
    let tasks = guest.current_tasks()?;
    let is_first = move |hit: &Hit<'_>| tasks.of(hit).is_ok_and(|task| task.pid == 1);
    let schedule = guest.add(Point::execute(symbols.get("schedule")?.start).when(is_first))?;
    for _ in 0..3 {
        let stop = guest.go_until(all, Mode::Run, limit)?;
        same("what it has stopped at", &stop.breakpoints, &vec![schedule])?;
        same("the first process", &guest.can(first, Mode::UntilActive), &Err(Unable::Active))?;
        same("its registers", &guest.stack(first)?, &guest.stack(stop.context)?)?;
    }
    same("it keeps its context", &guest.find_tasks()?.contains(&first), &true)?;
    guest.take_out(schedule);
    Ok(())
}
