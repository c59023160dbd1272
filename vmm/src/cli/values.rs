//! Values of options: what is written on a command line, made into what it means.

mod net;

pub use net::{NetChoice, net};

use crate::machine::config::{
    DiskConfig, HypercallConfig, LONGEST_SERIAL, LONGEST_TAG, MemorySize, ShareConfig, SymbolsConfig, Trace,
    VirtioTransport, VsockConfig, VsockHost,
};
use crate::machine::hypercalls::family::FamilyName;
use crate::run::config::DumpOn;
use crate::run::console::ConsoleKind;
use debug::dump::packing::check_name;
use debug::gdb::server::OnLost;
use devices::hypercall::trace::{Filter, Style};
use devices::virtio::vsock::FIRST_CID;
use disk::{Access, Format, Options};
use kvm::HOST_ISA;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Parses a number of things, at least one.
///
/// # Errors
/// A message that shows how it is written.
pub fn count(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(0) => Err("there has to be at least one: write for example 1 or 4".into()),
        Ok(count) => Ok(count),
        Err(_) if digits => Err(format!("'{text}' is more than can be counted here")),
        Err(_) => Err(format!("'{text}' is not a number: write for example 1 or 4")),
    }
}

/// Parses where a kernel's symbols are: a file, or `none` (a file of that name is `./none`).
///
/// # Errors
/// None: whether there is such a file is found out when it is opened.
pub fn symbols(text: &str) -> Result<SymbolsConfig, std::convert::Infallible> {
    Ok(match text {
        "none" => SymbolsConfig::Absent,
        path => SymbolsConfig::Named(path.into()),
    })
}

/// Parses a size: `512M`, `4G`, `65536K`, `1T`; a bare number counts MiB, as in QEMU.
///
/// # Errors
/// A message that shows how it is written.
pub fn size(text: &str) -> Result<u64, String> {
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
pub fn duration(text: &str) -> Result<Duration, String> {
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
pub fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("'{text}' is not an address: write for example 0x100000"))
}

/// Parses a size of memory that a guest can have.
///
/// # Errors
/// A message that shows how it is written, or says what would do.
pub fn memory_size(text: &str) -> Result<MemorySize, String> {
    MemorySize::new(HOST_ISA, size(text)?)
}

/// Parses a switch.
///
/// # Errors
/// What can be written.
pub fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

/// What a guest's console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// The serial port.
    Serial,
    /// A port of a virtio console.
    Virtio,
}

impl ConsoleDevice {
    /// How they are written.
    pub const NAMES: &[&str] = &["serial", "virtio"];
}

/// Parses what the console is.
///
/// # Errors
/// What can be written.
pub fn console_device(text: &str) -> Result<ConsoleDevice, String> {
    match text {
        "serial" => Ok(ConsoleDevice::Serial),
        "virtio" => Ok(ConsoleDevice::Virtio),
        _ => Err("write serial or virtio".into()),
    }
}

/// Parses where the console goes.
///
/// # Errors
/// What can be written.
pub fn console(text: &str) -> Result<ConsoleKind, String> {
    match text {
        "stdio" => Ok(ConsoleKind::Stdio),
        "pty" => Ok(ConsoleKind::Pty),
        "none" => Ok(ConsoleKind::None),
        _ => match text.strip_prefix("file:") {
            Some("") => Err("file: needs a path behind it".into()),
            Some(path) => Ok(ConsoleKind::File(path.into())),
            None => Err("write stdio, file:PATH, pty or none".into()),
        },
    }
}

/// Parses a folder that is shared: `DIR[,tag=TAG][,ro|rw]`. What is behind a comma and is none of these words belongs
/// to the folder's name.
///
/// # Errors
/// What has to be written.
pub fn share(text: &str) -> Result<ShareConfig, String> {
    let (mut folder, mut tag, mut access) = (text, None, None);
    while let Some((rest, word)) = folder.rsplit_once(',') {
        let before = match word {
            "ro" | "rw" => access.replace(word),
            _ => match word.strip_prefix("tag=") {
                Some(word) => tag.replace(word),
                None => break,
            },
        };
        if before.is_some() {
            return Err(format!("'{text}' says twice what can be one thing: ro or rw, one tag"));
        }
        folder = rest;
    }
    let is_writable = access != Some("ro");
    if folder.is_empty() {
        return Err("a folder is missing: write for example /srv/work,tag=work,ro".into());
    }
    let named = || Path::new(folder).file_name().and_then(|name| name.to_str()).map(str::to_string);
    let tag = tag.map(str::to_string).or_else(named);
    let tag = tag
        .ok_or_else(|| format!("a tag is missing, by which the guest mounts it: write {folder},tag=NAME"))?;
    if tag.is_empty() || tag.len() > LONGEST_TAG {
        return Err(format!(
            "the tag '{tag}' has {} bytes and may have 1 to {LONGEST_TAG}: write {folder},tag=NAME",
            tag.len()
        ));
    }
    Ok(ShareConfig { folder: folder.into(), tag, is_writable, covered: Vec::new() })
}

