//! What a kernel is asked that nobody has symbols of: a guest that runs, and then hangs, from the question at its socket to
//! the answer; and its dump, from a program's start to its answer, beside drgn and crash, which have symbols.

use super::{median, milliseconds};
use crate::artifacts::{self, Kernel, WEDGE};
use crate::context::{Check, Context, check};
use crate::process::Wiring;
use arch::Isa;
use kvm::HOST_ISA;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Tasks that sleep in the guest, beside its own.
const TASKS: u32 = 500;
/// How often each question is asked.
const ROUNDS: usize = 5;

/// How long `ps` of a dump may take, ms, and how many times as long crash's.
const AIMS: (f64, f64) = (100.0, 20.0);

/// What is asked of the guest, and of its dump.
const QUESTIONS: [&str; 4] = ["sym schedule", "ps", "bt all", "why"];

/// Within a nest: a guest with so many tasks is asked, and dumped.
///
/// # Errors
/// When it does not do what it should.
pub fn guest(c: &mut Context) -> Check {
    let (root, limit) = (c.root()?, c.limit(120));
    let script = format!(
        "i=0; while [ $i -lt {TASKS} ]; do sleep 10000 & i=$((i+1)); done; echo ready; read line\n\
         /bin/busybox insmod /bin/{WEDGE} how=mutexes,rwsem,sleep; sleep 2; echo wedged; cat"
    );
    let made = fs::write(root.join("bin/run.sh"), script)
        .and_then(|()| fs::copy(c.modules().join(WEDGE), root.join("bin").join(WEDGE)));
    made.map_err(|error| error.to_string())?;
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {} --memory 512M --cpus 2 --name bench -- sh /bin/run.sh",
        c.slowness
    );
    let mut guest = c.start(Wiring::Pipes, &line, &[&c.kernel("6.12"), &c.modules(), &root])?;
    let asked = (|| -> Result<String, String> {
        guest.expect("ready", limit)?;
        let mut text = String::new();
        let mut measure = |c: &mut Context, question: &str, of: &str| -> Check {
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let begin = Instant::now();
                c.run(&format!("monitor bench {question}"), &[], limit)?.expect_code(0)?;
                times.push(milliseconds(begin));
            }
            // Writing to a String cannot fail.
            writeln!(text, "  {question:14} of a guest that {of:5}{:10.1} ms", median(times)).ok();
            Ok(())
        };
        for question in QUESTIONS {
            measure(c, question, "runs")?;
        }
        guest.send("\n")?;
        guest.expect("wedged", limit)?;
        measure(c, "why", "hangs")?;
        let core = c.work.join("core");
        c.run("dump bench {}", &[&core], limit)?.expect_code(0)?;
        c.export(&core)?;
        Ok(text)
    })();
    guest.close_input();
    let ended = guest.wait(limit);
    c.keep("guest", &guest);
    c.kept.push(("figures".into(), asked?.into_bytes()));
    check(ended? == 0, || guest.errors.text())
}

/// How long a program takes from its start to its end, ms; it is to print something of a task.
fn once(command: &mut Command, input: &Path, prints: &str) -> Result<f64, String> {
    let failed = |error: std::io::Error| error.to_string();
    let input = fs::File::open(input).map_err(failed)?;
    let begin = Instant::now();
    let said = command.stdin(input).stderr(Stdio::null()).output().map_err(failed)?;
    let took = milliseconds(begin);
    let text = String::from_utf8_lossy(&said.stdout);
    check(text.contains(prints), || format!("{command:?} prints no '{prints}': {text}"))?;
    Ok(took)
}

/// The same, printed.
///
/// # Errors
/// As [`of_dump`].
pub fn tools(isa: Isa, core: &Path) -> Check {
    print!("{}", of_dump(isa, core)?);
    Ok(())
}

