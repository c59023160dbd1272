//! What each kind of thread may ask the host's kernel for. The filters are made of this table, and `docs/cell.md` has it
//! as `vmm check --cell` prints it.
//!
//! Names are the kernel's. One that an architecture has not (`open` on aarch64) is none of its filter.

use arch::Isa;
use std::fmt::Write;

/// An argument of a call: which, which of its bits count, and what they have to be.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// 0 is the first.
    pub argument: u8,
    /// Bits that are compared.
    pub mask: u64,
    /// With this.
    pub value: u64,
    /// What it is called.
    pub name: &'static str,
}

const fn command(value: u64, name: &'static str) -> Limit {
    Limit { argument: 1, mask: u32::MAX as u64, value, name }
}

/// A request of KVM's (linux/kvm.h): its number, whatever the size of what it takes.
const fn kvm(number: u64, name: &'static str) -> Limit {
    Limit { argument: 1, mask: 0xffff, value: 0xae00 | number, name }
}

/// Calls, and what `ioctl` and `prctl` may be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are for.
    pub about: &'static str,
    /// Calls without limits, by their names.
    calls: &'static str,
    /// Requests of `ioctl`.
    pub ioctls: &'static [Limit],
}

const fn calls(about: &'static str, calls: &'static str) -> Group {
    Group { about, calls, ioctls: &[] }
}

const fn ioctls(about: &'static str, ioctls: &'static [Limit]) -> Group {
    Group { about, calls: "", ioctls }
}

/// What `prctl` may be asked for, by every thread: its name, a mapping's name, and no new privileges.
pub const PRCTLS: &[Limit] = &[
    Limit { argument: 0, mask: u32::MAX as u64, value: 15, name: "PR_SET_NAME" },
    Limit { argument: 0, mask: u32::MAX as u64, value: 0x5356_4d41, name: "PR_SET_VMA" },
    Limit { argument: 0, mask: u32::MAX as u64, value: 38, name: "PR_SET_NO_NEW_PRIVS" },
];

const COMMON: Group = Group {
    about: "memory, locks, signals, time, wake-ups, messages, the end; a terminal given back",
    calls: "brk clock_getres clock_gettime clock_nanosleep close exit exit_group fcntl fstat futex getpgid \
         getpgrp getpid getrandom gettid gettimeofday madvise membarrier mmap mprotect mremap munmap \
         nanosleep poll ppoll read restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn \
         sched_getaffinity sched_yield set_robust_list sigaltstack tgkill time tkill write",
    ioctls: &[
        command(0x5401, "TCGETS"),
        command(0x5402, "TCSETS"),
        command(0x5403, "TCSETSW"),
        command(0x802c_542a, "TCGETS2"),
        command(0x402c_542b, "TCSETS2"),
        command(0x540f, "TIOCGPGRP"),
        command(0x5413, "TIOCGWINSZ"),
        command(0x5421, "FIONBIO"),
        command(0x5451, "FIOCLEX"),
    ],
};

const EVENTS: Group = calls(
    "waiting for several things",
    "epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 timerfd_gettime timerfd_settime",
);

const STREAMS: Group =
    calls("what is read and written in pieces", "readv recvfrom recvmsg sendmsg sendto shutdown writev");

const SOCKETS: Group = calls(
    "sockets that are made, and peers that are asked who they are",
    "accept accept4 bind connect getpeername getsockname getsockopt listen setsockopt socket socketpair",
);

const LOOKING: Group = calls(
    "files that are opened and looked at (what is opened, Landlock bounds)",
    "access dup dup3 faccessat faccessat2 fadvise64 fstatfs getcwd getdents64 geteuid getuid lseek lstat \
         fstatat newfstatat open openat openat2 pread64 preadv prlimit64 readlink readlinkat stat statfs statx",
);

const MAKING: Group = calls(
    "files that are written, put on disk, and named",
    "chmod copy_file_range fallocate fchmod fchmodat fchown fdatasync flock fsync ftruncate link linkat \
         pwrite64 pwritev rename renameat renameat2 umask unlink unlinkat",
);

const THREADS: Group = calls("threads that are made", "clone clone3 sched_setaffinity");

