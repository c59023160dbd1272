//! Making the guest ready for commands, by the host's list of steps: a line each, fields with tabs between.
//!
//! The list is composed, and tested, on the host (`job::steps`).

use crate::common::say;
use crate::sys::{self, Errno, Fd};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Where the list is, and how long a device is waited for, in steps of 10 ms.
const LIST: &[u8] = b"/vmm/steps";
const PATIENCE: usize = 1000;

/// What the steps have come to.
#[derive(Debug, Default)]
pub struct Ready {
    /// The port, open.
    pub port: Option<Fd>,
    /// The system's own first process, if it is to have its place.
    pub init: Option<Vec<u8>>,
    /// The file that is there once that is ready.
    pub sign: Option<Vec<u8>>,
}

/// What could not be done, in words.
pub type Trouble = String;

/// Goes through the list.
pub fn carry_out(ready: &mut Ready) -> Result<(), Trouble> {
    let list = sys::contents(LIST).map_err(|error| format!("the list of steps cannot be read: {error}"))?;
    for line in list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
        let may_fail = fields[0] == b"try";
        if may_fail {
            fields.remove(0);
        }
        let result = step(&fields, ready);
        if let Err(error) = result {
            let words = in_words(&fields, error);
            match may_fail {
                true => say(&words),
                false => return Err(words),
            }
        }
    }
    Ok(())
}

/// What could not be done, and why.
fn in_words(fields: &[&[u8]], error: Errno) -> Trouble {
    match fields {
        [b"module", path, _] => {
            let file = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            // It has its place in the order in front (`job::loading`).
            let name = file.splitn(2, |byte| *byte == b'-').last().unwrap_or_default();
            let name = String::from_utf8_lossy(name.strip_suffix(b".ko").unwrap_or(name));
            // finit_module(2), and what kernel/module/main.c has for symbols.
            let why = match error {
                sys::ENOEXEC => "it is not for this kernel, or is damaged".into(),
                sys::ENOENT => "it wants a symbol that this kernel does not have".into(),
                sys::EKEYREJECTED => "it is damaged: it is signed for other bytes".into(),
                error => format!("{error}"),
            };
            format!("the module {name} cannot be loaded: {why}")
        }
        [b"port", _] if error == sys::ENODEV => {
            let has_bus = sys::names(b"/sys/bus/virtio/devices").is_ok_and(|devices| !devices.is_empty());
            let driver = if has_bus { "VIRTIO_CONSOLE" } else { "VIRTIO_PCI (or VIRTIO_MMIO, with --virtio mmio)" };
            format!("the kernel has no driver for the port to the host: {driver}")
        }
        fields => {
            let fields = fields.iter().map(|field| String::from_utf8_lossy(field)).collect::<Vec<_>>();
            format!("{}: {error}", fields.join(" ").trim_end())
        }
    }
}

/// What is asked for is not known (EINVAL).
const NOT_KNOWN: Errno = Errno(22);

fn step(fields: &[&[u8]], ready: &mut Ready) -> sys::Result<()> {
    match fields {
        [b"module", path, options] => sys::load_module(path, options),
        [b"folder", path] => sys::make_folders(path),
        [b"link", target, path] => sys::link(target, path),
        [b"mount", kind, source, target, flags, data] => {
            sys::make_folders(target).ok();
            sys::mount(source, target, kind, number(flags), data)
        }
        [b"device", path] => wait_for(path),
        [b"disk", serial, partition, path] => sys::link(&disk(serial, partition)?, path),
        [b"port", name] => {
            ready.port = Some(port(name)?);
            Ok(())
        }
        [b"root", path] => {
            const MOVE: usize = 0x2000;
            sys::change_folder(path)?;
            sys::mount(b".", b"/", b"", MOVE, b"")?;
            sys::change_root(b".")?;
            sys::change_folder(b"/")
        }
        [b"write", path, text] => {
            let fd = sys::open(path, sys::WRITE_ONLY | sys::CLOSE_ON_EXEC)?;
            let result = sys::write(fd, text);
            sys::close(fd);
            result.map(|_| ())
        }
        [b"hostname", name] => sys::set_host_name(name),
        [b"loopback"] => sys::raise_loopback(),
        [b"network", address, mask, gateway] => {
            sys::raise_interface(&interface()?, quad(address)?, quad(mask)?, quad(gateway)?)
        }
        [b"file", path, line] => sys::make_file(path, &[line, &b"\n"[..]].concat()),
        [b"init", path, sign] => {
            ready.init = Some(path.to_vec());
            ready.sign = (!sign.is_empty()).then(|| sign.to_vec());
            Ok(())
        }
        _ => Err(NOT_KNOWN),
    }
}