/// On the machine that runs the tests: who answers how quickly of the dump. The programs take turns.
///
/// # Errors
/// When one of them does not answer.
pub fn of_dump(isa: Isa, core: &Path) -> Result<String, String> {
    let vmlinux = Kernel::new(isa, "6.12").vmlinux();
    let tools = artifacts::cache().join("tools");
    let asks = core.with_extension("asks");
    let script = core.with_extension("py");
    let write = |path: &PathBuf, text: &str| fs::write(path, text).map_err(|error| error.to_string());
    write(&asks, "ps\nquit\n")?;
    let (asks_symbol, symbol) = (core.with_extension("symbol-asks"), core.with_extension("symbol.py"));
    write(&asks_symbol, "sym schedule\nquit\n")?;
    write(
        &symbol,
        "import sys, drgn\n\
         prog = drgn.Program()\n\
         prog.set_core_dump(sys.argv[1])\n\
         prog.load_debug_info([sys.argv[2]])\n\
         print(prog.symbol('schedule').name, hex(prog.symbol('schedule').address))\n",
    )?;
    write(
        &script,
        "import sys, drgn\n\
         from drgn.helpers.linux.pid import for_each_task\n\
         prog = drgn.Program()\n\
         prog.set_core_dump(sys.argv[1])\n\
         prog.load_debug_info([sys.argv[2]])\n\
         for task in for_each_task(prog):\n    print(task.pid.value_(), task.comm.string_().decode())\n",
    )?;
    let ours = |question: &str| {
        let mut command = Command::new(artifacts::program(HOST_ISA, "vmm"));
        // Whatever this machine has.
        command.args(["core", "--symbols", "none"]).arg(core).args(question.split(' '));
        command
    };
    let crash = match isa {
        Isa::X86_64 => tools.join("crash-forky-x86_64/run"),
        Isa::Aarch64 => tools.join("crash-for-aarch64/crash"),
    };
    let crash = || {
        let mut command = Command::new(&crash);
        command.arg("-s").arg(&vmlinux).arg(core);
        if isa == Isa::Aarch64 {
            command.args(["-m", "phys_offset=0x40000000"]);
        }
        command
    };
    let drgn = |script: &PathBuf| {
        let mut command = Command::new("python3");
        command.arg(script).arg(core).arg(&vmlinux).env("PYTHONPATH", tools.join("drgn"));
        command
    };
    let mut times: [Vec<f64>; QUESTIONS.len()] = Default::default();
    let (mut by_crash, mut by_drgn) = (Vec::new(), Vec::new());
    let (mut symbol_by_crash, mut symbol_by_drgn) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (question, times) in QUESTIONS.iter().zip(&mut times) {
            let prints = if question.starts_with("sym") { "schedule" } else { "swapper/0" };
            times.push(once(&mut ours(question), &asks, prints)?);
        }
        by_crash.push(once(&mut crash(), &asks, "swapper/0"));
        by_drgn.push(once(&mut drgn(&script), &asks, "sleep"));
        symbol_by_crash.push(once(&mut crash(), &asks_symbol, "schedule"));
        symbol_by_drgn.push(once(&mut drgn(&symbol), &asks_symbol, "schedule"));
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (question, times) in QUESTIONS.iter().zip(times.iter().cloned()) {
        writeln!(text, "  {question:14} of its dump          {:10.1} ms", median(times)).ok();
    }
    let (symbol, ps) = (median(times[0].clone()), median(times[1].clone()));
    for (what, name, ours, times) in [
        ("sym", "crash", symbol, symbol_by_crash),
        ("sym", "drgn", symbol, symbol_by_drgn),
        ("ps", "crash", ps, by_crash),
        ("ps", "drgn", ps, by_drgn),
    ] {
        match times.into_iter().collect::<Result<Vec<f64>, String>>() {
            Ok(times) => {
                let its = median(times);
                let ratio = its / ours;
                writeln!(
                    text,
                    "  {what:3} by {name:7} of its dump          {its:10.1} ms, {ratio:.1} times ours"
                )
                .ok();
            }
            Err(why) => {
                writeln!(text, "  {what} by {name}: {}", why.lines().next().unwrap_or_default()).ok();
            }
        }
    }
    let (most, times) = AIMS;
    writeln!(text, "  aims: ps of a dump in {most} ms, and crash's {times} times as long").ok();
    Ok(text)
}
