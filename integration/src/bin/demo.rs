//! `make demo`: boots a Debian kernel under `vmm` and runs commands in it, on this machine's
//! own KVM where that can, else in a nest.

use arch::Isa;
use integration::artifacts::{self, Kernel};
use integration::cases::{self, DEMO};
use integration::report::{Report, Verdict};
use integration::{initramfs, nest};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| kvm::HOST_ISA.name().into());
    let name = if name == "arm64" { "aarch64".to_string() } else { name };
    let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == name) else {
        eprintln!("demo: ARCH is x86_64 or aarch64, not '{name}'");
        return ExitCode::from(2);
    };
    if let Some(missing) = artifacts::missing(isa, &["6.12"]) {
        eprintln!("demo: {missing}");
        return ExitCode::FAILURE;
    }
    let folder = artifacts::workspace().join("logs/demo");
    match demo(isa, &folder) {
        Ok(Report { verdict: Verdict::Pass, .. }) => {
            fs::remove_dir_all(&folder).ok();
            println!("demo: a Debian 6.12 kernel for {isa} ran under vmm");
            debug(isa, &folder)
        }
        Ok(Report { verdict, .. }) => {
            eprintln!("demo: {verdict:?}; see {}", folder.display());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Shows gdb on a Debian kernel, from its first C function to userspace.
fn debug(isa: Isa, folder: &Path) -> ExitCode {
    println!("demo: and now with gdb attached, from another nest (half a minute)");
    let Some(case) = cases::find("gdb_debian") else { return ExitCode::FAILURE };
    let result = fs::create_dir_all(folder).and_then(|()| nest::run_case_with(isa, case, folder, true));
    let log = match fs::read_to_string(folder.join("debugger.log")) {
        Ok(log) => log,
        Err(error) => format!("demo: there is no record of what gdb printed: {error}"),
    };
    for line in log.lines() {
        // gdb echoes its commands behind a plus sign.
        match line.strip_prefix('+') {
            Some(command) => println!("(gdb) {command}"),
            None => println!("{line}"),
        }
    }
    match result {
        Ok(Report { verdict: Verdict::Pass, .. }) => {
            fs::remove_dir_all(folder).ok();
            println!("demo: gdb debugged a Debian 6.12 kernel for {isa}");
            ExitCode::SUCCESS
        }
        other => {
            eprintln!("demo: {other:?}; see {}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Whether this machine's KVM runs Linux guests.
fn can_here(isa: Isa) -> bool {
    let json = || {
        let output = Command::new(artifacts::program(isa, "vmm")).args(["check", "--json"]).output().ok()?;
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()
    };
    isa == kvm::HOST_ISA && json().is_some_and(|json| json["linux_guests"]["works"] == true)
}

fn demo(isa: Isa, folder: &Path) -> io::Result<Report> {
    fs::create_dir_all(folder)?;
    if can_here(isa) {
        println!("demo: on this machine's own KVM");
        fs::copy(Kernel::new(isa, "6.12").image(), folder.join("6.12"))?;
        fs::write(folder.join("initrd"), initramfs::guest(isa)?)?;
        return nest::run_here_shown(&DEMO, folder);
    }
    println!(
        "demo: this machine's KVM runs no {isa} Linux guests (`vmm check`): booting a Debian kernel that has KVM"
    );
    println!("demo: under QEMU's emulation (about ten seconds), and vmm in it");
    let mut nest = nest::prepare_case(isa, &DEMO)?;
    nest.cmdline("quiet loglevel=0");
    let running = nest.boot(folder)?;
    let console = folder.join("nest-console.log");
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let follow = std::thread::spawn(move || follow(&console, &is_over));
    let report = running.wait(Duration::from_secs(300));
    over.store(true, Ordering::SeqCst);
    follow.join().map_err(|_| io::Error::other("the console could not be followed"))??;
    Ok(report)
}

/// Prints a file that grows, until it is over.
fn follow(path: &Path, over: &AtomicBool) -> io::Result<()> {
    let mut file = None;
    let mut out = io::stdout().lock();
    loop {
        let last = over.load(Ordering::SeqCst);
        if file.is_none() {
            file = File::open(path).ok();
        }
        if let Some(file) = &mut file {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            out.write_all(&bytes)?;
            out.flush()?;
        }
        if last {
            return Ok(());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
