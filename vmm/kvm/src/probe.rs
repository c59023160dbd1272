//! What this host's KVM can do, found out by trying it.
//!
//! A capability bit says what a KVM means to do; whether it does is found out with a guest of a few instructions. A
//! try can hang, so each has a machine of its own on a thread of its own, and is given a time ([`attempt`]). What a
//! debugger needs is tried once in a process; no program is started.

mod attempt;
mod clock;
mod guest;

use super::exit::{DebugExit, InternalError, VcpuExit};
use super::{BootState, HOST_ISA, Host, Vcpu, Vm, VmConfig, blocks_interrupts, debug_registers};
use arch::cpu_template::CpuTemplate;
use arch::{Isa, aarch64, x86};
use debug::arming::{Arming, Want, allocate};
use debug::breakpoint::INT3;
use debug::machine::{Abilities, Access, SoftwareBreakpoints};
use guest::guest;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

pub use attempt::{attempt, is_over};
pub use clock::holds_counter;

/// How long a try may take. On a host that can do it, it takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What an attempt says that was given up.
const KICKED: &str = "its time is over";

/// Memory of a guest that tries something.
pub const MEMORY: u64 = 64 << 20;

/// A machine with one vCPU and little memory.
pub fn vm_config() -> VmConfig {
    let cpu = CpuTemplate::built_in(HOST_ISA, "host", None);
    VmConfig { vcpus: 1, memory: MEMORY, cpu, hypercalls: None, has_messages: false }
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

/// Runs a probe's guest, by its name, to its write to the exit device.
///
/// # Errors
/// What it did instead, in words.
pub fn small(name: &str) -> Result<(), String> {
    let (_vm, mut vcpu, _) = bare(name)?;
    let _kicks = vcpu.accept_kicks().map_err(|error| error.to_string())?;
    loop {
        let told = match vcpu.run().map_err(|error| error.to_string())? {
            VcpuExit::PortWrite { data, .. } | VcpuExit::MmioWrite { data, .. } => data.first().copied(),
            VcpuExit::Interrupted if is_over() => return Err(KICKED.into()),
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
    match exit {
        VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
            let bytes: Vec<String> = instruction.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("KVM cannot emulate it ({})", bytes.join(" "))
        }
        VcpuExit::Shutdown => "the guest ends in a triple fault".into(),
        other => format!("the guest stops with {other:x?}"),
    }
}

/// A kind of guest debugging.
#[derive(Clone, Copy, Debug)]
pub enum DebugKind {
    /// A single step.
    SingleStep,
    /// A breakpoint instruction.
    Software,
    /// A breakpoint register.
    Hardware,
    /// A watchpoint register.
    Watch,
}

/// Places in the guest `debug`, from its start.
const HARDWARE_BREAKPOINT: u64 = 0x10;
const SOFTWARE_BREAKPOINT: u64 = 0x20;
const WATCHED: u64 = 0x1000;

/// What each try assumes until it has been made.
const FULL_HOST: Abilities = Abilities {
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
///
/// # Errors
/// What came instead, in words.
pub fn debug(kind: DebugKind) -> Result<(), String> {
    match try_debug(kind)? {
        Seen::Exit => Ok(()),
        Seen::EmulationFailure(instruction) => {
            Err(in_words(&VcpuExit::InternalError(InternalError::Emulation { instruction })))
        }
    }
}

fn try_debug(kind: DebugKind) -> Result<Seen, String> {
    let (vm, mut vcpu, entry) = bare("debug")?;
    let _kicks = vcpu.accept_kicks().map_err(|error| error.to_string())?;
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
            VcpuExit::Interrupted if is_over() => return Err(KICKED.into()),
            VcpuExit::Interrupted => {}
            VcpuExit::PortWrite { .. } | VcpuExit::MmioWrite { .. } => {
                return Err("it does not stop the guest".into());
            }
            VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
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
        let _kicks = vcpu.accept_kicks().map_err(|error| error.to_string())?;
        loop {
            match vcpu.run().map_err(|error| error.to_string())? {
                VcpuExit::Interrupted if is_over() => return Err(KICKED.into()),
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

/// A guest that is stepped by the bare calls: guest debugging set, the guest run, nothing looked at. What a debugger's
/// steps are measured against.
#[derive(Debug)]
pub struct BareSteps {
    vcpu: Vcpu,
    arming: Arming,
    // Behind the vCPU, which is dropped first.
    _vm: Vm,
}

impl BareSteps {
    /// A guest that jumps to itself.
    ///
    /// # Errors
    /// When this host's KVM makes no such guest.
    pub fn new() -> Result<BareSteps, String> {
        let (vm, vcpu, entry) = bare("debug")?;
        // The probe's own guest ends too soon.
        vm.memory().write_slice(LOOP, GuestAddress(entry)).map_err(|error| error.to_string())?;
        let arming = Arming { step: true, ..Arming::off(HOST_ISA) };
        Ok(BareSteps { vcpu, arming, _vm: vm })
    }

    /// One step.
    ///
    /// # Errors
    /// When this host does not step.
    pub fn step(&mut self) -> Result<(), String> {
        self.vcpu.set_debug(&self.arming).map_err(|error| error.to_string())?;
        loop {
            match self.vcpu.run().map_err(|error| error.to_string())? {
                VcpuExit::Debug(_) => return Ok(()),
                VcpuExit::Interrupted => {}
                other => return Err(in_words(&other)),
            }
        }
    }

    /// Steps a second of nothing else.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn rate(time: Duration) -> Result<f64, String> {
        let mut steps = BareSteps::new()?;
        let (begin, mut count) = (Instant::now(), 0u32);
        while begin.elapsed() < time {
            steps.step()?;
            count += 1;
        }
        Ok(f64::from(count) / begin.elapsed().as_secs_f64())
    }
}

/// Exits of a guest that does nothing but leave to its monitor, a second: the vCPU is run again at once, and nothing is
/// looked at. What a monitor's exits are measured against; the best of `rounds` of `count` exits each.
///
/// # Errors
/// When this host's KVM makes no such guest, or it does something else; in words.
pub fn bare_exits(rounds: u32, count: u32) -> Result<f64, String> {
    let (_vm, mut vcpu, _) = bare("exits")?;
    let mut best = 0.0f64;
    for _ in 0..rounds {
        let begin = Instant::now();
        let mut left = count;
        while left > 0 {
            match vcpu.run().map_err(|error| error.to_string())? {
                VcpuExit::PortWrite { .. } | VcpuExit::MmioWrite { .. } => left -= 1,
                VcpuExit::Interrupted => {}
                other => return Err(in_words(&other)),
            }
        }
        best = best.max(f64::from(count) / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Guests of a few instructions that do what Linux guests do, where a KVM in software has no answer.
pub const INSTRUCTIONS: &[&str] = match HOST_ISA {
    Isa::X86_64 => &["cmpxchg16b", "xrstor", "int3", "user_mode"],
    Isa::Aarch64 => &["brk", "user_mode"],
};

/// Whether this host's KVM is one that does not run Linux guests. Tried only where the processor has no
/// virtualization, as each try takes milliseconds, which a guest's start is not to wait for elsewhere.
pub fn lacks_instructions() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    lacks_virtualization(HOST_ISA, &cpuinfo)
        && INSTRUCTIONS.iter().any(|name| attempt(PATIENCE, move || small(name)).is_err())
}

/// Whether a processor has no virtualization, as far as Linux says so: on x86 by a flag. aarch64 has KVM with
/// virtualization only.
fn lacks_virtualization(isa: Isa, cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |line: &str| line.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    isa == Isa::X86_64 && flags.is_some_and(|line| !has(line))
}

/// What this host can do for a debugger, tried once in a process: four guests of a few
/// instructions.
pub fn host_debug() -> Abilities {
    static FOUND: OnceLock<Abilities> = OnceLock::new();
    FOUND.get_or_init(try_host_debug).clone()
}

fn try_host_debug() -> Abilities {
    let seen = |kind| attempt(PATIENCE, move || try_debug(kind));
    let works = |kind| matches!(seen(kind), Ok(Seen::Exit));
    let software = match seen(DebugKind::Software) {
        Ok(Seen::Exit) => SoftwareBreakpoints::Trapped,
        Ok(Seen::EmulationFailure(bytes)) if bytes.first() == Some(&INT3[0]) => {
            SoftwareBreakpoints::EmulationFailure
        }
        _ => SoftwareBreakpoints::None,
    };
    let single_step = works(DebugKind::SingleStep);
    let (has_breakpoint, has_watchpoint) = (works(DebugKind::Hardware), works(DebugKind::Watch));
    // The thread that asks may be one that may not.
    let facts = attempt(PATIENCE, || {
        let host = Host::open().map_err(|error| error.to_string())?;
        Ok((debug_registers(host.kvm()), blocks_interrupts(host.kvm())))
    });
    let ((breakpoints, watchpoints), blocks_interrupts) = facts.unwrap_or(((1, 1), false));
    Abilities {
        software,
        single_step,
        breakpoints: if has_breakpoint { breakpoints } else { 0 },
        watchpoints: if has_watchpoint { watchpoints } else { 0 },
        blocks_interrupts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_x86() {
        for (isa, cpuinfo, lacks) in [
            (Isa::X86_64, "vendor_id : x\nflags\t\t: fpu svm lm\nbugs\t: vmx\n", false),
            (Isa::X86_64, "flags\t\t: fpu vmx lm\n", false),
            (Isa::X86_64, "flags\t\t: fpu lm svm_lock\nvmx flags\t: vnmi\n", true),
            (Isa::X86_64, "", false),
            (Isa::Aarch64, "Features\t: fp asimd\n", false),
        ] {
            assert_eq!(lacks_virtualization(isa, cpuinfo), lacks, "{cpuinfo}");
        }
    }

    #[test]
    fn every_probe_has_its_guest() {
        for name in INSTRUCTIONS.iter().chain(&["debug"]) {
            assert!(guest(name).is_ok(), "{name}");
        }
    }
}