const KVM_CLOCK: Group = ioctls(
    "a guest's time and interrupts, held and let go",
    &[
        kvm(0x61, "KVM_IRQ_LINE"),
        kvm(0x62, "KVM_GET_IRQCHIP"),
        kvm(0x63, "KVM_SET_IRQCHIP"),
        kvm(0x7b, "KVM_SET_CLOCK"),
        kvm(0x7c, "KVM_GET_CLOCK"),
        kvm(0x9f, "KVM_GET_PIT2, KVM_GET_VCPU_EVENTS"),
        kvm(0xa0, "KVM_SET_PIT2, KVM_SET_VCPU_EVENTS"),
        kvm(0xb5, "KVM_ARM_SET_COUNTER_OFFSET"),
        kvm(0xe1, "KVM_SET_DEVICE_ATTR"),
        kvm(0xe2, "KVM_GET_DEVICE_ATTR"),
        kvm(0xe3, "KVM_HAS_DEVICE_ATTR"),
    ],
);

/// The most frequent first: they are compared in this order.
const KVM_VCPU: Group = ioctls(
    "a vCPU",
    &[
        kvm(0x80, "KVM_RUN"),
        kvm(0x81, "KVM_GET_REGS"),
        kvm(0x82, "KVM_SET_REGS"),
        kvm(0x83, "KVM_GET_SREGS"),
        kvm(0x84, "KVM_SET_SREGS"),
        kvm(0xab, "KVM_GET_ONE_REG"),
        kvm(0xac, "KVM_SET_ONE_REG"),
        kvm(0x9b, "KVM_SET_GUEST_DEBUG"),
        kvm(0xa1, "KVM_GET_DEBUGREGS"),
        kvm(0xa2, "KVM_SET_DEBUGREGS"),
        kvm(0x85, "KVM_TRANSLATE"),
        kvm(0x86, "KVM_INTERRUPT"),
        kvm(0x88, "KVM_GET_MSRS"),
        kvm(0x89, "KVM_SET_MSRS"),
        kvm(0x8c, "KVM_GET_FPU"),
        kvm(0x8d, "KVM_SET_FPU"),
        kvm(0x8e, "KVM_GET_LAPIC"),
        kvm(0x8f, "KVM_SET_LAPIC"),
        kvm(0x91, "KVM_GET_CPUID2"),
        kvm(0x98, "KVM_GET_MP_STATE"),
        kvm(0x99, "KVM_SET_MP_STATE"),
        kvm(0x9a, "KVM_NMI"),
        kvm(0xa3, "KVM_GET_TSC_KHZ, KVM_ENABLE_CAP"),
        kvm(0xa4, "KVM_GET_XSAVE"),
        kvm(0xa5, "KVM_SET_XSAVE, KVM_SIGNAL_MSI"),
        kvm(0xa6, "KVM_GET_XCRS"),
        kvm(0xa7, "KVM_SET_XCRS"),
        kvm(0xad, "KVM_KVMCLOCK_CTRL"),
        kvm(0xb0, "KVM_GET_REG_LIST"),
        kvm(0xcf, "KVM_GET_XSAVE2"),
        kvm(0x03, "KVM_CHECK_EXTENSION"),
    ],
);

const KVM_MESSAGES: Group = ioctls(
    "a guest's interrupts and doorbells",
    &[
        kvm(0x61, "KVM_IRQ_LINE"),
        kvm(0x79, "KVM_IOEVENTFD"),
        kvm(0xa5, "KVM_SIGNAL_MSI"),
        kvm(0xc9, "KVM_XEN_HVM_SET_ATTR"),
        kvm(0xcb, "KVM_XEN_VCPU_SET_ATTR"),
        kvm(0xd0, "KVM_XEN_HVM_EVTCHN_SEND"),
    ],
);

const KVM_ALL: Group = ioctls(
    "a machine that is made",
    &[Limit { argument: 1, mask: 0xff00, value: 0xae00, name: "all of KVM's" }],
);

const LOOP: Group = calls(
    "the event loop: signals, pipes, memory files, a process that is stopped",
    "getrlimit kill memfd_create pipe2 signalfd4 sysinfo timerfd_create uname",
);

const COPYING: Group =
    calls("a file that is copied to a pipe", "copy_file_range lseek sendfile splice statx");

