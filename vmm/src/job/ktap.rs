//! Results that a command prints itself, by the Test Anything Protocol: as the kernel's own tests have it (KTAP, Linux
//! `Documentation/dev-tools/ktap.rst`) and as others do (TAP 14). Results within results are indented, and come before the
//! one that they are part of.

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

/// A line without what the kernel's log has in front.
fn without_time(line: &str) -> &str {
    let rest = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match rest {
        Some((time, rest)) if time.chars().all(|c| c.is_ascii_digit() || matches!(c, ' ' | '.')) => rest,
        _ => line,
    }
}

fn parse(line: &str) -> Option<Line> {
    let line = without_time(line.trim_end());
    let text = line.trim_start_matches(' ');
    let depth = line.len() - text.len();
    let (is_ok, rest) = match text.strip_prefix("ok") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("not ok")?),
    };
    // A number, and a name behind it that may have a dash in front.
    let rest = rest.strip_prefix(' ')?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits == 0 {
        return None;
    }
    let rest = rest[digits..].trim_start();
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (name, directive) = rest.split_once(" # ").or_else(|| rest.split_once("# ")).unwrap_or((rest, ""));
    let directive = directive.to_ascii_uppercase();
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
    let name =
        if name.is_empty() { rest[..0].to_string() + &text[..text.len() - rest.len()] } else { name.into() };
    Some(Line { depth, name: name.trim().to_string(), result })
}

/// The tests that a command's output tells of; none if it does not speak of any.
pub fn tests(output: &str) -> Vec<Test> {
    let mut lines = output.lines();
    if !lines.any(|line| is_version(without_time(line).trim())) {
        return Vec::new();
    }
    // With the depth of each, those of which no line has said yet what they are part of.
    let mut found: Vec<(usize, Test)> = Vec::new();
    for Line { depth, name, result } in lines.filter_map(parse).take(MOST) {
        let first = found.iter().rposition(|(its, _)| *its <= depth).map_or(0, |at| at + 1);
        if first == found.len() {
            found.push((depth, Test { name, result }));
            continue;
        }
        for (its, test) in &mut found[first..] {
            *its = depth;
            test.name = format!("{name}/{}", test.name);
        }
        // One that fails by itself, though all within have passed.
        if result == Result::Failed && found[first..].iter().all(|(_, test)| test.result != Result::Failed) {
            found.push((depth, Test { name, result }));
        }
    }
    found.into_iter().map(|(_, test)| test).collect()
}

fn is_version(line: &str) -> bool {
    ["TAP version ", "KTAP version "].iter().any(|version| line.starts_with(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Vec<(String, Result)> {
        tests(output).into_iter().map(|test| (test.name, test.result)).collect()
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
            read("TAP version 14\nokay then\nok\nnot ok none\nok 1\n"),
            [("ok 1".into(), Result::Passed)]
        );
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
}
