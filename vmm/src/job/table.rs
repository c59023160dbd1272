//! What came of many jobs, for people and for programs: a table, TAP, JUnit, lines of JSON.

use super::ktap;
use super::matrix::Finished;
use arch::plain::plain_lines;
use arch::words::counted;
use nix::sys::signal::Signal;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite, XmlString};
use std::fmt::Write;
use std::time::Duration;

fn seconds(time: Duration) -> String {
    format!("{}.{:02} s", time.as_secs(), time.subsec_millis() / 10)
}

/// In a word, or what was wrong.
fn result(one: &Finished) -> String {
    match one.failed {
        _ if one.is_passed() => "passed".into(),
        0 => one.text.clone(),
        failures => format!("{} failed; {}", counted(failures as u64, "test"), one.text),
    }
}

/// What there is to tell of a list.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Those that have ended, by their numbers.
    pub ended: &'a [Finished],
    /// How many there are in the list.
    pub count: usize,
    /// What has ended the rest, if something has.
    pub stopped_by: Option<Signal>,
}

impl Told<'_> {
    /// How many have not ended themselves.
    pub fn left(&self) -> usize {
        self.count.saturating_sub(self.ended.len())
    }

    fn has_left(&self) -> String {
        format!("{} of {} had not ended", self.left(), counted(self.count as u64, "run"))
    }

    /// Why there is no more, if something has ended the rest.
    pub fn stopped(&self) -> Option<String> {
        self.stopped_by.map(|signal| format!("stopped by signal {}: {}", signal as i32, self.has_left()))
    }
}

/// A line for each that has ended, and one for all.
pub fn text(all: &Told<'_>) -> String {
    let mut table = String::new();
    for one in all.ended {
        // Memory can be written.
        writeln!(table, "{:>4}  {:>9}  {}  ({})", one.code, seconds(one.took), one.entry.name, result(one))
            .ok();
    }
    let passed = all.ended.iter().filter(|one| one.is_passed()).count();
    let left = if all.left() == 0 { String::new() } else { format!("; {}", all.has_left()) };
    writeln!(table, "{passed} of {} passed{left}", counted(all.count as u64, "run")).ok();
    table
}

/// One, in a line.
pub fn json(one: &Finished) -> String {
    serde_json::json!({
        "line": one.entry.line,
        "words": one.entry.words,
        "passed": one.is_passed(),
        "code": one.code,
        "verdict": one.verdict,
        "text": one.text,
        "seconds": one.took.as_millis() as f64 / 1000.0,
        "dump": one.dump,
        "tests": one.told,
        "failures": one.failed,
    })
    .to_string()
}

/// All, by the Test Anything Protocol (version 14); what a command has told of itself is within its own. Where some of the
/// plan are missing, it bails out.
pub fn tap(all: &Told<'_>) -> String {
    let mut text = format!("TAP version 14\n1..{}\n", all.count);
    for one in all.ended {
        let number = one.entry.number;
        if !one.tests.is_empty() {
            writeln!(text, "# Subtest: {}\n    1..{}", one.entry.name, one.tests.len()).ok();
            for (number, test) in (1..).zip(&one.tests) {
                let (word, directive) = match test.result {
                    ktap::Result::Passed => ("ok", ""),
                    ktap::Result::Failed => ("not ok", ""),
                    ktap::Result::Skipped => ("ok", " # SKIP"),
                };
                writeln!(text, "    {word} {number} - {}{directive}", plain(&test.name)).ok();
            }
        }
        let word = if one.is_passed() { "ok" } else { "not ok" };
        writeln!(text, "{word} {number} - {}", plain(&one.entry.name)).ok();
        if !one.is_passed() {
            // A string of JSON is one of YAML.
            let message = serde_json::Value::from(result(one));
            writeln!(text, "  ---\n  code: {}\n  message: {message}\n  ...", one.code).ok();
        }
    }
    if let Some(stopped) = all.stopped().filter(|_| all.left() > 0) {
        writeln!(text, "Bail out! {stopped}").ok();
    }
    text
}

/// A description without what would begin a directive.
fn plain(name: &str) -> String {
    name.replace('\\', "\\\\").replace('#', "\\#")
}

/// Stands for a tab until all is written, as [`XmlString`] knows of none: no text that is plain has it.
const TAB: char = '\u{fdd0}';

/// A text as readers of XML take it, with all that it has: of what looks like a terminal's controls, which a guest need
/// not end, [`XmlString`] would take away what is behind them.
fn text_of(text: &str) -> XmlString {
    let text = plain_lines(&text.replace("\r\n", "\n"));
    XmlString::new(text.replace('\t', TAB.encode_utf8(&mut [0; 4])))
}

