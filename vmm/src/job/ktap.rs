//! Results that a command prints itself, by the Test Anything Protocol: as the kernel's own tests have it (KTAP, Linux
//! `Documentation/dev-tools/ktap.rst`) and as others do (TAP 14). Results within results are indented, and come before the
//! one that they are part of.

use arch::plain::plain;

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Result {
    /// As it should.
    Passed,
    /// Not so.
    Failed,
    /// It was not run, or is known to fail.
    Skipped,
}

/// A test that has no others within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// With the names of those that it is part of, with slashes between.
    pub name: String,
    /// How it ended.
    pub result: Result,
}

/// What has been read of a line.
struct Line {
    depth: usize,
    name: String,
    result: Result,
}

/// The most tests that are kept.
const MOST: usize = 100_000;
/// Results are within others as deep as so many spaces tell apart.
const DEEPEST: usize = 64;
/// The most bytes of a line that are looked at, of a test's own name, and of that with the names that it is part of.
const MOST_LINE: usize = 4096;
const MOST_NAME: usize = 200;
const MOST_PATH: usize = 1000;
/// The most bytes of all names together; behind that tests are counted, and have [`NO_NAME`].
const MOST_NAMES: usize = 4 << 20;
const NO_NAME: &str = "…";

/// A name, as far as is kept of it, without what a terminal would obey.
fn shortened(name: &str) -> String {
    let mut short = plain(name);
    if short.len() > MOST_NAME {
        let end = (0..=MOST_NAME).rev().find(|at| short.is_char_boundary(*at)).unwrap_or(0);
        short.truncate(end);
        short.push('…');
    }
    short
}

/// A line without what the kernel's log has in front: a level, the time, and who has said it
/// (`CONFIG_PRINTK_CALLER`).
pub(super) fn without_time(line: &str) -> &str {
    let bracketed = |line: &str, is_inside: fn(char) -> bool| {
        let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
        inside.chars().all(is_inside).then_some(line.len() - rest.len())
    };
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let log =
        level.filter(|(level, _)| level.chars().all(|c| c.is_ascii_digit())).map_or(line, |(_, rest)| rest);
    let Some(end) = bracketed(log, |c| c.is_ascii_digit() || matches!(c, ' ' | '.')) else { return line };
    let rest = &log[end..];
    let caller = bracketed(rest, |c| c.is_ascii_digit() || matches!(c, ' ' | 'T' | 'C'));
    rest[caller.unwrap_or(0)..].strip_prefix(' ').unwrap_or(line)
}

fn parse(line: &str) -> Option<Line> {
    let line = without_time(line.trim_end());
    let text = line.trim_start_matches(' ');
    let depth = (line.len() - text.len()).min(DEEPEST);
    let (is_ok, rest) = match text.strip_prefix("ok") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("not ok")?),
    };
    // A number, which may be missing, and a name behind it that may have a dash in front.
    if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim_start();
    let behind = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = if behind.starts_with(char::is_alphanumeric) { rest } else { behind };
    let front = text[..text.len() - rest.len()].trim_end();
    let (name, directive) = split_directive(rest.trim_start());
    let name = name.strip_prefix('-').filter(|name| !name.starts_with('-')).unwrap_or(name).trim();
    let directive = directive.trim_start().to_ascii_uppercase();
    let result = match is_ok {
        _ if directive.starts_with("SKIP")
            || directive.starts_with("TODO")
            || directive.starts_with("XFAIL") =>
        {
            Result::Skipped
        }
        true => Result::Passed,
        false => Result::Failed,
    };
    let name = if name.is_empty() { front.into() } else { unescaped(name) };
    Some(Line { depth, name: shortened(&name), result })
}

/// A description, and the directive behind it: from the first `#` on that has white space in front, or nothing. One that is
/// escaped has a backslash there.
fn split_directive(text: &str) -> (&str, &str) {
    let begins = |at: &usize| text[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let at = text.match_indices('#').map(|(at, _)| at).find(begins);
    at.map_or((text, ""), |at| (&text[..at], &text[at + 1..]))
}

/// A description without the backslashes that keep `#` and themselves from being something else.
fn unescaped(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('\\') {
        plain.push_str(before);
        match behind.chars().next().filter(|c| matches!(c, '\\' | '#')) {
            Some(c) => {
                plain.push(c);
                rest = &behind[1..];
            }
            None => {
                plain.push('\\');
                rest = behind;
            }
        }
    }
    plain + rest
}

/// How many results a plan (`1..N`) tells of; with its depth.
fn plan(line: &str) -> Option<(usize, usize)> {
    let text = line.trim_start_matches(' ');
    let (count, _) = text.strip_prefix("1..")?.split_once('#').unwrap_or((&text[3..], ""));
    Some(((line.len() - text.len()).min(DEEPEST), count.trim().parse().ok()?))
}

/// Results of one depth, which are part of the same one.
#[derive(Clone, Copy, Debug)]
struct Level {
    depth: usize,
    planned: Option<usize>,
    told: usize,
}

/// Tests that are counted, and not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// All of them.
    pub all: usize,
    /// Of those, how many have failed.
    pub failed: usize,
}

