//! Dumps that QEMU writes of its own guests, opened by us: what QEMU's debugger stub says of the guest, our
//! server says of the dump, whatever the format, and on a host of either architecture.

use crate::artifacts::{self, Kernel};
use crate::context::check;
use crate::initramfs;
use crate::process::{Process, Wiring};
use crate::tools::{Built, Gdb, Opened, core};
use arch::Isa;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a guest may take to boot under emulation, and QEMU to write a dump.
const LIMIT: Duration = Duration::from_secs(120);

/// What tells QEMU what to do (QEMU, "QEMU Machine Protocol Specification").
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a QEMU that listens.
    ///
    /// # Errors
    /// When it does not, or does not speak the protocol.
    pub fn connect(socket: &Path) -> Result<Qmp, String> {
        let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        let mut control = Qmp(BufReader::new(stream));
        control.ask("qmp_capabilities", &json!({}))?;
        Ok(control)
    }

    /// Has it do something; what it answers.
    ///
    /// # Errors
    /// What it says.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").map_err(|error| error.to_string())?;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let mut line = String::new();
            self.0.read_line(&mut line).map_err(|error| error.to_string())?;
            let answer: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refuses {command}: {error}"));
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
        Err(format!("QEMU does not answer {command}"))
    }
}

/// A QEMU with a guest that is stopped.
struct Qemu {
    process: Process,
    qmp: Qmp,
    stub: PathBuf,
}

impl Qemu {
    /// Boots a Debian guest of two processors to userspace, and stops it there.
    fn boot(isa: Isa, folder: &Path) -> Result<Qemu, String> {
        let failed = |error: std::io::Error| error.to_string();
        let initrd = folder.join("initrd");
        fs::write(&initrd, initramfs::guest(isa).map_err(failed)?).map_err(failed)?;
        let (control, stub) = (artifacts::socket("qmp"), artifacts::socket("stub"));
        let mut command = Command::new(artifacts::qemu(isa));
        let console = match isa {
            Isa::X86_64 => {
                command.args(["-M", "q35", "-cpu", "max", "-vga", "none"]);
                command.args(["-L", "/usr/share/seabios", "-L", "/usr/share/qemu"]);
                "ttyS0"
            }
            Isa::Aarch64 => {
                command.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72"]);
                "ttyAMA0"
            }
        };
        command
            .args([
                "-accel",
                "tcg",
                "-smp",
                "2",
                "-m",
                "256",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
            ])
            .args(["-serial", "stdio", "-append", &format!("console={console} vmm.run=idle")])
            .arg("-kernel")
            .arg(Kernel::new(isa, "6.12").image())
            .arg("-initrd")
            .arg(&initrd)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", control.display())])
            .args(["-gdb", &format!("unix:{},server=on,wait=off", stub.display())]);
        let mut process = Process::start("qemu", command, Wiring::Pipes).map_err(failed)?;
        process.expect("guest: up", LIMIT)?;
        let mut qemu = Qemu { process, qmp: Qmp::connect(&control)?, stub };
        fs::remove_file(control).map_err(failed)?;
        qemu.stop_idle()?;
        Ok(qemu)
    }

