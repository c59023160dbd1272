//! `vmm check`: what this host's KVM can do.
//!
//! A capability bit says what a KVM means to do; whether it does is found out by trying it
//! with a guest of a few instructions. A try can hang, so each has a machine of its own on a thread
//! of its own, and is given a time (`attempt.rs`). What a debugger needs is found out the same way, once
//! in a process; no program is started.

mod clock;

use crate::attempt::{self, attempt};
use crate::config::{Config, MemorySize};
use crate::kvm::exit::{DebugExit, VcpuExit};
use crate::kvm::{BootState, Capability, HOST_ISA, Host, Vcpu, Vm, VmConfig, capabilities};
use crate::machine::Machine;
use crate::outcome::{HOST, Outcome};
use crate::stdout;
use arch::cpu_template::CpuTemplate;
use arch::{Isa, aarch64, x86};
use debug::arming::{Arming, Want, allocate};
use debug::breakpoint::INT3;
use debug::target::{Access, HostDebug, SoftwareBreakpoints};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

pub use clock::holds_counter;

include!(concat!(env!("OUT_DIR"), "/probe_guests.rs"));

/// How long a try may take. On a host that can do it, it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an attempt says that was given up.
const KICKED: &str = "its time is over";

/// Memory of a guest that tries something.
const MEMORY: u64 = 64 << 20;

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

