//! How soon a guest answers at its control socket, whatever its vCPUs do; and how soon many are listed and stopped.

use super::{median, milliseconds};
use crate::process::{Process, Wiring};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often each question is asked.
const ROUNDS: usize = 200;
/// Guests that are listed and stopped.
const MANY: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);

/// What is asked, and what the answer has in it.
const QUESTIONS: [(&str, &str); 4] = [
    (r#"{"info":{}}"#, "\"vcpus\""),
    (r#"{"monitor":{"line":"regs"}}"#, "\"code\":0"),
    (r#"{"stop":{}}"#, "\"done\""),
    (r#"{"cont":{}}"#, "\"done\""),
];

/// Where guests are made and found.
struct Place<'a> {
    vmm: &'a Path,
    runtime: &'a Path,
}

impl Place<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.vmm);
        command.args(words).env("XDG_RUNTIME_DIR", self.runtime).env_remove("RUST_LOG");
        command
    }

    fn start(&self, name: &str, kernel: &Path, words: &[&str]) -> Result<Process, String> {
        let mut command = self.command(&["--name", name, "--memory", "32M", "--console", "none", "--kernel"]);
        command.arg(kernel).args(words);
        let process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
        let begin = Instant::now();
        while UnixStream::connect(self.socket(name)).is_err() {
            if begin.elapsed() > LIMIT {
                return Err(format!("{name} is not there: {}", process.errors.text()));
            }
            std::thread::yield_now();
        }
        Ok(process)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.runtime.join("vmm").join(format!("{name}.sock"))
    }

    /// From the connection to the answer, ms.
    fn ask(&self, name: &str, question: &str, answer: &str) -> Result<f64, String> {
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let begin = Instant::now();
        let mut stream = UnixStream::connect(self.socket(name)).map_err(failed)?;
        stream.write_all(format!("{question}\n").as_bytes()).map_err(failed)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(failed)?;
        let took = milliseconds(begin);
        if line.contains(answer) { Ok(took) } else { Err(format!("{name}: {question}: {line}")) }
    }
}

/// The figures, a line each. `kernel` has the path of each of the tests' guests.
///
/// # Errors
/// When a guest does not do what it should.
pub fn lines(
    vmm: &Path,
    runtime: &Path,
    kernel: &dyn Fn(&str) -> Result<PathBuf, String>,
) -> Result<String, String> {
    let place = Place { vmm, runtime };
    let mut text = format!("  {:34}{:>8} {:>8} {:>8} {:>8}\n", "", "info", "regs", "stop", "cont");
    let socket = format!("unix:{}", runtime.join("gdb").display());
    let guests: [(&str, &str, &[&str]); 4] = [
        ("runs, and leaves the guest seldom", "spin", &[]),
        ("has exits all the time", "loop", &[]),
        ("halts", "halt", &[]),
        ("is held by gdb", "loop", &["--gdb", &socket]),
    ];
    for (what, guest, words) in guests {
        let mut process = place.start("asked", &kernel(guest)?, words)?;
        let mut times: [Vec<f64>; QUESTIONS.len()] = Default::default();
        for _ in 0..ROUNDS {
            for ((question, answer), times) in QUESTIONS.iter().zip(&mut times) {
                times.push(place.ask("asked", question, answer)?);
            }
        }
        place.ask("asked", r#"{"quit":{}}"#, "\"done\"")?;
        process.wait(LIMIT)?;
        let most = times.iter().flatten().copied().fold(0.0, f64::max);
        write!(text, "  {what:34}").map_err(|error| error.to_string())?;
        for times in times {
            write!(text, "{:8.2} ", median(times)).map_err(|error| error.to_string())?;
        }
        writeln!(text, " ms, {most:.1} at most (aim: 10)").map_err(|error| error.to_string())?;
    }
    text.push_str(&many(&place, &kernel("loop")?)?);
    Ok(text)
}

fn many(place: &Place<'_>, kernel: &Path) -> Result<String, String> {
    let names: Vec<String> = (0..MANY).map(|number| format!("many-{number}")).collect();
    let mut guests = Vec::new();
    for name in &names {
        guests.push(place.start(name, kernel, &[])?);
    }
    let begin = Instant::now();
    let listed = place.command(&["ls"]).output().map_err(|error| error.to_string())?;
    let listed_in = milliseconds(begin);
    let count = String::from_utf8_lossy(&listed.stdout).matches("running").count();
    let all = |word: &str| -> Result<f64, String> {
        let begin = Instant::now();
        let start = |name: &String| {
            let mut command = place.command(&[word, name]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let asked: Result<Vec<_>, _> = names.iter().map(start).collect();
        for mut asked in asked.map_err(|error| error.to_string())? {
            let code = asked.wait().map_err(|error| error.to_string())?;
            if !code.success() {
                return Err(format!("{word}: {code}"));
            }
        }
        Ok(milliseconds(begin))
    };
    let stopped_in = all("stop")?;
    all("quit")?;
    for guest in &mut guests {
        guest.wait(LIMIT)?;
    }
    Ok(format!(
        "  {count} guests that spin: listed in {listed_in:.0} ms, each stopped by a `vmm stop` of its own in {stopped_in:.0} ms \
         (aims: 1,000)\n"
    ))
}
