//! The kernel's command line.

use super::BootError;
use super::kernel::Kernel;
use arch::Isa;
use kvm::HOST_ISA;

/// The console that both of our machines have.
const CONSOLE: &str = "console=ttyS0";
/// A virtio console, and the serial port until its driver is there (`earlycon`, Documentation/admin-guide/kernel-parameters.txt):
/// the kernel prints nothing twice, and from then on nothing more on the slower one.
const VIRTIO_CONSOLE: [&str; 2] =
    ["earlycon=uart8250,io,0x3f8 console=hvc0", "earlycon=uart8250,mmio,0x9000000 console=hvc0"];

/// Keeps a kernel where it was linked, so that a debugger's symbols match from its first
/// instruction.
const NOKASLR: &str = "nokaslr";
/// Has an aarch64 kernel sign no return addresses, which gdb before 14 takes for what they are not, so that `finish`
/// and `up` go astray.
const NOPAUTH: &str = "arm64.nopauth";

/// How a line is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Nothing is added.
    pub exact: bool,
    /// A debugger waits at the guest's first instruction.
    pub is_debugged: bool,
    /// The architecture.
    pub isa: Isa,
    /// The kernel is Linux, and knows Linux's words.
    pub is_linux: bool,
    /// Its console is a virtio device.
    pub has_virtio_console: bool,
}

impl Completion {
    /// For a kernel.
    pub fn of(kernel: &Kernel, exact: bool, is_debugged: bool, has_virtio_console: bool) -> Completion {
        let is_linux = !exact && kernel.is_linux();
        Completion { exact, is_debugged, is_linux, has_virtio_console, isa: HOST_ISA }
    }

    /// What the guest gets: `given`, for Linux with a console added when it names none, and
    /// with `nokaslr`, and on aarch64 `arm64.nopauth`, when a debugger waits at its first instruction.
    pub fn line(self, given: Option<&str>) -> String {
        let given = given.unwrap_or("");
        let given = if self.exact { given } else { given.trim() };
        let has = |found: &dyn Fn(&str) -> bool| given.split_whitespace().any(found);
        let adds = self.is_linux && !self.exact;
        // In front, so that a `--` that ends the kernel's own arguments stays where it is.
        let mut words = Vec::new();
        if adds && !has(&|word| word.starts_with("console=")) {
            words.push(match (self.has_virtio_console, self.isa) {
                (false, _) => CONSOLE,
                (true, Isa::X86_64) => VIRTIO_CONSOLE[0],
                (true, Isa::Aarch64) => VIRTIO_CONSOLE[1],
            });
        }
        if adds && self.is_debugged && !has(&|word| word == NOKASLR || word == "kaslr") {
            words.push(NOKASLR);
        }
        if adds && self.is_debugged && self.isa == Isa::Aarch64 && !has(&|word| word == NOPAUTH) {
            words.push(NOPAUTH);
        }
        if !given.is_empty() {
            words.push(given);
        }
        words.join(" ")
    }
}

/// A line with its final zero, checked against the room that a kernel has, `limit` bytes with the zero.
///
/// # Errors
/// [`BootError::Cmdline`] for a line that is too long or has a zero in it.
pub fn checked(line: &str, limit: u64) -> Result<Vec<u8>, BootError> {
    if line.len() as u64 >= limit {
        return Err(BootError::Cmdline(format!(
            "{} bytes are too many, this kernel takes {} and cuts off the rest",
            line.len(),
            limit.saturating_sub(1)
        )));
    }
    if line.contains('\0') {
        return Err(BootError::Cmdline("it has a zero in it, which ends it for the kernel".into()));
    }
    Ok([line.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(isa: Isa, exact: bool, is_debugged: bool) -> Completion {
        Completion { exact, is_debugged, is_linux: true, has_virtio_console: false, isa }
    }

    fn line(given: Option<&str>, exact: bool, is_debugged: bool) -> String {
        completion(Isa::X86_64, exact, is_debugged).line(given)
    }

    #[test]
    fn a_console_is_added_unless_there_is_one_or_none_is_wanted() {
        for (given, exact, expected) in [
            (None, false, "console=ttyS0"),
            (None, true, ""),
            (Some("quiet"), false, "console=ttyS0 quiet"),
            (Some("quiet -- single"), false, "console=ttyS0 quiet -- single"),
            (Some("quiet console=hvc0"), false, "quiet console=hvc0"),
            (Some("noconsole=1"), false, "console=ttyS0 noconsole=1"),
            (Some("quiet"), true, "quiet"),
            (Some(" quiet "), true, " quiet "),
        ] {
            assert_eq!(line(given, exact, false), expected);
        }
    }

    /// Where it is not there yet, the serial port is.
    #[test]
    fn a_virtio_console_is_named_behind_an_early_one() {
        let line = |isa, exact, given| {
            Completion { has_virtio_console: true, ..completion(isa, exact, false) }.line(Some(given))
        };
        for (isa, place) in [(Isa::X86_64, "io,0x3f8"), (Isa::Aarch64, "mmio,0x9000000")] {
            let added = format!("earlycon=uart8250,{place} console=hvc0 quiet");
            assert_eq!(line(isa, false, "quiet"), added);
            assert_eq!(line(isa, false, "quiet console=ttyS0"), "quiet console=ttyS0");
            assert_eq!(line(isa, true, "quiet"), "quiet");
        }
    }

    #[test]
    fn a_kernel_that_is_debugged_from_the_start_stays_where_it_was_linked() {
        for (given, exact, expected) in [
            (None, false, "console=ttyS0 nokaslr"),
            (Some("quiet"), false, "console=ttyS0 nokaslr quiet"),
            (Some("kaslr quiet"), false, "console=ttyS0 kaslr quiet"),
            (Some("console=hvc0 nokaslr"), false, "console=hvc0 nokaslr"),
            (Some("quiet"), true, "quiet"),
        ] {
            assert_eq!(line(given, exact, true), expected);
        }
        let arm = |given| completion(Isa::Aarch64, false, true).line(Some(given));
        assert_eq!(arm("quiet"), "console=ttyS0 nokaslr arm64.nopauth quiet");
        assert_eq!(arm("quiet arm64.nopauth"), "console=ttyS0 nokaslr quiet arm64.nopauth");
    }

    #[test]
    fn a_kernel_that_is_not_linux_gets_none_of_its_words() {
        let other = Completion { is_linux: false, ..completion(Isa::Aarch64, false, true) };
        assert_eq!(other.line(None), "");
        assert_eq!(other.line(Some("verbose ")), "verbose");
    }

    #[test]
    fn lines_that_a_kernel_would_not_get_whole_are_refused() {
        let error = checked(&"x".repeat(2048), 2048).unwrap_err().to_string();
        assert!(error.contains("2048 bytes are too many, this kernel takes 2047"), "{error}");
        assert_eq!(checked(&"x".repeat(2047), 2048).map(|line| line.len()).ok(), Some(2048));
        // Counted in bytes, as kernels do.
        assert!(checked(&"\u{e9}".repeat(1024), 2048).is_err());
        assert_eq!(checked("caf\u{e9}\tx", 2048).ok(), Some("caf\u{e9}\tx\0".as_bytes().to_vec()));
        assert!(checked("a\0b", 2048).unwrap_err().to_string().contains("zero"));
        assert_eq!(checked("", 2048).ok(), Some(vec![0]));
    }
}
