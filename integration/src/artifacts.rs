//! Where things are on the machine that runs the tests: the cache that the set-up scripts
//! fill, and the programs that cargo builds.

use arch::Isa;
use std::env;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// The cache of downloads and builds.
pub fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    match (env::var_os("VMM_TEST_CACHE"), env::var_os("XDG_CACHE_HOME")) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(path)) => PathBuf::from(path).join("vmm-test"),
        (None, None) => home().join(".cache/vmm-test"),
    }
}

/// The workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// A static program that `make` has built for an architecture, by the profile that `VMM_TEST_PROFILE` names:
/// `tested`, if it is not set.
pub fn program(isa: Isa, name: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let profile = env::var("VMM_TEST_PROFILE").unwrap_or_else(|_| "tested".into());
    target.join(format!("{isa}-unknown-linux-musl/{profile}/{name}"))
}

/// A place for a socket that nobody else has: the cases of one process run beside each other. Paths of
/// sockets are short, and that of a case's folder may not be.
pub fn socket(purpose: &str) -> PathBuf {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("vmm-{purpose}-{}-{number}", process::id()))
}

/// A Debian kernel of a series, "6.1" or "6.12".
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
}

/// The file of the module that wedges a guest.
pub const WEDGE: &str = "wedge.ko";

impl Kernel {
    /// The kernel for an architecture.
    pub fn new(isa: Isa, series: &str) -> Kernel {
        Kernel { dir: cache().join("kernels").join(isa.name()).join(series) }
    }

    /// The bootable file.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The kernel with its debug symbols; only for 6.12.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The kernel's own helpers for gdb, to be loaded as a script; only for 6.12.
    pub fn gdb_helpers(&self) -> PathBuf {
        self.dir.join("gdb/vmlinux-gdb.py")
    }

    /// The module that wedges a guest (docs/testing.md); only for 6.12.
    pub fn wedge(&self) -> PathBuf {
        self.dir.join(WEDGE)
    }

    /// A module by its path below `kernel/`, without compression suffix.
    pub fn module(&self, path: &str) -> Option<PathBuf> {
        let plain = self.dir.join("modules").join(path);
        let packed = plain.with_extension("ko.xz");
        [plain, packed].into_iter().find(|path| path.exists())
    }
}

/// A static busybox.
pub fn busybox(isa: Isa) -> PathBuf {
    cache().join("busybox").join(isa.name()).join("busybox")
}

/// The QEMU that carries a nest: for x86_64 the one with our patch, for aarch64 a newer Debian's, unless
/// `VMM_TEST_QEMU_X86_64` or `VMM_TEST_QEMU_AARCH64` names another.
pub fn qemu(isa: Isa) -> PathBuf {
    let (variable, ours) = match isa {
        Isa::X86_64 => ("VMM_TEST_QEMU_X86_64", "qemu/current/bin/qemu-system-x86_64".into()),
        Isa::Aarch64 => {
            ("VMM_TEST_QEMU_AARCH64", format!("tools/qemu-system-aarch64-trixie-{}/run", kvm::HOST_ISA))
        }
    };
    env::var_os(variable).map_or_else(|| cache().join(ours), PathBuf::from)
}

/// What is missing before a nest can be booted, and these series of kernels in it, with the remedy. In Debian's own
/// QEMU, if that carries it.
pub fn missing(isa: Isa, series: &[&str], debians_qemu: bool) -> Option<String> {
    let mut wanted = vec![program(isa, "vmm"), program(isa, "case"), busybox(isa)];
    wanted.extend(series.iter().map(|series| Kernel::new(isa, series).image()));
    if !debians_qemu {
        wanted.push(qemu(isa));
    }
    let missing: Vec<String> =
        wanted.iter().filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
    (!missing.is_empty()).then(|| format!("missing (run `make setup`): {}", missing.join(", ")))
}
