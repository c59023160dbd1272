//! `vmm check`: what this host's KVM can do.
//!
//! What is tried, and how, is in [`kvm::probe`]; here is what is made of it.

use super::stdout;
use crate::cell;
use crate::machine::Guest;
use crate::machine::config::{Config, MemorySize};
use crate::outcome::{HOST, Outcome};
use arch::words::counted;
use arch::{End, Isa};
use kvm::probe::{DebugKind, MEMORY, PATIENCE, attempt, debug, holds_counter, small, vm_config};
use kvm::{Capability, HOST_ISA, Host, Vm};

/// Something that is tried.
struct Probe {
    /// Key in JSON.
    key: &'static str,
    title: &'static str,
    /// Whether Linux guests need it.
    for_linux: bool,
    only: Option<Isa>,
    run: fn() -> Result<(), String>,
}

const fn probe(
    key: &'static str,
    title: &'static str,
    for_linux: bool,
    only: Option<Isa>,
    run: fn() -> Result<(), String>,
) -> Probe {
    Probe { key, title, for_linux, only, run }
}

const PROBES: &[Probe] = &[
    probe("small_guests", "small guests", true, None, || hello(1)),
    probe("smp", "a guest with 2 vCPUs", true, None, || hello(2)),
    probe("cmpxchg16b", "cmpxchg16b in ring 0", true, Some(Isa::X86_64), || small("cmpxchg16b")),
    probe("xrstor", "xsave and xrstor in ring 0", true, Some(Isa::X86_64), || small("xrstor")),
    probe("int3", "the guest's own int3 in ring 0", true, Some(Isa::X86_64), || small("int3")),
    probe("brk", "the guest's own BRK at EL1", true, Some(Isa::Aarch64), || small("brk")),
    probe("user_mode", "user mode and back", true, None, || small("user_mode")),
    probe("single_step", "debug: single step", false, None, || debug(DebugKind::SingleStep)),
    probe("software_breakpoint", "debug: software breakpoint", false, None, || debug(DebugKind::Software)),
    probe("hardware_breakpoint", "debug: hardware breakpoint", false, None, || debug(DebugKind::Hardware)),
    probe("watchpoint", "debug: watchpoint", false, None, || debug(DebugKind::Watch)),
    probe("guest_clock", "a held guest's counter stands still", false, None, holds_counter),
];

/// Find out what this host's KVM can do, by trying it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print instead what each kind of the monitor's threads may ask the host's kernel for (docs/cell.md)
    #[arg(long, conflicts_with = "json")]
    cell: bool,
}

/// Tries it all; the exit code.
pub fn carry_out(&Args { json, cell }: &Args) -> u8 {
    if cell {
        return stdout::print(&cell::text(), 0);
    }
    let answer = Host::open().map_err(|error| error.to_string()).and_then(|host| {
        let (vm, vcpus) = Vm::new(&host, &vm_config()).map_err(|error| error.to_string())?;
        drop(vcpus);
        let allowed = u32::try_from(host.kvm().get_max_vcpus()).unwrap_or(u32::MAX);
        Ok(((host.max_vcpus(), allowed), host.capabilities(vm.fd())))
    });
    let (max_vcpus, capabilities) = match answer {
        Ok(answer) => answer,
        Err(error) => {
            log::error!("{error}");
            if !json {
                return HOST;
            }
            let object = serde_json::json!({ "isa": HOST_ISA.name(), "error": error });
            return stdout::print(&format!("{object:#}\n"), HOST);
        }
    };
    let mut lines: Vec<Capability> = PROBES
        .iter()
        .filter(|probe| probe.only.is_none_or(|isa| isa == HOST_ISA))
        .map(|probe| {
            let result = attempt(PATIENCE, probe.run);
            Capability {
                key: probe.key,
                title: probe.title,
                works: result.is_ok(),
                detail: result.err().unwrap_or_default(),
            }
        })
        .collect();
    lines.insert(0, linux(&lines));
    lines.extend(capabilities);
    print(json, max_vcpus, &lines)
}