const SHARED: Group = calls(
    "files below a folder that is held open",
    "copy_file_range fallocate fchmod fchmodat fchmodat2 fchown fchownat fdatasync fgetxattr flistxattr \
         flock fremovexattr fsetxattr fstatfs fsync ftruncate getdents64 getegid geteuid getxattr linkat \
         listxattr lremovexattr lseek lsetxattr mkdirat mknodat fstatat newfstatat openat openat2 pread64 preadv \
         preadv2 pwrite64 pwritev pwritev2 readlinkat removexattr renameat renameat2 setxattr statfs statx \
         symlinkat syncfs unlinkat utimensat",
);

const IMAGES: Group = Group {
    about: "images that are open",
    calls: "fallocate fdatasync fsync ftruncate lseek fstatat newfstatat pread64 preadv pwrite64 pwritev statx",
    ioctls: &[
        command(0x1268, "BLKSSZGET"),
        command(0x8008_1272, "BLKGETSIZE64"),
        command(0x1277, "BLKDISCARD"),
        command(0x127b, "BLKPBSZGET"),
        command(0x127f, "BLKZEROOUT"),
    ],
};

const TAP: Group = ioctls(
    "an interface of the host's",
    &[
        command(0x4004_54ca, "TUNSETIFF"),
        command(0x4004_54d0, "TUNSETOFFLOAD"),
        command(0x4004_54d8, "TUNSETVNETHDRSZ"),
    ],
);

const VHOST_HELD: Group = ioctls(
    "a device that the host's kernel serves, held and let go",
    &[command(0x4004_af61, "VHOST_VSOCK_SET_RUNNING"), command(0xc008_af12, "VHOST_GET_VRING_BASE")],
);

const VHOST: Group = ioctls(
    "a device that the host's kernel serves",
    &[Limit { argument: 1, mask: 0xff00, value: 0xaf00, name: "all of vhost's" }],
);

const CONFINING: Group = calls("what a thread's own filter is put on with", "landlock_restrict_self seccomp");

impl Group {
    /// The calls.
    pub fn calls(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.calls.split_whitespace()
    }

    #[cfg(test)]
    fn has(&self, call: &str) -> bool {
        self.calls().any(|its| its == call)
    }
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Main,
    Nursery,
    Vcpu,
    Debugger,
    Control,
    Look,
    Lines,
    Input,
    Output,
    Console,
    Share,
    Disk,
    Entropy,
    Ports,
    Network,
    Sockets,
    Timers,
    Probe,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub kind: Kind,
    /// What those who start one call it.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// What it may.
    pub groups: &'static [(&'static str, Group)],
}

macro_rules! groups {
    ($($group:ident),*) => { &[("COMMON", COMMON), $((stringify!($group), $group)),*] };
}

