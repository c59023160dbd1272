//! Every case, on both architectures, on real KVM.
//!
//! A case runs on this machine when its own KVM does all that the case needs (`vmm check
//! --json` says so), else in a nest. What cannot run at all is ignored, with the reason.
//! `VMM_TEST_PLACE=nest` sends all of them to the nest. Where cases are chosen by name, in long runs, and with
//! `VMM_TEST_ALL=1`, those for which one architecture is enough run on both.

use arch::Isa;
use integration::artifacts;
use integration::cases::{self, Case, Needs};
use integration::report::{Report, Shared, Verdict};
use integration::{nest, qemu_cores};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

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
    match (isa, here) {
        (_, true) => 1,
        (Isa::X86_64, false) => 3,
        (Isa::Aarch64, false) => 2,
    }
}

/// Small cases that have a nest together: half of what one takes is its nest's boot.
struct Company {
    isa: Isa,
    cases: Vec<&'static Case>,
    /// What they came to, once the first of them has run all.
    found: OnceLock<Mutex<HashMap<String, Report>>>,
}

impl Company {
    /// How many cases share a nest.
    const SIZE: usize = 10;

    fn new(isa: Isa, cases: &[&'static Case]) -> Company {
        Company { isa, cases: cases.to_vec(), found: OnceLock::new() }
    }

    /// What a case came to in the shared nest; `None` when that ended before it.
    fn take(&self, case: &Case) -> Option<Report> {
        let found = self.found.get_or_init(|| Mutex::new(self.run().unwrap_or_default()));
        found.lock().unwrap_or_else(PoisonError::into_inner).remove(case.name)
    }

    fn run(&self) -> io::Result<HashMap<String, Report>> {
        let first = self.cases.first().map_or("none", |case| case.name);
        let folder = logs(format!("{}-{first}-and-others-nest", self.isa));
        fresh(&folder)?;
        let mut found = HashMap::new();
        for Shared { case, seconds, report } in nest::run_shared(self.isa, &self.cases, &folder)? {
            note_seconds(seconds, &format!("{}::nest::{case} (shared)", self.isa))?;
            found.insert(case, report);
        }
        if self
            .cases
            .iter()
            .all(|case| matches!(found.get(case.name), Some(Report { verdict: Verdict::Pass, .. })))
        {
            fs::remove_dir_all(&folder)?;
        }
        Ok(found)
    }
}

fn logs(name: impl AsRef<Path>) -> PathBuf {
    artifacts::workspace().join("logs").join(name)
}

/// Makes an empty folder.
fn fresh(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)
}

/// Writes down how long something took.
fn note_seconds(seconds: f64, what: &str) -> io::Result<()> {
    let times = OpenOptions::new().create(true).append(true).open(logs("seconds"));
    times?.write_all(format!("{seconds:.1}\t{what}\n").as_bytes())
}

fn run(isa: Isa, case: &'static Case, here: bool, company: Option<&Company>) -> Result<(), Failed> {
    let place = if here { "here" } else { "nest" };
    let (name, folder) =
        (format!("{isa}::{place}::{}", case.name), logs(format!("{isa}-{}-{place}", case.name)));
    // A case that needs a second nest says so, and leaves what the first one printed: the emulator of an x86 nest
    // can lose an interrupt, and in an aarch64 nest without enough of a processor a guest's kernel has stood still for long
    // (docs/testing.md). A defect of ours fails every time, or shows there.
    for attempt in 1..attempts(isa, here) {
        let folder = folder.with_extension(format!("attempt-{attempt}"));
        let company = company.filter(|_| attempt == 1);
        let Err(failed) = try_once(isa, case, here, company, &folder) else { return Ok(()) };
        let first = failed.message().unwrap_or_default().lines().next().unwrap_or_default();
        eprintln!("{name}: attempt {} after: {first}", attempt + 1);
    }
    let company = company.filter(|_| attempts(isa, here) == 1);
    try_once(isa, case, here, company, &folder)
}

/// Runs a case once, or asks those that ran it; when it fails, what it printed is in `folder`.
fn try_once(
    isa: Isa,
    case: &'static Case,
    here: bool,
    company: Option<&Company>,
    folder: &Path,
) -> Result<(), Failed> {
    fresh(folder)?;
    let report = match company.and_then(|company| company.take(case)) {
        Some(report) => report,
        None => {
            let begin = Instant::now();
            let report =
                if here { nest::run_here(case, folder)? } else { nest::run_case(isa, case, folder)? };
            let place = if here { "here" } else { "nest" };
            note_seconds(begin.elapsed().as_secs_f64(), &format!("{isa}::{place}::{}", case.name))?;
            report
        }
    };
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
    let has_word = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let all = arguments.filter.is_some() || has_word("VMM_TEST_SOAK") || has_word("VMM_TEST_ALL");
    let mut trials = Vec::new();
    // Their results are there when the first of each company is done: nobody waits for them.
    let mut followers = Vec::new();
    for isa in Isa::ALL {
        let missing = artifacts::missing(isa, &["6.1", "6.12"], false);
        let trial = |case: &'static Case, is_here: bool, company: Option<Arc<Company>>| {
            let place = if is_here { "here" } else { "nest" };
            let run = move || run(isa, case, is_here, company.as_deref());
            let trial = Trial::test(format!("{isa}::{place}::{}", case.name), run);
            match &missing {
                Some(reason) => trial.with_ignored_flag(true).with_kind(reason.clone()),
                None => trial,
            }
        };
        let mut sharing = Vec::new();
        for case in cases::for_isa(isa, all) {
            // Small cases of this machine's architecture run at both places: a software KVM
            // is a host like any other, and not all of it is like hardware.
            if case.gic == 3 && here.can(isa, case.needs) {
                trials.push(trial(case, true, None));
            }
            if case.here_is_enough && isa == kvm::HOST_ISA && !all && here.can(isa, case.needs) {
                continue;
            }
            match case.shares_a_nest() && is_wanted(&arguments, &format!("{isa}::nest::{}", case.name)) {
                true => sharing.push(case),
                false => trials.push(trial(case, false, None)),
            }
        }
        for cases in sharing.chunks(Company::SIZE) {
            let company = (cases.len() > 1).then(|| Arc::new(Company::new(isa, cases)));
            let mut members = cases.iter().map(|case| trial(case, false, company.clone()));
            trials.extend(members.next());
            followers.extend(members);
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
    trials.extend(followers);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether the arguments leave a case in.
fn is_wanted(arguments: &Arguments, name: &str) -> bool {
    let matches =
        |filter: &String| if arguments.exact { name == filter } else { name.contains(filter.as_str()) };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
