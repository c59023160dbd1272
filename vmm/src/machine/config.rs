//! What a run is made of, checked once at the edge.

use crate::console::ConsoleKind;
use crate::error::Error;
use crate::logging;
use crate::logging::line_queue::{Last, LineQueue, Lost};
pub use crate::machine::guest_clock::GuestClock;
use crate::machine::hypercalls::FamilyName;
use arch::cpu_template::CpuTemplate;
use arch::{Isa, aarch64, x86};
use debug::dump::packing::check_name;
use debug::gdb::listener::Address;
use debug::gdb::server::OnLost;
use debug::socket::Access;
use devices::hypercall::trace::{Filter, Sink, Style, Tracer};
use devices::platform::Extra;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// Ends the run.
    #[default]
    Exit,
    /// Boots the guest again from its files.
    Restart,
}

/// A guest and how it is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel; the embedded guest where there is none.
    pub kernel: Option<PathBuf>,
    /// Initrds, or modules: paths, which may have a string behind them ([`crate::boot::initrd`]).
    pub initrds: Vec<PathBuf>,
    /// The command line as the user gave it.
    pub cmdline: Option<String>,
    /// Whether to leave the command line as it is.
    pub cmdline_exact: bool,
    /// Where a flat binary goes, guest-physical.
    pub load_address: Option<u64>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MemorySize,
    /// What the guest sees of the processor.
    pub cpu: CpuTemplate,
    /// Whether there is an exit device.
    pub exit_device: bool,
    /// Whether there is QEMU's `pc-testdev` (x86_64).
    pub test_device: bool,
    /// Where the console goes.
    pub console: ConsoleKind,
    /// When to end the guest.
    pub timeout: Option<Duration>,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// What becomes of its time while it is held.
    pub guest_clock: GuestClock,
    /// Where a debugger connects, if one may.
    pub gdb: Option<GdbConfig>,
    /// Hypercalls that are answered and shown.
    pub hypercalls: Option<HypercallConfig>,
    /// What the guest is called.
    pub name: Option<String>,
    /// When a core of it is written.
    pub dump_on: Option<DumpOn>,
}

impl Config {
    /// The devices that not every machine has, and this one is to have.
    pub fn extras(&self) -> Vec<Extra> {
        // Somebody wants to know of the guest's panics.
        let wants_panics = self.dump_on.as_ref().is_some_and(|on| on.panic);
        [(Extra::Exit, self.exit_device), (Extra::Pvpanic, wants_panics), (Extra::Test, self.test_device)]
            .into_iter()
            .filter(|(_, is_wanted)| *is_wanted)
            .map(|(extra, _)| extra)
            .collect()
    }
}

/// When a core of the guest is written at its end, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOn {
    /// Its kernel has panicked.
    pub panic: bool,
    /// A triple fault.
    pub triple_fault: bool,
    /// Its time is over.
    pub timeout: bool,
    /// The file.
    pub path: PathBuf,
}

impl DumpOn {
    /// Parses `WHEN[,WHEN...]=PATH`.
    ///
    /// # Errors
    /// What is wrong, and what can be written instead.
    pub fn parse(text: &str) -> Result<DumpOn, String> {
        let (when, path) =
            text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or("write WHEN=PATH")?;
        parse_dump_path(path)?;
        let mut on = DumpOn { panic: false, triple_fault: false, timeout: false, path: path.into() };
        for word in when.split(',') {
            match word {
                "panic" => on.panic = true,
                "triple-fault" => on.triple_fault = true,
                "timeout" => on.timeout = true,
                _ => return Err(format!("'{word}' is none of panic, triple-fault or timeout")),
            }
        }
        Ok(on)
    }
}

/// Parses the path of a dump that is to be written.
///
/// # Errors
/// What is wrong with its ending.
pub fn parse_dump_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    check_name(&path)?;
    Ok(path)
}

/// A family of hypercalls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypercallConfig {
    /// Which.
    pub family: FamilyName,
    /// Where they are written.
    pub trace: Trace,
    /// How.
    pub style: Style,
    /// Which of them.
    pub filter: Filter,
    /// Counts are told at the end.
    pub summary: bool,
    /// x86: by the monitor's own hypercall page, though KVM could do better.
    pub page_only: bool,
}

/// Where a trace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Nowhere.
    Off,
    /// Standard error.
    Stderr,
    /// A file.
    File(PathBuf),
}

