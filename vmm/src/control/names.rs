//! Names of guests, and the sockets that they stand for.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

/// Where the sockets of a user's guests are. Nobody else can make or reach one there.
///
/// # Errors
/// When there is no such folder and none can be made, or it is somebody else's.
fn folder() -> io::Result<PathBuf> {
    let user = nix::unistd::geteuid().as_raw();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("vmm"),
        _ => std::env::temp_dir().join(format!("vmm-{user}")),
    };
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        let text = format!("{} is not a folder that only this user can enter", folder.display());
        return Err(io::Error::other(text));
    }
    Ok(folder)
}

/// Names for a guest that was given none: as few as it takes where others have numbers of processes like this one's.
pub fn made_up() -> impl Iterator<Item = String> {
    let pid = std::process::id();
    let first = format!("guest-{pid}");
    std::iter::once(first).chain((2..100).map(move |number| format!("guest-{pid}-{number}")))
}

/// Removes the socket of a guest whose process was killed; one that somebody serves by now stays.
pub fn sweep(name: &str) {
    let swept = socket_of(name).map_err(io::Error::other).map(|path| debug::socket::remove_if_stale(&path));
    if let Err(error) | Ok(Err(error)) = swept.map(|removed| removed.map_err(io::Error::other)) {
        log::debug!("{name} is left over: {error}");
    }
}

/// Whether a name can be a guest's.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(is_plain) {
        return Err("write up to 64 letters, digits, '-', '_' and '.'".into());
    }
    Ok(text.into())
}

/// Where the socket of the guest of a name is.
///
/// # Errors
/// As of the folder that it is in.
pub fn socket_of(name: &str) -> io::Result<PathBuf> {
    Ok(folder()?.join(format!("{name}.sock")))
}

/// Where this process has a guest serve a debugger that it starts.
///
/// # Errors
/// As of the folder that it is in.
pub fn debugger_socket() -> io::Result<PathBuf> {
    Ok(folder()?.join(format!("gdb-{}", std::process::id())))
}

/// Those of this user's guests, in order.
pub fn all() -> Vec<String> {
    let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_string());
    let entries = folder().and_then(fs::read_dir).into_iter().flatten();
    let mut names: Vec<String> = entries.flatten().filter_map(name).collect();
    names.sort();
    names
}
