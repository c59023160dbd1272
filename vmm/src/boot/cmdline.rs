//! The kernel's command line.

use super::BootError;
use arch::Isa;
use linux_loader::cmdline::Cmdline;

/// The console that both of our machines have.
const CONSOLE: &str = "console=ttyS0";

/// Keeps a kernel where it was linked, so that a debugger's symbols match from its first
/// instruction.
const NOKASLR: &str = "nokaslr";
/// Has an aarch64 kernel sign no return addresses, which gdb before 14 takes for what they are not, so that `finish`
/// and `up` go astray.
const NOPAUTH: &str = "arm64.nopauth";

/// What the guest gets: `given`, unless `exact` with a console added when it names none, and
/// with `nokaslr`, and on aarch64 `arm64.nopauth`, when a debugger waits at its first instruction.
pub fn complete(isa: Isa, given: Option<&str>, exact: bool, is_debugged: bool) -> String {
    let given = given.unwrap_or("").trim();
    let has = |found: &dyn Fn(&str) -> bool| given.split_whitespace().any(found);
    // In front, so that a `--` that ends the kernel's own arguments stays where it is.
    let mut words = Vec::new();
    if !exact && !has(&|word| word.starts_with("console=")) {
        words.push(CONSOLE);
    }
    if !exact && is_debugged && !has(&|word| word == NOKASLR || word == "kaslr") {
        words.push(NOKASLR);
    }
    if !exact && is_debugged && isa == Isa::Aarch64 && !has(&|word| word == NOPAUTH) {
        words.push(NOPAUTH);
    }
    if !given.is_empty() {
        words.push(given);
    }
    words.join(" ")
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
            assert_eq!(complete(Isa::X86_64, given, exact, false), line);
            assert_eq!(complete(Isa::Aarch64, given, exact, false), line);
        }
    }

    #[test]
    fn a_kernel_that_is_debugged_from_the_start_stays_where_it_was_linked() {
        for (given, exact, line) in [
            (None, false, "console=ttyS0 nokaslr"),
            (Some("quiet"), false, "console=ttyS0 nokaslr quiet"),
            (Some("kaslr quiet"), false, "console=ttyS0 kaslr quiet"),
            (Some("console=hvc0 nokaslr"), false, "console=hvc0 nokaslr"),
            (Some("quiet"), true, "quiet"),
        ] {
            assert_eq!(complete(Isa::X86_64, given, exact, true), line);
        }
        let arm = |given| complete(Isa::Aarch64, Some(given), false, true);
        assert_eq!(arm("quiet"), "console=ttyS0 nokaslr arm64.nopauth quiet");
        assert_eq!(arm("quiet arm64.nopauth"), "console=ttyS0 nokaslr quiet arm64.nopauth");
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
