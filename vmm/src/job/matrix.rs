//! Many jobs: a list of them, as many at a time as fit, and what came of all.
//!
//! Each is a process of its own, this program's `run`: one that fails takes no other along. Its output and errors wait in
//! files without names until it has ended.

use super::ktap::{self, Test};
use super::verdict::CANNOT;
use nix::sys::signal::Signal;
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
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

/// The most bytes of a list, and of one command's output that are kept.
const MOST_LIST: u64 = 16 << 20;
const MOST_OUTPUT: u64 = 64 << 20;

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

/// Runs all of them, `at_a_time`, with this program; tells of each as it ends.
///
/// # Errors
/// When the system gives no more threads.
pub fn run(
    entries: Vec<Entry>,
    at_a_time: usize,
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
        for one in finished {
            tell(&one);
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

/// A file without a name.
fn nameless() -> io::Result<File> {
    Ok(nix::sys::memfd::memfd_create("output", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?.into())
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
    let (mut output, mut errors) = (nameless()?, nameless()?);
    let began = Instant::now();
    let mut command = Command::new(program);
    command.arg("run").arg("--json").args(&entry.words).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(errors.try_clone()?);
    // SAFETY: the closure makes one system call.
    unsafe {
        // Nobody waits for it when this process has gone.
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
    let mut child: Child = command.spawn()?;
    let status = child.wait()?;
    let took = began.elapsed();
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(CANNOT);
    let (output, errors) = (text_of(&mut output)?, text_of(&mut errors)?);
    let (before, last) = errors.trim_end().rsplit_once('\n').unwrap_or(("", errors.trim_end()));
    let (errors, told) = match serde_json::from_str::<Told>(last) {
        Ok(told) => (before.to_string(), told),
        // It could not be begun, and has said why.
        Err(_) => (errors.clone(), Told { verdict: "cannot".into(), text: last.into() }),
    };
    let tests = ktap::tests(&output);
    let entry = entry.clone();
    Ok(Finished { entry, code, verdict: told.verdict, text: told.text, took, output, errors, tests })
}

fn text_of(file: &mut File) -> io::Result<String> {
    // The end of it says what came of the run.
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MOST_OUTPUT)))?;
    let mut bytes = Vec::new();
    file.take(MOST_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
}
