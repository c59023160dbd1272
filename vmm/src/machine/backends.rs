//! What a guest's devices have of this host: images, networks, folders, sockets.
//!
//! It is opened once, and outlives one start of the guest: one that begins again gets other devices, with queues and
//! registers as after power-on, and these have what the former ones had. So a lock, a port or a socket's name is never
//! wanted by two, nothing that the guest has written is lost with what it was written to, and a confined process opens
//! nothing anew. The former devices are [unplugged](devices::virtio::Unplug) before the next guest may run: two never use the
//! same.
//!
//! Ports of the console device are none of it: each start has its own, whose other ends its makers take
//! ([`Guest::take_port`](super::Guest::take_port)); those of the former one end.

use super::config::{Config, ConsoleConfig, VirtioDevice};
use super::descriptors::Budget;
use super::disks::{self, OpenDisk};
use super::nets::{self, OpenNet};
use super::shares::{self, OpenShare};
use super::vsocks::{self, OpenVsock};
use crate::error::Error;
use devices::virtio::entropy::Source;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex};

/// What a device has of the host. Its clones are the same.
#[derive(Clone)]
pub(super) enum Backend {
    /// Random bytes.
    Entropy(Source),
    /// An image.
    Disk(OpenDisk),
    /// A network.
    Net(OpenNet),
    /// A folder.
    Share(OpenShare),
    /// Sockets.
    Vsock(OpenVsock),
    /// Nothing: its ports are made with their device.
    Console(ConsoleConfig),
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Entropy(_) => f.write_str("Entropy"),
            Backend::Disk(disk) => disk.fmt(f),
            Backend::Net(net) => net.fmt(f),
            Backend::Share(share) => share.fmt(f),
            Backend::Vsock(vsock) => vsock.fmt(f),
            Backend::Console(console) => console.fmt(f),
        }
    }
}

/// What all devices of a guest have of the host, or those for which it has been opened.
#[derive(Debug, Default)]
pub struct Backends(Vec<(VirtioDevice, Backend)>);

impl Backends {
    /// What has to be opened before a process confines itself to what does not include starting programs: networks that
    /// may be made by one. The guest that it is given to opens the rest.
    ///
    /// # Errors
    /// [`Error::Net`].
    pub fn before_cell(config: &Config) -> Result<Backends, Error> {
        let mut opened = Vec::new();
        for wanted in &config.virtio {
            if let VirtioDevice::Net(net) = wanted
                && nets::may_need_a_program(net)
            {
                opened.push((wanted.clone(), Backend::Net(nets::open(net)?)));
            }
        }
        Ok(Backends(opened))
    }

    /// What a configuration's devices have, in their order: what is open already for the same is theirs, the rest is
    /// opened. What is open for others stays with `self` alone.
    ///
    /// # Errors
    /// [`Error`]: something cannot be opened, or the devices cannot be together; then nothing more is open than before.
    pub(super) fn opened_for(&self, config: &Config) -> Result<Backends, Error> {
        shares::check(&config.virtio)?;
        let budget = Budget::new(&config.virtio);
        let mut open: Vec<&(VirtioDevice, Backend)> = self.0.iter().collect();
        let mut all = Vec::new();
        for wanted in &config.virtio {
            let backend = match open.iter().position(|(device, _)| device == wanted) {
                Some(at) => open.remove(at).1.clone(),
                None => open_one(wanted, budget)?,
            };
            all.push((wanted.clone(), backend));
        }
        Ok(Backends(all))
    }

    /// What each device has, in the configuration's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.0.iter().map(|(_, backend)| backend)
    }
}

fn open_one(wanted: &VirtioDevice, budget: Budget) -> Result<Backend, Error> {
    Ok(match wanted {
        VirtioDevice::Entropy => Backend::Entropy(random()?),
        VirtioDevice::Disk(disk) => Backend::Disk(disks::open(disk)?),
        VirtioDevice::Net(net) => Backend::Net(nets::open(net)?),
        VirtioDevice::Share(share) => Backend::Share(shares::open(share, budget.share)?),
        VirtioDevice::Vsock(vsock) => Backend::Vsock(vsocks::open(vsock, budget.vsock)?),
        VirtioDevice::Console(console) => Backend::Console(console.clone()),
    })
}