fn number(text: &[u8]) -> usize {
    text.iter().fold(0, |number, digit| number * 10 + usize::from(digit.wrapping_sub(b'0')))
}

/// Four numbers with dots between.
fn quad(text: &[u8]) -> sys::Result<[u8; 4]> {
    let mut quad = [0; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for byte in &mut quad {
        *byte = number(parts.next().ok_or(NOT_KNOWN)?) as u8;
    }
    Ok(quad)
}

/// The name of the interface that there is beside loopback, which the kernel has some time after its driver.
fn interface() -> sys::Result<Vec<u8>> {
    /// Of hardware (ARPHRD_ETHER): others are made by the kernel itself.
    const ETHERNET: &[u8] = b"1";
    const INTERFACES: &[u8] = b"/sys/class/net";
    for _ in 0..PATIENCE {
        for name in sys::names(INTERFACES).unwrap_or_default() {
            let kind = sys::contents(&[INTERFACES, b"/", &name, b"/type"].concat()).unwrap_or_default();
            let is_hardware = sys::names(&[INTERFACES, b"/", &name, b"/device"].concat()).is_ok();
            if kind.trim_ascii_end() == ETHERNET && is_hardware {
                return Ok(name);
            }
        }
        sys::sleep(10);
    }
    Err(sys::ENODEV)
}

fn wait_for(path: &[u8]) -> sys::Result<()> {
    for _ in 0..PATIENCE {
        match sys::open(path, sys::READ_ONLY | sys::NO_WAIT | sys::CLOSE_ON_EXEC) {
            Err(sys::ENOENT) => sys::sleep(10),
            Err(error) => return Err(error),
            Ok(fd) => {
                sys::close(fd);
                return Ok(());
            }
        }
    }
    Err(sys::ENODEV)
}

/// The file of the disk with a serial number, or of its partition, both of which the kernel has found some time after
/// the device.
fn disk(serial: &[u8], partition: &[u8]) -> sys::Result<Vec<u8>> {
    const DISKS: &[u8] = b"/sys/block";
    for _ in 0..PATIENCE {
        for name in sys::names(DISKS).unwrap_or_default() {
            let at = [DISKS, b"/", &name, b"/serial"].concat();
            if sys::contents(&at).unwrap_or_default().trim_ascii_end() == serial {
                let path = [b"/dev/", &name[..], partition].concat();
                wait_for(&path)?;
                return Ok(path);
            }
        }
        sys::sleep(10);
    }
    Err(sys::ENODEV)
}

/// The port of a name, which the kernel has found some time after its device.
fn port(name: &[u8]) -> sys::Result<Fd> {
    const PORTS: &[u8] = b"/sys/class/virtio-ports";
    for _ in 0..PATIENCE {
        for port in sys::names(PORTS).unwrap_or_default() {
            let at = [PORTS, b"/", &port, b"/name"].concat();
            let found = sys::contents(&at).unwrap_or_default();
            if found.trim_ascii_end() == name {
                let path = [b"/dev/", &port[..]].concat();
                return sys::open(&path, sys::READ_WRITE | sys::NO_WAIT | sys::CLOSE_ON_EXEC);
            }
        }
        sys::sleep(10);
    }
    Err(sys::ENODEV)
}
