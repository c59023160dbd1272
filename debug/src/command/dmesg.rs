//! `dmesg`: a Linux kernel's log, as it is in its memory.
//!
//! Nobody keeps anything for whoever asks again: an answer says which record is next, and `--since` asks for it and those
//! behind it. That is how `vmm monitor NAME dmesg --follow` goes on; a dump and a guest that gdb holds have nothing that
//! comes.

use super::address::count;
use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::log::{Caller, Level, Levels, Log, Record, Wanted};
use crate::reply::{Arguments, Command, Flag, Json, Refusal, Reply, Value, json, number};
use crate::view::View;

/// `dmesg`.
pub const DMESG: Command = Command::new("dmesg", "[LINES]", "the kernel's log, or its last lines").flags(&[
    Flag {
        name: LEVEL,
        short: Some("-l"),
        value: Some("LEVELS"),
        what: "records of these levels: err,warn; err+ for err and what is more urgent, +err for what is less",
    },
    Flag { name: SINCE, short: None, value: Some("SEQUENCE"), what: "records from this number on" },
    Flag {
        name: FOLLOW,
        short: Some("-w"),
        value: None,
        what: "what is there, and then what comes: for vmm monitor NAME dmesg",
    },
]);

const LEVEL: &str = "--level";
const SINCE: &str = "--since";
const FOLLOW: &str = "--follow";

/// The kernel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dmesg {
    /// What of it.
    pub wanted: Wanted,
    /// And what comes, for who asks again.
    pub follow: bool,
}

