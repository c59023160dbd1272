//! Many jobs: a list of them, as many at a time as fit, and what came of all.
//!
//! Each is a process of its own, this program's `run`: one that fails takes no other along. Its output and errors are read
//! as they come: tests that it tells of are kept, and of the rest the end.

use super::ktap::{self, Test};
use super::verdict::CANNOT;
use arch::words::counted;
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
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
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let error = |why: String| ListError::Line { line, why };
        let words = shlex::split(text).ok_or_else(|| error("a quotation has no end".into()))?;
        check(&words).map_err(error)?;
        entries.push(Entry { line, name: text.into(), words });
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
    /// What the command printed.
    pub output: String,
    /// The same of its errors, and of what the program said.
    pub errors: String,
    /// Tests that it tells of itself.
    pub tests: Vec<Test>,
}

impl Finished {
    /// Whether the command has ended with 0, and none of its tests has failed.
    pub fn is_passed(&self) -> bool {
        self.code == 0 && self.failures() == 0
    }

    /// Whether a report shows what it has printed: where tests tell nothing, or not all.
    pub fn shows_output(&self) -> bool {
        self.tests.is_empty() || self.code != 0
    }

    /// Keeps of what it has printed what a report shows, if there is one.
    fn forget_output(&mut self, reported: bool) {
        if !reported || !self.shows_output() {
            (self.output, self.errors) = (String::new(), String::new());
        }
    }

    /// How many of its tests have failed.
    pub fn failures(&self) -> usize {
        self.tests.iter().filter(|test| test.result == ktap::Result::Failed).count()
    }
}

/// The last line of a job's errors (`--json`).
#[derive(Debug, Deserialize)]
struct Told {
    verdict: String,
    text: String,
}

/// Runs all of them, `at_a_time`, with this program; tells of each as it ends. What they print is kept behind that only if
/// it is `reported`.
///
/// # Errors
/// When the system gives no more threads.
pub fn run(
    entries: Vec<Entry>,
    at_a_time: usize,
    reported: bool,
    mut tell: impl FnMut(&Finished),
) -> io::Result<Vec<Finished>> {
    let program = std::env::current_exe()?;
    let waiting = Mutex::new(VecDeque::from(entries));
    let (sender, finished) = channel();
    let mut all = thread::scope(|scope| -> io::Result<Vec<Finished>> {
        for _ in 0..at_a_time.max(1) {
            let (sender, waiting, program) = (sender.clone(), &waiting, &program);
            thread::Builder::new()
                .name("matrix".into())
                .spawn_scoped(scope, move || work(waiting, program, &sender))?;
        }
        drop(sender);
        let mut all = Vec::new();
        for mut one in finished {
            tell(&one);
            one.forget_output(reported);
            all.push(one);
        }
        Ok(all)
    })?;
    all.sort_by_key(|one| one.entry.line);
    Ok(all)
}

fn work(waiting: &Mutex<VecDeque<Entry>>, program: &Path, sender: &Sender<Finished>) {
    loop {
        let Some(entry) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
        if sender.send(carry_out(entry, program)).is_err() {
            return;
        }
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

    /// The text, which says how much is left out, and the tests.
    fn finish(mut self) -> (String, Vec<Test>) {
        let text = String::from_utf8_lossy(self.bytes.make_contiguous()).into_owned();
        let text = match self.left_out {
            0 => text,
            count => format!("(vmm: {} left out here)\n{text}", counted(count, "byte")),
        };
        (text, self.tests.finish())
    }
}

/// Carries one out; one that cannot be is over as well.
fn carry_out(entry: Entry, program: &Path) -> Finished {
    let began = Instant::now();
    run_one(&entry, program).unwrap_or_else(|error| Finished {
        entry,
        code: CANNOT,
        verdict: "cannot".into(),
        text: format!("it cannot be run: {error}"),
        took: began.elapsed(),
        output: String::new(),
        errors: String::new(),
        tests: Vec::new(),
    })
}

fn run_one(entry: &Entry, program: &Path) -> io::Result<Finished> {
    let began = Instant::now();
    let mut command = Command::new(program);
    command.arg("run").arg("--json").args(&entry.words).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: the closure makes one system call.
    unsafe {
        // Nobody waits for it when this process has gone.
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    let mut child: Child = command.spawn()?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let (Some(output), Some(errors)) = (output, errors) else { return Err(io::ErrorKind::BrokenPipe.into()) };
    // Both at once: neither is to wait for the other.
    let (output, errors) = thread::scope(|scope| {
        let output = thread::Builder::new().spawn_scoped(scope, || Heard::read(output))?;
        let errors = Heard::read(errors);
        let output = output.join().unwrap_or_else(|_| Err(io::Error::other("its output cannot be read")));
        Ok::<_, io::Error>((output?, errors?))
    })?;
    let status = child.wait()?;
    let took = began.elapsed();
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT);
    let ((output, mut tests), (errors, of_log)) = (output.finish(), errors.finish());
    // The kernel's log may be among its errors (`--kernel-log -`).
    tests.extend(of_log);
    let (before, last) = errors.trim_end().rsplit_once('\n').unwrap_or(("", errors.trim_end()));
    let (errors, told) = match serde_json::from_str::<Told>(last) {
        Ok(told) => (before.to_string(), told),
        // It could not be begun, and has said why.
        Err(_) => (errors.clone(), Told { verdict: "cannot".into(), text: last.into() }),
    };
    let entry = entry.clone();
    Ok(Finished { entry, code, verdict: told.verdict, text: told.text, took, output, errors, tests })
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
        let entries = list("# all\n\n--kernel 'a b' -- sh -c \"exit 3\"\n  -- true\n").unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].words, ["--kernel", "a b", "--", "sh", "-c", "exit 3"]);
        assert_eq!((entries[0].line, entries[1].line, &*entries[1].name), (3, 4, "-- true"));
    }

    #[test]
    fn a_list_that_is_wrong_is_refused() {
        for (text, says) in [
            ("", "there are no lines"),
            ("# nothing\n", "there are no lines"),
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
        let (text, tests) = Heard::read(&printed[..]).unwrap().finish();
        let left_out = printed.len() - MOST_OUTPUT;
        assert!(text.starts_with(&format!("(vmm: {left_out} bytes left out here)\nxxx")));
        assert!(text.ends_with("x\nok 2 late\n") && text.len() < MOST_OUTPUT + 100);
        let failed = tests.iter().filter(|test| test.result == ktap::Result::Failed).count();
        assert_eq!((tests.len(), failed), (2, 1));
    }

    #[test]
    fn what_no_report_shows_is_forgotten() {
        let test = Test { name: "a".into(), result: ktap::Result::Passed };
        for (reported, code, tests, is_kept) in
            [(true, 0, 1, false), (true, 1, 1, true), (true, 0, 0, true), (false, 1, 0, false)]
        {
            let mut one = Finished {
                entry: Entry { line: 1, name: "a".into(), words: vec![] },
                code,
                verdict: "exit".into(),
                text: String::new(),
                took: Duration::ZERO,
                output: "out".into(),
                errors: "err".into(),
                tests: vec![test.clone(); tests],
            };
            one.forget_output(reported);
            assert_eq!(
                (one.output.is_empty(), one.errors.is_empty()),
                (!is_kept, !is_kept),
                "{code} {tests}"
            );
        }
    }
}