/// All, as JUnit has it: a suite for each, with the tests that it tells of, or with itself as the only one. Where some have
/// not ended, an error says so: what is left of a report that nobody has written to its end is not taken for a whole one.
///
/// # Errors
/// When it cannot be written as XML.
pub fn junit(all: &Told<'_>) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new("vmm run");
    if all.left() > 0 {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(all.stopped().unwrap_or_else(|| all.has_left()));
        let mut suite = TestSuite::new("vmm run");
        suite.add_test_case(TestCase::new("all runs end", status));
        report.add_test_suite(suite);
    }
    for one in all.ended {
        let mut suite = TestSuite::new(text_of(&one.entry.name));
        suite.set_time(one.took);
        for test in &one.tests {
            let status = match test.result {
                ktap::Result::Passed => TestCaseStatus::success(),
                ktap::Result::Failed => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message("not ok: what the run has printed says why");
                    status
                }
                ktap::Result::Skipped => TestCaseStatus::skipped(),
            };
            suite.add_test_case(TestCase::new(text_of(&test.name), status));
        }
        // Where names of tests are not kept any more, the run stands for them; else it says what they do not.
        let stands_for_tests = one.told == 0 || one.code != 0 || one.tests.is_empty();
        if !stands_for_tests && one.shows_output() {
            suite.set_system_out(text_of(&one.output));
            suite.set_system_err(text_of(&one.errors));
        }
        if stands_for_tests {
            let mut status = match one.code {
                0 if one.is_passed() => TestCaseStatus::success(),
                0 => TestCaseStatus::non_success(NonSuccessKind::Failure),
                _ if one.verdict == "exit" => TestCaseStatus::non_success(NonSuccessKind::Failure),
                _ => TestCaseStatus::non_success(NonSuccessKind::Error),
            };
            if !one.is_passed() {
                status.set_message(text_of(&result(one)));
            }
            let mut whole = TestCase::new(text_of("run"), status);
            whole.set_time(one.took);
            whole.set_system_out(text_of(&one.output));
            whole.set_system_err(text_of(&one.errors));
            suite.add_test_case(whole);
        }
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?.replace(TAB, "&#9;"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ktap::Test;
    use crate::job::matrix::Entry;

    fn finished(name: &str, code: u8, tests: &[(&str, ktap::Result)]) -> Finished {
        let tests = tests.iter().map(|(name, result)| Test { name: (*name).into(), result: *result });
        let tests: Vec<Test> = tests.collect();
        Finished {
            entry: Entry { number: 1, line: 1, name: name.into(), words: vec!["--".into(), name.into()] },
            code,
            verdict: if code == 120 { "panic" } else { "exit" }.into(),
            text: format!("code {code}"),
            took: Duration::from_millis(1234),
            dump: None,
            output: "out <&>\u{1b}[0m".into(),
            errors: "err".into(),
            told: tests.len(),
            failed: tests.iter().filter(|test| test.result == ktap::Result::Failed).count(),
            tests,
        }
    }

    fn told(ended: &[Finished]) -> Told<'_> {
        Told { ended, count: ended.len(), stopped_by: None }
    }

    fn all() -> Vec<Finished> {
        let mut all = vec![
            finished("good", 0, &[]),
            finished("bad # 1", 7, &[]),
            finished("panics", 120, &[]),
            finished("tests", 0, &[("a", ktap::Result::Passed), ("b", ktap::Result::Failed)]),
        ];
        (1..).zip(&mut all).for_each(|(number, one)| one.entry.number = number);
        all
    }

    #[test]
    fn a_table() {
        let text = text(&told(&all()));
        assert!(text.contains("   0     1.23 s  good  (passed)\n"), "{text}");
        assert!(text.contains("(1 test failed; code 0)") && text.ends_with("1 of 4 runs passed\n"), "{text}");
    }

    #[test]
    fn the_test_anything_protocol() {
        let text = tap(&told(&all()));
        assert!(text.starts_with("TAP version 14\n1..4\nok 1 - good\nnot ok 2 - bad \\# 1\n"), "{text}");
        assert!(
            text.contains("# Subtest: tests\n    1..2\n    ok 1 - a\n    not ok 2 - b\nnot ok 4 - tests\n")
        );
        // What we print we can read.
        let mut reader = ktap::Reader::default();
        reader.push(text.as_bytes());
        let read = reader.finish();
        assert_eq!(read.iter().filter(|test| test.result == ktap::Result::Failed).count(), 3);
    }

    #[test]
    fn runs_that_are_missing_are_told_of() {
        let ended = [all().remove(0), all().remove(2)];
        let stopped = Told { ended: &ended, count: 4, stopped_by: Some(Signal::SIGTERM) };
        let why = "stopped by signal 15: 2 of 4 runs had not ended";
        assert!(text(&stopped).ends_with("\n1 of 4 runs passed; 2 of 4 runs had not ended\n"));
        let plan = tap(&stopped);
        assert!(plan.starts_with("TAP version 14\n1..4\nok 1 - good\nnot ok 3 - panics\n"), "{plan}");
        assert!(plan.ends_with(&format!("\nBail out! {why}\n")), "{plan}");
        let xml = junit(&stopped).unwrap();
        assert!(xml.contains(&format!("<error message=\"{why}\"")) && xml.contains("errors=\"2\""), "{xml}");
        // As it is found when nobody could write the rest.
        let xml = junit(&Told { stopped_by: None, ..stopped }).unwrap();
        assert!(xml.contains("<error message=\"2 of 4 runs had not ended\""), "{xml}");
        // One that comes behind all has stopped none of them.
        let late = Told { count: 2, ..stopped };
        assert!(!tap(&late).contains("Bail out") && text(&late).ends_with("\n1 of 2 runs passed\n"));
        assert!(!junit(&late).unwrap().contains("all runs end"));
    }

    #[test]
    fn names_and_messages_are_read_as_they_were() {
        let mut one = finished(r"a\b # skip \# c", 7, &[]);
        one.text = "ended\u{7f} by \"it\"".into();
        let text = tap(&told(std::slice::from_ref(&one)));
        let mut reader = ktap::Reader::default();
        reader.push(text.as_bytes());
        let read = reader.finish();
        assert_eq!((&*read[0].name, read[0].result), (&*one.entry.name, ktap::Result::Failed));
        let message = text.lines().find_map(|line| line.strip_prefix("  message: ")).unwrap();
        assert_eq!(serde_json::from_str::<String>(message).unwrap(), one.text);
    }

    #[test]
    fn nothing_that_is_printed_keeps_a_reader_from_the_rest() {
        use quick_xml::events::Event;
        let mut one = finished("a\tname", 1, &[("bad\u{1b}]0;test", ktap::Result::Failed)]);
        one.text = "a \u{1b}[31mreason".into();
        one.output = "a\tb\r\n\u{1b}Pnever ends\u{fffe}\u{ffff}\u{0}\u{9b}behind <&>\n".into();
        one.errors = "\u{1b}]8;;behind errors".into();
        let xml = junit(&told(&[one])).unwrap();
        let mut reader = quick_xml::Reader::from_str(&xml);
        let (mut texts, mut values) = (String::new(), Vec::new());
        loop {
            match reader.read_event().unwrap() {
                Event::Eof => break,
                Event::Start(tag) | Event::Empty(tag) => {
                    for attribute in tag.attributes() {
                        values.push(
                            attribute
                                .unwrap()
                                .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                                .unwrap()
                                .into_owned(),
                        );
                    }
                }
                Event::Text(text) => texts.push_str(&text.decode().unwrap()),
                Event::GeneralRef(name) => {
                    let name = name.decode().unwrap();
                    texts.push_str(&quick_xml::escape::unescape(&format!("&{name};")).unwrap());
                }
                _ => {}
            }
        }
        let output = "a\tb\n\u{fffd}Pnever ends\u{fffd}\u{fffd}\u{fffd}\u{fffd}behind <&>\n";
        assert!(texts.contains(output) && texts.contains("\u{fffd}]8;;behind errors"), "{texts}");
        for value in ["a\tname", "bad\u{fffd}]0;test", "a \u{fffd}[31mreason"] {
            assert!(values.iter().any(|it| it.contains(value)), "{value}: {values:?}");
        }
        assert!(xml.chars().all(|c| c == '\n' || arch::plain::is_plain(c)));
    }

    #[test]
    fn junit_and_json() {
        let xml = junit(&told(&all())).unwrap();
        for part in
            ["<testsuite name=\"good\"", "<failure", "<error message=\"code 120\"", "out &lt;&amp;&gt;"]
        {
            assert!(xml.contains(part), "{part}: {xml}");
        }
        assert!(!xml.contains('\u{1b}') && !xml.contains("all runs end"));
        let mut unnamed = all().remove(3);
        unnamed.tests.clear();
        let xml = junit(&told(&[unnamed])).unwrap();
        assert!(xml.contains("<failure message=\"1 test failed; code 0\""), "{xml}");
        // What has failed within a run that ends well is told, with what was printed.
        let xml = junit(&told(&all()[3..])).unwrap();
        assert!(xml.contains("<failure message=\"not ok") && xml.contains("<system-err>err"), "{xml}");
        assert!(xml.contains("tests=\"2\"") && xml.contains("failures=\"1\""), "{xml}");
        let value: serde_json::Value = serde_json::from_str(&json(&all()[3])).unwrap();
        assert_eq!((&value["passed"], &value["failures"]), (&false.into(), &1.into()));
    }
}