    /// Stops it when both processors idle, at the same instruction: gdb has to find its way out of there.
    fn stop_idle(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.qmp.ask("stop", &json!({}))?;
            let registers = json!({ "command-line": "info registers -a" });
            let said = self.qmp.ask("human-monitor-command", &registers)?;
            let said = said.as_str().unwrap_or_default();
            let is_pc = |word: &&str| word.starts_with("RIP=") || word.starts_with("PC=");
            let places: Vec<_> = said.split_whitespace().filter(is_pc).collect();
            if places.len() == 2 && places[0] == places[1] {
                return Ok(());
            }
            check(Instant::now() < deadline, || format!("it does not come to rest:\n{said}"))?;
            self.qmp.ask("cont", &json!({}))?;
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn dump(&mut self, path: &Path, paging: bool, format: Option<&str>) -> Result<(), String> {
        let mut arguments = json!({ "protocol": format!("file:{}", path.display()), "paging": paging });
        if let Some(format) = format {
            arguments["format"] = format.into();
        }
        self.qmp.ask("dump-guest-memory", &arguments).map(drop)
    }
}

/// Registers that both stubs describe by the same names.
fn registers(isa: Isa) -> String {
    let names: Vec<String> = match isa {
        Isa::X86_64 => {
            ["rip", "rsp", "eflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "cs", "ss", "gs_base"]
                .into_iter()
                .map(String::from)
                .chain((8..16).map(|number| format!("r{number}")))
                .collect()
        }
        Isa::Aarch64 => {
            (0..31).map(|number| format!("x{number}")).chain(["sp", "pc"].map(String::from)).collect()
        }
    };
    names.iter().map(|name| format!("p/x (long)${name}\n")).collect()
}

/// What both are asked.
fn commands(isa: Isa, slide: &str) -> Vec<String> {
    let registers = registers(isa);
    let vmlinux = Kernel::new(isa, "6.12").vmlinux();
    let helpers = Kernel::new(isa, "6.12").gdb_helpers();
    let text = format!(
        "symbol-file\nadd-symbol-file {} -o {slide}\nsource {}\necho the beginning\\n\n{registers}bt\nthread 2\n{registers}bt\n\
         p linux_banner\nx/20i $pc\n\
         python import hashlib\n\
         python start = int(gdb.parse_and_eval('(unsigned long)&linux_banner')) & ~0xfffff\n\
         python print(hashlib.sha256(bytes(gdb.selected_inferior().read_memory(start, 4 << 20))).hexdigest())\n\
         lx-dmesg\necho the end\\n",
        vmlinux.display(),
        helpers.display()
    );
    text.lines().map(String::from).collect()
}

/// What is printed in between, but for what gdb says of source files that are not there.
fn between(text: &str) -> Result<String, String> {
    let start = text.find("the beginning").ok_or_else(|| format!("it does not begin:\n{text}"))?;
    let end = text[start..].find("the end").ok_or_else(|| format!("it does not end:\n{text}"))?;
    let is_source = |line: &str| line.starts_with(|c: char| c.is_ascii_digit());
    let lines =
        text[start..start + end].lines().filter(|line| !is_source(line) && !line.starts_with("[Switching"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// All of it, for one architecture.
///
/// # Errors
/// What is different.
pub fn compare(isa: Isa, folder: &Path) -> Result<(), String> {
    let mut qemu = Qemu::boot(isa, folder)?;
    let plain = folder.join("elf");
    let others = [("paging", true, None), ("zlib", false, Some("kdump-zlib"))];
    let result = (|| -> Result<(), String> {
        qemu.dump(&plain, false, None)?;
        for (name, paging, format) in others {
            qemu.dump(&folder.join(name), paging, format)?;
        }
        let opened = Opened::new(isa, "6.12", &plain)?;
        let commands = commands(isa, &opened.slide()?);
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let target = format!("target remote {}", qemu.stub.display());
        let architecture = if isa == Isa::X86_64 { "i386:x86-64" } else { "aarch64" };
        let architecture = format!("set architecture {architecture}");
        let all: Vec<&str> =
            [architecture.as_str(), &target].into_iter().chain(commands.iter().copied()).collect();
        let theirs = Gdb::Debians.run(&all)?;
        let ours = opened.served(Gdb::Debians, &commands)?;
        let (theirs, ours) = (between(&theirs.text)?, between(&ours.text)?);
        let is_same =
            theirs == ours && ours.contains("Run /init as init process") && ours.contains("start_kernel");
        check(is_same, || {
            let different = theirs.lines().zip(ours.lines()).find(|(theirs, ours)| theirs != ours);
            format!("they differ in {different:?}; QEMU's stub:\n{theirs}\nthe dump:\n{ours}")
        })?;
        // The same file on a host of the other architecture, and the other formats.
        for words in [&["threads"][..], &["regs"], &["dmesg"], &["translate", "0xffffffffffff0000"]] {
            let wanted = core(Built::Here, &plain, words)?.text;
            for (built, name) in [(Built::Elsewhere, "elf"), (Built::Here, "paging"), (Built::Here, "zlib")] {
                let said = core(built, &folder.join(name), words)?.text;
                check(said == wanted, || {
                    format!("{built:?} {name} {words:?}:\n{said}\ninstead of\n{wanted}")
                })?;
            }
        }
        Ok(())
    })();
    // It is stopped, and its socket with it.
    qemu.qmp.ask("quit", &json!({})).ok();
    let ended = qemu.process.wait(LIMIT);
    fs::remove_file(&qemu.stub).ok();
    result?;
    ended.map(drop)
}
