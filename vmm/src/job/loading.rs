//! What of the guest's list of steps loads modules, and opens the port by which the guest tells what goes wrong.

use super::initramfs::Initramfs;
use super::modules::Module;
use super::protocol;
use super::steps::Steps;
use std::io;

/// Drivers of the port: of its bus, one of these, and of its device.
const OF_PORT: [&str; 3] = ["virtio_pci", "virtio_mmio", "virtio_console"];

/// Adds modules to the archive and a step for each. The port is opened as soon as its own are there: of others that cannot
/// be loaded the host is told by it.
///
/// # Errors
/// When the archive cannot hold one.
pub fn add(modules: &[Module], archive: &mut Initramfs, steps: &mut Steps) -> io::Result<()> {
    let last = modules.iter().rposition(|module| OF_PORT.contains(&&*module.name));
    let of_port = last.map_or(0, |last| last + 1);
    for (index, module) in modules.iter().enumerate() {
        if index == of_port {
            steps.port(protocol::PORT);
        }
        let path = format!("/vmm/modules/{index:02}-{}.ko", module.name);
        archive.file(&path[1..], &module.bytes)?;
        match module.is_optional {
            true => steps.try_module(&path, ""),
            false => steps.module(&path, ""),
        }
    }
    if of_port == modules.len() {
        steps.port(protocol::PORT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(names: &[&str]) -> String {
        let module = |name: &&str| Module {
            name: (*name).into(),
            bytes: Vec::new(),
            is_optional: name.starts_with("virtio_rng"),
        };
        let modules: Vec<Module> = names.iter().map(module).collect();
        let mut steps = Steps::default();
        add(&modules, &mut Initramfs::default(), &mut steps).unwrap();
        steps.finish().unwrap()
    }

    #[test]
    fn the_port_is_opened_as_soon_as_it_has_its_drivers() {
        let names = ["virtio_ring", "virtio_pci", "virtio_console", "fuse", "virtio_rng"];
        let wanted = "module\t/vmm/modules/00-virtio_ring.ko\t\nmodule\t/vmm/modules/01-virtio_pci.ko\t\n\
                      module\t/vmm/modules/02-virtio_console.ko\t\nport\tvmm\n\
                      module\t/vmm/modules/03-fuse.ko\t\ntry\tmodule\t/vmm/modules/04-virtio_rng.ko\t\n";
        assert_eq!(steps(&names), wanted);
        // Where they are part of the kernel, it is there at once.
        assert!(steps(&["fuse"]).starts_with("port\tvmm\nmodule"));
        assert!(steps(&["virtio_mmio"]).ends_with("\nport\tvmm\n"));
        assert_eq!(steps(&[]), "port\tvmm\n");
    }
}
