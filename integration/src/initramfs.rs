//! Initial RAM file systems, for nests and for guests.

use crate::artifacts::{self, Kernel};
use arch::Isa;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
pub use vmm::job::initramfs::Initramfs;

/// The userspace that Debian kernels boot to in the tests: busybox and one script.
///
/// # Errors
/// When busybox is not in the cache.
pub fn guest(isa: Isa) -> io::Result<Vec<u8>> {
    userspace(isa)?.finish()
}

fn userspace(isa: Isa) -> io::Result<Initramfs> {
    let mut archive = Initramfs::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "root"] {
        archive.folder(folder)?;
    }
    archive.copy("bin/busybox", &artifacts::busybox(isa))?;
    for applet in
        ["sh", "ls", "cat", "dmesg", "uname", "mount", "ps", "free", "date", "nproc", "poweroff", "sleep"]
    {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    archive.copy("init", &artifacts::workspace().join("resources/guest-init.sh"))?;
    Ok(archive)
}

/// The same with a kernel to be loaded for after a crash, Linux 6.12, whose userspace has our program.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_kdump(isa: Isa) -> io::Result<Vec<u8>> {
    let mut second = userspace(isa)?;
    second.copy("bin/vmm", &artifacts::program(isa, "vmm"))?;
    let mut archive = userspace(isa)?;
    archive.folder("crash")?;
    archive.folder("crash/lib")?;
    archive.file("crash/initrd", &second.finish()?)?;
    archive.copy("crash/kernel", &Kernel::new(isa, "6.12").image())?;
    add_program(&mut archive, isa, "kexec", ["crash/kexec", "crash/loader", "crash/lib"])?;
    archive.finish()
}

/// The same with Linux 6.12's driver of the device for panics; x86_64 only, as Debian's kernel has none
/// for aarch64.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_pvpanic(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.12", &["drivers/misc/pvpanic/pvpanic", "drivers/misc/pvpanic/pvpanic-mmio"])
}

/// Adds a program of Debian's: at these places itself, its loader, and the libraries that it needs, in a folder.
///
/// # Errors
/// When it is not in the cache.
pub fn add_program(
    archive: &mut Initramfs,
    isa: Isa,
    name: &str,
    [program, loader, libraries]: [&str; 3],
) -> io::Result<()> {
    let dir = artifacts::cache().join("programs").join(name).join(isa.name());
    archive.copy(program, &dir.join(name))?;
    archive.copy(loader, &dir.join("loader"))?;
    for entry in fs::read_dir(dir.join("lib"))? {
        let entry = entry?;
        archive.copy(&format!("{libraries}/{}", entry.file_name().display()), &entry.path())?;
    }
    Ok(())
}

/// Drivers of virtio's entropy device that Debian's 6.12 has as modules.
const ENTROPY_6_12: [&str; 1] = ["drivers/char/hw_random/virtio-rng"];
/// The same for 6.1, which has all of virtio as modules.
const ENTROPY_6_1: [&str; 6] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/hw_random/virtio-rng",
];
/// What mounts shared folders, of which 6.12 has all built in.
const SHARES_6_1: [&str; 7] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "fs/fuse/fuse",
    "fs/fuse/virtiofs",
];

/// The driver of disks, a module of both.
const DISKS: &str = "drivers/block/virtio_blk";

/// Drivers of networks, modules of both.
const NETWORKS: [&str; 3] = ["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"];

/// The drivers of sockets between guest and host, modules of both.
const SOCKETS: [&str; 3] = [
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];

/// With `DISKS` of 6.12.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_disks_6_12(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.12", &[DISKS])
}

/// With drivers of 6.12 for sockets between guest and host.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_vsock(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.12", &SOCKETS)
}

/// With drivers of 6.12 for each kind of device that has one as a module: disks, entropy, networks and sockets.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_devices_6_12(isa: Isa) -> io::Result<Vec<u8>> {
    let modules: Vec<&str> = [DISKS].into_iter().chain(ENTROPY_6_12).chain(NETWORKS).chain(SOCKETS).collect();
    with_modules(isa, "6.12", &modules)
}

/// The same for 6.1, with what mounts shared folders.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_devices_6_1(isa: Isa) -> io::Result<Vec<u8>> {
    let [.., entropy] = ENTROPY_6_1;
    let modules: Vec<&str> =
        SHARES_6_1.into_iter().chain([DISKS, entropy]).chain(NETWORKS).chain(SOCKETS).collect();
    with_modules(isa, "6.1", &modules)
}

/// With drivers of 6.1 for a virtio console, which 6.12 has built in.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_console_6_1(isa: Isa) -> io::Result<Vec<u8>> {
    let [transport @ .., _] = ENTROPY_6_1;
    let modules: Vec<&str> = transport.into_iter().chain(["drivers/char/virtio_console"]).collect();
    with_modules(isa, "6.1", &modules)
}

/// With drivers for `ENTROPY_6_12`.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_entropy_6_12(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.12", &ENTROPY_6_12)
}

/// The same, with the module that wedges a guest.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_wedge(isa: Isa) -> io::Result<Vec<u8>> {
    let mut archive = archive_with_modules(isa, "6.12", &ENTROPY_6_12)?;
    archive.copy(artifacts::WEDGE, &Kernel::new(isa, "6.12").wedge())?;
    archive.finish()
}

/// With drivers for `ENTROPY_6_1`.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_entropy_6_1(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.1", &ENTROPY_6_1)
}

/// With drivers for `SHARES_6_1`.
///
/// # Errors
/// When a part is not in the cache.
pub fn guest_with_shares_6_1(isa: Isa) -> io::Result<Vec<u8>> {
    with_modules(isa, "6.1", &SHARES_6_1)
}

/// A userspace that loads modules of a kernel in this order.
fn with_modules(isa: Isa, series: &str, modules: &[&str]) -> io::Result<Vec<u8>> {
    archive_with_modules(isa, series, modules)?.finish()
}

fn archive_with_modules(isa: Isa, series: &str, modules: &[&str]) -> io::Result<Initramfs> {
    let mut archive = userspace(isa)?;
    archive.folder("modules")?;
    for (index, path) in modules.iter().enumerate() {
        let found = Kernel::new(isa, series).module(&format!("{path}.ko"));
        let found =
            found.ok_or_else(|| io::Error::other(format!("the {series} kernel has no module {path}")))?;
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{index:02}-{name}.ko"), &module(&found)?)?;
    }
    Ok(archive)
}

/// The bytes of a kernel module, unpacked.
///
/// # Errors
/// When `xz` fails.
pub fn module(path: &Path) -> io::Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension != "xz") {
        return fs::read(path);
    }
    let output = Command::new("xz").args(["-dc"]).arg(path).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("xz cannot unpack {}", path.display())));
    }
    Ok(output.stdout)
}