/// Reads tests of a command's output as it comes.
#[derive(Debug, Default)]
pub struct Reader {
    /// What has come of a line.
    begun: Vec<u8>,
    /// A version was told: what follows are results.
    speaks: bool,
    /// With the depth of each, those of which no line has said yet what they are part of.
    found: Vec<(usize, Test)>,
    beyond: Beyond,
    /// Bytes of their names.
    names: usize,
    /// The open ones, each deeper than the one before.
    levels: Vec<Level>,
    /// The depth of the last result, if nothing else has come behind it.
    last: Option<usize>,
    /// The depth of a block (YAML) that says more of it, and has no end yet.
    block: Option<usize>,
}

impl Reader {
    /// More has come.
    pub fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MOST_LINE.saturating_sub(self.begun.len());
            self.begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.begun);
                self.read(&String::from_utf8_lossy(&line));
            }
        }
    }

    /// All tests that are kept; none if the command does not speak of any.
    pub fn finish(&mut self) -> Vec<Test> {
        let rest = std::mem::take(&mut self.begun);
        self.read(&String::from_utf8_lossy(&rest));
        self.close(0);
        std::mem::take(&mut self.found).into_iter().map(|(_, test)| test).collect()
    }

    /// Those that are not kept, as there were too many; known once all [is read](Self::finish).
    pub fn beyond(&self) -> Beyond {
        self.beyond
    }

    fn read(&mut self, line: &str) {
        let line = without_time(line.trim_end());
        let text = line.trim_start_matches(' ');
        if self.is_in_block(line.len() - text.len(), text) {
            return;
        }
        let last = self.last.take();
        if is_version(text) {
            self.speaks = true;
            // What was told at this depth before was of another program.
            self.close((line.len() - text.len()).min(DEEPEST));
        } else if !self.speaks {
        } else if let Some(why) = text.strip_prefix("Bail out!") {
            // It says itself that results are missing.
            self.levels.clear();
            self.fail(0, &format!("Bail out! {}", why.trim()));
        } else if let Some((depth, count)) = plan(line) {
            self.level(depth).planned = Some(count);
        } else if let Some(result) = parse(line) {
            self.close(result.depth + 1);
            self.level(result.depth).told += 1;
            self.last = Some(result.depth);
            self.take(result);
        } else if text == "---" {
            self.block = last.map(|depth| depth + 2).filter(|depth| *depth == line.len() - text.len());
        }
    }

    /// Whether a line so deep is part of a block, or ends it. What is less deep is none of it, though its end is missing.
    fn is_in_block(&mut self, depth: usize, text: &str) -> bool {
        let Some(block) = self.block else { return false };
        let goes_on = depth >= block || text.is_empty();
        if !goes_on || (depth == block && text == "...") {
            self.block = None;
        }
        goes_on
    }

    /// The open one of this depth.
    fn level(&mut self, depth: usize) -> &mut Level {
        let at = self.levels.partition_point(|level| level.depth < depth);
        if self.levels.get(at).is_none_or(|level| level.depth != depth) {
            self.levels.insert(at, Level { depth, planned: None, told: 0 });
        }
        &mut self.levels[at]
    }

    /// No more comes of those as deep as this, or deeper. One that was cut short has failed.
    fn close(&mut self, depth: usize) {
        while let Some(level) = self.levels.pop_if(|level| level.depth >= depth) {
            if let Some(planned) = level.planned.filter(|planned| *planned > level.told) {
                self.fail(level.depth, &format!("{} of {planned} planned", level.told));
            }
        }
    }

    /// A name, as long as there is room for it.
    fn named(&mut self, name: &str) -> String {
        let name = shortened(name);
        if self.names + name.len() > MOST_NAMES {
            return NO_NAME.into();
        }
        self.names += name.len();
        name
    }

    fn fail(&mut self, depth: usize, name: &str) {
        let test = Test { name: self.named(name), result: Result::Failed };
        match self.found.len() < MOST {
            true => self.found.push((depth, test)),
            // One that has failed is not to be lost.
            false => {
                let (_, lost) = std::mem::replace(&mut self.found[MOST - 1], (depth, test));
                self.beyond.all += 1;
                self.beyond.failed += usize::from(lost.result == Result::Failed);
            }
        }
    }

    fn take(&mut self, Line { depth, name, result }: Line) {
        let first = self.found.iter().rposition(|(its, _)| *its <= depth).map_or(0, |at| at + 1);
        if first == self.found.len() {
            match result {
                Result::Failed => self.fail(depth, &name),
                result if first < MOST => {
                    let name = self.named(&name);
                    self.found.push((depth, Test { name, result }));
                }
                _ => self.beyond.all += 1,
            }
            return;
        }
        let found = &mut self.found;
        for (its, test) in &mut found[first..] {
            *its = depth;
            let more = name.len() + 1;
            if test.name.len() + more <= MOST_PATH && self.names + more <= MOST_NAMES {
                test.name = format!("{name}/{}", test.name);
                self.names += more;
            }
        }
        // One that fails by itself, though all within have passed.
        if result == Result::Failed && found[first..].iter().all(|(_, test)| test.result != Result::Failed) {
            self.fail(depth, &name);
        }
    }
}

