//! Many machines in one process, each ending otherwise: nothing of them stays.

use crate::context::{Check, Context, check};
use crate::rsp::Client;
use arch::{End, Isa};
use debug::dump::write::destination::Destination;
use debug::gdb::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use vmm::machine::dumper::Moment;
use vmm::machine::{Config, GdbConfig, Guest, MemorySize};
use vmm::outcome::Outcome;

/// Bytes of memory that each guest has.
const MEMORY: u64 = 64 << 20;
/// How many are there at a time.
const AT_A_TIME: usize = 4;

/// How a machine ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// Its guest writes to the exit device.
    Exit,
    /// x86: a triple fault; aarch64, which has none: the guest's reset.
    Fault,
    /// It is dropped while its guest runs.
    Running,
    /// It is dropped while a debugger's client has stopped its guest...
    Stopped,
    /// ...and while the client watches it run.
    Watched,
    /// It is dropped while a dump of it is written.
    Dumped,
}

/// One of each, before anything is counted.
const FIRST: u32 = 6;
const ENDINGS: [Ending; FIRST as usize] =
    [Ending::Exit, Ending::Fault, Ending::Running, Ending::Stopped, Ending::Watched, Ending::Dumped];

/// What a process has that a machine takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    /// Mappings of files, by name: a vCPU has one.
    files: BTreeMap<String, usize>,
    /// Bytes of all other mappings.
    bytes: u64,
}

impl Holdings {
    fn now() -> io::Result<Holdings> {
        let count = |path| Ok::<_, io::Error>(fs::read_dir(path)?.count());
        let (mut files, mut bytes) = (BTreeMap::new(), 0);
        for line in fs::read_to_string("/proc/self/maps")?.lines() {
            let mut words = line.split_whitespace();
            let range = words.next().and_then(|range| range.split_once('-'));
            match words.nth(4) {
                Some(name) if !name.starts_with('[') => *files.entry(name.to_string()).or_default() += 1,
                _ => {
                    let end = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
                    bytes += range.map_or(0, |(from, to)| end(to).saturating_sub(end(from)));
                }
            }
        }
        let (descriptors, threads) = (count("/proc/self/fd")?, count("/proc/self/task")?);
        Ok(Holdings { descriptors, threads, files, bytes })
    }

    /// Whether these are no more than those, with so many bytes for what the allocator keeps.
    fn is_within(&self, before: &Holdings, bytes: u64) -> bool {
        self.descriptors == before.descriptors
            && self.threads == before.threads
            && self.files == before.files
            && self.bytes < before.bytes + bytes
    }
}

/// Machines that are made one after the other by several threads.
struct Machines {
    exit: PathBuf,
    fault: PathBuf,
    spin: PathBuf,
    work: PathBuf,
    limit: Duration,
}

impl Machines {
    fn config(&self, kernel: &Path) -> Result<Config, String> {
        let memory = MemorySize::new(kvm::HOST_ISA, MEMORY)?;
        Ok(Config { kernel: Some(kernel.into()), cpus: 2, memory, ..Config::default() })
    }

    fn start(&self, config: &Config) -> Result<Guest, String> {
        let guest = Guest::new(config, Box::new(io::sink())).map_err(|error| error.to_string())?;
        guest.resume();
        Ok(guest)
    }

    /// Makes one, and has it end.
    fn end(&self, number: u32, ending: Ending) -> Check {
        match ending {
            Ending::Exit => {
                let outcome = self.start(&self.config(&self.exit)?)?.wait(self.limit);
                check(outcome == Some(End::Exit(0x10).into()), || format!("it ended with {outcome:?}"))
            }
            Ending::Fault => {
                let outcome = self.start(&self.config(&self.fault)?)?.wait(self.limit);
                let is_right = match kvm::HOST_ISA {
                    Isa::X86_64 => matches!(outcome, Some(Outcome::TripleFault { .. })),
                    Isa::Aarch64 => outcome == Some(End::Reset.into()),
                };
                check(is_right, || format!("it ended with {outcome:?}"))
            }
            Ending::Running => self.start(&self.config(&self.spin)?).map(drop),
            Ending::Stopped | Ending::Watched => self.debugged(number, matches!(ending, Ending::Stopped)),
            Ending::Dumped => self.dumped(number),
        }
    }

