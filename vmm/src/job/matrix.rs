//! Many jobs: a list of them, as many at a time as fit, and what came of all.
//!
//! Each is a process of its own, this program's `run`: one that fails takes no other along. Its output and errors are read
//! as they come: tests that it tells of are kept, and of the rest the end.

use super::ktap::{self, Beyond, Test};
use super::stop::Stop;
use super::verdict::{CANNOT, one_line};
use arch::plain::plain;
use arch::words::counted;
use serde::Deserialize;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which one it is, from 1.
    pub number: usize,
    /// Its number in the file, from 1.
    pub line: usize,
    /// What it is called: its words.
    pub name: String,
    /// The words of `vmm run`.
    pub words: Vec<String>,
}

/// A list that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file.
    #[error("--matrix {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line.
    #[error("--matrix: line {line}: {why}")]
    Line {
        /// Its number.
        line: usize,
        /// Why.
        why: String,
    },
    /// There is none.
    #[error("--matrix: there are no lines")]
    Empty,
}

/// The most bytes of a list, and of one command's output or errors that are kept.
const MOST_LIST: u64 = 16 << 20;
const MOST_OUTPUT: usize = 1 << 20;
/// The most bytes that are kept of all runs for reports: what they have printed, and names of tests.
const MOST_KEPT: usize = 256 << 20;
/// The most characters of what a run says last.
const MOST_TEXT: usize = 500;

/// The lines of a list; those that are empty or begin with `#` are left out. `check` says of each whether its words can be
/// understood.
///
/// # Errors
/// [`ListError`], the first.
pub fn read(path: &Path, check: impl Fn(&[String]) -> Result<(), String>) -> Result<Vec<Entry>, ListError> {
    let failed = |source| ListError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let mut file: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(failed)?),
    };
    file.by_ref().take(MOST_LIST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_LIST {
        return Err(failed(io::Error::other("it is too long")));
    }
    let text = String::from_utf8(bytes).map_err(|_| failed(io::Error::other("it is not UTF-8")))?;
    let mut entries = Vec::new();
    // Some editors write it in front of all text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let error = |why: String| ListError::Line { line, why };
        if text.contains('\0') {
            return Err(error("it has a NUL byte".into()));
        }
        let words = shlex::split(text).ok_or_else(|| error("a quotation has no end".into()))?;
        check(&words).map_err(error)?;
        let number = entries.len() + 1;
        entries.push(Entry { number, line, name: plain(&text.replace('\t', " ")), words });
    }
    if entries.is_empty() { Err(ListError::Empty) } else { Ok(entries) }
}

/// What came of one.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Which.
    pub entry: Entry,
    /// Its exit code.
    pub code: u8,
    /// What its verdict was, in a word and in a line.
    pub verdict: String,
    /// See there.
    pub text: String,
    /// How long the process took.
    pub took: Duration,
    /// Where a core of its guest is.
    pub dump: Option<String>,
    /// What the command printed.
    pub output: String,
    /// The same of its errors, and of what the program said.
    pub errors: String,
    /// How many tests it tells of itself, and how many of them have failed.
    pub told: usize,
    /// See there.
    pub failed: usize,
    /// These tests, if a report shows them.
    pub tests: Vec<Test>,
}

/// What reports show of runs, besides how they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What they have printed.
    pub output: bool,
    /// The names of their tests.
    pub tests: bool,
}

impl Finished {
    /// Whether the command has ended with 0, and none of its tests has failed.
    pub fn is_passed(&self) -> bool {
        self.code == 0 && self.failed == 0
    }

    /// Whether a report shows what it has printed: where tests tell nothing, or not all.
    pub fn shows_output(&self) -> bool {
        self.told == 0 || !self.is_passed()
    }

    /// Keeps what a report shows, as long as there is `room`: bytes, of which it takes its own.
    fn forget(&mut self, shown: Shown, room: &mut usize) {
        const LEFT_OUT: &str = "(vmm: left out here: reports of many runs have an end)";
        let mut fits = |bytes: usize| {
            let left = room.checked_sub(bytes);
            *room = left.unwrap_or(*room);
            left.is_some()
        };
        let names = self.tests.iter().map(|test| test.name.len() + size_of::<Test>()).sum();
        if !shown.tests || !fits(names) {
            self.tests = Vec::new();
        }
        if !shown.output || !self.shows_output() {
            (self.output, self.errors) = (String::new(), String::new());
        } else if !fits(self.output.len() + self.errors.len()) {
            (self.output, self.errors) = (LEFT_OUT.into(), String::new());
        }
    }
}

