//! `mounts`: what is mounted in a Linux kernel in the guest, by what the kernel has in its own memory.

use super::address::count;
use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::mount::{Mount, Mounts};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, json};
use std::fmt;

/// `mounts`.
pub const MOUNTS: Command = Command::new(
    "mounts",
    "[PID]",
    "what is mounted where task 1, or another, sees it: as in /proc/PID/mounts",
);

/// The task that is asked for without a number: the first process.
const FIRST_PROCESS: u32 = 1;

/// What is mounted, as it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounted(pub Mounts);

/// A device or a kind as a word, as `/proc/mounts` has it (`fs/proc_namespace.c`, `mangle`).
fn word(text: &str) -> String {
    path(text).replace('#', "\\043")
}

/// A path likewise, in which a `#` begins nothing (`show_vfsmnt`, of `seq_path`).
fn path(text: &str) -> String {
    text.replace('\\', "\\134").replace(' ', "\\040")
}

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.all.iter().try_for_each(|mount| {
            let Mount { device, path: place, kind, options } = mount;
            writeln!(f, "{} {} {} {}", word(device), path(place), word(kind), options.join(","))
        })
    }
}

impl Value for Mounted {
    fn json(&self) -> Json {
        let mount = |mount: &Mount| json!({ "device": mount.device, "path": mount.path, "type": mount.kind, "options": mount.options });
        json!({ "mounts": self.0.all.iter().map(mount).collect::<Vec<_>>(), "remarks": self.0.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.0.remarks.is_empty()).then(|| self.0.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let pid = match arguments.words()[..] {
        [] => FIRST_PROCESS,
        [one] => {
            u32::try_from(count(one)?).map_err(|_| Refusal::Usage(format!("'{one}' is no task's number")))?
        }
        _ => return Err(Refusal::Usage("write a task's number, or nothing".into())),
    };
    let view = operator.view();
    Ok(Box::new(Mounted(of_kernel(&view, |info| view.kernel_mounts(info, pid))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_in_words_and_as_json() {
        let mount = |device: &str, path: &str, options: &[&'static str]| Mount {
            device: device.into(),
            path: path.into(),
            kind: "ext4".into(),
            options: options.to_vec(),
        };
        let all = vec![mount("/dev/vda", "/", &["rw", "relatime"]), mount("a b#", "/with \\#", &["ro"])];
        let mounted = Mounted(Mounts { all, remarks: vec!["one is left out".into()] });
        assert_eq!(
            mounted.to_string(),
            "/dev/vda / ext4 rw,relatime\na\\040b\\043 /with\\040\\134# ext4 ro\n"
        );
        assert_eq!(mounted.json()["mounts"][1]["path"], "/with \\#");
        assert_eq!(mounted.json()["mounts"][0]["options"][1], "relatime");
        assert_eq!(mounted.shortfall().as_deref(), Some("one is left out"));
        assert_eq!(Mounted::default().shortfall(), None);
    }
}
