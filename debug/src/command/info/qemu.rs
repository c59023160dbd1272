//! `info mem`, `info tlb` and `info registers`, in the words of QEMU's monitor.
//!
//! Tools that sit on gdb (pwndbg, gef) take a stub that answers QEMU's questions for a kernel's, and
//! read these texts. They are true here as well; what QEMU tells of its emulation and we know nothing
//! of is left out. QEMU has `mem` and `tlb` for x86 only, here they are there for both.
//!
//! Source: QEMU's `target/i386/monitor.c` (`hmp_info_mem`, `hmp_info_tlb`),
//! `target/i386/cpu-dump.c` and `target/arm/cpu.c` (`aarch64_cpu_dump_state`).

use crate::machine::Activity;
use crate::reply::{Json, Refusal, Value, hex, json};
use crate::view::{Page, View};
use arch::Isa;
use arch::paging::Permissions;
use arch::register::{Bank, RegisterFile};
use std::fmt;
use std::ops::ControlFlow;

/// Ranges, or entries, that one answer has at most: some megabytes of text.
const MOST: usize = 1 << 17;
/// The last line of one that would have more.
const MORE: &str = "(and more)\n";
/// What QEMU says without paging.
const OFF: &str = "PG disabled\n";

/// Walks all pages that are mapped, until `visit` has enough; whether there is paging.
fn walk(view: &View<'_>, mut visit: impl FnMut(Page) -> ControlFlow<()>) -> Result<bool, Refusal> {
    let (regime, _) = view.translation()?;
    if regime.is_on() {
        view.pages(&regime, (0, u64::MAX), &mut visit)?;
    }
    Ok(regime.is_on())
}

/// Whether a list has room for one more.
fn room<T>(list: &[T]) -> ControlFlow<()> {
    if list.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Pages next to each other whose permissions look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The last one.
    pub last: u64,
    /// User mode may, it can be read, it can be written; `-` for what is not so.
    pub permissions: [char; 3],
}

/// `info mem`: ranges that are mapped; `None` without paging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(pub Option<Vec<Range>>);

impl Ranges {
    /// Those of the vCPU that is looked through.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], where nothing says how to translate; [`Refusal::Cancelled`].
    pub fn of(view: &View<'_>) -> Result<Ranges, Refusal> {
        let mut ranges: Vec<Range> = Vec::new();
        let is_on = walk(view, |Page { start, last, mapping, .. }| {
            let Permissions { write, user, .. } = mapping.permissions;
            let permissions = [if user { 'u' } else { '-' }, 'r', if write { 'w' } else { '-' }];
            match ranges.last_mut() {
                Some(range)
                    if range.permissions == permissions && range.last.checked_add(1) == Some(start) =>
                {
                    range.last = last;
                }
                _ => ranges.push(Range { start, last, permissions }),
            }
            room(&ranges)
        })?;
        Ok(Ranges(is_on.then_some(ranges)))
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ranges) = &self.0 else { return f.write_str(OFF) };
        for Range { start, last, permissions: [user, read, write] } in ranges {
            // One more than fits into 64 bits at the end of all addresses.
            let end = u128::from(*last) + 1;
            let size = end - u128::from(*start);
            writeln!(f, "{start:016x}-{end:016x} {size:016x} {user}{read}{write}")?;
        }
        if ranges.len() < MOST { Ok(()) } else { f.write_str(MORE) }
    }
}

impl Value for Ranges {
    fn json(&self) -> Json {
        let range = |Range { start, last, permissions }: &Range| json!({ "start": hex(*start), "last": hex(*last), "permissions": permissions.iter().collect::<String>() });
        json!(self.0.as_ref().map(|ranges| ranges.iter().map(range).collect::<Vec<_>>()))
    }
}

/// Bits of an x86 entry that QEMU shows, with their letters (Intel SDM vol. 3, "Paging").
const X86_FLAGS: [(u32, char); 9] =
    [(63, 'X'), (8, 'G'), (7, 'P'), (6, 'D'), (5, 'A'), (4, 'C'), (3, 'T'), (2, 'U'), (1, 'W')];

/// An entry of page tables that maps a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The page's first address.
    pub start: u64,
    /// Where it is, guest-physical.
    pub place: u64,
    /// Its flags: x86's as QEMU writes them; aarch64's permissions.
    pub flags: String,
}

/// `info tlb`: entries that map pages; `None` without paging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries(pub Option<Vec<Entry>>);

impl Entries {
    /// Those of the vCPU that is looked through.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], where nothing says how to translate; [`Refusal::Cancelled`].
    pub fn of(view: &View<'_>) -> Result<Entries, Refusal> {
        let isa = view.isa();
        let mut entries = Vec::new();
        let is_on = walk(view, |Page { start, entry, mapping, .. }| {
            let flags: String = match isa {
                Isa::X86_64 => X86_FLAGS
                    .iter()
                    .map(|(bit, letter)| if entry >> bit & 1 == 1 { *letter } else { '-' })
                    .collect(),
                Isa::Aarch64 => mapping.permissions.to_string().replace(' ', ""),
            };
            entries.push(Entry { start, place: mapping.address.0, flags });
            room(&entries)
        })?;
        Ok(Entries(is_on.then_some(entries)))
    }
}

impl fmt::Display for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(entries) = &self.0 else { return f.write_str(OFF) };
        for Entry { start, place, flags } in entries {
            writeln!(f, "{start:016x}: {place:016x} {flags}")?;
        }
        if entries.len() < MOST { Ok(()) } else { f.write_str(MORE) }
    }
}