/// Random bytes of the host's.
fn random() -> Result<Source, Error> {
    let random = File::open("/dev/urandom").map_err(Error::system("cannot open /dev/urandom"))?;
    Ok(Arc::new(Mutex::new(move |bytes: &mut [u8]| (&random).read_exact(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::config::{
        DiskConfig, LinkConfig, NetConfig, NetStack, ShareConfig, UserNetConfig, VsockConfig, VsockHost,
    };
    use devices::virtio::block::Disk;
    use std::fs;
    use std::net::{Ipv4Addr, TcpListener};
    use std::path::PathBuf;

    /// A folder with two images and one to share, for a guest that has something of each kind.
    struct Setting {
        folder: PathBuf,
        config: Config,
    }

    impl Setting {
        fn new(name: &str) -> Setting {
            let folder = std::env::temp_dir().join(format!("vmm-backends-{}-{name}", std::process::id()));
            fs::create_dir_all(folder.join("shared")).unwrap();
            let image = |name: &str, access| {
                let path = folder.join(name);
                File::create(&path).unwrap().set_len(1 << 20).unwrap();
                let image = disk::Options { path, format: None, access };
                VirtioDevice::Disk(DiskConfig { image, serial: String::new() })
            };
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let user = UserNetConfig {
                forwards: vec![format!("tcp::{port}-:80").parse().unwrap()],
                stack: NetStack::Own,
                ..UserNetConfig::default()
            };
            let virtio = vec![
                VirtioDevice::Entropy,
                image("written", disk::Access::ReadWrite),
                image("kept", disk::Access::Snapshot),
                VirtioDevice::Net(NetConfig { link: LinkConfig::User(user), mac: None }),
                VirtioDevice::Share(ShareConfig {
                    folder: folder.join("shared"),
                    tag: "t".into(),
                    is_writable: true,
                    covered: Vec::new(),
                }),
                VirtioDevice::Vsock(VsockConfig {
                    cid: Some(7),
                    host: VsockHost::Sockets(folder.join("vsock")),
                }),
                VirtioDevice::Console(ConsoleConfig { is_console: true, ports: vec!["p".into()] }),
            ];
            Setting { folder, config: Config { virtio, ..Config::default() } }
        }
    }

    impl Drop for Setting {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    /// A disk, as a device has it.
    fn disk(backends: &Backends, at: usize) -> &disks::Opened {
        let Some(Backend::Disk(disk)) = backends.iter().nth(at) else { panic!("it is no disk") };
        &disk.image
    }

    #[test]
    fn what_is_open_is_the_next_guests() {
        let setting = Setting::new("next");
        let first = Backends::before_cell(&setting.config).unwrap().opened_for(&setting.config).unwrap();
        // What a second one would find taken: the disk, the port, the socket.
        for at in [1, 3, 5] {
            let virtio = vec![setting.config.virtio[at].clone()];
            let error = Backends::default().opened_for(&Config { virtio, ..Config::default() }).unwrap_err();
            assert_eq!(error.code(), 8, "{error}");
        }
        let next = first.opened_for(&setting.config).unwrap();
        assert_eq!(next.iter().count(), setting.config.virtio.len());
        drop(first);
        assert!(setting.folder.join("vsock").exists());
        drop(next);
        assert!(!setting.folder.join("vsock").exists());
        Backends::default().opened_for(&setting.config).unwrap();
    }

    #[test]
    fn what_is_written_to_a_snapshot_is_there_for_the_next_guest() {
        let setting = Setting::new("snapshot");
        let first = Backends::default().opened_for(&setting.config).unwrap();
        for at in [1, 2] {
            disk(&first, at).write(512, b"written").unwrap();
        }
        let next = first.opened_for(&setting.config).unwrap();
        drop(first);
        for at in [1, 2] {
            let mut bytes = [0; 7];
            disk(&next, at).read(512, &mut bytes).unwrap();
            assert_eq!(&bytes, b"written");
        }
        let on_host = |name: &str| fs::read(setting.folder.join(name)).unwrap()[512..519].to_vec();
        assert_eq!((on_host("written"), on_host("kept")), (b"written".to_vec(), vec![0; 7]));
    }

    /// What cannot be opened leaves all as it was, also what could be; what is wanted no more is closed with the former guest.
    #[test]
    fn another_configuration_has_what_it_has_the_same() {
        let mut setting = Setting::new("other");
        let first = Backends::default().opened_for(&setting.config).unwrap();
        let other = DiskConfig {
            image: disk::Options {
                path: setting.folder.join("written"),
                format: None,
                access: disk::Access::ReadOnly,
            },
            serial: String::new(),
        };
        let had = std::mem::replace(&mut setting.config.virtio[1], VirtioDevice::Disk(other));
        assert_eq!(first.opened_for(&setting.config).unwrap_err().code(), 8);
        // Twice the same is not one: the second is opened, and refused.
        setting.config.virtio = vec![had.clone(), had.clone()];
        assert_eq!(first.opened_for(&setting.config).unwrap_err().code(), 8);
        setting.config.virtio = vec![had];
        let next = first.opened_for(&setting.config).unwrap();
        drop(first);
        assert!(!setting.folder.join("vsock").exists());
        assert!(disk(&next, 0).is_writable());
    }
}
