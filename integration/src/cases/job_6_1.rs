//! `vmm run` with a kernel that has all that a job needs as modules.

use super::inits;
use super::job::run_in;
use crate::context::{Check, Context, check};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What Debian's 6.1 has as modules of what a job needs whose root is a folder, or an image, and which has a network.
pub const MODULES: &[&str] = &[
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/char/virtio_console.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
    "net/core/failover.ko",
    "fs/fuse/fuse.ko",
    "fs/fuse/virtiofs.ko",
    "fs/overlayfs/overlay.ko",
];

/// A kernel that has all that a job needs as modules: in a folder, with a network and a disk, and in an image that it has
/// made of that.
pub fn everything(c: &mut Context) -> Check {
    let root = c.root()?;
    let image = c.work.join("root.img");
    let made = fs::File::create(&image).and_then(|file| file.set_len(16 << 20));
    made.map_err(|error| error.to_string())?;
    for applet in ["mke2fs", "mkdir", "mount", "umount", "cp", "udhcpc", "ip", "readlink"] {
        symlink("busybox", root.join("bin").join(applet)).map_err(|error| error.to_string())?;
    }
    let script = "sh -c uname~-r;ip~link~set~eth0~up&&udhcpc~-nqfi~eth0~-s~/bin/true~2>&1|grep~obtained;\
                  mke2fs~/dev/vda>/dev/null&&mkdir~/i&&mount~-t~ext4~/dev/vda~/i&&\
                  cp~-a~/bin~/etc~/i&&cd~/i&&mkdir~proc~root~run~sys~tmp~dev&&cd~/&&umount~/i";
    let options = format!("--net user --disk {}", image.display());
    let folder = run_in(c, "6.1", &root, &options, script)?;
    folder.expect_code(0)?;
    check(folder.output.starts_with("6.1.") && folder.output.contains(" obtained"), || {
        folder.output.clone()
    })?;
    let of_image = run_in(c, "6.1", &image, "", "sh -c echo~new>/etc/new;grep~'~/~'~/proc/mounts;exit~9")?;
    of_image.expect_code(9)?;
    check(of_image.output.contains(" / ext4 rw"), || of_image.output.clone())?;
    of_another_build(c, &root)?;
    inits::beside_an_init(c, &root)
}

/// A module that the kernel does not take is named, whether the guest has a port by then or not, and so is what is not there.
fn of_another_build(c: &mut Context, root: &Path) -> Check {
    let (folder, slow) = (c.work.join("modules"), c.slowness);
    for (broken, says) in [
        ("virtio_console.ko", "the module virtio_console cannot be loaded: it is not for this kernel"),
        ("fuse.ko", "the module fuse cannot be loaded: it is not for this kernel"),
        ("", "the kernel has no driver for the port to the host: VIRTIO_PCI"),
    ] {
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for path in MODULES.iter().filter(|_| !broken.is_empty()) {
            let name = Path::new(path).file_name().unwrap_or_default();
            let mut module = c.module(name)?;
            if name == broken {
                // The version is not compared where symbols have theirs (Linux, kernel/module/version.c, `same_magic`).
                let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|part| part == what);
                let magic =
                    find(&module, b"vermagic=").ok_or_else(|| format!("{broken} is for any kernel"))?;
                let smp = find(&module[magic..], b" SMP ").ok_or("a kernel of one processor")?;
                module[magic + smp + 1] = b'X';
                // Else it would be its signature that is not right.
                let signature = b"~Module signature appended~\n";
                let unsigned = module.strip_suffix(signature).map(<[u8]>::len);
                module.truncate(unsigned.unwrap_or(module.len()));
            }
            c.write(&folder.join(name), &module)?;
        }
        let line =
            format!("run --kernel {{}} --modules {{}} --root {{}} --slow {slow} --memory 256M -- true");
        let run = c.run(&line, &[&c.kernel("6.1"), &folder, root], c.limit(60))?;
        run.expect_code(123)?;
        let last = run.errors.lines().last().unwrap_or_default();
        check(last.contains(says), || format!("the last line is '{last}'"))?;
        fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    }
    Ok(())
}