impl HypercallConfig {
    /// Parses `FAMILY[,WORD...]`.
    ///
    /// # Errors
    /// What is wrong, and what can be written instead.
    pub fn parse(text: &str) -> Result<HypercallConfig, String> {
        let mut words = text.split(',');
        let family = match words.next() {
            Some("xen") => FamilyName::Xen,
            Some("kvm") => FamilyName::Kvm,
            other => return Err(format!("'{}' is no family: write xen or kvm", other.unwrap_or_default())),
        };
        let mut config = HypercallConfig {
            family,
            trace: Trace::Stderr,
            style: Style::Lines,
            filter: Filter::default(),
            summary: false,
            page_only: false,
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("json", "") => config.style = Style::Json,
                ("summary", "") => config.summary = true,
                ("trace", "") => return Err("trace= needs a path behind it, or off".into()),
                ("trace", "off") => config.trace = Trace::Off,
                ("trace", path) => config.trace = Trace::File(path.into()),
                ("filter", names) if !names.is_empty() => {
                    let unknown = names.split('+').find(|name| !family.table().has(name));
                    if let Some(name) = unknown {
                        return Err(format!("filter: there is no hypercall and no operation '{name}'"));
                    }
                    config.filter = Filter::new(names.split('+').map(String::from).collect());
                }
                ("transport", "auto") => config.page_only = false,
                ("transport", "page") => config.page_only = true,
                _ => {
                    return Err(format!(
                        "'{word}' is none of json, summary, trace=PATH|off, filter=NAME[+NAME...], \
                         transport=auto|page"
                    ));
                }
            }
        }
        Ok(config)
    }

    /// The error of a trace that cannot be opened.
    pub fn cannot_open(&self, source: std::io::Error) -> Error {
        let path = match &self.trace {
            Trace::File(path) => path.clone(),
            Trace::Off | Trace::Stderr => PathBuf::from("standard error"),
        };
        Error::Open { option: "--hypercalls trace=", path, source }
    }

    /// Empties the file of the trace, once: a guest that is booted again adds to it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn begin(&self) -> std::io::Result<()> {
        match &self.trace {
            Trace::File(path) => File::create(path).map(drop),
            Trace::Off | Trace::Stderr => Ok(()),
        }
    }

    /// The trace that is asked for, behind what its file has already.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn tracer(&self) -> std::io::Result<Tracer> {
        let sink: Option<Sink> = match &self.trace {
            Trace::Off => None,
            Trace::Stderr => Some(Box::new(logging::stderr()?)),
            Trace::File(path) => {
                let file = File::options().create(true).append(true).open(path)?;
                let lost: Lost = match self.style {
                    Style::Lines => |count| format!("({count} calls are not shown here)\n"),
                    Style::Json => |count| format!("{{\"not_shown\":{count}}}\n"),
                };
                let path = path.display().to_string();
                let failed = move |error: &std::io::Error| {
                    log::warn!("calls are lost: cannot write to --hypercalls trace={path}: {error}");
                };
                Some(Box::new(Last(LineQueue::start(file, lost, failed)?)))
            }
        };
        Ok(Tracer::new(sink, self.style, self.filter.clone()))
    }
}

/// A gdb server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdbConfig {
    /// Where it listens.
    pub address: Address,
    /// Whether the guest waits for a debugger before its first instruction.
    pub waits: bool,
    /// Whether processes of every user are served, instead of this one's and root's.
    pub any_user: bool,
    /// What becomes of the guest when a debugger has gone without saying so.
    pub on_lost: OnLost,
    /// Whether a second debugger takes the place of the first.
    pub takeover: bool,
    /// The folder that `monitor dump` writes below; the current one where none is given.
    pub dump_folder: Option<PathBuf>,
}

impl GdbConfig {
    /// A server at this address, of which all else is as without further options.
    pub fn new(address: Address) -> GdbConfig {
        GdbConfig {
            address,
            waits: true,
            any_user: false,
            on_lost: OnLost::default(),
            takeover: false,
            dump_folder: None,
        }
    }

    /// Who may connect to a socket in the file system.
    pub fn access(&self) -> Access {
        if self.any_user { Access::Everyone } else { Access::Owner }
    }
}

/// Parses what becomes of the guest when a debugger is lost.
///
/// # Errors
/// What can be written.
pub fn parse_lost(text: &str) -> Result<OnLost, String> {
    match text {
        "continue" => Ok(OnLost::Continue),
        "hold" => Ok(OnLost::Hold),
        "quit" => Ok(OnLost::Quit),
        _ => Err("write continue, hold or quit".into()),
    }
}

impl Default for Config {
    fn default() -> Config {
        let isa = kvm::HOST_ISA;
        Config {
            kernel: None,
            initrds: Vec::new(),
            cmdline: None,
            cmdline_exact: false,
            load_address: None,
            cpus: 1,
            memory: MemorySize::DEFAULT,
            cpu: CpuTemplate::built_in(isa, "host", None),
            exit_device: true,
            test_device: false,
            console: ConsoleKind::Stdio,
            timeout: None,
            on_reboot: OnReboot::default(),
            guest_clock: GuestClock::default(),
            gdb: None,
            hypercalls: None,
            name: None,
            dump_on: None,
        }
    }
}

