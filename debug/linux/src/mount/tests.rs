//! Mounts in memory made here.

use super::*;
use crate::made::{self, BASE, INT, LIST, Made, POINTER, compound};
use std::convert::Infallible;

/// What a task's mounts are made of, as small as it can be.
fn types() -> Types {
    let mut types = made::types();
    compound(&mut types, "qstr", 16, &[("len", INT, 4), ("name", POINTER, 8)]); // 5
    compound(&mut types, "dentry", 24, &[("d_parent", POINTER, 0), ("d_name", 5, 8)]); // 6
    compound(&mut types, "path", 16, &[("mnt", POINTER, 0), ("dentry", POINTER, 8)]); // 7
    compound(&mut types, "fs_struct", 24, &[("root", 7, 8)]); // 8
    compound(&mut types, "task_struct", 16, &[("fs", POINTER, 8)]); // 9
    compound(
        &mut types,
        "vfsmount",
        24,
        &[("mnt_root", POINTER, 0), ("mnt_sb", POINTER, 8), ("mnt_flags", INT, 16)],
    ); // 10
    let mount = [
        ("mnt_parent", POINTER, 0),
        ("mnt_mountpoint", POINTER, 8),
        ("mnt", 10, 16),
        ("mnt_mounts", LIST, 40),
        ("mnt_child", LIST, 56),
        ("mnt_devname", POINTER, 72),
    ];
    compound(&mut types, "mount", 80, &mount);
    let members = [("s_type", POINTER, 0), ("s_flags", INT, 8), ("s_subtype", POINTER, 16)];
    compound(&mut types, "super_block", 24, &members);
    compound(&mut types, "file_system_type", 8, &[("name", POINTER, 0)]);
    types
}

const TASK: u64 = BASE;
const FS: u64 = BASE + 0x20;
const ROOT: u64 = BASE + 0x1000;

/// Memory with a tree of mounts in it: of a device's on `/`, with the folders `/a`, `/a/b c` and `/d`.
struct Kernel {
    made: Made,
    next: u64,
}

impl std::ops::Deref for Kernel {
    type Target = Made;

    fn deref(&self) -> &Made {
        &self.made
    }
}

impl Kernel {
    fn new() -> (Kernel, u64) {
        let made = Made::new(0x10000);
        let mut kernel = Kernel { made, next: BASE + 0x2000 };
        let top = kernel.folder("/", None);
        kernel.mount_at(ROOT, None, top, "/dev/vda", "ext4", [0x20, 0]);
        kernel.put(TASK + 8, FS);
        kernel.set_root(ROOT, top);
        (kernel, top)
    }

    fn set_root(&self, mount: u64, folder: u64) {
        self.put(FS + 8, mount + 16);
        self.put(FS + 16, folder);
    }

    fn take(&mut self, size: u64) -> u64 {
        let at = self.next;
        self.next += size.next_multiple_of(16);
        at
    }

    fn string(&mut self, text: &str) -> u64 {
        let at = self.take(text.len() as u64 + 1);
        self.text(at, text);
        at
    }

    /// A folder; one that nothing is above is above itself.
    fn folder(&mut self, name: &str, above: Option<u64>) -> u64 {
        let text = self.string(name);
        let at = self.take(24);
        self.put(at, above.unwrap_or(at));
        self.put(at + 8, (name.len() as u64) << 32);
        self.put(at + 16, text);
        at
    }

    /// Something mounted, with the flags of it and of its file system; `on` are what it is mounted in, and the folder.
    fn mount_at(
        &mut self,
        at: u64,
        on: Option<(u64, u64)>,
        root: u64,
        device: &str,
        kind: &str,
        [flags, of_all]: [u64; 2],
    ) {
        let (device, kind) = (self.string(device), self.string(kind));
        let (of_kind, file_system) = (self.take(8), self.take(24));
        self.put(of_kind, kind);
        self.put(file_system, of_kind);
        self.put(file_system + 8, of_all);
        let (parent, folder) = on.unwrap_or((at, root));
        for (offset, word) in
            [(0, parent), (8, folder), (16, root), (24, file_system), (32, flags), (72, device)]
        {
            self.put(at + offset, word);
        }
        self.ring(&[at + 40]);
        self.ring(&[at + 56]);
    }

