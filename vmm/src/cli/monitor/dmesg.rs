//! `vmm monitor NAME dmesg`: a guest's log in colour, and as it comes.
//!
//! The guest's monitor keeps nothing for whoever follows its log: it is asked again for what is behind the record that was
//! told last. What it answers here is JSON, and printed here.

use crate::cli::stdout::Waited;
use crate::control::protocol::{Answer, Response};
use crate::machine::looks;
use crate::outcome::NOT_THERE;
use debug::command::common;
use debug::command::dmesg::{DMESG, Dmesg, log_of_json};
use debug::linux::log::Log;
use debug::reply::{Arguments, Value, json};
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// How long it takes from one look to the next, at least.
const PAUSE: Duration = Duration::from_millis(200);
/// How many times as long as a look takes, for which the guest stands still.
const REST: u32 = 9;
/// And how long it takes at most: a look may have taken long for other reasons.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is asked of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    lines: Option<String>,
    level: Option<String>,
    since: Option<u64>,
    pub follow: bool,
}

/// How a log is printed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// A line of JSON for each record.
    pub json: bool,
    pub in_colour: bool,
}

impl Asked {
    /// By a command's words; `None` for another command, and for one that is to be refused.
    pub fn of(command: &[String]) -> Option<Asked> {
        let line = command.join(" ");
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let mut all = common().filter(looks).filter(|command| command.name.starts_with(name));
        let is_it = matches!((all.next(), all.next()), (Some(command), None) if command == DMESG);
        is_it.then_some(())?;
        // Why it is refused, the guest's monitor says.
        let arguments = Arguments::new(&DMESG, &words.collect::<Vec<_>>()).ok()?;
        let Dmesg { wanted, follow } = Dmesg::parse(&arguments).ok()?;
        Some(Asked {
            lines: arguments.words().first().map(ToString::to_string),
            level: arguments.value("--level").map(str::to_string),
            since: wanted.since,
            follow,
        })
    }

    /// As it is asked for.
    pub fn line(&self) -> String {
        let mut line = DMESG.name.to_string();
        let since = self.since.map(|since| since.to_string());
        for (flag, value) in [("", &self.lines), (" --level", &self.level), (" --since", &since)] {
            if let Some(value) = value {
                line.extend([flag, " ", value.as_str()]);
            }
        }
        line
    }
}

/// The log that an answer has, in words or as JSON for whoever reads standard output.
pub(super) fn printed(answer: &Answer, shown: Shown) -> Option<(String, u64)> {
    let log = log_of_json(&serde_json::from_str(&answer.text).ok()?)?;
    Some((text(&log, shown), log.next))
}

fn text(log: &Log, shown: Shown) -> String {
    match shown {
        Shown { json: true, .. } => {
            let lost = (log.lost > 0).then(|| format!("{}\n", json!({ "lost": log.lost })));
            let records = log.json()["records"].take();
            let records = records.as_array().into_iter().flatten().map(|record| format!("{record}\n"));
            lost.into_iter().chain(records).collect()
        }
        Shown { in_colour: true, .. } => log.in_colour(),
        Shown { .. } => log.to_string(),
    }
}

/// How following a log ended.
#[derive(Debug)]
pub(super) enum End {
    /// The guest has ended.
    Guest,
    /// What was answered is to be told: why it is not followed, or no more.
    Answer(io::Result<Response>),
    /// It cannot be written any more.
    Output(io::Error),
    /// Whoever followed it wants something else.
    Interrupted,
}