/// The last line of a job's errors (`--json`).
#[derive(Debug, Deserialize)]
struct Told {
    verdict: String,
    text: String,
    dump: Option<String>,
}

/// How many are run.
#[derive(Debug)]
pub struct Runs<'a> {
    /// The program, and its words in front of a run's own.
    pub program: Vec<OsString>,
    /// How many at a time.
    pub at_a_time: usize,
    /// What reports show of them.
    pub shown: Shown,
    /// What ends all of them.
    pub stop: &'a Stop,
}

impl Runs<'_> {
    /// Runs all of these; tells of each as it ends. Behind that only what is `shown` is kept of what they print. `so_far` hears
    /// of those that have ended, and again when it wants to. When all are ended, it is about those that have ended themselves.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn carry_out(
        &self,
        entries: Vec<Entry>,
        mut tell: impl FnMut(&Finished),
        mut so_far: impl FnMut(&[Finished]) -> Option<Instant>,
    ) -> io::Result<Vec<Finished>> {
        self.stop.begin();
        let waiting = Mutex::new(VecDeque::from(entries));
        let waiting = &waiting;
        // Those that wait to be told have all that was printed.
        let (sender, finished) = sync_channel(1);
        let mut room = MOST_KEPT;
        let mut all = thread::scope(move |scope| -> io::Result<Vec<Finished>> {
            for _ in 0..self.at_a_time.max(1) {
                let sender = sender.clone();
                thread::Builder::new()
                    .name("matrix".into())
                    .spawn_scoped(scope, move || self.work(waiting, &sender))?;
            }
            drop(sender);
            let mut all = Vec::new();
            let mut again: Option<Instant> = None;
            loop {
                let next = match again {
                    Some(at) => finished.recv_timeout(at.saturating_duration_since(Instant::now())),
                    None => finished.recv().map_err(RecvTimeoutError::from),
                };
                match next {
                    Ok(mut one) => {
                        tell(&one);
                        one.forget(self.shown, &mut room);
                        all.push(one);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(all),
                }
                again = so_far(&all);
            }
        })?;
        all.sort_by_key(|one| one.entry.line);
        Ok(all)
    }

    fn work(&self, waiting: &Mutex<VecDeque<Entry>>, sender: &SyncSender<Finished>) {
        loop {
            let Some(entry) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return;
            };
            let Some(finished) = self.finish(entry) else { return };
            if sender.send(finished).is_err() {
                return;
            }
        }
    }

    /// Carries one out; one that cannot be is over as well. None where all are to end.
    fn finish(&self, entry: Entry) -> Option<Finished> {
        let began = Instant::now();
        self.run_one(&entry).unwrap_or_else(|error| {
            Some(Finished {
                entry,
                code: CANNOT,
                verdict: "cannot".into(),
                text: format!("it cannot be run: {error}"),
                took: began.elapsed(),
                dump: None,
                output: String::new(),
                errors: String::new(),
                told: 0,
                failed: 0,
                tests: Vec::new(),
            })
        })
    }

    fn run_one(&self, entry: &Entry) -> io::Result<Option<Finished>> {
        let began = Instant::now();
        let [program, before @ ..] = &self.program[..] else { return Err(io::ErrorKind::NotFound.into()) };
        let mut command = Command::new(program);
        command.args(before).args(&entry.words).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let Some(mut running) = self.stop.spawn(&mut command)? else { return Ok(None) };
        let (output, errors) = (running.child.stdout.take(), running.child.stderr.take());
        let (Some(output), Some(errors)) = (output, errors) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // Both at once: neither is to wait for the other.
        let (output, errors) = thread::scope(|scope| {
            let output = thread::Builder::new().spawn_scoped(scope, || Heard::read(output))?;
            let errors = Heard::read(errors);
            let output = output.join().unwrap_or_else(|_| Err(io::Error::other("its output cannot be read")));
            Ok::<_, io::Error>((output?, errors?))
        })?;
        let status = running.wait()?;
        // One that has come to its end before is told of.
        let was_ended = self.stop.by().is_some() && status.signal().is_some();
        Ok((!was_ended).then(|| told(entry, status, (output, errors), began.elapsed())))
    }
}

