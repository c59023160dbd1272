//! Every case, on both architectures, on real KVM.
//!
//! A case runs on this machine when its own KVM does all that the case needs (`vmm check
//! --json` says so), else in a nest. What cannot run at all is ignored, with the reason.
//! `VMM_TEST_PLACE=nest` sends all of them to the nest.

use arch::Isa;
use integration::artifacts;
use integration::cases::{self, Case, Needs};
use integration::report::Verdict;
use integration::{nest, qemu_cores};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What this machine's own KVM can do.
#[derive(Clone, Copy, Debug, Default)]
struct Here {
    small_guests: bool,
    linux: bool,
}

impl Here {
    fn find_out() -> Here {
        if std::env::var_os("VMM_TEST_PLACE").is_some_and(|place| place == "nest") {
            return Here::default();
        }
        let program = artifacts::program(kvm::HOST_ISA, "vmm");
        let output = Command::new(program).args(["check", "--json"]).output();
        let json: Option<serde_json::Value> =
            output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
        let works = |name: &str| json.as_ref().is_some_and(|json| json[name]["works"] == true);
        Here { small_guests: works("small_guests"), linux: works("linux_guests") }
    }

    fn can(self, isa: Isa, needs: Needs) -> bool {
        isa == kvm::HOST_ISA
            && match needs {
                Needs::SmallGuests => self.small_guests,
                Needs::Linux => self.linux,
            }
    }
}

/// How often a case may be tried.
fn attempts(isa: Isa, here: bool) -> u32 {
    if isa == Isa::X86_64 && !here { 3 } else { 1 }
}

fn run(isa: Isa, case: &'static Case, here: bool) -> Result<(), Failed> {
    let place = if here { "here" } else { "nest" };
    let folder: PathBuf = artifacts::workspace().join("logs").join(format!("{isa}-{}-{place}", case.name));
    // A case that needs a second nest says so, and leaves what the first one printed: the emulator of an x86 nest
    // can lose an interrupt (docs/testing.md), and a defect of ours fails every time, or shows there.
    let last = attempts(isa, here);
    for attempt in 1..last {
        let folder = folder.with_extension(format!("attempt-{attempt}"));
        let Err(failed) = try_once(isa, case, here, &folder) else { return Ok(()) };
        let first = failed.message().unwrap_or_default().lines().next().unwrap_or_default();
        eprintln!("{isa}::{place}::{}: attempt {} after: {first}", case.name, attempt + 1);
    }
    try_once(isa, case, here, &folder)
}

/// Runs a case once; when it fails, what it printed is in `folder`.
fn try_once(isa: Isa, case: &'static Case, here: bool, folder: &Path) -> Result<(), Failed> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let report = if here { nest::run_here(case, folder)? } else { nest::run_case(isa, case, folder)? };
    for (name, bytes) in &report.files {
        fs::write(folder.join(name), bytes)?;
    }
    let message = match report.verdict {
        Verdict::Pass => {
            fs::remove_dir_all(folder)?;
            return Ok(());
        }
        Verdict::Fail(message) => message,
        // Whether a case can run is known before; one that finds out later must not pass.
        Verdict::Ignored(reason) => format!("ran, but could not test: {reason}"),
    };
    fs::write(folder.join("message"), &message)?;
    Err(format!("{message}\nlogs: {}", folder.display()).into())
}

/// Dumps that QEMU writes, for which nothing here need run a guest.
fn of_qemu(isa: Isa) -> Result<(), Failed> {
    let folder = artifacts::workspace().join("logs").join(format!("{isa}-dumps_of_qemu"));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    qemu_cores::compare(isa, &folder)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A nest uses two processors for most of its time.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let here = Here::find_out();
    let mut trials = Vec::new();
    for isa in Isa::ALL {
        let missing = artifacts::missing(isa, &["6.1", "6.12"], false);
        for case in cases::for_isa(isa) {
            let runs_here = case.gic == 3 && here.can(isa, case.needs);
            // Small cases of this machine's architecture run at both places: a software KVM
            // is a host like any other, and not all of it is like hardware.
            let places: &[bool] = if runs_here { &[true, false] } else { &[false] };
            for &place in places {
                let name = format!("{isa}::{}::{}", if place { "here" } else { "nest" }, case.name);
                let trial = Trial::test(name, move || run(isa, case, place));
                trials.push(match &missing {
                    Some(reason) => trial.with_ignored_flag(true).with_kind(reason.clone()),
                    None => trial,
                });
            }
        }
    }
    for isa in Isa::ALL {
        let name = format!("{isa}::qemu::dumps_of_qemu");
        let trial = Trial::test(name, move || of_qemu(isa));
        let missing = artifacts::missing(isa, &["6.1", "6.12"], false);
        trials.push(match missing {
            Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
            None => trial,
        });
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