impl Value for Entries {
    fn json(&self) -> Json {
        let entry = |Entry { start, place, flags }: &Entry| json!({ "virtual": hex(*start), "physical": hex(*place), "flags": flags });
        json!(self.0.as_ref().map(|entries| entries.iter().map(entry).collect::<Vec<_>>()))
    }
}

/// `info registers`: general and system registers of vCPUs.
#[derive(Clone, Debug)]
pub struct VcpuRegisters(pub Vec<(u32, Activity, RegisterFile)>);

impl VcpuRegisters {
    /// Those of some vCPUs.
    ///
    /// # Errors
    /// [`Refusal::NotThere`].
    pub fn of(view: &View<'_>, vcpus: std::ops::Range<u32>) -> Result<VcpuRegisters, Refusal> {
        let of_one = |vcpu| {
            let file = view.machine.registers(vcpu, &[Bank::General, Bank::System])?;
            Ok((vcpu, view.machine.activity(vcpu), file))
        };
        vcpus.map(of_one).collect::<Result<_, Refusal>>().map(VcpuRegisters)
    }
}

impl fmt::Display for VcpuRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (vcpu, state, file) in &self.0 {
            writeln!(f, "\nCPU#{vcpu}")?;
            match file.isa() {
                Isa::X86_64 => x86(f, file, *state)?,
                Isa::Aarch64 => aarch64(f, file)?,
            }
        }
        Ok(())
    }
}

impl Value for VcpuRegisters {
    fn json(&self) -> Json {
        let of_one = |(vcpu, state, file): &(u32, Activity, RegisterFile)| {
            let registers: Json = file.iter().map(|(register, value)| (register.name, hex(value))).collect();
            json!({ "vcpu": vcpu, "state": state.name(), "registers": registers })
        };
        self.0.iter().map(of_one).collect()
    }
}

/// Registers of 64 bits, a few to a line.
fn words(
    f: &mut fmt::Formatter<'_>,
    file: &RegisterFile,
    names: &[(&str, &str)],
    in_line: usize,
) -> fmt::Result {
    for line in names.chunks(in_line) {
        let words: Vec<String> = line
            .iter()
            .map(|(shown, name)| format!("{shown}={:016x}", file.get(name).unwrap_or(0)))
            .collect();
        writeln!(f, "{}", words.join(" "))?;
    }
    Ok(())
}

fn x86(f: &mut fmt::Formatter<'_>, file: &RegisterFile, state: Activity) -> fmt::Result {
    const GENERAL: [(&str, &str); 16] = [
        ("RAX", "rax"),
        ("RBX", "rbx"),
        ("RCX", "rcx"),
        ("RDX", "rdx"),
        ("RSI", "rsi"),
        ("RDI", "rdi"),
        ("RBP", "rbp"),
        ("RSP", "rsp"),
        ("R8 ", "r8"),
        ("R9 ", "r9"),
        ("R10", "r10"),
        ("R11", "r11"),
        ("R12", "r12"),
        ("R13", "r13"),
        ("R14", "r14"),
        ("R15", "r15"),
    ];
    /// (AMD64 vol. 2, "Descriptor tables"): the privilege level is in the low bits of CS.
    const PRIVILEGE: u64 = 3;
    let get = |name: &str| file.get(name).unwrap_or(0);
    words(f, file, &GENERAL, 4)?;
    let halted = u8::from(state == Activity::Halted);
    writeln!(
        f,
        "RIP={:016x} RFL={:08x} CPL={} HLT={halted}",
        get("rip"),
        get("eflags"),
        get("cs") & PRIVILEGE
    )?;
    for name in ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"] {
        let (shown, part) = (name.to_uppercase(), |part: &str| get(&format!("{name}_{part}")));
        writeln!(
            f,
            "{shown:3}={:04x} {:016x} {:08x} {:08x}",
            get(name),
            part("base"),
            part("limit"),
            part("ar")
        )?;
    }
    for name in ["gdt", "idt"] {
        let (base, limit) = (get(&format!("{name}_base")), get(&format!("{name}_limit")));
        writeln!(f, "{}=     {base:016x} {limit:08x}", name.to_uppercase())?;
    }
    writeln!(
        f,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}",
        get("cr0"),
        get("cr2"),
        get("cr3"),
        get("cr4")
    )?;
    let debug =
        [("DR0", "dr0"), ("DR1", "dr1"), ("DR2", "dr2"), ("DR3", "dr3"), ("DR6", "dr6"), ("DR7", "dr7")];
    if debug.iter().all(|(_, name)| file.get(name).is_some()) {
        words(f, file, &debug, 4)?;
    }
    words(f, file, &[("EFER", "efer")], 1)
}

fn aarch64(f: &mut fmt::Formatter<'_>, file: &RegisterFile) -> fmt::Result {
    let names: Vec<(String, String)> =
        (0..31).map(|number| (format!("X{number:02}"), format!("x{number}"))).collect();
    let mut names: Vec<(&str, &str)> =
        names.iter().map(|(shown, name)| (shown.as_str(), name.as_str())).collect();
    names.insert(0, (" PC", "pc"));
    names.push((" SP", "sp"));
    words(f, file, &names, 3)?;
    writeln!(f, "PSTATE={:08x}", file.get("cpsr").unwrap_or(0))
}