impl Dmesg {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Dmesg, Refusal> {
        let most = match arguments.words()[..] {
            [] => usize::MAX,
            [lines] => match count(lines)? {
                0 => return Err(Refusal::Usage("write how many lines, at least one".into())),
                lines => usize::try_from(lines).unwrap_or(usize::MAX),
            },
            _ => return Err(Refusal::Usage("write how many lines are wanted, or nothing".into())),
        };
        let levels = arguments.value(LEVEL).map_or(Ok(Levels::ALL), Levels::parse).map_err(Refusal::Usage)?;
        let since = arguments.value(SINCE).map(number).transpose().map_err(Refusal::Usage)?;
        Ok(Dmesg { wanted: Wanted { most, levels, since }, follow: arguments.has(FOLLOW) })
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Refusal::NotThere`] without a kernel that is known; [`Refusal::Cancelled`]; [`Refusal::Senseless`] to be followed.
    pub fn run(&self, view: &View<'_>) -> Result<Log, Refusal> {
        if self.follow {
            let why = "nothing comes while it is looked at: 'vmm monitor NAME dmesg --follow' asks a guest that runs again";
            return Err(Refusal::Senseless(why.into()));
        }
        of_kernel(view, |info| view.kernel_log(info, &self.wanted).map_err(|error| error.to_string()))
    }
}

/// How a terminal shows a record's text, as dmesg(1) does; empty where it shows it as any other.
fn colour(level: Option<Level>) -> &'static str {
    match level {
        Some(Level::Emergency | Level::Alert) => "\x1b[7;31m",
        Some(Level::Critical) => "\x1b[1;31m",
        Some(Level::Error) => "\x1b[31m",
        Some(Level::Warning) => "\x1b[1m",
        _ => "",
    }
}

impl Value for Log {
    fn json(&self) -> Json {
        let number = |number: u64| (!self.is_unnumbered).then_some(number);
        let record = |record: &Record| {
            json!({
                "sequence": number(record.sequence),
                "seconds": record.time / NANOSECONDS, "nanoseconds": record.time % NANOSECONDS,
                "level": record.level.map(Level::name), "facility": record.facility,
                "caller": record.caller.map(|caller| caller.to_string()), "text": record.text,
            })
        };
        json!({
            "records": self.records.iter().map(record).collect::<Vec<_>>(),
            "cut": self.is_cut, "lost": self.lost, "next": number(self.next),
        })
    }

    fn in_colour(&self) -> String {
        let mut text: String = self.remarks().iter().map(|remark| format!("{remark}\n")).collect();
        for record in &self.records {
            let (colour, end) = match colour(record.level) {
                "" => ("", ""),
                colour => (colour, "\x1b[0m"),
            };
            // Each line by itself: whoever shows only some of them is left with nothing.
            record.lines().for_each(|(front, line)| text.extend([front.as_str(), colour, line, end, "\n"]));
        }
        text
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

/// A log as its JSON has it, for whoever has asked another process; `None` for what is none.
pub fn log_of_json(json: &Json) -> Option<Log> {
    let is_unnumbered = json["next"].is_null() && json["records"].is_array();
    let number = |it: &Json, counted: u64| if is_unnumbered { Some(counted) } else { it.as_u64() };
    let record = |(it, counted): (&Json, u64)| {
        Some(Record {
            sequence: number(&it["sequence"], counted)?,
            time: it["seconds"]
                .as_u64()?
                .checked_mul(NANOSECONDS)?
                .checked_add(it["nanoseconds"].as_u64()?)?,
            level: it["level"].as_str().and_then(Level::of_name),
            facility: it["facility"].as_u64().and_then(|number| u8::try_from(number).ok()),
            caller: it["caller"].as_str().and_then(Caller::of_words),
            text: it["text"].as_str()?.into(),
        })
    };
    Some(Log {
        records: json["records"].as_array()?.iter().zip(0..).map(record).collect::<Option<_>>()?,
        is_cut: json["cut"].as_bool()?,
        lost: json["lost"].as_u64()?,
        next: number(&json["next"], json["records"].as_array()?.len() as u64)?,
        is_unnumbered,
    })
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    Ok(Box::new(Dmesg::parse(arguments)?.run(&operator.view())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        let record = |sequence, level, text: &str| Record {
            sequence,
            time: 1_500_000_000 + sequence,
            level,
            facility: level.map(|_| 0),
            caller: Some(Caller::Task(1)),
            text: text.into(),
        };
        let records = vec![
            record(7, Some(Level::Info), "info"),
            record(8, Some(Level::Error), "error\nmore"),
            record(9, None, "some"),
        ];
        Log { records, lost: 2, next: 10, ..Log::default() }
    }

    #[test]
    fn a_log_as_json_is_read_as_it_was() {
        let json = log().json();
        let expected = json!({
            "sequence": 8, "seconds": 1, "nanoseconds": 500_000_008, "level": "err", "facility": 0, "caller": "T1",
            "text": "error\nmore",
        });
        assert_eq!(json["records"][1], expected);
        assert_eq!((&json["records"][2]["level"], &json["next"]), (&Json::Null, &json!(10)));
        assert_eq!(log_of_json(&json), Some(log()));
        // What are no numbers of the kernel's are not told, and counted by whoever reads them.
        let mut unnumbered = Log { is_unnumbered: true, next: 3, ..log() };
        unnumbered.records.iter_mut().zip(0..).for_each(|(record, number)| record.sequence = number);
        let json = unnumbered.json();
        assert_eq!((&json["records"][1]["sequence"], &json["next"]), (&Json::Null, &Json::Null));
        assert_eq!(log_of_json(&json), Some(unnumbered));
        for wrong in [json!([]), json!({}), json!({ "records": [{}], "cut": false, "lost": 0, "next": 0 })] {
            assert_eq!(log_of_json(&wrong), None);
        }
    }

    #[test]
    fn lines_are_coloured_one_by_one() {
        let expected = "(2 messages were lost)\n[    1.500000] info\n[    1.500000] \x1b[31merror\x1b[0m\n               \
                        \x1b[31mmore\x1b[0m\n[    1.500000] some\n";
        assert_eq!(log().in_colour(), expected);
        let plain = expected.replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(log().to_string(), plain);
    }

    #[test]
    fn what_is_typed_is_what_is_wanted() {
        let parse = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Arguments::new(&DMESG, &words).and_then(|arguments| Dmesg::parse(&arguments))
        };
        let all = Wanted::last(usize::MAX);
        assert_eq!(parse(""), Ok(Dmesg { wanted: all, follow: false }));
        let levels = Levels::parse("err+").unwrap();
        let wanted = Wanted { most: 5, levels, since: Some(40) };
        for line in ["5 -l err+ --since 40 -w", "--follow --level=err+ --since=40 5"] {
            assert_eq!(parse(line), Ok(Dmesg { wanted, follow: true }), "{line}");
        }
        for line in ["-l error", "--since x", "-l", "0", "1 2"] {
            assert!(matches!(parse(line), Err(Refusal::Usage(_))), "{line}");
        }
    }
}
