//! `make demo`: boots a Debian kernel under `vmm` and runs commands in it, on this machine's
//! own KVM where that can, else in a nest; and debugs one. Called with the architecture, and with `boot` or `debug` for
//! one of the two: a nest to boot in needs no QEMU of ours.

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
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_else(|| kvm::HOST_ISA.name().into());
    let name = if name == "arm64" { "aarch64".to_string() } else { name };
    let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == name) else {
        eprintln!("demo: ARCH is x86_64 or aarch64, not '{name}'");
        return ExitCode::from(2);
    };
    let parts: &[fn(Isa, &Path) -> bool] = match std::env::args().nth(2).as_deref() {
        None => &[boot, debug],
        Some("boot") => &[boot],
        Some("debug") => &[debug],
        Some(other) => {
            eprintln!("demo: write boot or debug, not '{other}'");
            return ExitCode::from(2);
        }
    };
    let folder = artifacts::workspace().join("logs/demo");
    match parts.iter().all(|part| part(isa, &folder)) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether all is there; else it is said what is not.
fn is_ready(isa: Isa, debians_qemu: bool) -> bool {
    let missing = artifacts::missing(isa, &["6.12"], debians_qemu);
    missing.iter().for_each(|missing| eprintln!("demo: {missing}"));
    missing.is_none()
}

/// Shows a Debian kernel, to a shell; whether it went well.
fn boot(isa: Isa, folder: &Path) -> bool {
    if !is_ready(isa, true) {
        return false;
    }
    match boot_to_a_shell(isa, folder) {
        Ok(Report { verdict: Verdict::Pass, .. }) => {
            fs::remove_dir_all(folder).ok();
            println!("demo: a Debian 6.12 kernel for {isa} ran under vmm");
            return true;
        }
        Ok(Report { verdict, .. }) => eprintln!("demo: {verdict:?}; see {}", folder.display()),
        Err(error) => eprintln!("demo: {error}"),
    }
    false
}

/// Shows gdb on a Debian kernel, from its first C function to userspace; whether it went well.
fn debug(isa: Isa, folder: &Path) -> bool {
    let Some(case) = cases::find("gdb_debian").filter(|_| is_ready(isa, false)) else { return false };
    println!("demo: and now with gdb attached, from another nest (half a minute)");
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let words = std::thread::spawn(move || say_that_it_goes_on(&is_over));
    let result = fs::create_dir_all(folder).and_then(|()| nest::run_case_with(isa, case, folder, true));
    over.store(true, Ordering::SeqCst);
    words.thread().unpark();
    words.join().ok();
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
            true
        }
        other => {
            eprintln!("demo: {other:?}; see {}", folder.display());
            false
        }
    }
}

/// Has a word every few seconds, until it is over.
fn say_that_it_goes_on(over: &AtomicBool) {
    const BETWEEN: Duration = Duration::from_secs(5);
    let begun = Instant::now();
    let mut next = BETWEEN;
    while !over.load(Ordering::SeqCst) {
        std::thread::park_timeout(next.saturating_sub(begun.elapsed()));
        if begun.elapsed() >= next && !over.load(Ordering::SeqCst) {
            println!("demo: {} s: gdb is at it; what it prints comes in one piece", next.as_secs());
            next += BETWEEN;
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

fn boot_to_a_shell(isa: Isa, folder: &Path) -> io::Result<Report> {
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
    if !artifacts::qemu(isa).exists() {
        nest.use_debians_qemu();
    }
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