/// The table. The nursery, which makes threads for others, has what any of them has, as filters are inherited.
pub const TABLE: &[Row] = &[
    Row {
        kind: Kind::Main,
        name: "main",
        about: "the event loop, what is done at the guest's end, and a guest that begins again",
        groups: groups!(
            EVENTS, STREAMS, SOCKETS, LOOKING, MAKING, THREADS, LOOP, KVM_ALL, VHOST, IMAGES, TAP
        ),
    },
    Row {
        kind: Kind::Vcpu,
        name: "vcpu",
        about: "a vCPU, and its accesses to devices",
        groups: groups!(KVM_VCPU, KVM_MESSAGES, KVM_CLOCK, VHOST_HELD, EVENTS, STREAMS, TAP),
    },
    Row {
        kind: Kind::Debugger,
        name: "gdb",
        about: "serves gdb, `monitor dump` included",
        groups: groups!(
            EVENTS,
            STREAMS,
            SOCKETS,
            LOOKING,
            MAKING,
            THREADS,
            KVM_CLOCK,
            VHOST_HELD,
            KVM_MESSAGES
        ),
    },
    Row {
        kind: Kind::Control,
        name: "control",
        about: "answers `vmm dump`, `vmm gdb` and the like",
        groups: groups!(
            EVENTS,
            STREAMS,
            SOCKETS,
            LOOKING,
            MAKING,
            THREADS,
            KVM_CLOCK,
            VHOST_HELD,
            KVM_MESSAGES
        ),
    },
    Row {
        kind: Kind::Look,
        name: "look",
        about: "looks whether the guest has panicked or hangs",
        groups: groups!(EVENTS, LOOKING, KVM_CLOCK, VHOST_HELD, KVM_MESSAGES),
    },
    Row { kind: Kind::Lines, name: "lines", about: "writes messages and traces", groups: groups!(STREAMS) },
    Row {
        kind: Kind::Input,
        name: "input",
        about: "reads standard input",
        groups: groups!(STREAMS, COPYING),
    },
    Row { kind: Kind::Output, name: "output", about: "writes a command's output", groups: groups!(STREAMS) },
    Row {
        kind: Kind::Console,
        name: "console",
        about: "writes what the guest prints on a virtio console",
        groups: groups!(STREAMS),
    },
    Row {
        kind: Kind::Share,
        name: "virtio fs",
        about: "a shared folder",
        groups: groups!(EVENTS, STREAMS, SHARED, KVM_MESSAGES),
    },
    Row {
        kind: Kind::Disk,
        name: "virtio block",
        about: "a queue of a disk",
        groups: groups!(EVENTS, STREAMS, IMAGES, KVM_MESSAGES),
    },
    Row {
        kind: Kind::Entropy,
        name: "virtio entropy",
        about: "random bytes",
        groups: groups!(EVENTS, KVM_MESSAGES),
    },
    Row {
        kind: Kind::Ports,
        name: "virtio console",
        about: "console ports",
        groups: groups!(EVENTS, STREAMS, KVM_MESSAGES),
    },
    Row {
        kind: Kind::Network,
        name: "virtio net",
        about: "a network",
        groups: groups!(EVENTS, STREAMS, SOCKETS, KVM_MESSAGES, TAP),
    },
    Row {
        kind: Kind::Sockets,
        name: "virtio vsock",
        about: "sockets between guest and host",
        groups: groups!(EVENTS, STREAMS, SOCKETS, KVM_MESSAGES, VHOST),
    },
    Row {
        kind: Kind::Timers,
        name: "timers",
        about: "a guest's timers (Xen's)",
        groups: groups!(EVENTS, KVM_MESSAGES, KVM_CLOCK, VHOST_HELD),
    },
    Row {
        kind: Kind::Probe,
        name: "attempt",
        about: "tries what KVM can do, with a machine of its own",
        groups: groups!(EVENTS, LOOKING, KVM_ALL),
    },
    Row {
        kind: Kind::Nursery,
        name: "nursery",
        about: "makes the threads above for those who ask",
        groups: groups!(CONFINING, THREADS),
    },
];

/// Everything that a kind of thread may: the nursery, what anybody may.
pub fn groups(kind: Kind) -> Vec<Group> {
    let all = |row: &&Row| kind == Kind::Nursery || row.kind == kind;
    TABLE.iter().filter(all).flat_map(|row| row.groups).map(|(_, group)| *group).collect()
}

/// What kinds there are, by what those who start one call them.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|row| row.name)
}

/// The kind that is called so.
pub fn kind_of(name: &str) -> Option<Kind> {
    TABLE.iter().find(|row| row.name == name).map(|row| row.kind)
}

/// A kind's name.
pub fn name_of(kind: Kind) -> &'static str {
    TABLE.iter().find(|row| row.kind == kind).map_or("?", |row| row.name)
}

/// A call's number; `None` where an architecture has none of the name.
pub fn number_of(isa: Isa, call: &str) -> Option<i64> {
    let number = match isa {
        Isa::X86_64 => call.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
        Isa::Aarch64 => call.parse::<syscalls::aarch64::Sysno>().ok()?.id(),
    };
    Some(i64::from(number))
}

/// The name of a call. Async-signal-safe.
pub fn call_of(isa: Isa, number: usize) -> Option<&'static str> {
    match isa {
        Isa::X86_64 => syscalls::x86_64::Sysno::new(number).map(|call| call.name()),
        Isa::Aarch64 => syscalls::aarch64::Sysno::new(number).map(|call| call.name()),
    }
}