    fn debugged(&self, number: u32, is_stopped: bool) -> Check {
        let socket = self.work.join(format!("{number}.sock"));
        let gdb = GdbConfig { waits: false, ..GdbConfig::new(Endpoint::Unix(socket.clone())) };
        let guest = self.start(&Config { gdb: Some(gdb), ..self.config(&self.spin)? })?;
        let mut client = Client::attach(&socket, self.limit)?;
        let stop = client.ask("?")?;
        check(stop.starts_with("T05"), || format!("the guest stops with {stop}"))?;
        if !is_stopped {
            client.run()?;
        }
        drop(guest);
        // It hears of it.
        while client.item()?.is_some() {}
        check(!socket.exists(), || "the socket is there still".into())
    }

    /// A dump begins, and only then is the machine dropped.
    fn dumped(&self, number: u32) -> Check {
        let path = self.work.join(format!("{number}.core"));
        let guest = self.start(&self.config(&self.spin)?)?;
        let dumper = guest.dumper().clone();
        let (begins, begun) = channel();
        let (drops, dropped) = channel();
        let at = Destination::anywhere(&path).map_err(|error| error.to_string())?;
        let result = thread::scope(|scope| {
            let dump = scope.spawn(move || {
                dumper.dump(&at, Moment::Running, &mut |_| {
                    // Both once: whoever has gone waits no more, and says no more.
                    begins.send(()).ok();
                    dropped.recv().ok();
                    ControlFlow::Continue(())
                })
            });
            let begun = begun.recv_timeout(self.limit).map_err(|_| "no dump begins".to_string());
            drops.send(()).ok();
            drop(drops);
            drop(guest);
            begun.and_then(|()| dump.join().map_err(|_| "the dump panicked".into()))
        })?;
        // It is whole, or it is not there.
        check(result.is_ok() == path.exists(), || format!("{result:?}, but the file is otherwise"))?;
        fs::remove_file(&path).or(Ok(()))
    }

    /// All of them, several at a time.
    fn all(&self, count: u32) -> Check {
        let numbers = Mutex::new(0..count);
        let next = || numbers.lock().ok()?.next();
        let work = || {
            while let Some(number) = next() {
                let ending = ENDINGS[number as usize % ENDINGS.len()];
                self.end(number, ending).map_err(|error| format!("machine {number}, {ending:?}: {error}"))?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
            let results =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into())));
            // All of them end before the first error counts.
            results.collect::<Vec<Check>>().into_iter().collect()
        })
    }
}

/// What the process holds after fifty machines is what it held before them; the first few find out what the host can
/// do, and have the allocator take what it keeps. What ten times as many add to that is so little that no machine can
/// have left 16 KiB.
pub fn come_and_go(c: &mut Context) -> Check {
    let fault = if c.isa == Isa::X86_64 { "triple_fault" } else { "reboot" };
    let machines = Machines {
        exit: c.guest("exit", false)?,
        fault: c.guest(fault, false)?,
        spin: c.guest("spin", false)?,
        work: c.work.clone(),
        limit: c.limit(20),
    };
    let failed = |error: io::Error| error.to_string();
    machines.all(FIRST)?;
    let limit = c.limit(10);
    let before = settled(limit, |now, last| now == last).map_err(failed)?;
    machines.all(50)?;
    // A guest's memory that stayed is more.
    let after = settled(limit, |now, _| now.is_within(&before, MEMORY / 2)).map_err(failed)?;
    machines.all(500)?;
    let last = settled(limit, |now, _| now.is_within(&after, 500 * (16 << 10))).map_err(failed)?;
    c.kept.push(("holdings.txt".into(), format!("{before:#?}\n{after:#?}\n{last:#?}\n").into_bytes()));
    check(after.is_within(&before, MEMORY / 2), || {
        format!("{after:?} is held, and before it was {before:?}")
    })?;
    check(last.is_within(&after, 500 * (16 << 10)), || {
        format!("{last:?} is held, and before it was {after:?}")
    })
}

/// What is held once that is as it should be, or when the limit is over: a thread that has been joined is in the
/// process's list for a moment longer.
fn settled(limit: Duration, is_right: impl Fn(&Holdings, &Holdings) -> bool) -> io::Result<Holdings> {
    let deadline = Instant::now() + limit;
    let mut last = Holdings::now()?;
    loop {
        thread::park_timeout(Duration::from_millis(2));
        let now = Holdings::now()?;
        if is_right(&now, &last) || Instant::now() >= deadline {
            return Ok(now);
        }
        last = now;
    }
}
