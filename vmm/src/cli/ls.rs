//! `vmm ls`: this user's guests that run.

use super::stdout;
use crate::control::client::ask_within;
use crate::control::names;
use crate::control::protocol::{Info, Request, Response};
use crate::outcome;
use arch::plain::plain;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::thread;
use std::time::{Duration, Instant};

/// List the guests that run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON; with --watch a line each time
    #[arg(long)]
    json: bool,
    /// Again each second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// How often [`Args::watch`] looks.
const EVERY: Duration = Duration::from_secs(1);
/// What has a terminal begin anew (ECMA-48, "CUP" and "ED").
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How long a guest may take to answer: milliseconds, as a rule, and more where fifty others spin beside it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a guest answers; `None` where nobody is any more.
fn ask(name: &str) -> Option<Result<Info, String>> {
    match ask_within(name, &Request::Info {}, PATIENCE) {
        Ok(Response::Info(info)) => Some(Ok(*info)),
        Ok(Response::Error(why)) => Some(Err(why)),
        Ok(_) => Some(Err("it answers something else".into())),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            names::sweep(name);
            None
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Err("it does not answer".into())),
        Err(error) => Some(Err(error.to_string())),
    }
}

/// Does it; the exit code.
pub fn carry_out(&Args { json, watch }: &Args) -> u8 {
    let clears = watch && !json && io::stdout().is_terminal();
    loop {
        let begin = Instant::now();
        let (guests, code) = all();
        let list = match (json, watch) {
            (true, true) => format!("{}\n", as_json(&guests)),
            (true, false) => format!("{:#}\n", as_json(&guests)),
            // What is said of those that were not found is not to be contradicted.
            (false, _) if code != 0 && guests.is_empty() => String::new(),
            (false, _) => in_words(&guests),
        };
        let printed = print(&format!("{}{list}", if clears { CLEAR } else { "" }));
        if !watch || !matches!(printed, Ok(true)) {
            return stdout::written(printed.map(|_| ()), code);
        }
        // Nobody wakes this thread.
        while let Some(left) = EVERY.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
    }
}

/// Prints a list; `false` when nobody reads it any more.
fn print(list: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(list.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
    }
}

/// The guests, and an exit code that says whether all have been found and have answered. All are asked at once, as one may have to be waited
/// for.
fn all() -> (Vec<(String, Info)>, u8) {
    names::sweep_others();
    let (names, searched) = names::all();
    let asked: Vec<_> = names
        .into_iter()
        .map(|name| {
            let its_name = name.clone();
            (name, thread::spawn(move || ask(&its_name)))
        })
        .collect();
    let answered = asked.into_iter().filter_map(|(name, asking)| {
        let answer = asking.join().unwrap_or_else(|_| Some(Err("it could not be asked".into())));
        Some((name, answer?))
    });
    let (mut guests, mut code) = (Vec::new(), 0);
    if let Err(error) = searched {
        log::error!("guests may run that are not found: {error}");
        code = outcome::FILE;
    }
    for (name, answer) in answered {
        match answer {
            Ok(info) => guests.push((name, info)),
            Err(why) => {
                log::error!("{name}: {why}");
                code = outcome::FILE;
            }
        }
    }
    (guests, code)
}

fn as_json(guests: &[(String, Info)]) -> serde_json::Value {
    let guest = |(name, info): &(String, Info)| {
        serde_json::json!({
            "name": name, "pid": info.pid, "state": info.state.word(), "vcpus": info.vcpus, "memory": info.memory,
            "seconds": info.seconds, "serves_gdb": info.serves_gdb, "gdb": info.gdb, "debugged": info.is_debugged,
            "typing": info.typing, "watching": info.watching, "following": info.following,
            "release": info.release, "kernel": info.kernel,
        })
    };
    guests.iter().map(guest).collect()
}

fn in_words(guests: &[(String, Info)]) -> String {
    let mut text = String::new();
    if guests.is_empty() {
        return "no guest runs\n".into();
    }
    let width = guests.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("NAME".len());
    // Writing to a String cannot fail.
    writeln!(
        text,
        "{:width$} {:>8} {:<8} {:>5} {:>9} {:>9} {:<9} {:<8} {:<6} KERNEL",
        "NAME", "PID", "STATE", "VCPUS", "MEMORY", "UP", "GDB", "CONSOLE", "EVENTS"
    )
    .ok();
    for (name, info) in guests {
        let gdb = match (info.serves_gdb, info.is_debugged) {
            (_, true) => "attached",
            (true, false) => "served",
            (false, false) => "-",
        };
        let console = match (info.typing, info.watching) {
            (false, 0) => "-".into(),
            (true, 0) => "typed".into(),
            (true, others) => format!("typed+{others}"),
            (false, others) => format!("watch {others}"),
        };
        let events = if info.following == 0 { "-".into() } else { info.following.to_string() };
        let (seconds, memory) = (info.seconds, info.memory >> 20);
        let up = format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
        let release: String = plain(info.release.as_deref().unwrap_or("-")).chars().take(SHOWN).collect();
        let (pid, state, vcpus) = (info.pid, info.state.word(), info.vcpus);
        writeln!(
            text,
            "{name:width$} {pid:>8} {state:<8} {vcpus:>5} {memory:>5} MiB {up:>9} {gdb:<9} {console:<8} {events:<6} {release}"
        )
        .ok();
    }
    text
}

/// Characters of a release that are shown, at most.
const SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::RunState;

    #[test]
    fn guests_in_words_and_as_json() {
        let info = Info {
            version: 1,
            pid: 7,
            vcpus: 2,
            memory: 256 << 20,
            state: RunState::Stopped,
            seconds: 3723,
            serves_gdb: true,
            gdb: Some(":1".into()),
            kernel: None,
            symbols: None,
            is_debugged: false,
            typing: true,
            watching: 2,
            following: 3,
            release: Some("6.12\u{1b}[2J".into()),
        };
        let guests = [("a-guest".to_string(), info)];
        let expected = "NAME         PID STATE    VCPUS    MEMORY        UP GDB       CONSOLE  EVENTS KERNEL\n\
                        a-guest        7 stopped      2   256 MiB   1:02:03 served    typed+2  3      6.12\u{fffd}[2J\n";
        assert_eq!(in_words(&guests), expected);
        let json = as_json(&guests);
        assert_eq!((&json[0]["name"], &json[0]["memory"]), (&"a-guest".into(), &(256u64 << 20).into()));
        assert_eq!((&json[0]["typing"], &json[0]["following"]), (&true.into(), &3.into()));
        let consoles = [(false, 0, " -  "), (true, 0, " typed  "), (false, 1, " watch 1  ")];
        for (typing, watching, words) in consoles {
            let info = Info { typing, watching, following: 0, ..guests[0].1.clone() };
            let line = in_words(&[("a-guest".to_string(), info)]);
            assert!(line.contains(words) && line.contains(" -      6.12"), "{line}");
        }
        assert_eq!(in_words(&[]), "no guest runs\n");
        assert_eq!(as_json(&[]), serde_json::json!([]));
    }
}
