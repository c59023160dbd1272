//! The kernel's command line.

use super::BootError;
use linux_loader::cmdline::Cmdline;

/// The console that both of our machines have.
const CONSOLE: &str = "console=ttyS0";

/// What the guest gets: `given`, with a console added when it names none, unless `exact`.
/// Without a line of the user's there is just the console.
pub fn complete(given: Option<&str>, exact: bool) -> String {
    let given = given.unwrap_or("").trim();
    let names_console = given.split_whitespace().any(|word| word.starts_with("console="));
    match (exact || names_console, given.is_empty()) {
        (true, _) => given.to_string(),
        (false, true) => CONSOLE.to_string(),
        // In front, so that a `--` that ends the kernel's own arguments stays where it is.
        (false, false) => format!("{CONSOLE} {given}"),
    }
}

/// Checks a line against the room that a kernel has, `limit` bytes with the final zero.
///
/// # Errors
/// [`BootError::Cmdline`] for a line that is too long or has characters that no kernel takes.
pub fn check(line: &str, limit: u64) -> Result<Cmdline, BootError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 16);
    let error = |why: String| BootError::Cmdline(why);
    if line.len() >= limit {
        return Err(error(format!(
            "{} characters are too many, this kernel takes {}",
            line.len(),
            limit - 1
        )));
    }
    let mut cmdline = Cmdline::new(limit).map_err(|why| error(why.to_string()))?;
    if !line.is_empty() {
        cmdline.insert_str(line).map_err(|why| error(why.to_string()))?;
    }
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_added_unless_there_is_one_or_none_is_wanted() {
        for (given, exact, line) in [
            (None, false, "console=ttyS0"),
            (None, true, ""),
            (Some("quiet"), false, "console=ttyS0 quiet"),
            (Some("quiet -- single"), false, "console=ttyS0 quiet -- single"),
            (Some("quiet console=hvc0"), false, "quiet console=hvc0"),
            (Some("noconsole=1"), false, "console=ttyS0 noconsole=1"),
            (Some("quiet"), true, "quiet"),
        ] {
            assert_eq!(complete(given, exact), line);
        }
    }

    #[test]
    fn lines_that_no_kernel_takes_are_refused() {
        assert!(check(&"x".repeat(2048), 2048).is_err());
        assert!(check(&"x".repeat(2047), 2048).is_ok());
        assert!(check("caf\u{e9}", 2048).is_err());
        assert!(check("a\0b", 2048).is_err());
        assert!(check("", 2048).is_ok());
    }
}
