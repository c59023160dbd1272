//! What is said where there is nothing to be done: the cause, in one line, which is the last; as JSON behind it where that
//! was asked for.

use crate::job::verdict::CANNOT;
use crate::logging;
use arch::plain::plain;

/// A command line's error in one line: the cause and, if there is one, the tip.
pub fn in_a_line(error: &clap::Error) -> String {
    let text = error.to_string();
    // Paragraphs: the cause, in one line or several; tips, a line each; the usage.
    let mut paragraphs = text.split("\n\n").map(|it| it.lines().map(str::trim));
    let cause: Vec<&str> = paragraphs.next().into_iter().flatten().filter(|line| !line.is_empty()).collect();
    let cause = cause.join(" ");
    let tip = paragraphs.flatten().find(|line| line.starts_with("tip: ")).map(|tip| format!(" ({tip})"));
    plain(&format!("{}{}", cause.strip_prefix("error: ").unwrap_or(&cause), tip.unwrap_or_default()))
}

/// Says a cause in one line on standard error, also where messages go to a file or are not asked for.
pub fn say(cause: &str) {
    let cause = plain(cause);
    log::error!("{cause}");
    if logging::has_file() || !log::log_enabled!(log::Level::Error) {
        logging::print(&format!("vmm: error: {cause}\n"));
    }
}

/// Says why a run cannot be; the exit code.
pub fn cannot_run(cause: &str, json: bool) -> u8 {
    say(cause);
    if json {
        logging::print(&format!("{}\n", as_json(cause)));
    }
    CANNOT
}

/// As what came of a run is told (`Ended::as_json`).
fn as_json(cause: &str) -> String {
    serde_json::json!({
        "verdict": "cannot",
        "code": CANNOT,
        "text": plain(cause),
        "seconds": 0.0,
        "boot_seconds": null,
        "dump": null,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_command_line_is_one_line_that_names_the_cause() {
        let of = |line: &str| {
            let error = super::super::definition().try_get_matches_from(line.split(' ')).unwrap_err();
            in_a_line(&error)
        };
        assert_eq!(
            of("vmm run --kernl x"),
            "unexpected argument '--kernl' found (tip: a similar argument exists: '--kernel')"
        );
        let missing = of("vmm dump");
        assert!(
            missing.starts_with("the following required arguments were not provided: <GUEST>"),
            "{missing}"
        );
        let value = of("vmm run --memory 4\u{1b}[2J");
        assert!(value.contains("invalid value '4\u{fffd}[2J' for '--memory <SIZE>'"), "{value}");
        for line in [missing, value] {
            assert!(!line.contains('\n') && !line.contains("--help"), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_is_json_as_well() {
        let value: serde_json::Value = serde_json::from_str(&as_json("no \"ker\nnel\u{1b}\"")).unwrap();
        assert_eq!((&value["code"], &value["verdict"]), (&125.into(), &"cannot".into()));
        assert_eq!(value["text"], "no \"ker\u{fffd}nel\u{fffd}\"");
    }
}