/// Parses a socket device: `CID|auto[,path=PATH]`.
///
/// # Errors
/// What has to be written.
pub fn vsock(text: &str) -> Result<VsockConfig, String> {
    let how = || {
        "write auto,path=PATH, or a number from 3 on for auto: PATH is the socket to reach the guest by; without it the \
         host's kernel is asked (vhost)"
    };
    let (cid, host) = match text.split_once(",path=") {
        Some((_, "")) => return Err(how().into()),
        Some((cid, path)) => (cid, VsockHost::Sockets(path.into())),
        None => (text, VsockHost::Kernel),
    };
    let cid = match cid {
        "auto" => None,
        number => {
            let number = number.parse().ok().filter(|cid| (FIRST_CID..u32::MAX).contains(cid));
            Some(number.ok_or_else(how)?)
        }
    };
    Ok(VsockConfig { cid, host })
}

/// Parses how virtio devices are found.
///
/// # Errors
/// What can be written.
pub fn transport(text: &str) -> Result<VirtioTransport, String> {
    match text {
        "pci" => Ok(VirtioTransport::Pci),
        "mmio" => Ok(VirtioTransport::Mmio),
        _ => Err("write pci or mmio".into()),
    }
}

/// Parses a disk: `PATH[,ro][,format=raw|qcow2][,serial=TEXT][,snapshot]`. What is behind a comma and is none of these
/// words belongs to the path.
///
/// # Errors
/// What has to be written.
pub fn disk(text: &str) -> Result<DiskConfig, String> {
    let (mut path, mut access, mut format, mut serial) = (text, Access::ReadWrite, None, String::new());
    while let Some((rest, word)) = path.rsplit_once(',') {
        match (word, word.split_once('=')) {
            ("ro" | "snapshot", _) if access != Access::ReadWrite => {
                return Err("ro and snapshot are one too many: write either".into());
            }
            ("ro", _) => access = Access::ReadOnly,
            ("snapshot", _) => access = Access::Snapshot,
            (_, Some(("format", "raw"))) => format = Some(Format::Raw),
            (_, Some(("format", "qcow2"))) => format = Some(Format::Qcow2),
            (_, Some(("format", other))) => {
                return Err(format!("the format '{other}' is not known: write format=raw or format=qcow2"));
            }
            (_, Some(("serial", word))) => serial = word.into(),
            _ => break,
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("an image is missing: write for example disk.img, or disk.qcow2,snapshot".into());
    }
    if serial.len() > LONGEST_SERIAL || serial.chars().any(|it| !it.is_ascii_graphic()) {
        return Err(format!(
            "the serial number '{serial}' may have {LONGEST_SERIAL} letters, digits and signs: write {path},serial=TEXT"
        ));
    }
    let image = Options { path: path.into(), format, access };
    Ok(DiskConfig { image, serial })
}

/// Parses what becomes of the guest when a debugger is lost.
///
/// # Errors
/// What can be written.
pub fn lost(text: &str) -> Result<OnLost, String> {
    match text {
        "continue" => Ok(OnLost::Continue),
        "hold" => Ok(OnLost::Hold),
        "quit" => Ok(OnLost::Quit),
        _ => Err("write continue, hold or quit".into()),
    }
}

/// Parses the path of a dump that is to be written.
///
/// # Errors
/// What is wrong with its ending.
pub fn dump_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    check_name(&path)?;
    Ok(path)
}