    fn mount(&mut self, on: (u64, u64), device: &str, kind: &str, flags: [u64; 2]) -> (u64, u64) {
        let (at, root) = (self.take(80), self.folder("/", None));
        self.mount_at(at, Some(on), root, device, kind, flags);
        (at, root)
    }

    fn mounts(&self) -> Result<Mounts, MountError> {
        let layout = MountLayout::new(&types()).unwrap();
        let read = self.read();
        layout.mounts::<Infallible>(TASK, &Reader::new(&read), &mut || Ok(())).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let line = |it: &Mount| format!("{} {} {} {}", it.device, it.path, it.kind, it.options.join(","));
        self.mounts().unwrap().all.iter().map(line).collect()
    }
}

/// With three mounts: on `/a`, on `b c` in that, and over the first one.
fn full() -> (Kernel, [u64; 2]) {
    let (mut kernel, top) = Kernel::new();
    let (a, d) = (kernel.folder("a", Some(top)), kernel.folder("d", Some(top)));
    let (first, its_root) = kernel.mount((ROOT, a), "tmpfs", "tmpfs", [0x47, 0]);
    let inner = kernel.folder("b c", Some(its_root));
    let (second, _) = kernel.mount((first, inner), "proc", "proc", [0, 1 | 1 << 4]);
    let (third, _) = kernel.mount((ROOT, d), "none", "sysfs", [0x88, 0]);
    kernel.ring(&[ROOT + 40, first + 56, third + 56]);
    kernel.ring(&[first + 40, second + 56]);
    (kernel, [first, its_root])
}

#[test]
fn mounts_below_each_other() {
    let (kernel, _) = full();
    assert_eq!(
        kernel.lines(),
        [
            "/dev/vda / ext4 rw,relatime",
            "tmpfs /a tmpfs ro,nosuid,nodev,noexec",
            "proc /a/b c proc ro,sync",
            "none /d sysfs rw,noatime,nosymfollow",
        ]
    );
    assert_eq!(kernel.mounts().unwrap().remarks, [""; 0]);
}

/// A task whose root is a folder sees what is below, by its own paths.
#[test]
fn a_root_that_is_a_folder() {
    let (mut kernel, [first, its_root]) = full();
    kernel.set_root(first, its_root);
    assert_eq!(kernel.lines(), ["tmpfs / tmpfs ro,nosuid,nodev,noexec", "proc /b c proc ro,sync"]);
    let beside = kernel.folder("beside", Some(its_root));
    kernel.set_root(first, beside);
    assert_eq!(kernel.lines(), [""; 0]);
    assert_eq!(kernel.mounts().unwrap().remarks, [""; 0]);
    let inside = kernel.folder("inside", Some(beside));
    let (third, _) = kernel.mount((first, inside), "none", "sysfs", [0, 0]);
    kernel.ring(&[first + 40, third + 56]);
    assert_eq!(kernel.lines(), ["none /inside sysfs rw"]);
}

/// What file systems in user space say of their kind stands behind that.
#[test]
fn a_kind_has_a_second_word() {
    let (mut kernel, top) = Kernel::new();
    let (mount, _) = kernel.mount((ROOT, top), "host:", "fuse", [0, 0]);
    kernel.ring(&[ROOT + 40, mount + 56]);
    let read = kernel.read();
    let file_system = Reader::new(&read).address(mount + 24).unwrap();
    drop(read);
    for (subtype, expected) in [("sshfs", "host: / fuse.sshfs rw"), ("", "host: / fuse rw")] {
        let text = kernel.string(subtype);
        kernel.put(file_system + 16, text);
        assert_eq!(kernel.lines()[1], expected);
    }
}

/// A name of which only the beginning is there is none.
#[test]
fn a_name_at_the_end_of_memory_is_not_cut() {
    let (mut kernel, top) = Kernel::new();
    let folder = kernel.folder("1234567890", Some(top));
    let (mount, _) = kernel.mount((ROOT, folder), "one", "tmpfs", [0, 0]);
    kernel.ring(&[ROOT + 40, mount + 56]);
    let end = BASE + 0x10000;
    kernel.text(end - 5, "12345");
    kernel.put(folder + 16, end - 5);
    assert_eq!(kernel.lines().len(), 1);
    let remarks = kernel.mounts().unwrap().remarks;
    assert!(remarks[0].starts_with("something mounted is left out: the kernel's memory"), "{remarks:?}");
}

