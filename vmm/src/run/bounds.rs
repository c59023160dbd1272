//! Which paths a guest's monitor opens: the rules of its cell.

use crate::cell::{For, Grant, Rule};
use crate::machine::config::{Config, DiskConfig, LinkConfig, SymbolsConfig, Trace, VirtioDevice, VsockHost};
use crate::symbols::search::Folders;
use debug::gdb::endpoint::Endpoint;
use disk::{Access, Format};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// How long a guest's files may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Once.
    Once,
    /// Whenever it begins again, also as what has taken their places by then: a kernel that was built anew.
    Again,
}

/// What is opened for a guest: what it is made of, and what is made for its debugger, below `dumps` or the current folder.
/// A control socket comes with whether the guest was given its name: only one that was is debugged later, by default, with
/// dumps in the current folder.
pub fn of_guest(
    config: &Config,
    files: Files,
    control: Option<(&Path, bool)>,
    dumps: Option<&Path>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for path in config.kernel.iter().chain(&config.initrds).chain(config.symbols.file()) {
        let path = without_string(path);
        rules.push(Rule::new(&path, Grant::Read));
        // What is no file's own place (/dev/fd/3) has nothing beside it.
        if files == Files::Again && !path.starts_with("/dev") && !path.starts_with("/proc") {
            rules.push(Rule::folder_of(&path, Grant::Read));
        }
    }
    if config.symbols == SymbolsConfig::Sought {
        let readable = Folders::of_user().readable(config.kernel.as_deref());
        rules.extend(readable.into_iter().map(|path| Rule::new(path, Grant::Read)));
    }
    for device in &config.virtio {
        match device {
            VirtioDevice::Disk(disk) => rules.extend(of_disk(disk)),
            VirtioDevice::Share(share) => {
                let grant = if share.is_writable { Grant::Own } else { Grant::Read };
                rules.push(Rule { path: share.folder.clone(), grant, by: For::Shares });
            }
            VirtioDevice::Vsock(vsock) => rules.push(match &vsock.host {
                // Its own, and those of ports, which it connects to.
                VsockHost::Sockets(path) => Rule::folder_of(path, Grant::Sockets),
                VsockHost::Kernel => Rule::new(VsockHost::KERNEL, Grant::Device),
            }),
            VirtioDevice::Net(net) => rules.push(match &net.link {
                LinkConfig::User(_) => Rule::new("/etc/resolv.conf", Grant::Read),
                LinkConfig::Tap(_) => Rule::new("/dev/net/tun", Grant::Device),
            }),
            VirtioDevice::Entropy | VirtioDevice::Console(_) => {}
        }
    }
    if let Some(Trace::File(path)) = config.hypercalls.as_ref().map(|wanted| &wanted.trace) {
        rules.push(Rule::new(path, Grant::Write));
    }
    if let Some(Endpoint::Unix(path)) = config.gdb.as_ref().map(|gdb| &gdb.address) {
        rules.push(Rule::folder_of(path, Grant::Sockets));
    }
    if let Some((socket, _)) = control {
        rules.push(Rule::folder_of(socket, Grant::Sockets));
    }
    // A debugger may come later to a guest that has a name.
    if config.gdb.is_some() || dumps.is_some() || matches!(control, Some((_, true))) {
        let dumps = dumps.unwrap_or(Path::new("."));
        // With sockets that are made there (`vmm gdb NAME unix:PATH`).
        rules.extend([Rule::new(dumps, Grant::Own), Rule::new(dumps, Grant::Sockets)]);
    }
    rules
}

/// A module's file, behind which there may be a string for it.
fn without_string(given: &Path) -> PathBuf {
    match given.to_str().and_then(|text| text.split_once(' ')) {
        Some((path, _)) if !given.exists() => path.into(),
        _ => given.into(),
    }
}

fn of_disk(disk: &DiskConfig) -> Vec<Rule> {
    let image = &disk.image;
    let is_device = image.path.metadata().is_ok_and(|it| it.file_type().is_block_device());
    let grant = match image.access {
        _ if is_device => Grant::Device,
        Access::ReadWrite => Grant::Write,
        Access::ReadOnly | Access::Snapshot => Grant::Read,
    };
    let mut rules = vec![Rule::new(&image.path, grant)];
    let has_suffix = image.path.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("qcow2"));
    if image.format == Some(Format::Qcow2) || image.format.is_none() && has_suffix {
        // What an image lies over is below its folder.
        rules.push(Rule::folder_of(&image.path, Grant::Read));
    }
    if image.access == Access::Snapshot {
        rules.push(Rule::new(disk::temporary_folder(), Grant::Own));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::config::{GdbConfig, ShareConfig};

    #[test]
    fn a_guest_opens_what_it_is_made_of() {
        let share = |folder: &str, is_writable| {
            let (folder, covered) = (folder.into(), Vec::new());
            VirtioDevice::Share(ShareConfig { folder, tag: "t".into(), is_writable, covered })
        };
        let mut config = Config {
            kernel: Some("/k/kernel".into()),
            initrds: vec!["/i/initrd string of it".into()],
            virtio: vec![share("/read", false), share("/written", true)],
            symbols: SymbolsConfig::Absent,
            ..Config::default()
        };
        let once = of_guest(&config, Files::Once, None, None);
        let (by, others) = (For::Shares, For::Others);
        let rule = |path: &str, grant, by| Rule { path: path.into(), grant, by };
        let wanted = [
            rule("/k/kernel", Grant::Read, others),
            rule("/i/initrd", Grant::Read, others),
            rule("/read", Grant::Read, by),
            rule("/written", Grant::Own, by),
        ];
        assert_eq!(once, wanted);
        let again = of_guest(&config, Files::Again, None, None);
        assert!(
            again.contains(&rule("/k", Grant::Read, others))
                && !again.contains(&rule(".", Grant::Own, others))
        );
        // Symbols that are looked for are in folders of their own, beside what is named.
        let debug = rule("/usr/lib/debug", Grant::Read, others);
        assert!(!again.contains(&debug));
        config.symbols = SymbolsConfig::Sought;
        for files in [Files::Once, Files::Again] {
            let sought = of_guest(&config, files, None, None);
            for path in ["/usr/lib/debug", "/k/vmlinux", "/vmlinux"] {
                assert!(sought.contains(&rule(path, Grant::Read, others)), "{files:?} {path}");
            }
        }
        config.symbols = SymbolsConfig::Named("/tree/vmlinux".into());
        let named = of_guest(&config, Files::Once, None, None);
        assert!(!named.contains(&debug) && named.contains(&rule("/tree/vmlinux", Grant::Read, others)));
        config.gdb = Some(GdbConfig::new(Endpoint::Unix("/s/gdb".into())));
        let debugged = of_guest(&config, Files::Once, None, None);
        assert!(debugged.contains(&rule("/s", Grant::Sockets, others)));
        assert!(debugged.contains(&rule(".", Grant::Own, others)));
        let elsewhere = of_guest(&config, Files::Once, None, Some(Path::new("/dumps")));
        assert!(elsewhere.contains(&rule("/dumps", Grant::Own, others)));
        assert!(!elsewhere.contains(&rule(".", Grant::Own, others)));
    }
}
