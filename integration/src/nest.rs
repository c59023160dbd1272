//! A nest: a Debian kernel with KVM, under QEMU's software emulation of a processor with
//! virtualization. It runs one case as its first process and ends.
//!
//! A nest needs no rights, no network and no disk; its console and its report are files. It
//! is ended, by its own process id, when its value goes or its time is over.

use crate::artifacts::{self, Kernel, WEDGE};
use crate::carry;
use crate::cases::Case;
use crate::debugger;
use crate::demo::for_eyes;
use crate::guests;
use crate::initramfs::{self, Initramfs};
use crate::port;
use crate::report::{Report, Shared, Verdict};
use crate::sparse;
use arch::Isa;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The series of the nest's own kernel: the newest that Debian 12 carries.
const HOST_SERIES: &str = "6.12";
/// How long a case may take in a nest, its boot included.
const CASE_LIMIT: Duration = Duration::from_secs(400);
/// How long a long run may take.
const SOAK_LIMIT: Duration = Duration::from_secs(3600);
/// How much slower a nest is than the limits of cases assume.
const SLOWNESS: u32 = 2;

/// What a nest is made of.
#[derive(Debug)]
pub struct Nest {
    isa: Isa,
    archive: Initramfs,
    cmdline: String,
    memory_mib: u32,
    cpus: u32,
    gic: u32,
    lpa2: bool,
    debians_qemu: bool,
    /// The socket that the port for a debugger leads to.
    socket: Option<PathBuf>,
}

impl Nest {
    /// A nest with `vmm`, a program that is its first process, and KVM's modules.
    ///
    /// # Errors
    /// When a part is missing.
    pub fn new(isa: Isa, init: &Path, memory_mib: u32) -> io::Result<Nest> {
        let mut archive = Initramfs::default();
        for folder in [
            "bin",
            "dev",
            "proc",
            "sys",
            "tmp",
            "files",
            "files/peer",
            "files/peer/lib",
            "files/peer/share",
            "modules",
        ] {
            archive.folder(folder)?;
        }
        archive.copy("init", init)?;
        archive.copy("vmm", &artifacts::program(isa, "vmm"))?;
        // The demonstration has none.
        let monitor = artifacts::program(isa, "examples/monitor");
        if monitor.exists() {
            archive.copy("monitor", &monitor)?;
        }
        archive.copy("bin/busybox", &artifacts::busybox(isa))?;
        let kernel = Kernel::new(isa, HOST_SERIES);
        for (index, module) in modules(isa).iter().enumerate() {
            let path = kernel.module(module).ok_or_else(|| {
                io::Error::other(format!("the {HOST_SERIES} kernel has no module {module}"))
            })?;
            let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("modules/{index}-{name}"), &initramfs::module(&path)?)?;
        }
        Ok(Nest {
            isa,
            archive,
            cmdline: String::new(),
            memory_mib,
            cpus: 1,
            gic: 3,
            lpa2: true,
            debians_qemu: false,
            socket: None,
        })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        self.archive.copy(path, from)
    }

    /// Adds a file from memory.
    ///
    /// # Errors
    /// When the archive cannot hold it.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.archive.file(path, content)
    }

    /// Gives it more than one processor. QEMU 7.2's emulation then runs them on threads of
    /// their own, and x86 kernels that patch their own text can meet a stale instruction
    /// (docs/testing.md): not for tests.
    pub fn cpus(&mut self, cpus: u32) {
        self.cpus = cpus;
    }

    /// Adds words to the kernel's command line.
    pub fn cmdline(&mut self, words: &str) {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
    }

    /// Has Debian's own QEMU carry it, on which an x86_64 guest's debug exits are lost.
    pub fn use_debians_qemu(&mut self) {
        self.debians_qemu = true;
    }

    /// Boots the nest; its files go to `folder`.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn boot(self, folder: &Path) -> io::Result<Running> {
        fs::create_dir_all(folder)?;
        let initramfs = folder.join("initramfs");
        fs::write(&initramfs, self.archive.finish()?)?;
        let console = folder.join("nest-console.log");
        let report = folder.join("report");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_secs();
        let qemu = match self.debians_qemu {
            true => PathBuf::from(format!("qemu-system-{}", self.isa)),
            false => artifacts::qemu(self.isa),
        };
        let mut command = Command::new(&qemu);
        match self.isa {
            Isa::X86_64 => {
                // Without the fast-string flag kernels clear pages eight bytes at a time: the
                // emulation goes through a REP STOS step by step.
                command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-erms"]);
                command.args(["-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-vga", "none"]);
            }
            Isa::Aarch64 => {
                command.args(["-M", &format!("virt,virtualization=on,gic-version={}", self.gic)]);
                let lpa2 = if self.lpa2 { "on" } else { "off" };
                let processor = format!("max,pauth-impdef=on,lpa2={lpa2}");
                command.args(["-accel", "tcg,thread=multi", "-cpu", &processor]);
            }
        }
        command
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("file,id=console,path={}", console.display())])
            .args(["-device", "virtconsole,chardev=console"])
            .args(["-chardev", &format!("file,id=report,path={}", report.display())])
            .args(["-device", "virtserialport,chardev=report,name=report"])
            .args(["-chardev", &format!("file,id=export,path={}", folder.join(port::EXPORT).display())])
            .args(["-device", &format!("virtserialport,chardev=export,name={}", port::EXPORT)])
            .args(self.socket.iter().flat_map(|socket| {
                [
                    "-chardev".into(),
                    format!("socket,id=gdb,path={},server=on,wait=off", socket.display()),
                    "-device".into(),
                    format!("virtserialport,chardev=gdb,name={}", port::GDB),
                ]
            }))
            .arg("-kernel")
            .arg(Kernel::new(self.isa, HOST_SERIES).image())
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-append")
            .arg(format!(
                "console=hvc0 panic=-1 mitigations=off now={now}{}{}",
                emulation_words(self.isa),
                self.cmdline
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("qemu.log"))?);
        let child = command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", qemu.display()))
        })?;
        Ok(Running { child, folder: folder.to_path_buf(), initramfs })
    }
}

