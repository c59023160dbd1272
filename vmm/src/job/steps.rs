//! What the guest's first process does before it runs commands (`guests/init/setup.rs`): a list, a line for each step.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// Bits of a mount (mount(2)).
pub mod flag {
    /// It cannot be written to.
    pub const READ_ONLY: u32 = 1;
    /// Set-id bits have no effect.
    pub const NO_SETUID: u32 = 1 << 1;
    /// Device files have no effect.
    pub const NO_DEVICES: u32 = 1 << 2;
    /// Another place of what is mounted.
    pub const BIND: u32 = 1 << 12;
}

/// A first process of the system's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Its path in the guest.
    pub program: String,
    /// The file that is there once it takes orders: the command begins then, or else with it.
    pub sign: Option<String>,
}

impl Init {
    /// systemd, where every system has it that has it at all (file-hierarchy(7): `/lib` is a link to `/usr/lib`, if it is one),
    /// with the socket of `systemctl` (systemd 252, `src/core/dbus.c`: `bus_init_private`).
    pub fn systemd() -> Init {
        Init { program: "/lib/systemd/systemd".into(), sign: Some("/run/systemd/private".into()) }
    }
}

/// A path or word that cannot be told to the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' has a tab or a line's end in it, which cannot be told to the guest")]
pub struct NotTellable(pub String);

/// A list that grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    text: String,
    refused: Option<NotTellable>,
}

impl Steps {
    fn add(&mut self, fields: &[&str]) {
        for field in fields {
            if field.contains(['\t', '\n', '\0']) && self.refused.is_none() {
                self.refused = Some(NotTellable((*field).into()));
            }
        }
        writeln!(self.text, "{}", fields.join("\t")).expect("memory can be written");
    }

    /// Loads a module of the initramfs.
    pub fn module(&mut self, path: &str, options: &str) {
        self.add(&["module", path, options]);
    }

    /// The same for one that a guest can do without.
    pub fn try_module(&mut self, path: &str, options: &str) {
        self.add(&["try", "module", path, options]);
    }

    /// Makes a folder, with those that it is in.
    pub fn folder(&mut self, path: &str) {
        self.add(&["folder", path]);
    }

    /// Makes a symbolic link, if there is nothing yet.
    pub fn try_link(&mut self, target: &str, path: &str) {
        self.add(&["try", "link", target, path]);
    }

    /// Mounts; the folder is made where it is missing.
    pub fn mount(&mut self, kind: &str, source: &str, target: &str, flags: u32, data: &str) {
        self.add(&["mount", kind, source, target, &flags.to_string(), data]);
    }

    /// The same, for what a guest can do without.
    pub fn try_mount(&mut self, kind: &str, source: &str, target: &str, flags: u32, data: &str) {
        self.add(&["try", "mount", kind, source, target, &flags.to_string(), data]);
    }

    /// Waits for a device's file.
    pub fn device(&mut self, path: &str) {
        self.add(&["device", path]);
    }

    /// Waits for the disk with a serial number, or for a partition of it, and makes a link to its file.
    pub fn disk(&mut self, serial: &str, partition: Option<u32>, path: &str) {
        let partition = partition.map_or_else(String::new, |number| number.to_string());
        self.add(&["disk", serial, &partition, path]);
    }

    /// Opens the host's port: from here on it is told what goes wrong.
    pub fn port(&mut self, name: &str) {
        self.add(&["port", name]);
    }

    /// Makes a folder the root.
    pub fn root(&mut self, path: &str) {
        self.add(&["root", path]);
    }

    /// Writes to a file, of the kernel's mostly, if that can be.
    pub fn try_write(&mut self, path: &str, text: &str) {
        self.add(&["try", "write", path, text]);
    }

    /// Names the guest.
    pub fn host_name(&mut self, name: &str) {
        self.add(&["hostname", name]);
    }

    /// Has the loopback interface up, if there is one.
    pub fn try_loopback(&mut self) {
        self.add(&["try", "loopback"]);
    }

    /// Has the guest's interface up, with an address, its network's mask, and a gateway.
    pub fn network(&mut self, address: Ipv4Addr, mask: Ipv4Addr, gateway: Ipv4Addr) {
        self.add(&["network", &address.to_string(), &mask.to_string(), &gateway.to_string()]);
    }

    /// Makes a file of one line, if that can be, in place of what there may be.
    pub fn try_file(&mut self, path: &str, line: &str) {
        self.add(&["try", "file", path, line]);
    }

    /// Has this program take the place of the first process.
    pub fn init(&mut self, init: &Init) {
        self.add(&["init", &init.program, init.sign.as_deref().unwrap_or_default()]);
    }

    /// The list.
    ///
    /// # Errors
    /// [`NotTellable`], the first of what was given.
    pub fn finish(self) -> Result<String, NotTellable> {
        self.refused.map_or(Ok(self.text), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_step() {
        let mut steps = Steps::default();
        steps.mount("virtiofs", "root", "/lower", flag::READ_ONLY, "");
        steps.try_loopback();
        steps.network(Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST);
        steps.try_file("/etc/x", "a b");
        let wanted = "mount\tvirtiofs\troot\t/lower\t1\t\ntry\tloopback\nnetwork\t1.2.3.4\t255.255.255.255\t127.0.0.1\n\
                      try\tfile\t/etc/x\ta b\n";
        assert_eq!(steps.clone().finish().unwrap(), wanted);
        steps.folder("/a\tb");
        assert_eq!(steps.finish().unwrap_err(), NotTellable("/a\tb".into()));
    }
}
