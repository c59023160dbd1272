//! `make bench`: `vmm` beside Debian's QEMU on the same nested hosts, and `vmm` on this
//! machine's own KVM. It prints medians, ratios and the aims; it judges nothing.

use arch::Isa;
use integration::artifacts::{self, Kernel};
use integration::cases::{
    BENCH, BENCH_CALLS, BENCH_CONSOLES, BENCH_DEBUG, BENCH_DEVICES, BENCH_LINUX, BENCH_RUN, BENCH_RUN_ALL,
    Case,
};
use integration::context::Context;
use integration::guests;
use integration::measure::calls as call_figures;
use integration::measure::debugging as debug_figures;
use integration::measure::dumps as dump_figures;
use integration::measure::job::PRINTED;
use integration::measure::names as name_figures;
use integration::measure::{GUEST_MEMORY, Monitor, RUNS, median, rss_beyond_guest};
use integration::nest;
use integration::process::{Process, Wiring};
use integration::report::Verdict;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// How often a nest is tried that dies of its emulator (docs/testing.md).
const TRIES: u32 = 4;

/// `bench [boot|debug|calls|dumps|names|linux|run [ARCH|here]]`: all parts, or one, for both architectures or one.
fn main() -> ExitCode {
    if let [_, word, path] = &std::env::args().collect::<Vec<_>>()[..]
        && word == debug_figures::echo::WORD
    {
        if let Err(error) = debug_figures::echo::carry_out(Path::new(path)) {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    let (part, only) = (std::env::args().nth(1), std::env::args().nth(2));
    let here_too = only.as_deref().is_none_or(|only| only == "here");
    let wants = |name: &str| part.as_deref().is_none_or(|part| part == name);
    let mut result = ExitCode::SUCCESS;
    let mut tell = |what: &str, done: Result<(), String>| {
        if let Err(error) = done {
            eprintln!("bench: {what}: {error}");
            result = ExitCode::FAILURE;
        }
    };
    if wants("boot") {
        tell("here", here());
    }
    if wants("debug") && here_too {
        tell("here", debugging_here());
    }
    if wants("calls") && here_too {
        tell("here", calls_here());
    }
    if wants("dumps") && here_too {
        tell("here", dumps_here());
    }
    if wants("names") && here_too {
        tell("here", names_here());
    }
    for isa in Isa::ALL.into_iter().filter(|isa| only.as_deref().is_none_or(|only| only == isa.name())) {
        if wants("boot") {
            println!();
            tell(isa.name(), nested(isa));
        }
        if wants("debug") {
            tell(isa.name(), debugging(isa));
        }
        if wants("calls") {
            tell(isa.name(), calls(isa));
        }
        if wants("linux") {
            tell(isa.name(), linux(isa));
        }
        if wants("run") {
            tell(isa.name(), jobs(isa));
        }
    }
    result
}

/// A small guest's file in a folder.
fn small_guest(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let guest = guests::find(kvm::HOST_ISA.name(), name, false).ok_or("a guest is missing")?;
    let path = folder.join(name);
    fs::write(&path, guest.bytes).map_err(|error| error.to_string())?;
    Ok(path)
}

/// How soon guests of this machine's own KVM answer who asks.
fn names_here() -> Result<(), String> {
    println!("Guests on this machine's own KVM, asked at their sockets (medians; one vCPU):");
    let folder = artifacts::workspace().join("logs/bench-names");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let runtime = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = artifacts::program(kvm::HOST_ISA, "vmm");
    let kernel = |name: &str| small_guest(&folder, name);
    print!("{}", name_figures::lines(&program, runtime.path(), &kernel)?);
    Ok(())
}

/// A file's size in MiB.
fn size(path: &Path) -> Result<f64, String> {
    let bytes = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(bytes as f64 / f64::from(1 << 20))
}

/// This machine's own KVM: the time to a guest's first instruction, and memory.
fn here() -> Result<(), String> {
    let isa = kvm::HOST_ISA;
    let program = artifacts::program(isa, "vmm");
    let folder = artifacts::workspace().join("logs/bench-here");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let (guest, halted) = (small_guest(&folder, "first_byte")?, small_guest(&folder, "halt")?);
    let mut times = Vec::new();
    for _ in 0..=20 {
        let mut command = Command::new(&program);
        command.arg("--kernel").arg(&guest).args(["--memory", "256M"]);
        let begin = Instant::now();
        let mut process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
        if process.expect("!", Duration::from_secs(10)).is_err() {
            println!("This machine's own KVM runs no guest: {}", process.errors.text().trim());
            return Ok(());
        }
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    times.remove(0);
    let mut command = Command::new(&program);
    command.arg("-v").arg("--kernel").arg(&halted).args(["--memory", &format!("{GUEST_MEMORY}M")]);
    let process = Process::start("vmm", command, Wiring::Pipes).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !process.errors.text().contains("command line") && Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let rss = rss_beyond_guest(process.id())?;
    drop(process);
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    println!("{isa}, this machine's own KVM, medians of 20 runs");
    println!("  exec to a guest's first instruction              {:8.1} ms   (aim: under 10)", median(times));
    println!("  RSS beyond guest memory, 1 vCPU, small guest     {:8.0} KiB  (aim: under 5120)", rss);
    println!(
        "  static binary                                    {:8.2} MiB  (aim: under 4)",
        size(&program)?
    );
    Ok(())
}

/// Figures of one monitor, a column for each kind.
type Columns = Vec<Vec<f64>>;

/// Takes one sample in a nest of its own.
fn sample(isa: Isa, case: &Case, peer: &Path, folder: &Path) -> Result<Vec<f64>, String> {
    let mut last = String::new();
    for attempt in 1..=TRIES {
        let mut nest = nest::prepare_case(isa, case).map_err(|error| error.to_string())?;
        nest.cpus(2);
        for place in ["lib", "share"] {
            for entry in fs::read_dir(peer.join(place)).map_err(|error| error.to_string())? {
                let path = entry.map_err(|error| error.to_string())?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                nest.copy(&format!("files/peer/{place}/{name}"), &path).map_err(|error| error.to_string())?;
            }
        }
        for program in ["qemu", "virtiofsd"] {
            let to = format!("files/peer/{program}");
            nest.copy(&to, &peer.join(program)).map_err(|error| error.to_string())?;
        }
        let running = nest.boot(folder).map_err(|error| error.to_string())?;
        let report = running.wait(Duration::from_secs(240));
        match &report.verdict {
            Verdict::Pass => {
                let figures = report.files.iter().find(|(name, _)| name == "figures").ok_or("no figures")?;
                let text = String::from_utf8_lossy(&figures.1).into_owned();
                let values: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                return Ok(values);
            }
            Verdict::Fail(message) | Verdict::Ignored(message) => {
                last = message.lines().next().unwrap_or_default().to_string();
                eprintln!("bench: {isa} {}, attempt {attempt} of {TRIES}: {last}", case.name);
            }
        }
    }
    Err(format!("{}: no attempt succeeded: {last}; see {}", case.name, folder.display()))
}

/// Samples of both monitors in turn.
fn samples(
    isa: Isa,
    cases: &[Case; 2],
    rounds: usize,
    peer: &Path,
    folder: &Path,
) -> Result<[Columns; 2], String> {
    let mut columns: [Columns; 2] = Default::default();
    for round in 1..=rounds {
        eprintln!("bench: {isa}, round {round} of {rounds} (half a minute)");
        for (case, columns) in cases.iter().zip(&mut columns) {
            let values = sample(isa, case, peer, folder)?;
            columns.resize(values.len(), Vec::new());
            for (column, value) in columns.iter_mut().zip(values) {
                column.push(value);
            }
        }
    }
    Ok(columns)
}

/// The figures of the gdb servers: name, unit and aim.
const DEBUG_FIGURES: [(&str, &str, &str); 8] = [
    ("single steps", "/s", "at least 10, or near the last line"),
    ("hits of a breakpoint with a false condition", "/s", "at least 100"),
    ("a range step of 100000 instructions", "ms", "at most 0.01"),
    ("memory read", "MB/s", "at least 10"),
    ("cost of being attached and idle", "%", "under 1 %"),
    ("single steps of a bare ioctl loop", "/s", "for comparison"),
    ("the sum of that and of an echo of packets", "/s", "for comparison"),
    ("both in one thread of a process of its own", "/s", "what there is to be had"),
];

/// How fast the gdb servers are.
fn debugging(isa: Isa) -> Result<(), String> {
    const ROUNDS: usize = 3;
    let peer = artifacts::cache().join("peer").join(isa.name());
    let folder = artifacts::workspace().join("logs").join(format!("bench-debug-{isa}"));
    let columns = samples(isa, &BENCH_DEBUG, ROUNDS, &peer, &folder)?;
    println!("\n{isa}, nested KVM, gdb servers by a client of the bare protocol, medians of {ROUNDS} runs");
    print_debug(&columns);
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())
}

fn print_debug(columns: &[Columns; 2]) {
    println!("  {:46}{:>12}{:>14}{:>8}", "", "vmm", "QEMU", "ratio");
    for (index, (name, unit, aim)) in DEBUG_FIGURES.into_iter().enumerate() {
        let [ours, theirs] = [0, 1].map(|monitor: usize| median(columns[monitor][index].clone()));
        println!("  {name:46}{ours:>12.1}{theirs:>14.1}{:>8.2}  {unit}  ({aim})", ours / theirs);
    }
    // Taken in turns within each round, so compared within it.
    for (behind, name) in [(2, "single steps, of that sum"), (1, "single steps, of what there is to be had")]
    {
        let shares = [0, 1].map(|monitor: usize| {
            let (steps, most) = (&columns[monitor][0], &columns[monitor][DEBUG_FIGURES.len() - behind]);
            median(steps.iter().zip(most).map(|(steps, most)| steps / most).collect())
        });
        println!("  {name:46}{:>12.2}{:>14.2}", shares[0], shares[1]);
    }
}

/// The same on this machine's own KVM, and gdb's way to its prompt with a kernel's symbols.
fn debugging_here() -> Result<(), String> {
    const ROUNDS: usize = 3;
    let isa = kvm::HOST_ISA;
    let work = artifacts::workspace().join("logs/bench-debug-here");
    let context = here_context(isa, &work)?;
    let kernel = Kernel::new(isa, "6.12");
    for (name, target) in
        [("peer", artifacts::cache().join("peer").join(isa.name())), ("6.12", kernel.image())]
    {
        std::os::unix::fs::symlink(&target, context.files.join(name))
            .or_else(|error| if context.files.join(name).exists() { Ok(()) } else { Err(error) })
            .map_err(|error| format!("{}: {error}", target.display()))?;
    }
    let mut columns: [Columns; 2] = Default::default();
    let (mut prompts, mut symbols_only) = ([Vec::new(), Vec::new()], Vec::new());
    let (mut gdb_hits, mut gdb_next) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 1..=ROUNDS {
        eprintln!("bench: {isa} here, round {round} of {ROUNDS} (a minute)");
        symbols_only.push(debug_figures::to_prompt(&kernel.vmlinux(), None)?);
        for (monitor, (columns, prompts)) in
            [Monitor::Vmm, Monitor::Qemu].into_iter().zip(columns.iter_mut().zip(&mut prompts))
        {
            let line = debug_figures::once(&context, monitor)?.line();
            let values = line.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
            columns.resize(DEBUG_FIGURES.len(), Vec::new());
            columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
            let index = usize::from(monitor == Monitor::Qemu);
            let (hits, next) = debug_figures::with_gdb(&context, monitor)?;
            gdb_hits[index].push(hits);
            gdb_next[index].push(next);
            prompts.push(debug_figures::attach(&context, monitor, &kernel.vmlinux())?);
        }
    }
    println!(
        "\n{isa}, this machine's own KVM, gdb servers by a client of the bare protocol, medians of {ROUNDS} runs"
    );
    print_debug(&columns);
    for (name, unit, values, aim) in [
        ("stock gdb: hits with a false condition", "/s", gdb_hits, "at least 100"),
        ("stock gdb: next over 100000 instructions", "ms", gdb_next, "at most 0.01"),
    ] {
        let [ours, theirs] = values.map(median);
        println!("  {name:46}{ours:>12.1}{theirs:>14.1}{:>8.3}  {unit}  ({aim})", ours / theirs);
    }
    let alone = median(symbols_only);
    let [ours, theirs] = prompts.map(median);
    println!(
        "  {:46}{ours:>12.0}{theirs:>14.0}{:>8.2}  ms  (of which gdb reads symbols for {alone:.0})",
        "gdb with a kernel's symbols, to its prompt",
        ours / theirs
    );
    fs::remove_dir_all(&work).map_err(|error| error.to_string())
}

/// The figures of devices: name, unit, and whether more is better.
const DEVICE_FIGURES: [(&str, &str, bool); 10] = [
    ("disk: written and flushed, 1 MiB at a time", "MB/s", true),
    ("disk: read, 1 MiB at a time", "MB/s", true),
    ("disk: a read of 4 KiB", "us", false),
    ("shared folder: a file written and synchronized", "MB/s", true),
    ("shared folder: the same read", "MB/s", true),
    ("shared folder: a small file opened and read", "us", false),
    ("network: a byte to the host and back", "us", false),
    ("network: to the guest", "MB/s", true),
    ("network: from the guest", "MB/s", true),
    ("RSS beyond guest memory, QEMU's with virtiofsd", "KiB", false),
];

/// The whole of `vmm run -- true`, and what its devices do, beside QEMU and virtiofsd.
fn jobs(isa: Isa) -> Result<(), String> {
    const ROUNDS: usize = 3;
    let peer = artifacts::cache().join("peer").join(isa.name());
    let folder = artifacts::workspace().join("logs").join(format!("bench-run-{isa}"));
    let (mut whole, mut all, mut devices) =
        (<[Vec<f64>; 2]>::default(), Vec::new(), <[Columns; 2]>::default());
    for round in 1..=ROUNDS {
        eprintln!("bench: {isa}, round {round} of {ROUNDS} (two minutes)");
        for ((case, times), (with, columns)) in
            BENCH_RUN.iter().zip(&mut whole).zip(BENCH_DEVICES.iter().zip(&mut devices))
        {
            times.extend(sample(isa, case, &peer, &folder)?);
            let values = sample(isa, with, &peer, &folder)?;
            columns.resize(values.len(), Vec::new());
            columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
        }
        all.extend(sample(isa, &BENCH_RUN_ALL, &peer, &folder)?);
    }
    println!(
        "\n{isa}, nested KVM, `vmm run` of Debian 6.12, medians of {ROUNDS} rounds in turn, each in a nest of its own"
    );
    println!("  {:50}{:>10}{:>12}{:>8}", "", "vmm", "QEMU", "ratio");
    let line = |name: &str, [ours, theirs]: [f64; 2], unit: &str, aim: &str| {
        println!("  {name:50}{ours:>10.1}{theirs:>12.1}{:>8.2}  {unit}{aim}", ours / theirs);
    };
    let [ours, theirs] = whole.map(median);
    line("run -- true, from exec to exit", [ours, theirs], "ms", "  (aim: at most 0.60)");
    line("the same with all devices, and without", [median(all), ours], "ms", "");
    for (index, (name, unit, is_rate)) in DEVICE_FIGURES.into_iter().enumerate() {
        let both = [0, 1].map(|monitor: usize| median(devices[monitor][index].clone()));
        let aim = match (name.starts_with("RSS"), is_rate) {
            (true, _) => "  (aim: under 15360)",
            (false, true) => "  (aim: at least 1)",
            (false, false) => "  (aim: at most 1)",
        };
        line(name, both, unit, aim);
    }
    // In turn within one nest.
    if let [serial, virtio] = sample(isa, &BENCH_CONSOLES, &peer, &folder)?[..] {
        let ratio = serial / virtio;
        println!(
            "  {PRINTED} bytes printed on ttyS0: {serial:.0} ms, on hvc0: {virtio:.0} ms, {ratio:.1} times as fast"
        );
    }
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())
}

/// What a kernel is asked without symbols: in a guest that runs in a nest, and on this machine in its dump.
fn linux(isa: Isa) -> Result<(), String> {
    println!("\n{isa}, Debian's 6.12 with 500 tasks: medians of 5, the dump's in turn");
    let folder = artifacts::workspace().join("logs").join(format!("bench-linux-{isa}"));
    let report = nest::run_case(isa, &BENCH_LINUX, &folder).map_err(|error| error.to_string())?;
    let figures = report.files.iter().find(|(name, _)| name == "figures");
    let (_, text) = figures.ok_or_else(|| format!("no figures: {:?}", report.verdict))?;
    print!("{}", String::from_utf8_lossy(text));
    match &report.verdict {
        Verdict::Pass => fs::remove_dir_all(&folder).map_err(|error| error.to_string()),
        verdict => Err(format!("{verdict:?}")),
    }
}

/// What hypercalls cost in a nest, by each way out of the guest.
fn calls(isa: Isa) -> Result<(), String> {
    let folder = artifacts::workspace().join("logs").join(format!("bench-calls-{isa}"));
    let mut nest = nest::prepare_case(isa, &BENCH_CALLS).map_err(|error| error.to_string())?;
    nest.cpus(1);
    let report = nest.boot(&folder).map_err(|error| error.to_string())?.wait(Duration::from_secs(240));
    let figures = report.files.iter().find(|(name, _)| name == "figures");
    let (_, text) = figures.ok_or_else(|| format!("no figures: {:?}", report.verdict))?;
    println!("\n{isa}, nested KVM, calls a second of a guest, the best of 5 rounds");
    print!("{}", String::from_utf8_lossy(text));
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())
}