/// What is mounted in each of many is the list that it is in itself: the head is a member of that.
#[test]
fn lists_that_share_their_members_are_not_all_gone_through() {
    const COUNT: u64 = 1200;
    let mut kernel = Kernel { made: Made::new(1 << 18), next: BASE + 0x2000 };
    let top = kernel.folder("/", None);
    kernel.mount_at(ROOT, None, top, "/dev/vda", "ext4", [0, 0]);
    kernel.put(TASK + 8, FS);
    kernel.set_root(ROOT, top);
    let mut nodes = vec![ROOT + 40];
    for mount in (0..COUNT).map(|number| BASE + 0x4000 + number * 0x80) {
        kernel.put(mount, ROOT);
        kernel.put(mount + 8, top);
        nodes.extend([mount + 40, mount + 56]);
    }
    kernel.ring(&nodes);
    let (layout, read, steps) = (MountLayout::new(&types()).unwrap(), kernel.read(), std::cell::Cell::new(0));
    let mut go_on = || {
        steps.set(steps.get() + 1);
        Ok::<_, Infallible>(())
    };
    let found = layout.mounts(TASK, &Reader::new(&read), &mut go_on).unwrap().unwrap();
    assert!(steps.get() < 2 * MOST_MEMBERS, "{}", steps.get());
    assert!(found.remarks.iter().any(|it| it.starts_with("there are more")), "{:?}", found.remarks);
}

/// What has its own device mounted over it.
#[test]
fn one_over_another() {
    let (mut kernel, top) = Kernel::new();
    let (over, _) = kernel.mount((ROOT, top), "over", "overlay", [0, 0]);
    kernel.ring(&[ROOT + 40, over + 56]);
    assert_eq!(kernel.lines(), ["/dev/vda / ext4 rw,relatime", "over / overlay rw"]);
}

#[test]
fn damaged_mounts_are_left_out_in_words() {
    let (mut kernel, top) = Kernel::new();
    // Folders that are above each other, a name that is nowhere, and one that is mounted elsewhere.
    let circle = kernel.folder("circle", None);
    let other = kernel.folder("other", Some(circle));
    kernel.put(circle, other);
    let nowhere = kernel.folder("nowhere", Some(top));
    kernel.put(nowhere + 16, BASE - 0x1000);
    let good = kernel.folder("good", Some(top));
    let (one, _) = kernel.mount((ROOT, circle), "one", "tmpfs", [0, 0]);
    let (two, _) = kernel.mount((ROOT, nowhere), "two", "tmpfs", [0, 0]);
    let (three, _) = kernel.mount((one, good), "three", "tmpfs", [0, 0]);
    let (four, _) = kernel.mount((ROOT, good), "four", "tmpfs", [0, 0]);
    let loose = kernel.folder("loose", None);
    let (five, _) = kernel.mount((ROOT, loose), "five", "tmpfs", [0, 0]);
    kernel.ring(&[ROOT + 40, one + 56, two + 56, three + 56, four + 56, five + 56]);
    assert_eq!(kernel.lines(), ["/dev/vda / ext4 rw,relatime", "four /good tmpfs rw"]);
    let remarks = kernel.mounts().unwrap().remarks;
    assert_eq!(remarks.len(), 4, "{remarks:?}");
    assert!(remarks[0].ends_with("its path is longer than 4096 bytes, or a circle"), "{remarks:?}");
    assert!(remarks[2].ends_with("it is not below where the kernel has it"), "{remarks:?}");

    // A list that leads nowhere; and a task that has ended.
    kernel.put(ROOT + 40, BASE - 0x1000);
    kernel.put(ROOT + 48, BASE - 0x1000);
    assert_eq!(kernel.lines(), ["/dev/vda / ext4 rw,relatime"]);
    kernel.put(TASK + 8, 0);
    assert_eq!(kernel.mounts(), Err(MountError::Ended));
    kernel.put(TASK + 8, BASE - 0x1000);
    assert!(matches!(kernel.mounts(), Err(MountError::NotThere(_))));
}

#[test]
fn whoever_wants_no_more_is_heard() {
    let (kernel, _) = full();
    let (layout, read) = (MountLayout::new(&types()).unwrap(), kernel.read());
    let mut left = 3;
    let mut go_on = || {
        left -= 1;
        if left == 0 { Err("enough") } else { Ok(()) }
    };
    assert_eq!(layout.mounts(TASK, &Reader::new(&read), &mut go_on), Err("enough"));
}