/// A size of memory that a guest can have: a multiple of 4 KiB (64 KiB, where host pages may
/// be so large) of at least what the boot tables need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

impl MemorySize {
    /// What a guest has when nothing is said: 512 MiB.
    pub const DEFAULT: MemorySize = MemorySize(512 << 20);

    /// Alignment of a size, bytes: the largest page size of our hosts.
    const ALIGNMENT: u64 = 64 << 10;

    /// Checks a size in bytes.
    ///
    /// # Errors
    /// A message that says what would do.
    pub fn new(isa: Isa, bytes: u64) -> Result<MemorySize, String> {
        let (minimum, maximum) = match isa {
            Isa::X86_64 => (x86::layout::MINIMUM_MEMORY, 1 << 46),
            Isa::Aarch64 => (aarch64::layout::MINIMUM_MEMORY, 1 << 47),
        };
        if bytes < minimum {
            return Err(format!("a guest needs at least {}M (write 512M or 4G)", minimum >> 20));
        }
        if bytes > maximum {
            return Err(format!("more than {}T cannot be addressed", maximum >> 40));
        }
        if !bytes.is_multiple_of(Self::ALIGNMENT) {
            return Err(format!("{bytes} bytes are not a multiple of 64K"));
        }
        Ok(MemorySize(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// Parses a number of things, at least one.
///
/// # Errors
/// A message that shows how it is written.
pub fn parse_count(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(0) => Err("there has to be at least one: write for example 1 or 4".into()),
        Ok(count) => Ok(count),
        Err(_) if digits => Err(format!("'{text}' is more than can be counted here")),
        Err(_) => Err(format!("'{text}' is not a number: write for example 1 or 4")),
    }
}

/// Parses a size: `512M`, `4G`, `65536K`, `1T`; a bare number counts MiB, as in QEMU.
///
/// # Errors
/// A message that shows how it is written.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write for example 512M or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// Parses a duration: `30s`, `500ms`, `2m`, `1h`; a bare number counts seconds.
///
/// # Errors
/// A message that shows how it is written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: write for example 30s, 500ms or 2m");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let milliseconds = match &text[digits.len()..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" | "min" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(wrong()),
    };
    match milliseconds {
        Some(0) => Err("a timeout of zero would end the guest before it starts".into()),
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        None => Err(format!("'{text}' is too long")),
    }
}

/// Parses an address: `0x100000`, or decimal.
///
/// # Errors
/// A message that shows how it is written.
pub fn parse_address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not an address: write for example 0x100000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_the_devices_that_are_asked_for() {
        let (on, config) = (DumpOn::parse("panic,timeout=core").unwrap(), Config::default());
        for (config, wanted) in [
            (config.clone(), &[Extra::Exit][..]),
            (Config { exit_device: false, ..config.clone() }, &[]),
            (Config { dump_on: Some(on.clone()), ..config.clone() }, &[Extra::Exit, Extra::Pvpanic]),
            (Config { dump_on: Some(DumpOn { panic: false, ..on }), ..config.clone() }, &[Extra::Exit]),
            (Config { test_device: true, exit_device: false, ..config }, &[Extra::Test]),
        ] {
            assert_eq!(config.extras(), wanted);
        }
    }

    #[test]
    fn counts() {
        assert_eq!(parse_count("4"), Ok(4));
        for (text, words) in [
            ("0", "at least one"),
            ("", "not a number"),
            ("-1", "not a number"),
            ("2x", "not a number"),
            ("99999999999", "more than can be counted"),
        ] {
            assert!(parse_count(text).unwrap_err().contains(words), "{text}");
        }
    }

    #[test]
    fn sizes_with_every_suffix() {
        for (text, bytes) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("256", 256 << 20), ("64KiB", 64 << 10), ("1t", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "4X", "-1M", "1.5G", "99999999999T", "4 G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_with_every_suffix() {
        for (text, milliseconds) in
            [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("7", 7000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "0", "0ms", "5d", "99999999999999999h", "-1s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_and_memory_sizes() {
        assert_eq!(parse_address("0x100000"), Ok(0x10_0000));
        assert_eq!(parse_address("4096"), Ok(4096));
        assert!(parse_address("0x").is_err());
        for isa in Isa::ALL {
            assert!(MemorySize::new(isa, 0).unwrap_err().contains("at least"));
            assert!(MemorySize::new(isa, (512 << 20) + 1).unwrap_err().contains("multiple"));
            assert!(MemorySize::new(isa, 1 << 60).unwrap_err().contains("addressed"));
            assert_eq!(MemorySize::new(isa, 512 << 20), Ok(MemorySize::DEFAULT));
        }
    }
}