/// The same on this machine's own KVM.
fn calls_here() -> Result<(), String> {
    let isa = kvm::HOST_ISA;
    let work = artifacts::workspace().join("logs/bench-calls-here");
    let context = here_context(isa, &work)?;
    println!("\n{isa}, this machine's own KVM, calls a second of a guest, the best of 5 rounds");
    print!("{}", call_figures::lines(&context)?);
    fs::remove_dir_all(&work).map_err(|error| error.to_string())
}

/// Dumps on this machine's own KVM: written by both monitors of the same guest, and opened.
fn dumps_here() -> Result<(), String> {
    const ROUNDS: usize = 5;
    const PACKED_ROUNDS: usize = 4;
    const PACKED: [&str; 2] = ["core.gz", "core.zst"];
    let isa = kvm::HOST_ISA;
    let work = artifacts::workspace().join("logs/bench-dumps-here");
    let context = here_context(isa, &work)?;
    let peer = context.files.join("peer");
    if !peer.exists() {
        std::os::unix::fs::symlink(artifacts::cache().join("peer").join(isa.name()), &peer)
            .map_err(|error| error.to_string())?;
    }
    let core = work.join("core");
    let mut written: [Vec<f64>; 2] = Default::default();
    let mut sizes: [Vec<f64>; 2] = Default::default();
    let (mut prompts, mut walks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (index, monitor) in [Monitor::Qemu, Monitor::Vmm].into_iter().enumerate() {
            let figures = dump_figures::once(&context, monitor, &core)?;
            written[index].push(figures.written);
            sizes[index].push(figures.size);
        }
        // What is there now is ours.
        prompts.push(dump_figures::to_prompt(&context, &core)?);
        walks.push(dump_figures::walks(&context, &core)?);
    }
    println!(
        "\n{isa}, this machine's own KVM, a guest of {} MiB that uses 200, medians of {ROUNDS} rounds in turn",
        dump_figures::MEMORY_MIB
    );
    println!("  {:46}{:>10}{:>14}{:>8}", "", "vmm", "QEMU", "ratio");
    let [theirs, ours] = written.map(median);
    println!(
        "  {:46}{ours:>10.0}{theirs:>14.0}{:>8.3}  ms",
        "a dump, from asking for it to its end",
        ours / theirs
    );
    let rate = f64::from(dump_figures::MEMORY_MIB) * f64::from(1 << 20) / 1e6 / ours;
    println!("  {:46}{rate:>10.1}  GB/s  (aim: at least 1)", "memory scanned");
    let [theirs, ours] = sizes.map(median);
    println!("  {:46}{ours:>10.0}{theirs:>14.0}{:>8.3}  MiB", "its size on disk", ours / theirs);
    println!("  {:46}{:>10.0}  ms", "vmm core, and gdb to its prompt", median(prompts));
    println!("  {:46}{:>10.2}  million/s", "page walks in a dump", median(walks) / 1e6);
    println!(
        "\na guest with {} MiB of a kernel's file and symbols, medians of {PACKED_ROUNDS} rounds in turn",
        dump_figures::CONTENT_MIB
    );
    println!("  {:46}{:>10}{:>14}{:>8}", "a dump by its name", "vmm", "1 processor", "ratio");
    let mut packed: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..PACKED_ROUNDS {
        for (name, times) in PACKED.into_iter().zip(&mut packed) {
            // The first one finds less free memory, so they take turns.
            for index in [round % 2, 1 - round % 2] {
                times[index].push(dump_figures::packed(&context, name, index == 0)?);
            }
        }
    }
    for (name, times) in PACKED.into_iter().zip(packed) {
        let [all, one] = times.map(median);
        println!("  {name:46}{all:>10.0}{one:>14.0}{:>8.3}  ms", all / one);
    }
    fs::remove_dir_all(&work).map_err(|error| error.to_string())
}

