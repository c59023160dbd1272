//! How a nest tells what happened in it: a stream of frames through one device.
//!
//! A frame is a line `@@NAME LENGTH`, then that many bytes and a newline. Names are `log`
//! (progress), `file:NAME` (something to keep), `pass`, `fail` (with a message) and
//! `ignored` (with a reason).

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
}
