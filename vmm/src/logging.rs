//! The monitor's own words: on standard error or in a file, marked, never on the console.
//!
//! Everything that is said goes through a `LineQueue`: no thread that says something waits for whoever
//! reads it. And everything is limited by the place that it is said at: a guest, a client of a socket and
//! a failure in a loop can provoke only so many messages a second ([`ALLOWED`]). What each exit of a vCPU
//! says (`-vv`) was asked for, and is bounded by the queue only. What devices say of a guest is limited
//! before it gets here, with whatever logger (`devices::guest_log`).
//!
//! Nothing else writes to standard error while a guest runs (`make layering` looks).

pub(crate) mod line_queue;
pub(crate) mod progress;

use crate::given_file;
use crate::patient::Patient;
use arch::words::{counted, verb};
use devices::rate_limit::{RateLimit, missed_in_words};
use env_logger::{Builder, Logger, Target};
use line_queue::LineQueue;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Messages of one place that are shown in a second.
pub const ALLOWED: u32 = 50;

static STDERR: OnceLock<LineQueue> = OnceLock::new();
/// Where messages go, if it is not standard error.
static FILE: OnceLock<LineQueue> = OnceLock::new();

/// The level for a number of `-v` less a number of `-q`.
pub fn level(verbose: u8, quiet: bool) -> LevelFilter {
    match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    }
}

fn lost_messages(count: u64) -> String {
    let (messages, were) = (counted(count, "message"), verb(count, "was", "were"));
    format!("vmm: warn: {messages} {were} dropped here: messages are not read as fast as they come\n")
}

/// Standard error, for whole lines. It is one queue for all of the process.
///
/// # Errors
/// When the system gives no thread.
pub fn stderr() -> io::Result<LineQueue> {
    if let Some(queue) = STDERR.get() {
        return Ok(queue.clone());
    }
    // What cannot be said on standard error cannot be said.
    let queue = LineQueue::start(Patient(io::stderr()), lost_messages, |_| {})?;
    Ok(STDERR.get_or_init(|| queue).clone())
}

/// Standard error itself, for what is not a message of ours and must not be lost: a command's errors, on a thread that
/// may wait. `None` when it is closed.
pub fn stderr_file() -> Option<File> {
    io::stderr().as_fd().try_clone_to_owned().ok().map(File::from)
}

/// Whether a person may be looking at standard error.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether messages go to a file.
pub fn has_file() -> bool {
    FILE.get().is_some()
}

/// Writes lines to standard error, without waiting for whoever reads them.
pub fn print(lines: &str) {
    if let Ok(queue) = stderr() {
        queue.put(lines.as_bytes());
    }
}

/// Gives what has been said the time to go out, as long as somebody reads it. Called last.
pub fn finish() {
    for queue in [FILE.get(), STDERR.get()].into_iter().flatten() {
        queue.finish();
    }
}

/// Starts logging. `RUST_LOG` overrides the level, per target if need be.
///
/// # Errors
/// When the file cannot be created, or the system gives no thread.
pub fn start(level: LevelFilter, path: Option<&Path>) -> io::Result<()> {
    let mut builder = Builder::new();
    builder.filter_level(level);
    // gdbstub tells of each packet that it does not know, which clients send to find out.
    if level < LevelFilter::Debug {
        builder.filter_module("gdbstub", level.min(LevelFilter::Warn));
    }
    builder.parse_default_env();
    let queue = match path {
        None => {
            builder.format(|out, record| match record.level() {
                Level::Info => writeln!(out, "vmm: {}", record.args()),
                level => writeln!(out, "vmm: {}: {}", level.as_str().to_lowercase(), record.args()),
            });
            stderr()?
        }
        Some(path) => {
            let start = Instant::now();
            builder.format(move |out, record| {
                let elapsed = start.elapsed();
                let level = record.level().as_str().to_lowercase();
                writeln!(
                    out,
                    "{:>10.6} {level}: {}: {}",
                    elapsed.as_secs_f64(),
                    record.target(),
                    record.args()
                )
            });
            to_file(path)?
        }
    };
    builder.target(Target::Pipe(Box::new(queue)));
    let logger = Limited { inner: builder.build(), limits: Mutex::default() };
    log::set_max_level(logger.inner.filter());
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)
}

fn to_file(path: &Path) -> io::Result<LineQueue> {
    let file = given_file::create(path)?;
    let path = path.display().to_string();
    let failed = move |error: &io::Error| {
        print(&format!("vmm: warn: messages are lost: cannot write to --log {path}: {error}\n"));
    };
    let queue = LineQueue::start(file, lost_messages, failed)?;
    // Logging is started once.
    Ok(FILE.get_or_init(|| queue).clone())
}

/// A logger that limits what each place says.
struct Limited {
    inner: Logger,
    /// By file and line.
    limits: Mutex<HashMap<(&'static str, u32), RateLimit>>,
}

impl Limited {
    /// How many messages of a record's place were not shown before this one; `None` for one that is not
    /// shown either.
    fn admit(&self, record: &Record<'_>) -> Option<u64> {
        if record.level() > Level::Info {
            return Some(0);
        }
        let place = (record.file_static().unwrap_or_default(), record.line().unwrap_or_default());
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.entry(place).or_insert_with(|| RateLimit::new(ALLOWED, Duration::from_secs(1)));
        limit.admit(Instant::now())
    }
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        match self.admit(record) {
            None => {}
            Some(0) => self.inner.log(record),
            Some(missed) => self.inner.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .args(format_args!("{}{}", record.args(), missed_in_words(missed)))
                    .build(),
            ),
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::given_file::tests::Fifo;

    #[test]
    fn a_log_to_a_named_pipe_waits_for_no_reader() {
        let fifo = Fifo::new("log");
        let mut queue = to_file(&fifo.0).unwrap();
        queue.write_all(b"text\n").unwrap();
        assert_eq!(fifo.read(5), b"text\n");
    }

    #[test]
    fn a_place_is_shown_so_often_and_what_was_asked_for_always() {
        let logger = Limited { inner: Builder::new().build(), limits: Mutex::default() };
        let admitted = |level, line| {
            let record = |args| {
                let mut builder = Record::builder();
                builder.level(level).file_static(Some("here")).line(Some(line)).args(args);
                logger.admit(&builder.build()).is_some()
            };
            (0..1000).filter(|_| record(format_args!(""))).count()
        };
        // A second may pass meanwhile, but not ten.
        for (level, line) in [(Level::Error, 1), (Level::Warn, 2), (Level::Info, 3)] {
            let count = admitted(level, line);
            assert!(count >= ALLOWED as usize && count < 10 * ALLOWED as usize, "{level}: {count}");
        }
        assert_eq!(admitted(Level::Debug, 4), 1000);
    }
}