/// What comes of one stream: the tests in it, and its end.
#[derive(Debug, Default)]
struct Heard {
    tests: ktap::Reader,
    bytes: VecDeque<u8>,
    /// Bytes in front of those that were left out.
    left_out: u64,
}

impl Heard {
    fn push(&mut self, bytes: &[u8]) {
        self.tests.push(bytes);
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(MOST_OUTPUT);
        self.bytes.drain(..over);
        self.left_out += over as u64;
    }

    /// Reads a stream to its end.
    fn read(mut stream: impl Read) -> io::Result<Heard> {
        let (mut heard, mut piece) = (Heard::default(), [0; 8192]);
        loop {
            match stream.read(&mut piece) {
                Ok(0) => return Ok(heard),
                Ok(count) => heard.push(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The text, which says how much is left out, the tests, and those that are counted only.
    fn finish(mut self) -> (String, Vec<Test>, Beyond) {
        let text = String::from_utf8_lossy(self.bytes.make_contiguous()).into_owned();
        let text = match self.left_out {
            0 => text,
            count => format!("(vmm: {} left out here)\n{text}", counted(count, "byte")),
        };
        (text, self.tests.finish(), self.tests.beyond())
    }
}

/// What is told of one that has not said itself what came of it, by the last line of its errors.
fn untold(status: ExitStatus, last: &str) -> Told {
    let last: String = one_line(last).chars().take(MOST_TEXT).collect();
    let text = match status.signal() {
        Some(signal) if last.is_empty() => format!("ended by signal {signal}"),
        Some(signal) => format!("ended by signal {signal}; its last words: {last}"),
        None => last,
    };
    Told { verdict: "cannot".into(), text, dump: None }
}

/// What came of one, by what it has printed.
fn told(entry: &Entry, status: ExitStatus, (output, errors): (Heard, Heard), took: Duration) -> Finished {
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT);
    let ((output, mut tests, beyond), (errors, of_log, log_beyond)) = (output.finish(), errors.finish());
    // The kernel's log may be among its errors (`--kernel-log -`).
    tests.extend(of_log);
    let (before, last) = errors.trim_end().rsplit_once('\n').unwrap_or(("", errors.trim_end()));
    let (errors, of_itself) = match serde_json::from_str::<Told>(last) {
        Ok(told) => (before.to_string(), told),
        // It could not be begun, and has said why, or somebody has ended it.
        Err(_) => (errors.clone(), untold(status, last)),
    };
    let failed = tests.iter().filter(|test| test.result == ktap::Result::Failed).count();
    let failed = failed + beyond.failed + log_beyond.failed;
    let (entry, count) = (entry.clone(), tests.len() + beyond.all + log_beyond.all);
    let Told { verdict, text, dump } = of_itself;
    Finished { entry, code, verdict, text, took, dump, output, errors, told: count, failed, tests }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<Entry>, String> {
        let name = thread::current().name().unwrap_or("test").replace(':', "-");
        let path = std::env::temp_dir().join(format!("vmm-matrix-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let check = |words: &[String]| match words.contains(&"--wrong".to_string()) {
            true => Err("--wrong is no option".to_string()),
            false => Ok(()),
        };
        let read = read(&path, check).map_err(|error| error.to_string());
        std::fs::remove_file(&path).unwrap();
        read
    }

    #[test]
    fn lines_are_the_words_of_a_run() {
        let entries = list("\u{feff}# all\n\n--kernel 'a b' -- sh -c \"exit 3\"\n  -- true\n").unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].words, ["--kernel", "a b", "--", "sh", "-c", "exit 3"]);
        assert_eq!(list("-- a\tb\u{1b}[2J").unwrap()[0].name, "-- a b\u{fffd}[2J");
        assert_eq!((entries[0].line, entries[1].line, &*entries[1].name), (3, 4, "-- true"));
        assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_list_that_is_wrong_is_refused() {
        for (text, says) in [
            ("", "there are no lines"),
            ("# nothing\n", "there are no lines"),
            ("-- true\n-- echo a\0b\n", "line 2: it has a NUL byte"),
            ("-- true\n-- echo 'a\n", "line 2: a quotation has no end"),
            ("--wrong -- true\n", "line 1: --wrong is no option"),
        ] {
            assert!(list(text).unwrap_err().contains(says), "{text}");
        }
        assert!(read(Path::new("/nowhere"), |_| Ok(())).unwrap_err().to_string().contains("/nowhere"));
    }

    #[test]
    fn of_what_is_printed_the_end_is_kept_and_all_tests() {
        let mut printed = b"TAP version 13\n1..2\nnot ok 1 early\n".to_vec();
        printed.resize(3 * MOST_OUTPUT, b'x');
        printed.extend_from_slice(b"\nok 2 late\n");
        let (text, tests, _) = Heard::read(&printed[..]).unwrap().finish();
        let left_out = printed.len() - MOST_OUTPUT;
        assert!(text.starts_with(&format!("(vmm: {left_out} bytes left out here)\nxxx")));
        assert!(text.ends_with("x\nok 2 late\n") && text.len() < MOST_OUTPUT + 100);
        let failed = tests.iter().filter(|test| test.result == ktap::Result::Failed).count();
        assert_eq!((tests.len(), failed), (2, 1));
    }

    #[test]
    fn one_that_a_signal_has_ended_is_told_so() {
        let of = |wait: i32, last: &str| untold(ExitStatus::from_raw(wait), last).text;
        assert_eq!(of(9, ""), "ended by signal 9");
        assert_eq!(of(9, "half\u{1b}[2J"), "ended by signal 9; its last words: half\u{fffd}[2J");
        assert_eq!(of(125 << 8, "vmm: error: no kernel"), "vmm: error: no kernel");
        assert_eq!(of(0, &"é".repeat(10_000)).chars().count(), MOST_TEXT);
    }

    #[test]
    fn what_has_ended_before_a_signal_is_told_of() {
        use nix::sys::signal::Signal;
        let entries = [(1, "echo quick"), (2, "exec sleep 1000"), (3, "echo late")].map(|(number, text)| {
            Entry { number, line: number, name: text.into(), words: vec![text.into()] }
        });
        let stop = Stop::default();
        let shown = Shown { output: true, tests: true };
        let program = ["/bin/sh", "-c"].map(OsString::from).into();
        let runs = Runs { program, at_a_time: 1, shown, stop: &stop };
        // What is so far is asked for again, without another that ends; then all are ended.
        let mut times = 0;
        let mut told = Vec::new();
        let so_far = |all: &[Finished]| {
            times += 1;
            assert!(all.len() == 1 && (times == 1 || stop.end(Signal::SIGTERM)));
            (times == 1).then(Instant::now)
        };
        let finished = runs.carry_out(entries.into(), |one| told.push(one.entry.line), so_far);
        let finished = finished.unwrap();
        assert_eq!((told, finished.len(), &*finished[0].output), (vec![1], 1, "quick\n"));
    }

    #[test]
    fn what_no_report_shows_is_forgotten() {
        let test = Test { name: "a".into(), result: ktap::Result::Passed };
        for (reported, code, tests, failed, is_kept) in [
            (true, 0, 3, 0, false),
            (true, 0, 3, 1, true),
            (true, 1, 3, 0, true),
            (true, 0, 0, 0, true),
            (false, 1, 0, 0, false),
        ] {
            let mut one = Finished {
                entry: Entry { number: 1, line: 1, name: "a".into(), words: vec![] },
                code,
                verdict: "exit".into(),
                text: String::new(),
                took: Duration::ZERO,
                dump: None,
                output: "out".into(),
                errors: "err".into(),
                told: tests,
                failed,
                tests: vec![test.clone(); tests],
            };
            let mut room = 1000;
            one.forget(Shown { output: reported, tests: reported }, &mut room);
            assert_eq!(one.tests.len(), if reported { tests } else { 0 });
            let names = one.tests.len() * (1 + size_of::<Test>());
            assert_eq!(1000 - room, names + if is_kept { 6 } else { 0 });
            assert_eq!(
                (one.output.is_empty(), one.errors.is_empty()),
                (!is_kept, !is_kept),
                "{code} {tests}"
            );
            // Where there is no more room, that is said instead; how many tests there are is known still.
            (one.output, one.errors) = ("out".into(), "err".into());
            one.forget(Shown { output: true, tests: true }, &mut 5);
            assert!(one.tests.is_empty() && one.told == tests && one.errors.is_empty());
            assert!(one.output.is_empty() || one.output.starts_with("(vmm: left out"), "{}", one.output);
        }
    }
}
