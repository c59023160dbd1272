//! As much of `docker run` as a recipe uses (`docs/recipes.md`), with the image of the repository's Dockerfile: a root
//! with `vmm` and nothing else, and what every container has of `/dev` and `/proc`. The program is another user,
//! and may do what that may: without capabilities and without new privileges.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `case` is called with to be that: the program `vmm`, the user's number, and docker's words follow.
pub const WORD: &str = "--container";

/// Devices of every container (OCI runtime specification, "Default Devices"), as far as there is a use for them.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    devices: Vec<String>,
    volumes: Vec<(String, String)>,
    folder: String,
    read_only: bool,
    command: Vec<String>,
}

/// Reads docker's words. Each of its options that a recipe has is known here, or refused.
fn parse(words: &[&str]) -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut words = words.iter().copied();
    if words.next() != Some("run") {
        return Err("it is not docker run".into());
    }
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} lacks its value"));
        match word {
            "--rm" => {}
            "--read-only" => asked.read_only = true,
            "--cap-drop" => drop(value().and_then(|it| is_known(it, "ALL"))?),
            "--security-opt" => drop(value().and_then(|it| is_known(it, "no-new-privileges"))?),
            "--device" => asked.devices.push(value()?.into()),
            "-v" => {
                let (from, to) = value()?.split_once(':').ok_or("a volume has two places")?;
                asked.volumes.push((from.into(), to.into()));
            }
            "-w" => asked.folder = value()?.into(),
            "vmm" => {
                asked.command = words.map(String::from).collect();
                return Ok(asked);
            }
            other => return Err(format!("'{other}' is not known here")),
        }
    }
    Err("no image is named".into())
}

fn is_known(word: &str, known: &str) -> Result<(), String> {
    if word == known { Ok(()) } else { Err(format!("'{word}' is not known here")) }
}

/// Runs it in place of this process.
///
/// # Errors
/// When it cannot be made; never else.
pub fn carry_out(words: &[&str]) -> Result<(), String> {
    let [vmm, user, words @ ..] = words else { return Err("what is to be run is missing".into()) };
    let user = user.parse().map_err(|_| format!("'{user}' is no user's number"))?;
    let asked = parse(words)?;
    enter(&asked, Path::new(vmm), user).map_err(|error| format!("cannot make a container: {error}"))?;
    let error = Command::new("/usr/bin/vmm").args(&asked.command).env_clear().exec();
    Err(format!("cannot run vmm: {error}"))
}

fn enter(asked: &Asked, vmm: &Path, user: u32) -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let root = std::env::temp_dir().join(format!("container-{}", std::process::id()));
    fs::create_dir(&root)?;
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    for folder in ["usr/bin", "dev", "proc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(vmm, root.join("usr/bin/vmm"))?;
    for device in DEVICES.into_iter().chain(asked.devices.iter().map(String::as_str)) {
        fs::write(within(device), "")?;
        bind(device, &within(device))?;
    }
    bind("/proc", &within("proc"))?;
    for (from, to) in &asked.volumes {
        fs::create_dir_all(within(to))?;
        bind(from, &within(to))?;
    }
    if asked.read_only {
        mount(none, &root, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)?;
    }
    chroot(&root)?;
    chdir(&PathBuf::from("/").join(&asked.folder))?;
    setgroups(&[])?;
    let (group, user) = (Gid::from_raw(user), Uid::from_raw(user));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

fn bind(from: &str, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_docker() {
        let words = "run --rm --device /dev/kvm --read-only -v /a:/work -w /work vmm run -v -- true";
        let asked = parse(&words.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!((&*asked.devices[0], &*asked.folder, asked.read_only), ("/dev/kvm", "/work", true));
        assert_eq!(asked.volumes, [("/a".to_string(), "/work".to_string())]);
        assert_eq!(asked.command, ["run", "-v", "--", "true"]);
        for (wrong, why) in [
            ("ps", "not docker run"),
            ("run --privileged vmm", "'--privileged' is not known"),
            ("run --cap-drop NET_RAW vmm", "'NET_RAW' is not known"),
            ("run --device", "lacks its value"),
            ("run --rm", "no image"),
        ] {
            let error = parse(&wrong.split(' ').collect::<Vec<_>>()).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