/// Words for the nest's kernel that its emulator makes necessary: with a periodic tick, an
/// interrupt that QEMU's SVM loses is made good by the next one (docs/testing.md).
fn emulation_words(isa: Isa) -> &'static str {
    match isa {
        Isa::X86_64 => " nohz=off highres=off",
        Isa::Aarch64 => "",
    }
}

/// The kernel's modules that KVM needs, in the order they are loaded.
fn modules(isa: Isa) -> &'static [&'static str] {
    match isa {
        Isa::X86_64 => &["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-amd.ko"],
        Isa::Aarch64 => &[],
    }
}

/// A nest that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    folder: PathBuf,
    initramfs: PathBuf,
}

impl Running {
    /// Waits for the end and reads the report.
    pub fn wait(mut self, limit: Duration) -> Report {
        let ended = self.wait_for_end(limit);
        let mut report = Report::read(&fs::read(self.folder.join("report")).unwrap_or_default());
        if !ended {
            report.verdict = Verdict::Fail(format!("the nest did not end within {limit:?}"));
        }
        report
    }

    /// Whether it has come within a time.
    fn wait_for_end(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return true,
                Ok(None) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(10)),
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and need not be.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(&self.initramfs).ok();
    }
}

/// Runs a case in a nest.
///
/// # Errors
/// When the nest cannot be made or started.
pub fn run_case(isa: Isa, case: &Case, folder: &Path) -> io::Result<Report> {
    run_case_with(isa, case, folder, false)
}

/// Runs a case in a nest; its debugger, if it has one, may echo its commands.
///
/// # Errors
/// When the nest cannot be made or started.
pub fn run_case_with(isa: Isa, case: &Case, folder: &Path, echoes: bool) -> io::Result<Report> {
    let mut nest = prepare_case(isa, case)?;
    let Some(script) = case.debugger else {
        let mut report = nest.boot(folder)?.wait(case_limit());
        look_at_export(isa, case, folder, &mut report);
        return Ok(report);
    };
    let (socket, link) = (artifacts::socket("gdb"), artifacts::socket("link"));
    nest.socket = Some(link.clone());
    let running = nest.boot(folder)?;
    let carrying = carry::serve(&socket, &link)?;
    let debugged = debugger::run(isa, case, script, &socket, folder, echoes);
    let mut report = running.wait(if debugged.is_ok() { case_limit() } else { Duration::from_secs(10) });
    // The nest is gone, and with it, as a rule, its own socket.
    let carried = carrying.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
    [&socket, &link].iter().for_each(|path| _ = fs::remove_file(path));
    // A nest that ends early takes the connection with it.
    if debugged.is_ok() {
        report.fail_if(carried.map_err(|error| format!("carrying gdb's connections: {error}")));
    }
    report.fail_if(debugged);
    look_at_export(isa, case, folder, &mut report);
    Ok(report)
}

fn case_limit() -> Duration {
    if std::env::var_os("VMM_TEST_SOAK").is_some() { SOAK_LIMIT } else { CASE_LIMIT }
}

/// Has a case's tools look at the file that came out of its nest.
fn look_at_export(isa: Isa, case: &Case, folder: &Path, report: &mut Report) {
    let export = folder.join(port::EXPORT);
    if let (Verdict::Pass, Some(tools)) = (&report.verdict, case.tools) {
        let file = folder.join("exported");
        let received = fs::File::open(&export)
            .and_then(|stream| sparse::receive(&mut io::BufReader::with_capacity(1 << 20, stream), &file))
            .map_err(|error| format!("what the case exports cannot be read: {error}"));
        report.fail_if(received.and_then(|()| tools(isa, &file)));
        fs::remove_file(&file).ok();
    }
    fs::remove_file(&export).ok();
}