fn is_version(line: &str) -> bool {
    ["TAP version ", "KTAP version "].iter().any(|version| line.starts_with(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Vec<(String, Result)> {
        let mut reader = Reader::default();
        output.as_bytes().chunks(7).for_each(|piece| reader.push(piece));
        reader.finish().into_iter().map(|test| (test.name, test.result)).collect()
    }

    #[test]
    fn a_selftests_output() {
        let output = "TAP version 13\n1..3\nok 1 first\nnot ok 2 second # exit=1\nok 3 third # SKIP no device\n# done\n";
        assert_eq!(
            read(output),
            [
                ("first".into(), Result::Passed),
                ("second".into(), Result::Failed),
                ("third".into(), Result::Skipped)
            ]
        );
        assert_eq!(read("ok 1 without a version\n"), []);
        assert_eq!(
            read("TAP version 14\nokay then\nok\nnot ok none\nok 1\nnot okay\n"),
            [("ok".into(), Result::Passed), ("none".into(), Result::Failed), ("ok 1".into(), Result::Passed)]
        );
    }

    #[test]
    fn numbers_may_be_missing() {
        use super::Result::{Failed, Passed, Skipped};
        let output = "TAP version 13\n1..5\nok - a\nnot ok - b\nok c\nok # SKIP none\nok 2nd way\n";
        let wanted = [("a", Passed), ("b", Failed), ("c", Passed), ("ok", Skipped), ("2nd way", Passed)];
        assert_eq!(read(output), wanted.map(|(name, result)| (name.to_string(), result)));
    }

    #[test]
    fn directives_are_told_from_names() {
        use super::Result::{Failed, Passed, Skipped};
        for (line, name, result) in [
            ("not ok 1 - C# skip list", "C# skip list", Failed),
            ("not ok 1 - C# todo", "C# todo", Failed),
            ("not ok 1 - a \\# skip list", "a # skip list", Failed),
            ("not ok 1 - a\\\\b \\c", "a\\b \\c", Failed),
            ("not ok 1 - a # TODO later", "a", Skipped),
            ("ok 1 - a #skip", "a", Skipped),
            ("ok 1 # SKIP no device", "ok 1", Skipped),
            ("ok 1# SKIP no device", "ok 1", Skipped),
            ("ok 1 - a\t# SKIP", "a", Skipped),
            ("ok 1 - a # what # SKIP", "a", Passed),
            ("ok 1 -", "ok 1", Passed),
            ("ok 1 --option", "--option", Passed),
        ] {
            assert_eq!(read(&format!("TAP version 14\n{line}\n")), [(name.to_string(), result)], "{line}");
        }
    }

    #[test]
    fn blocks_that_say_more_of_a_result_are_none() {
        use super::Result::{Failed, Passed};
        let output = "\
TAP version 14
1..2
not ok 1 - a
  ---
  message: it is
    not ok 7 - at all

    1..9
  TAP version 13
  ...
ok 2 - b
";
        let ab = [("a".to_string(), Failed), ("b".to_string(), Passed)];
        assert_eq!(read(output), ab);
        // One without an end ends where what is less deep begins; where no result is, there is none.
        assert_eq!(read("TAP version 14\n1..2\nnot ok 1 - a\n  ---\n  x: y\nok 2 - b\n"), ab);
        let output = "TAP version 14\n1..2\n  ---\nnot ok 1 - a\n# more\n  ---\nok 2 - b\n  ---\n";
        assert_eq!(read(output), ab);
        let within = "TAP version 14\n    not ok 1 - a\n      ---\n      ok 3 - x\n      ...\n    ok 2 - b\nnot ok 1 - c\n";
        assert_eq!(read(within), [("c/a".to_string(), Failed), ("c/b".to_string(), Passed)]);
    }

    #[test]
    fn the_kernels_own_tests() {
        let output = "\
[    0.5] KTAP version 1
[    0.5] 1..2
[    0.6]     KTAP version 1
[    0.6]     # Subtest: list
[    0.6]     1..2
[    0.6]     ok 1 list_add
[    0.6]     not ok 2 list_del
[    0.7] not ok 1 list
[    0.8]     KTAP version 1
[    0.8]         ok 1 inner
[    0.8]     ok 1 group
[    0.9] ok 2 sysctl
";
        assert_eq!(
            read(output),
            [
                ("list/list_add".into(), Result::Passed),
                ("list/list_del".into(), Result::Failed),
                ("sysctl/group/inner".into(), Result::Passed),
            ]
        );
    }

    #[test]
    fn one_that_fails_above_those_that_pass() {
        let output = "KTAP version 1\n  ok 1 a\nnot ok 1 whole\nok 2 b\n";
        assert_eq!(
            read(output),
            [
                ("whole/a".into(), Result::Passed),
                ("whole".into(), Result::Failed),
                ("b".into(), Result::Passed)
            ]
        );
    }

    #[test]
    fn results_that_are_missing_are_failures() {
        use super::Result::{Failed, Passed};
        for (output, wanted) in [
            ("TAP version 13\n1..3\nok 1 a\n", vec![("a", Passed), ("1 of 3 planned", Failed)]),
            ("TAP version 14\nok 1 a\n1..1\n", vec![("a", Passed)]),
            ("TAP version 14\n1..0 # SKIP no device\n", vec![]),
            (
                "TAP version 14\n1..9\nok 1 a\nBail out!  no disk\n",
                vec![("a", Passed), ("Bail out! no disk", Failed)],
            ),
            (
                "KTAP version 1\n1..2\n    KTAP version 1\n    1..2\n    ok 1 b\nok 1 a\nok 2 c\n",
                vec![("a/b", Passed), ("a/1 of 2 planned", Failed), ("c", Passed)],
            ),
            // Two programs one after the other, of which the first was cut short.
            (
                "TAP version 13\n1..2\nok 1 a\nTAP version 13\n1..1\nok 1 b\n",
                vec![("a", Passed), ("1 of 2 planned", Failed), ("b", Passed)],
            ),
            ("1..3 without a version\nBail out!\n", vec![]),
        ] {
            let wanted: Vec<_> =
                wanted.into_iter().map(|(name, result)| (name.to_string(), result)).collect();
            assert_eq!(read(output), wanted, "{output}");
        }
    }

    #[test]
    fn what_the_kernels_log_has_in_front() {
        for front in ["[    1.5] ", "[    1.5][    T1] ", "<6>[    1.5] ", "<6>[    1.5][   C12] ", ""] {
            let output =
                format!("{front}KTAP version 1\n{front}1..1\n{front}    not ok 1 a\n{front}not ok 1 b\n");
            assert_eq!(read(&output), [("b/a".to_string(), Result::Failed)], "{front}");
        }
        assert_eq!(without_time("[ok] 1 a"), "[ok] 1 a");
    }

    #[test]
    fn what_a_guest_says_has_an_end() {
        let mut output = String::from("TAP version 14\n");
        // Each within the next, with names without end, and a name that a terminal would obey.
        for depth in (0..500).rev() {
            output.push_str(&format!("{}ok 1 {}\u{1b}[2J\n", " ".repeat(depth), "x".repeat(300)));
        }
        let tests = read(&output);
        assert!(tests.iter().all(|(name, _)| name.len() <= MOST_PATH && !name.contains('\u{1b}')));
        let many = format!("TAP version 14\n{}not ok 1 last\n", "ok 1 a\n".repeat(MOST + 10));
        let tests = read(&many);
        assert_eq!((tests.len(), tests.last().unwrap().1), (MOST, Result::Failed));
        // The others are counted still.
        let mut reader = Reader::default();
        reader.push(format!("{many}not ok 2 more\n").as_bytes());
        reader.finish();
        assert_eq!(reader.beyond(), Beyond { all: 12, failed: 1 });
        // All names together have an end as well; tests are counted behind it.
        let long = format!(
            "TAP version 14\n{}ok 1 whole\n",
            format!("    ok 1 {}\n", "x".repeat(150)).repeat(50_000)
        );
        let tests = read(&long);
        let bytes: usize = tests.iter().map(|(name, _)| name.len()).sum();
        assert!(tests.len() == 50_000 && bytes <= MOST_NAMES + 50_000 * NO_NAME.len(), "{bytes}");
        assert!(read(&format!("TAP version 14\nok 1 {}", "x".repeat(1 << 20)))[0].0.len() < MOST_NAME + 8);
    }
}