/// Parses when a core is written at the guest's end: `WHEN[,WHEN...]=PATH`.
///
/// # Errors
/// What is wrong, and what can be written instead.
pub fn dump_on(text: &str) -> Result<DumpOn, String> {
    let (when, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or(
        "write WHEN=PATH: panic=guest.core, or several of panic, hang, triple-fault and timeout, as in \
         panic,timeout=guest.core",
    )?;
    dump_path(path)?;
    let mut on = DumpOn { panic: false, hang: false, triple_fault: false, timeout: false, path: path.into() };
    for word in when.split(',') {
        match word {
            "panic" => on.panic = true,
            "hang" => on.hang = true,
            "triple-fault" => on.triple_fault = true,
            "timeout" => on.timeout = true,
            _ => return Err(format!("'{word}' is none of panic, hang, triple-fault or timeout")),
        }
    }
    Ok(on)
}

/// Parses hypercalls that are answered: `FAMILY[,WORD...]`.
///
/// # Errors
/// What is wrong, and what can be written instead.
pub fn hypercalls(text: &str) -> Result<HypercallConfig, String> {
    let mut words = text.split(',');
    let name = words.next().unwrap_or_default();
    let family = FamilyName::named(name)
        .ok_or_else(|| format!("'{name}' is no family: write {}", FamilyName::NAMES.join(" or ")))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (text, folder, tag, is_writable) in [
            ("/srv/work", "/srv/work", "work", true),
            ("work/,ro", "work/", "work", false),
            ("/,tag=root,ro", "/", "root", false),
            ("..,rw,tag=up", "..", "up", true),
            ("a,b,tag=c", "a,b", "c", true),
            ("a,rw,b", "a,rw,b", "a,rw,b", true),
        ] {
            let (folder, covered) = (folder.into(), Vec::new());
            let wanted = ShareConfig { folder, tag: tag.into(), is_writable, covered };
            assert_eq!(share(text), Ok(wanted), "{text}");
        }
        for (text, says) in [
            ("", "a folder is missing"),
            (",ro", "a folder is missing"),
            ("/", "write /,tag=NAME"),
            ("..", "a tag is missing"),
            ("a,ro,tag=b,rw", "says twice"),
            ("a,tag=b,tag=c", "says twice"),
            ("a,tag=", "has 0 bytes"),
            ("a,tag=0123456789012345678901234567890123456", "has 37 bytes and may have 1 to 36"),
        ] {
            assert!(share(text).is_err_and(|error| error.contains(says)), "{text}");
        }
    }

    #[test]
    fn disks() {
        let (raw, qcow2) = (Some(Format::Raw), Some(Format::Qcow2));
        for (text, path, access, format, serial) in [
            ("a.img", "a.img", Access::ReadWrite, None, ""),
            ("a.img,ro", "a.img", Access::ReadOnly, None, ""),
            ("/x/a,format=qcow2,snapshot", "/x/a", Access::Snapshot, qcow2, ""),
            ("a,b,serial=S-1,format=raw", "a,b", Access::ReadWrite, raw, "S-1"),
            ("a,rox", "a,rox", Access::ReadWrite, None, ""),
        ] {
            let image = Options { path: path.into(), format, access };
            assert_eq!(disk(text), Ok(DiskConfig { image, serial: serial.into() }), "{text}");
        }
        for (text, says) in [
            ("", "an image is missing"),
            (",ro", "an image is missing"),
            ("a,ro,snapshot", "write either"),
            ("a,format=vmdk", "write format=raw or format=qcow2"),
            ("a,serial=0123456789012345678901", "may have 20"),
            ("a,serial=x y", "may have 20"),
        ] {
            assert!(disk(text).is_err_and(|error| error.contains(says)), "{text}");
        }
    }

    #[test]
    fn counts() {
        assert_eq!(count("4"), Ok(4));
        for (text, words) in [
            ("0", "at least one"),
            ("", "not a number"),
            ("-1", "not a number"),
            ("2x", "not a number"),
            ("99999999999", "more than can be counted"),
        ] {
            assert!(count(text).unwrap_err().contains(words), "{text}");
        }
    }

    #[test]
    fn sizes_with_every_suffix() {
        for (text, bytes) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("256", 256 << 20), ("64KiB", 64 << 10), ("1t", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "4X", "-1M", "1.5G", "99999999999T", "4 G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn socket_devices() {
        let is = |cid, path: &str| Ok(VsockConfig { cid, host: VsockHost::Sockets(path.into()) });
        assert_eq!(vsock("auto,path=a"), is(None, "a"));
        assert_eq!(vsock("42,path=/x,path=y"), is(Some(42), "/x,path=y"));
        assert_eq!(vsock("auto"), Ok(VsockConfig { cid: None, host: VsockHost::Kernel }));
        assert_eq!(vsock("42"), Ok(VsockConfig { cid: Some(42), host: VsockHost::Kernel }));
        for wrong in ["", "2", "auto,", "2,path=a", "x,path=a", "3,path=", "4294967295,path=a"] {
            assert!(vsock(wrong).unwrap_err().contains("write auto,path=PATH"), "{wrong}");
        }
    }

    #[test]
    fn durations_with_every_suffix() {
        for (text, milliseconds) in
            [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("7", 7000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "0", "0ms", "5d", "99999999999999999h", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("0x100000"), Ok(0x10_0000));
        assert_eq!(address("4096"), Ok(4096));
        assert!(address("0x").is_err());
    }
}