/// Runs cases that [share a nest](Case::shares_a_nest), one after the other; what those came to that came to an end.
///
/// # Errors
/// When the nest cannot be made or started.
pub fn run_shared(isa: Isa, cases: &[&Case], folder: &Path) -> io::Result<Vec<Shared>> {
    let Some(first) = cases.first() else { return Ok(Vec::new()) };
    let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
    let nest = prepare_cases(isa, first, &names.join(","))?;
    let limit = CASE_LIMIT.saturating_mul(u32::try_from(cases.len()).unwrap_or(u32::MAX));
    nest.boot(folder)?.wait_for_end(limit);
    Ok(Shared::read_all(&fs::read(folder.join("report"))?))
}

/// Makes the nest for a case.
///
/// # Errors
/// When a part is missing.
pub fn prepare_case(isa: Isa, case: &Case) -> io::Result<Nest> {
    prepare_cases(isa, case, case.name)
}

/// Makes the nest for cases that need the same, whose names are separated by commas.
fn prepare_cases(isa: Isa, case: &Case, names: &str) -> io::Result<Nest> {
    let mut nest = Nest::new(isa, &artifacts::program(isa, "case"), case.nest_memory)?;
    nest.gic = case.gic;
    nest.lpa2 = case.lpa2;
    nest.debians_qemu = case.debians_qemu;
    if !case.kernels.is_empty() {
        nest.file("files/initrd", &(case.initrd)(isa)?)?;
    }
    for series in case.kernels {
        nest.copy(&format!("files/{series}"), &Kernel::new(isa, series).image())?;
    }
    if !case.modules.is_empty() {
        nest.archive.folder("files/modules")?;
        for path in case.modules {
            let series = case.kernels.first().copied().unwrap_or_default();
            let kernel = Kernel::new(isa, series);
            let path = if *path == WEDGE { Some(kernel.wedge()) } else { kernel.module(path) };
            let path = path.ok_or_else(|| io::Error::other("the kernel has no such module"))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            nest.copy(&format!("files/modules/{name}"), &path)?;
        }
    }
    if !case.programs.is_empty() {
        ["lib", "lib64"].into_iter().try_for_each(|folder| nest.archive.folder(folder))?;
        let loader = match isa {
            Isa::X86_64 => "lib64/ld-linux-x86-64.so.2",
            Isa::Aarch64 => "lib/ld-linux-aarch64.so.1",
        };
        for name in case.programs {
            initramfs::add_program(&mut nest.archive, isa, name, [&format!("bin/{name}"), loader, "lib"])?;
        }
    }
    if let Some(name) = case.root {
        let archive = artifacts::cache().join("roots").join(format!("{name}-{isa}.tar"));
        nest.copy("files/root.tar", &archive)?;
    }
    if !case.symbols.is_empty() {
        nest.file("files/symbols", symbols(isa, case)?.as_bytes())?;
    }
    nest.cmdline(&format!("case={names} slowness={SLOWNESS}"));
    if let Ok(seed) = std::env::var("VMM_TEST_SOAK") {
        nest.cmdline(&format!("soak={seed}"));
    }
    Ok(nest)
}

/// The places of the kernel's symbols that a case asks for, a line each: name, address, size.
fn symbols(isa: Isa, case: &Case) -> io::Result<String> {
    let series = case.kernels.first().copied().unwrap_or_default();
    let vmlinux = fs::File::open(Kernel::new(isa, series).vmlinux())?;
    let found = guests::symbols_of(vmlinux, case.symbols)
        .ok_or_else(|| io::Error::other("vmlinux has no symbols"))?;
    Ok(found.into_iter().map(|(name, address, size)| format!("{name} {address:#x} {size}\n")).collect())
}

/// Runs a case on this machine and shows what it prints beside its report.
///
/// # Errors
/// When it cannot be started.
pub fn run_here_shown(case: &Case, folder: &Path) -> io::Result<Report> {
    let report = run_here(case, folder)?;
    for (_, bytes) in report.files.iter().filter(|(name, _)| name.ends_with("console.log")) {
        println!("{}", String::from_utf8_lossy(&for_eyes(bytes).0));
    }
    Ok(report)
}

/// Runs a case on this machine.
///
/// # Errors
/// When it cannot be started.
pub fn run_here(case: &Case, folder: &Path) -> io::Result<Report> {
    let isa = kvm::HOST_ISA;
    let work = folder.join("work");
    fs::create_dir_all(&work)?;
    if !case.symbols.is_empty() {
        fs::write(folder.join("symbols"), symbols(isa, case)?)?;
    }
    // Guests of other cases are not found by name. A socket's path has no room for long ones.
    let runtime = tempfile::tempdir()?;
    let mut command = Command::new(artifacts::program(isa, "case"));
    command.env("XDG_RUNTIME_DIR", runtime.path());
    command
        .arg(case.name)
        .arg(artifacts::program(isa, "vmm"))
        .arg(folder)
        .arg(&work)
        .arg("3")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(folder.join("case.log"))?);
    let child = command.spawn()?;
    let debugged =
        case.debugger.map(|script| debugger::run(isa, case, script, &work.join("gdb.sock"), folder, false));
    let output = child.wait_with_output()?;
    fs::remove_dir_all(&work)?;
    let mut report = Report::read(&output.stdout);
    report.fail_if(debugged.unwrap_or(Ok(())));
    Ok(report)
}