/// A context for what runs on this machine.
fn here_context(isa: Isa, work: &Path) -> Result<Context, String> {
    let files = work.join("files");
    fs::create_dir_all(&files).map_err(|error| error.to_string())?;
    Ok(Context {
        name: "bench".into(),
        isa,
        vmm: artifacts::program(isa, "vmm"),
        files,
        work: work.to_path_buf(),
        kept: Vec::new(),
        in_nest: false,
        slowness: 1,
        length: integration::context::Length::Sample,
    })
}

fn nested(isa: Isa) -> Result<(), String> {
    let peer = artifacts::cache().join("peer").join(isa.name());
    let folder = artifacts::workspace().join("logs").join(format!("bench-{isa}"));
    let columns = samples(isa, &BENCH, RUNS, &peer, &folder)?;
    let machine = if isa == Isa::X86_64 { "microvm" } else { "virt" };
    println!(
        "{isa}, nested KVM, Debian 6.12 guest of {GUEST_MEMORY} MiB, medians of {RUNS} runs in turn,\n  each in a nest of its own"
    );
    println!("  {:46}{:>10}{:>14}{:>8}", "", "vmm", format!("QEMU {machine}"), "ratio");
    for (index, (name, unit)) in [
        ("exec to a guest's first instruction", "ms"),
        ("exec to the kernel's first console line", "ms"),
        ("exec to init", "ms"),
        ("RSS beyond guest memory", "KiB"),
    ]
    .into_iter()
    .enumerate()
    {
        let [ours, theirs] = [0, 1].map(|monitor: usize| median(columns[monitor][index].clone()));
        println!("  {:46}{ours:>10.0}{theirs:>14.0}{:>8.2}  {unit}", name, ours / theirs);
    }
    let mut theirs = size(&peer.join("qemu"))?;
    let ours = size(&artifacts::program(isa, "vmm"))?;
    println!("  {:46}{ours:>10.2}{theirs:>14.2}{:>8.2}  MiB", "binary", ours / theirs);
    for entry in fs::read_dir(peer.join("lib")).map_err(|error| error.to_string())? {
        theirs += size(&entry.map_err(|error| error.to_string())?.path())?;
    }
    println!(
        "  {:46}{ours:>10.2}{theirs:>14.2}{:>8.2}  MiB",
        "binary with the libraries it needs",
        ours / theirs
    );
    println!("  aims: init at most 0.80 of QEMU's, RSS under 5120 KiB, binary under 4 MiB");
    fs::remove_dir_all(&folder).map_err(|error| error.to_string())
}