/// Prints what there is, and then what comes. `ask` asks the guest, `print` writes what there is to be written, `pause`
/// waits for somebody to break this off.
pub(super) fn follow(
    asked: &Asked,
    shown: Shown,
    mut ask: impl FnMut(String) -> io::Result<Response>,
    mut print: impl FnMut(&str) -> io::Result<()>,
    mut pause: impl FnMut(Duration) -> io::Result<Waited>,
) -> End {
    // Of which beginning of the guest what was told last is.
    let (mut asked, mut told) = (Asked { since: asked.since.or(Some(0)), ..asked.clone() }, None);
    loop {
        let began = Instant::now();
        let answer = ask(asked.line());
        // Not the time that whoever reads takes.
        let took = began.elapsed();
        let has_begun = told.is_some();
        match answer {
            Err(error) if error.kind() == ErrorKind::Interrupted => return End::Interrupted,
            // Another kernel's log, of which that was asked for which is behind the former one's.
            Ok(Response::Answer(answer))
                if answer.code == 0 && told.is_some_and(|told| told != answer.restarts) =>
            {
                (asked.since, told) = (Some(0), Some(answer.restarts));
                continue;
            }
            Ok(Response::Answer(answer)) if answer.code == 0 => {
                let Some((text, next)) = printed(&answer, shown) else {
                    return End::Answer(Ok(Response::Error("it answers no log".into())));
                };
                if let Err(error) = print(&text) {
                    return End::Output(error);
                }
                // Those that there were are told.
                (asked.lines, asked.since, told) = (None, Some(next), Some(answer.restarts));
            }
            // Between one kernel and the next, and where others are served just then.
            Ok(Response::Answer(Answer { code: NOT_THERE, .. }) | Response::Error(_)) if has_begun => {}
            Ok(Response::Percent(_)) | Err(_) if has_begun => return End::Guest,
            other => return End::Answer(other),
        }
        match pause(took.saturating_mul(REST).clamp(PAUSE, LONGEST_PAUSE)) {
            Ok(Waited::Time) => {}
            Ok(Waited::Ready) => return End::Interrupted,
            Ok(Waited::Unread) => return End::Output(ErrorKind::BrokenPipe.into()),
            Err(error) => return End::Output(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn asked(line: &str) -> Option<Asked> {
        Asked::of(&line.split(' ').map(str::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_log_is_asked_for_without_what_is_done_here() {
        for (line, follow, expected) in [
            ("dmesg", false, "dmesg"),
            ("dm -w", true, "dmesg"),
            ("dmesg --follow -l err+ 20", true, "dmesg 20 --level err+"),
            ("dmesg --since=0x10 5", false, "dmesg 5 --since 16"),
        ] {
            let asked = asked(line).unwrap();
            assert_eq!((asked.follow, asked.line().as_str()), (follow, expected), "{line}");
        }
        // Others, and what is to be refused.
        for line in ["", "ps -w", "dmesgs", "dmesg -l error", "dmesg 0", "dmesg --nosuch"] {
            assert_eq!(asked(line), None, "{line}");
        }
    }

    fn answer(text: &str, code: u8) -> io::Result<Response> {
        Ok(Response::Answer(Answer { text: text.into(), why: String::new(), code, restarts: 0 }))
    }

    /// An answer of a guest that has begun again so many times.
    fn of_restart(answer: io::Result<Response>, restarts: u64) -> io::Result<Response> {
        let Ok(Response::Answer(answer)) = answer else { panic!("{answer:?}") };
        Ok(Response::Answer(Answer { restarts, ..answer }))
    }

    fn log(first: u64, texts: &[&str], lost: u64) -> io::Result<Response> {
        let record = |(sequence, text): (u64, &&str)| {
            json!({
                "sequence": sequence, "seconds": sequence, "nanoseconds": 0, "level": "err", "facility": 0,
                "caller": "T1", "text": text,
            })
        };
        let records: Vec<_> = (first..).zip(texts).map(record).collect();
        let next = first + texts.len() as u64;
        answer(&json!({ "records": records, "cut": false, "lost": lost, "next": next }).to_string(), 0)
    }

    const PLAIN: Shown = Shown { json: false, in_colour: false };

    /// What is asked for, what is printed, and how it ended.
    fn followed(line: &str, shown: Shown, answers: Vec<io::Result<Response>>) -> (Vec<String>, String, End) {
        let (mut answers, mut lines, mut text) = (VecDeque::from(answers), Vec::new(), String::new());
        let ask = |line: String| {
            lines.push(line);
            answers.pop_front().unwrap_or_else(|| Err(io::ErrorKind::ConnectionRefused.into()))
        };
        let print = |more: &str| {
            text.push_str(more);
            Ok(())
        };
        let pause = |pause: Duration| {
            assert!((PAUSE..=LONGEST_PAUSE).contains(&pause));
            Ok(Waited::Time)
        };
        let end = follow(&asked(line).unwrap(), shown, ask, print, pause);
        (lines, text, end)
    }

    #[test]
    fn what_comes_is_asked_for_behind_what_was_told_until_the_guest_ends() {
        let answers = vec![
            log(3, &["a", "b"], 0),
            log(5, &[], 0),
            Ok(Response::Error("8 others are served already".into())),
            log(9, &["c"], 4),
            // It begins again, and its log as well.
            answer("", NOT_THERE),
            log(0, &["d"], 0),
        ];
        let (lines, text, end) = followed("dmesg 2 -w -l err", PLAIN, answers);
        assert!(matches!(end, End::Guest), "{end:?}");
        let since = |number: u64| format!("dmesg --level err --since {number}");
        let expected = [
            "dmesg 2 --level err --since 0".to_string(),
            since(5),
            since(5),
            since(5),
            since(10),
            since(10),
            since(1),
        ];
        assert_eq!(lines, expected);
        let expected = "[    3.000000] a\n[    4.000000] b\n(4 messages were lost)\n[    9.000000] c\n[    0.000000] d\n";
        assert_eq!(text, expected);
    }

    /// Also where the new kernel has written more than the former one by then.
    #[test]
    fn another_kernels_log_is_told_from_its_beginning() {
        let answers = vec![
            log(0, &["a", "b"], 0),
            of_restart(log(2, &["not yet"], 0), 1),
            of_restart(log(0, &["c", "d", "e"], 0), 1),
            of_restart(log(3, &[], 0), 1),
        ];
        let (lines, text, _) = followed("dmesg -w", PLAIN, answers);
        let since = |number: u64| format!("dmesg --since {number}");
        assert_eq!(lines, [since(0), since(2), since(0), since(3), since(3)]);
        let told: Vec<&str> = text.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        assert_eq!(told, ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn it_is_broken_off_by_whoever_follows_it_or_reads_no_more() {
        let once = |waited: Waited| {
            let mut answers = VecDeque::from([log(0, &["a"], 0)]);
            let ask = |_| answers.pop_front().expect("it is not asked again");
            follow(&Asked::default(), PLAIN, ask, |_| Ok(()), |_| Ok(waited))
        };
        assert!(matches!(once(Waited::Ready), End::Interrupted));
        assert!(matches!(once(Waited::Unread), End::Output(error) if error.kind() == ErrorKind::BrokenPipe));
        let (_, _, end) = followed("dmesg -w", PLAIN, vec![Err(ErrorKind::Interrupted.into())]);
        assert!(matches!(end, End::Interrupted), "{end:?}");
    }

    /// A slow reader, and a process that was stopped, is not the guest's business.
    #[test]
    fn the_pause_is_as_long_as_the_look_and_not_the_reader_has_it() {
        let mut pauses = Vec::new();
        let print = |_: &str| {
            let began = Instant::now();
            while began.elapsed() < PAUSE {}
            Ok(())
        };
        let pause = |pause| {
            pauses.push(pause);
            Ok(Waited::Ready)
        };
        follow(&Asked::default(), PLAIN, |_| log(0, &["a"], 0), print, pause);
        assert!(pauses.len() == 1 && pauses[0] < PAUSE * REST, "{pauses:?}");
    }

    #[test]
    fn it_is_printed_as_it_is_wanted() {
        let json = Shown { json: true, in_colour: false };
        let (_, text, _) = followed("dmesg -w", json, vec![log(3, &["a", "b"], 1)]);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0], &lines[2]["text"], lines.len()), (&json!({ "lost": 1 }), &json!("b"), 3));
        let colour = Shown { json: false, in_colour: true };
        let (_, text, _) = followed("dmesg -w", colour, vec![log(3, &["a"], 0)]);
        assert_eq!(text, "[    3.000000] \x1b[31ma\x1b[0m\n");
    }

    #[test]
    fn why_it_is_not_followed_is_told() {
        for refused in [answer("", NOT_THERE), Ok(Response::Error("8 others".into())), answer("no JSON", 0)] {
            let (lines, text, end) = followed("dmesg -w", PLAIN, vec![refused]);
            assert_eq!((lines.len(), text.as_str()), (1, ""));
            assert!(matches!(end, End::Answer(Ok(_))), "{end:?}");
        }
        let (_, _, end) = followed("dmesg -w", PLAIN, Vec::new());
        assert!(matches!(end, End::Answer(Err(_))), "{end:?}");
        let print = |_: &str| Err(io::ErrorKind::BrokenPipe.into());
        let end = follow(&Asked::default(), PLAIN, |_| log(0, &["a"], 0), print, |_| Ok(Waited::Time));
        assert!(matches!(end, End::Output(_)), "{end:?}");
    }
}