/// Linux guests run if everything does that they need.
fn linux(lines: &[Capability]) -> Capability {
    let missing: Vec<&str> = PROBES
        .iter()
        .filter(|probe| probe.for_linux)
        .filter(|probe| lines.iter().any(|line| line.key == probe.key && !line.works))
        .map(|probe| probe.title)
        .collect();
    Capability {
        key: "linux_guests",
        title: "Linux guests",
        works: missing.is_empty(),
        detail: if missing.is_empty() { String::new() } else { format!("fails: {}", missing.join(", ")) },
    }
}

/// Prints what was found; of vCPUs, how many a guest can have, and how many KVM would allow. The exit code.
fn print(json: bool, (max_vcpus, allowed_vcpus): (u32, u32), lines: &[Capability]) -> u8 {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let mut text = String::new();
    if json {
        let mut object = serde_json::json!({
            "isa": HOST_ISA.name(),
            "kernel": kernel,
            "max_vcpus": max_vcpus,
            "kvm_max_vcpus": allowed_vcpus,
        });
        for line in lines {
            object[line.key] = serde_json::json!({ "works": line.works, "detail": line.detail });
        }
        text.push_str(&format!("{object:#}\n"));
    } else {
        let kvms = match allowed_vcpus > max_vcpus {
            true => format!(" (vmm's limit; KVM's is {allowed_vcpus})"),
            false => String::new(),
        };
        text.push_str(&format!(
            "KVM on {HOST_ISA}, Linux {kernel}, up to {}{kvms}\n\n",
            counted(max_vcpus, "vCPU")
        ));
        let width = lines.iter().map(|line| line.title.len()).max().unwrap_or(0);
        for line in lines {
            let works = if line.works { "yes" } else { "no" };
            let row = format!("{:width$}  {works:3}  {}", line.title, line.detail);
            text.push_str(row.trim_end());
            text.push('\n');
        }
    }
    // A pipe that is closed early is the reader's choice.
    stdout::print(&text, 0)
}

/// Runs the embedded guest.
fn hello(cpus: u32) -> Result<(), String> {
    let memory = MemorySize::new(HOST_ISA, MEMORY)?;
    let config = Config { cpus, memory, ..Config::default() };
    finish(&config)
}

/// Runs a guest to the end of its test.
fn finish(config: &Config) -> Result<(), String> {
    let guest = Guest::new(config, Box::new(std::io::sink())).map_err(|error| error.to_string())?;
    guest.resume();
    // In time to be taken apart before the attempt's own is over.
    match guest.wait(PATIENCE * 4 / 5) {
        Some(Outcome::Ended(End::PowerOff | End::Exit(1))) => Ok(()),
        // The first line says what, the second what the vCPU was doing.
        Some(outcome) => {
            let text = outcome.to_string();
            let mut lines = text.lines();
            let (what, doing) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            Err(format!("{} {doing}", what.split('(').next().unwrap_or(what).trim()))
        }
        None => Err(format!("the guest did not end within {} s", (PATIENCE * 4 / 5).as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique() {
        let mut keys: Vec<_> = PROBES.iter().map(|probe| probe.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), PROBES.len());
        assert!(crate::boot::kernel::Kernel::embedded().size() > 0);
    }

    #[test]
    fn what_is_marked_is_what_is_tried_at_the_start() {
        let marked =
            PROBES.iter().filter(|probe| probe.for_linux && probe.only.is_none_or(|isa| isa == HOST_ISA));
        let own = ["small_guests", "smp"];
        let marked: Vec<&str> = marked.map(|probe| probe.key).filter(|key| !own.contains(key)).collect();
        assert_eq!(marked, kvm::probe::INSTRUCTIONS);
    }

    #[test]
    fn linux_needs_what_is_marked() {
        let line = |key, works| Capability { key, title: "", works, detail: String::new() };
        assert!(linux(&[line("small_guests", true), line("watchpoint", false)]).works);
        let broken = linux(&[line("small_guests", true), line("int3", false)]);
        assert!(!broken.works && broken.detail.contains("int3"));
    }
}