/// The table as Markdown, for both architectures: what threads there are and which groups each has; then what is in a
/// group.
pub fn text() -> String {
    const GROWS: &str = "memory can be written";
    let mut text = String::from("| thread | what it does | may |\n| --- | --- | --- |\n");
    let lower = |name: &str| name.to_lowercase().replace('_', " ");
    let mut seen: Vec<(&str, Group)> = Vec::new();
    for row in TABLE {
        let mut names: Vec<String> = row.groups.iter().map(|(name, _)| lower(name)).collect();
        if row.kind == Kind::Nursery {
            names.push("and what any of them may".into());
        }
        writeln!(text, "| {} | {} | {} |", row.name, row.about, names.join(", ")).expect(GROWS);
        for (name, group) in row.groups {
            if !seen.iter().any(|(its, _)| its == name) {
                seen.push((name, *group));
            }
        }
    }
    text.push_str("\n| group | what for | calls |\n| --- | --- | --- |\n");
    for (name, group) in seen {
        let mut calls: Vec<String> = group.calls().map(|call| format!("`{call}`")).collect();
        if name == "COMMON" {
            let limits: Vec<&str> = PRCTLS.iter().map(|limit| limit.name).collect();
            calls.push(format!("`prctl` ({})", limits.join(", ")));
        }
        if !group.ioctls.is_empty() {
            let limits: Vec<&str> = group.ioctls.iter().map(|limit| limit.name).collect();
            calls.push(format!("`ioctl` ({})", limits.join(", ")));
        }
        writeln!(text, "| {} | {} | {} |", lower(name), group.about, calls.join(" ")).expect(GROWS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_calls_on_one_architecture_at_least() {
        for row in TABLE {
            for call in row.groups.iter().flat_map(|(_, group)| group.calls()) {
                let numbers = [Isa::X86_64, Isa::Aarch64].map(|isa| number_of(isa, call));
                assert!(numbers.iter().any(Option::is_some), "{call}");
                for (isa, number) in [Isa::X86_64, Isa::Aarch64].into_iter().zip(numbers) {
                    let number = number.and_then(|number| usize::try_from(number).ok());
                    assert!(number.is_none_or(|number| call_of(isa, number) == Some(call)), "{call}");
                }
            }
        }
    }

    #[test]
    fn what_aarch64_has_not_is_named_there_otherwise() {
        // Calls that have a newer one beside them in the table, and those of another name.
        let older = "access chmod epoll_wait getpgrp link lstat newfstatat open poll readlink rename stat time unlink";
        for call in TABLE.iter().flat_map(|row| row.groups).flat_map(|(_, group)| group.calls()) {
            let is_older = older.split(' ').any(|its| its == call);
            assert_eq!(number_of(Isa::Aarch64, call).is_none(), is_older, "{call}");
            assert!(number_of(Isa::X86_64, call).is_some() || call == "fstatat", "{call}");
        }
    }

    #[test]
    fn nobody_runs_programs_traces_or_changes_who_it_is() {
        for row in TABLE {
            let groups = groups(row.kind);
            for call in [
                "execve",
                "execveat",
                "fork",
                "ptrace",
                "process_vm_writev",
                "setuid",
                "mount",
                "bpf",
                "io_uring_setup",
                "userfaultfd",
                "chroot",
                "unshare",
                "setns",
            ] {
                assert!(!groups.iter().any(|group| group.has(call)), "{}: {call}", row.name);
            }
        }
    }

    #[test]
    fn who_serves_the_guest_opens_nothing() {
        for kind in [
            Kind::Vcpu,
            Kind::Disk,
            Kind::Entropy,
            Kind::Ports,
            Kind::Lines,
            Kind::Input,
            Kind::Output,
            Kind::Console,
            Kind::Network,
            Kind::Sockets,
        ] {
            for call in ["open", "openat", "openat2", "clone", "clone3", "unlinkat"] {
                assert!(!groups(kind).iter().any(|group| group.has(call)), "{kind:?}: {call}");
            }
        }
    }

    #[test]
    fn kinds_have_one_row_each_with_a_name_of_its_own() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(TABLE[..index].iter().all(|other| other.kind != row.kind && other.name != row.name));
            assert_eq!(kind_of(row.name), Some(row.kind));
        }
    }

    #[test]
    fn the_document_has_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cell.md");
        let document = std::fs::read_to_string(path).unwrap();
        assert!(
            document.contains(&text()),
            "docs/cell.md has another table than `vmm check --cell` prints:\n{}",
            text()
        );
    }
}
