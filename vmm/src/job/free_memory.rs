//! How much memory there is for guests: what the host has free, or less where the process's control groups have limits.

use std::fs;
use std::path::{Component, Path};

/// Bytes, if that is known.
pub fn free_memory() -> Option<u64> {
    let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_host(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").ok();
    let groups = groups.and_then(|text| of_groups(Path::new("/sys/fs/cgroup"), &text));
    host.into_iter().chain(groups).min()
}

/// proc_meminfo(5).
fn of_host(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the group that stands in `/proc/self/cgroup`, and those that it is in, leave of their limits; `None` where none has
/// one (`Documentation/admin-guide/cgroup-v2.rst`, "Memory Interface Files").
fn of_groups(mounted: &Path, groups: &str) -> Option<u64> {
    let own = Path::new(groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    // One that is outside of what is mounted here is seen by its top alone.
    let is_inside = own.components().all(|part| matches!(part, Component::Normal(_)));
    let own = if is_inside { mounted.join(own) } else { mounted.into() };
    own.ancestors().take_while(|folder| folder.starts_with(mounted)).filter_map(of_group).min()
}

fn of_group(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let limit = read("memory.max").and_then(number)?;
    let taken = read("memory.current").and_then(number).unwrap_or(0);
    // Of files, what was not used for long: it gives way at once, as what `MemAvailable` counts does.
    let stat = read("memory.stat").unwrap_or_default();
    let gives_way =
        stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
    Some(limit.saturating_sub(taken.saturating_sub(gives_way)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tells_of_its_memory() {
        assert_eq!(of_host("MemTotal:  9 kB\nMemAvailable:    3 kB\n"), Some(3072));
        assert_eq!(of_host("MemTotal:  9 kB\n"), None);
        assert!(free_memory().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn limits_of_groups_count() {
        let mounted = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let mounted = mounted.as_path();
        let group = |path: &str, files: &[(&str, &str)]| {
            let folder = mounted.join(path);
            fs::create_dir_all(&folder).unwrap();
            files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        };
        assert_eq!(of_groups(mounted, "0::/\n"), None);
        group("a/b", &[("memory.max", "max\n"), ("memory.current", "77\n")]);
        assert_eq!(of_groups(mounted, "1:cpu:/a\n0::/a/b\n"), None);
        group("a", &[("memory.max", "1000\n"), ("memory.current", "700\n")]);
        assert_eq!(of_groups(mounted, "0::/a/b\n"), Some(300));
        group("a", &[("memory.stat", "anon 500\ninactive_file 150\n")]);
        assert_eq!(of_groups(mounted, "0::/a/b\n"), Some(450));
        group("a/b", &[("memory.max", "50\n")]);
        assert_eq!(of_groups(mounted, "0::/a/b\n"), Some(0));
        assert_eq!(of_groups(mounted, "0::/a\n"), Some(450));
        // A container's own group is the top of what it has.
        group("", &[("memory.max", "90\n"), ("memory.current", "20\n")]);
        assert_eq!(of_groups(mounted, "0::/../a\n"), Some(70));
        assert_eq!(of_groups(mounted, "9:memory:/a\n"), None);
    }
}