/// Runs `vmm check`; answers with the exit code.
pub fn main(json: bool) -> u8 {
    let answer = Host::open().map_err(|error| error.to_string()).and_then(|host| {
        let (vm, vcpus) = Vm::new(&host, &vm_config()).map_err(|error| error.to_string())?;
        drop(vcpus);
        let allowed = u32::try_from(host.kvm().get_max_vcpus()).unwrap_or(u32::MAX);
        Ok(((host.max_vcpus(), allowed), capabilities(&host, vm.fd())))
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
        text.push_str(&format!("KVM on {HOST_ISA}, Linux {kernel}, up to {max_vcpus} vCPUs{kvms}\n\n"));
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
    let machine = Machine::new(config, Box::new(std::io::sink())).map_err(|error| error.to_string())?;
    machine.resume();
    // In time to be taken apart before the attempt's own is over.
    match machine.wait(PATIENCE * 4 / 5) {
        Some(Outcome::PowerOff | Outcome::Exit(1)) => Ok(()),
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

fn vm_config() -> VmConfig {
    let cpu = CpuTemplate::built_in(HOST_ISA, "host", None);
    VmConfig { vcpus: 1, memory: MEMORY, cpu, hypercalls: None }
}

fn guest(name: &str) -> Result<&'static [u8], String> {
    let found = PROBE_GUESTS.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| *bytes).ok_or_else(|| format!("there is no probe guest {name}"))
}

/// Makes a machine with a probe's guest in it, without devices.
fn bare(name: &str) -> Result<(Vm, Vcpu, u64), String> {
    let host = Host::open().map_err(|error| error.to_string())?;
    let (vm, mut vcpus) = Vm::new(&host, &vm_config()).map_err(|error| error.to_string())?;
    let (state, entry, tables) = match HOST_ISA {
        Isa::X86_64 => {
            let entry = x86::layout::HIGH_MEMORY.0;
            let state = x86::boot_state::BootState::new(x86::boot_state::Protocol::Linux64, entry);
            (BootState::X86(state), entry, state.tables())
        }
        Isa::Aarch64 => {
            let entry = aarch64::layout::RAM_START.0 + aarch64::layout::DEVICE_TREE_SIZE;
            let state = aarch64::boot_state::BootState::new(entry, aarch64::layout::RAM_START);
            (BootState::Aarch64(state), entry, Vec::new())
        }
    };
    let write = |address: u64, bytes: &[u8]| {
        vm.memory().write_slice(bytes, GuestAddress(address)).map_err(|error| error.to_string())
    };
    for (place, bytes) in tables {
        write(place.0, &bytes)?;
    }
    write(entry, guest(name)?)?;
    let vcpu = vcpus.pop().ok_or("no vCPU")?;
    vcpu.set_boot_state(&state).map_err(|error| error.to_string())?;
    Ok((vm, vcpu, entry))
}

/// Runs a probe's guest to its write to the exit device.
fn small(name: &str) -> Result<(), String> {
    let (_vm, mut vcpu, _) = bare(name)?;
    let _kicks = vcpu.accept_kicks();
    loop {
        let told = match vcpu.run().map_err(|error| error.to_string())? {
            VcpuExit::PortWrite { data, .. } | VcpuExit::MmioWrite { data, .. } => data.first().copied(),
            VcpuExit::Interrupted if attempt::is_over() => return Err(KICKED.into()),
            VcpuExit::Interrupted => continue,
            other => return Err(in_words(&other)),
        };
        return match told {
            Some(1) => Ok(()),
            other => Err(format!("the guest's check {other:?} failed")),
        };
    }
}

fn in_words(exit: &VcpuExit) -> String {
    use crate::kvm::exit::InternalError;
    match exit {
        VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
            let bytes: Vec<String> = instruction.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("KVM cannot emulate it ({})", bytes.join(" "))
        }
        VcpuExit::Shutdown => "the guest ends in a triple fault".into(),
        other => format!("the guest stops with {other:x?}"),
    }
}

#[derive(Clone, Copy, Debug)]
enum DebugKind {
    SingleStep,
    Software,
    Hardware,
    Watch,
}

/// Places in the guest `debug`, from its start.
const HARDWARE_BREAKPOINT: u64 = 0x10;
const SOFTWARE_BREAKPOINT: u64 = 0x20;
const WATCHED: u64 = 0x1000;

/// What each try assumes until it has been made.
const FULL_HOST: HostDebug = HostDebug {
    software: SoftwareBreakpoints::Trapped,
    single_step: true,
    breakpoints: 1,
    watchpoints: 1,
    blocks_interrupts: false,
};

/// What a try of guest debugging saw.
enum Seen {
    /// The exit, at its place.
    Exit,
    /// KVM could not emulate the instruction with these bytes.
    EmulationFailure(Vec<u8>),
}

/// Tries one kind of guest debugging: the exit must come, at its place.
fn debug(kind: DebugKind) -> Result<(), String> {
    match try_debug(kind)? {
        Seen::Exit => Ok(()),
        Seen::EmulationFailure(instruction) => {
            Err(in_words(&VcpuExit::InternalError(crate::kvm::exit::InternalError::Emulation {
                instruction,
            })))
        }
    }
}

fn try_debug(kind: DebugKind) -> Result<Seen, String> {
    let (vm, mut vcpu, entry) = bare("debug")?;
    let _kicks = vcpu.accept_kicks();
    let skip_software_breakpoint = || -> Result<(), String> {
        let nop: &[u8] = match HOST_ISA {
            Isa::X86_64 => &[0x90],
            Isa::Aarch64 => &[0x1f, 0x20, 0x03, 0xd5],
        };
        let place = GuestAddress(entry + SOFTWARE_BREAKPOINT);
        vm.memory().write_slice(nop, place).map_err(|error| error.to_string())
    };
    let (want, place) = match kind {
        DebugKind::SingleStep => (None, None),
        DebugKind::Software => (None, Some(entry + SOFTWARE_BREAKPOINT)),
        DebugKind::Hardware => {
            let place = entry + HARDWARE_BREAKPOINT;
            (Some(Want::Execute(place)), Some(place))
        }
        DebugKind::Watch => {
            skip_software_breakpoint()?;
            (Some(Want::Watch(Access::Write, entry + WATCHED, 4)), None)
        }
    };
    let allocation = allocate(HOST_ISA, &FULL_HOST, want.as_slice()).map_err(|error| error.to_string())?;
    let arming = Arming {
        step: matches!(kind, DebugKind::SingleStep),
        software: matches!(kind, DebugKind::Software),
        registers: allocation.registers,
        ..Arming::off(HOST_ISA)
    };
    vcpu.set_debug(&arming).map_err(|error| error.to_string())?;
    let exit = loop {
        match vcpu.run().map_err(|error| error.to_string())? {
            VcpuExit::Debug(exit) => break exit,
            VcpuExit::Interrupted if attempt::is_over() => return Err(KICKED.into()),
            VcpuExit::Interrupted => {}
            VcpuExit::PortWrite { .. } | VcpuExit::MmioWrite { .. } => {
                return Err("it does not stop the guest".into());
            }
            VcpuExit::InternalError(crate::kvm::exit::InternalError::Emulation { instruction }) => {
                return Ok(Seen::EmulationFailure(instruction));
            }
            other => return Err(in_words(&other)),
        }
    };
    let pc = match exit {
        DebugExit::X86 { pc, .. } => Some(pc),
        DebugExit::Aarch64 { .. } => vcpu.pc_and_flags().ok().map(|(pc, _)| pc),
    };
    match place {
        Some(place) if pc != Some(place) => Err(format!("it stops at {pc:x?} instead of {place:#x}")),
        _ => Ok(Seen::Exit),
    }
}

/// Tries a guest that never leaves its loop, as a host's KVM might leave one in it; what is said of it.
/// For tests.
///
/// # Errors
/// That it did not end in time; anything else is a mistake.
pub fn endless(limit: Duration) -> Result<(), String> {
    attempt(limit, || {
        let (vm, mut vcpu, entry) = bare("debug")?;
        vm.memory().write_slice(LOOP, GuestAddress(entry)).map_err(|error| error.to_string())?;
        let _kicks = vcpu.accept_kicks();
        loop {
            match vcpu.run().map_err(|error| error.to_string())? {
                VcpuExit::Interrupted if attempt::is_over() => return Err(KICKED.into()),
                VcpuExit::Interrupted => {}
                other => return Err(in_words(&other)),
            }
        }
    })
}

/// An instruction that branches to itself.
const LOOP: &[u8] = match HOST_ISA {
    Isa::X86_64 => &[0xeb, 0xfe],
    Isa::Aarch64 => &[0x00, 0x00, 0x00, 0x14],
};

/// Single steps a second of a bare loop: guest debugging set, the guest run, nothing looked at.
/// What a debugger's steps are measured against.
///
/// # Errors
/// When this host does not step.
pub fn bare_steps(time: Duration) -> Result<f64, String> {
    let (vm, mut vcpu, entry) = bare("debug")?;
    // The probe's own guest ends too soon.
    vm.memory().write_slice(LOOP, GuestAddress(entry)).map_err(|error| error.to_string())?;
    let arming = Arming { step: true, ..Arming::off(HOST_ISA) };
    let (begin, mut count) = (Instant::now(), 0u32);
    while begin.elapsed() < time {
        vcpu.set_debug(&arming).map_err(|error| error.to_string())?;
        match vcpu.run().map_err(|error| error.to_string())? {
            VcpuExit::Debug(_) => count += 1,
            VcpuExit::Interrupted => {}
            other => return Err(in_words(&other)),
        }
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// What this host can do for a debugger, tried once in a process: four guests of a few
/// instructions. Numbers of registers are 1 or 0: whether they work.
pub fn host_debug() -> HostDebug {
    static FOUND: OnceLock<HostDebug> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let seen = |kind| attempt(PATIENCE, move || try_debug(kind));
        let works = |kind| matches!(seen(kind), Ok(Seen::Exit));
        HostDebug {
            software: match seen(DebugKind::Software) {
                Ok(Seen::Exit) => SoftwareBreakpoints::Trapped,
                Ok(Seen::EmulationFailure(bytes)) if bytes.first() == Some(&INT3[0]) => {
                    SoftwareBreakpoints::EmulationFailure
                }
                _ => SoftwareBreakpoints::None,
            },
            single_step: works(DebugKind::SingleStep),
            breakpoints: usize::from(works(DebugKind::Hardware)),
            watchpoints: usize::from(works(DebugKind::Watch)),
            blocks_interrupts: false,
        }
    });
    found.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_has_its_guest_and_keys_are_unique() {
        for name in ["debug", "user_mode"] {
            assert!(guest(name).is_ok(), "{name}");
        }
        let mut keys: Vec<_> = PROBES.iter().map(|probe| probe.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), PROBES.len());
        assert!(crate::boot::kernel::Kernel::embedded().size() > 0);
    }

    #[test]
    fn linux_needs_what_is_marked() {
        let line = |key, works| Capability { key, title: "", works, detail: String::new() };
        assert!(linux(&[line("small_guests", true), line("watchpoint", false)]).works);
        let broken = linux(&[line("small_guests", true), line("int3", false)]);
        assert!(!broken.works && broken.detail.contains("int3"));
    }
}
