//! How a nest tells what happened in it: a stream of frames through one device.
//!
//! A frame is a line `@@NAME LENGTH`, then that many bytes and a newline. Names are `log`
//! (progress), `file:NAME` (something to keep), `pass`, `fail` (with a message) and
//! `ignored` (with a reason). Where several cases share a nest, each has a frame `case:NAME SECONDS`
//! around its own.

use std::io::{self, Write};

/// What a run of a case comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All checks held.
    Pass,
    /// One did not.
    Fail(String),
    /// The case cannot run at this place.
    Ignored(String),
}

/// A result, with files to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Output of programs, by name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Writes one frame.
///
/// # Errors
/// What writing says.
pub fn write_frame(out: &mut dyn Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut frame = format!("@@{name} {}\n", bytes.len()).into_bytes();
    frame.extend(bytes);
    frame.push(b'\n');
    out.write_all(&frame)
}

impl Report {
    /// Writes the report.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for (name, bytes) in &self.files {
            write_frame(out, &format!("file:{name}"), bytes)?;
        }
        match &self.verdict {
            Verdict::Pass => write_frame(out, "pass", b"")?,
            Verdict::Fail(message) => write_frame(out, "fail", message.as_bytes())?,
            Verdict::Ignored(reason) => write_frame(out, "ignored", reason.as_bytes())?,
        }
        out.flush()
    }

    /// A failure of the other end comes before what this one says.
    pub fn fail_if(&mut self, other: Result<(), String>) {
        if let Err(mut message) = other {
            if let Verdict::Fail(own) = &self.verdict {
                message = format!("{message}\n{own}");
            }
            self.verdict = Verdict::Fail(message);
        }
    }

    /// Reads a stream; one without a verdict is a failure.
    pub fn read(stream: &[u8]) -> Report {
        let mut files = Vec::new();
        let mut verdict = None;
        let mut rest = stream;
        while let Some((name, bytes, after)) = next_frame(rest) {
            rest = after;
            let text = || String::from_utf8_lossy(bytes).into_owned();
            match name {
                "pass" => verdict = Some(Verdict::Pass),
                "fail" => verdict = Some(Verdict::Fail(text())),
                "ignored" => verdict = Some(Verdict::Ignored(text())),
                _ => files.push((name.trim_start_matches("file:").to_string(), bytes.to_vec())),
            }
        }
        let verdict = verdict.unwrap_or_else(|| Verdict::Fail("it ended without a verdict".into()));
        Report { verdict, files }
    }
}

/// What one of several cases that shared a nest came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// Its name.
    pub case: String,
    /// How long it took.
    pub seconds: f64,
    /// What it came to.
    pub report: Report,
}

impl Shared {
    /// Writes what a case wrote, `stream`, as that of one of several.
    ///
    /// # Errors
    /// What writing says.
    pub fn write(out: &mut dyn Write, case: &str, seconds: f64, stream: &[u8]) -> io::Result<()> {
        write_frame(out, &format!("case:{case} {seconds:.1}"), stream)?;
        out.flush()
    }

    /// Reads those that came to an end.
    pub fn read_all(stream: &[u8]) -> Vec<Shared> {
        let mut rest = stream;
        let frames = std::iter::from_fn(|| {
            let (name, bytes, after) = next_frame(rest)?;
            rest = after;
            Some((name, bytes))
        });
        let read = |(name, bytes): (&str, &[u8])| {
            let (case, seconds) = name.strip_prefix("case:")?.split_once(' ')?;
            let seconds = seconds.parse().ok()?;
            Some(Shared { case: case.into(), seconds, report: Report::read(bytes) })
        };
        frames.filter_map(read).collect()
    }
}

fn next_frame(stream: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let line_end = stream.iter().position(|&byte| byte == b'\n')?;
    let line = std::str::from_utf8(&stream[..line_end]).ok()?.strip_prefix("@@")?;
    let (name, length) = line.rsplit_once(' ')?;
    let length: usize = length.parse().ok()?;
    let body = &stream[line_end + 1..];
    Some((name, body.get(..length)?, body.get(length + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way() {
        let report = Report {
            verdict: Verdict::Fail("no\nluck".into()),
            files: vec![("console 1.log".into(), b"@@pass 0\n\n".to_vec())],
        };
        let mut stream = Vec::new();
        report.write(&mut stream).unwrap();
        assert_eq!(Report::read(&stream), report);
        for cut in 0..stream.len() {
            assert!(matches!(Report::read(&stream[..cut]).verdict, Verdict::Fail(_)));
        }
    }

    #[test]
    fn cases_that_share_a_nest_have_a_report_each() {
        let mut stream = Vec::new();
        let reports =
            [Verdict::Pass, Verdict::Fail("no".into())].map(|verdict| Report { verdict, files: Vec::new() });
        for (report, case) in reports.iter().zip(["first", "second"]) {
            let mut own = Vec::new();
            report.write(&mut own).unwrap();
            Shared::write(&mut stream, case, 1.25, &own).unwrap();
        }
        let read = Shared::read_all(&stream);
        assert_eq!(read.iter().map(|shared| &*shared.case).collect::<Vec<_>>(), ["first", "second"]);
        assert!(read.iter().map(|shared| &shared.report).eq(&reports));
        // The nest died in the second one.
        assert_eq!(Shared::read_all(&stream[..stream.len() - 1]), read[..1]);
    }
}
