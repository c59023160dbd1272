//! `monitor info`, in the words of QEMU's monitor.
//!
//! Tools that sit on gdb (pwndbg, gef) take a stub that answers QEMU's questions for a kernel's, and
//! read these texts. They are true here as well; what QEMU tells of its emulation and we know nothing
//! of is left out. QEMU has `mem` and `tlb` for x86 only, here they are there for both.
//!
//! Source: QEMU's `target/i386/monitor.c` (`hmp_info_mem`, `hmp_info_tlb`),
//! `target/i386/cpu-dump.c` and `target/arm/cpu.c` (`aarch64_cpu_dump_state`).

use super::regions::{Page, pages};
use super::session::Session;
use crate::target::{Machine, VcpuState};
use arch::Isa;
use arch::paging::Permissions;
use arch::register::{Bank, RegisterFile};
use std::fmt::Write;
use std::ops::ControlFlow;

/// Bytes that one answer has at most.
const MOST_TEXT: usize = 8 << 20;
/// The last line of one that would have more.
const MORE: &str = "(and more)\n";

/// `monitor info WHAT`.
///
/// # Errors
/// What can be asked for, or that it was broken off.
pub(super) fn info<M: Machine>(session: &Session<M>, arguments: &[&str]) -> Result<String, String> {
    match arguments {
        ["mem"] => memory(session),
        ["tlb"] => entries(session),
        ["registers"] => {
            let banks = [Bank::General, Bank::System];
            let file =
                session.machine.registers(session.current, &banks).map_err(|error| error.to_string())?;
            Ok(registers(&file, session.current, session.machine.state(session.current)))
        }
        ["registers", "-a"] => {
            let mut text = String::new();
            for vcpu in 0..session.machine.vcpus() {
                let banks = [Bank::General, Bank::System];
                let file = session.machine.registers(vcpu, &banks).map_err(|error| error.to_string())?;
                text.push_str(&registers(&file, vcpu, session.machine.state(vcpu)));
            }
            Ok(text)
        }
        _ => Err("what there is to ask for is mem, tlb, registers or registers -a".into()),
    }
}

/// Walks all pages that are mapped, for as long as there is room for what is said of them.
fn walk<M: Machine>(
    session: &Session<M>,
    mut visit: impl FnMut(&mut String, Page),
) -> Result<Option<String>, String> {
    let (regime, _) = session.tables(session.current).map_err(|fault| fault.to_string())?;
    if !regime.is_on() {
        return Ok(None);
    }
    let mut text = String::new();
    pages(session, &regime, (0, u64::MAX), &mut |page| {
        visit(&mut text, page);
        if text.len() < MOST_TEXT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(|cancelled| cancelled.to_string())?;
    Ok(Some(text))
}

/// A range of pages whose permissions look the same.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    last: u64,
    permissions: [char; 3],
}

impl Range {
    /// `start-end size urw`; the end is one more than fits into 64 bits at the end of all addresses.
    fn push(&self, text: &mut String) {
        let end = u128::from(self.last) + 1;
        let [user, read, write] = self.permissions;
        let size = end - u128::from(self.start);
        // Writing to a String cannot fail.
        writeln!(text, "{:016x}-{end:016x} {size:016x} {user}{read}{write}", self.start).ok();
    }
}

fn memory<M: Machine>(session: &Session<M>) -> Result<String, String> {
    let mut current: Option<Range> = None;
    let text = walk(session, |text, Page { start, last, mapping, .. }| {
        let Permissions { write, user, .. } = mapping.permissions;
        let permissions = [if user { 'u' } else { '-' }, 'r', if write { 'w' } else { '-' }];
        match &mut current {
            Some(range) if range.permissions == permissions && range.last.checked_add(1) == Some(start) => {
                range.last = last;
            }
            range => {
                if let Some(before) = range.replace(Range { start, last, permissions }) {
                    before.push(text);
                }
            }
        }
    })?;
    Ok(finished(text, |text| {
        if let Some(range) = current {
            range.push(text);
        }
    }))
}

/// The text, or what QEMU says without paging.
fn finished(text: Option<String>, end: impl FnOnce(&mut String)) -> String {
    let Some(mut text) = text else { return "PG disabled\n".into() };
    if text.len() < MOST_TEXT {
        end(&mut text);
    } else {
        text.push_str(MORE);
    }
    text
}

/// Bits of an x86 entry that QEMU shows, with their letters (Intel SDM vol. 3, "Paging").
const X86_FLAGS: [(u32, char); 9] =
    [(63, 'X'), (8, 'G'), (7, 'P'), (6, 'D'), (5, 'A'), (4, 'C'), (3, 'T'), (2, 'U'), (1, 'W')];

fn entries<M: Machine>(session: &Session<M>) -> Result<String, String> {
    let isa = session.isa();
    let text = walk(session, |text, Page { start, entry, mapping, .. }| {
        let place = mapping.address;
        let flags: String = match isa {
            Isa::X86_64 => X86_FLAGS
                .iter()
                .map(|(bit, letter)| if entry >> bit & 1 == 1 { *letter } else { '-' })
                .collect(),
            Isa::Aarch64 => mapping.permissions.to_string().replace(' ', ""),
        };
        // Writing to a String cannot fail.
        writeln!(text, "{start:016x}: {place:016x} {flags}").ok();
    })?;
    Ok(finished(text, |_| {}))
}

fn registers(file: &RegisterFile, vcpu: u32, state: VcpuState) -> String {
    let mut text = format!("\nCPU#{vcpu}\n");
    match file.isa() {
        Isa::X86_64 => x86(&mut text, file, state),
        Isa::Aarch64 => aarch64(&mut text, file),
    }
    text
}

/// Registers of 64 bits, a few to a line.
fn push_words(text: &mut String, file: &RegisterFile, names: &[(&str, &str)], in_line: usize) {
    for line in names.chunks(in_line) {
        let words: Vec<String> = line
            .iter()
            .map(|(shown, name)| format!("{shown}={:016x}", file.get(name).unwrap_or(0)))
            .collect();
        text.push_str(&words.join(" "));
        text.push('\n');
    }
}

fn x86(text: &mut String, file: &RegisterFile, state: VcpuState) {
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
    push_words(text, file, &GENERAL, 4);
    let halted = u8::from(state == VcpuState::Halted);
    // Writing to a String cannot fail.
    writeln!(
        text,
        "RIP={:016x} RFL={:08x} CPL={} HLT={halted}",
        get("rip"),
        get("eflags"),
        get("cs") & PRIVILEGE
    )
    .ok();
    for name in ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"] {
        let (shown, part) = (name.to_uppercase(), |part: &str| get(&format!("{name}_{part}")));
        writeln!(
            text,
            "{shown:3}={:04x} {:016x} {:08x} {:08x}",
            get(name),
            part("base"),
            part("limit"),
            part("ar")
        )
        .ok();
    }
    for name in ["gdt", "idt"] {
        let (base, limit) = (get(&format!("{name}_base")), get(&format!("{name}_limit")));
        writeln!(text, "{}=     {base:016x} {limit:08x}", name.to_uppercase()).ok();
    }
    writeln!(
        text,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}",
        get("cr0"),
        get("cr2"),
        get("cr3"),
        get("cr4")
    )
    .ok();
    let debug =
        [("DR0", "dr0"), ("DR1", "dr1"), ("DR2", "dr2"), ("DR3", "dr3"), ("DR6", "dr6"), ("DR7", "dr7")];
    if debug.iter().all(|(_, name)| file.get(name).is_some()) {
        push_words(text, file, &debug, 4);
    }
    push_words(text, file, &[("EFER", "efer")], 1);
}

fn aarch64(text: &mut String, file: &RegisterFile) {
    let names: Vec<(String, String)> =
        (0..31).map(|number| (format!("X{number:02}"), format!("x{number}"))).collect();
    let mut names: Vec<(&str, &str)> =
        names.iter().map(|(shown, name)| (shown.as_str(), name.as_str())).collect();
    names.insert(0, (" PC", "pc"));
    names.push((" SP", "sp"));
    push_words(text, file, &names, 3);
    // Writing to a String cannot fail.
    writeln!(text, "PSTATE={:08x}", file.get("cpsr").unwrap_or(0)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;
    use crate::fake::Still;
    use crate::gdb::monitor;
    use arch::GuestPhys;
    use std::sync::Arc;

    fn session(isa: Isa) -> Session<Still> {
        let machine = Still::new(isa, 2, 1 << 20).unwrap();
        let engine = Engine::new(isa, machine.host().clone(), 2);
        Session::new(machine, Arc::new(engine))
    }

    /// A guest with 4-level tables: two pages that may be written next to one that may not.
    fn mapped() -> Session<Still> {
        let session = session(Isa::X86_64);
        let mut file = RegisterFile::new(Isa::X86_64);
        for (name, value) in [
            ("cr0", 0x8000_0001),
            ("cr3", 0x1000),
            ("cr4", 0x20),
            ("efer", 0x500),
            ("gdt_base", 0xffff_fe00_0000_1000),
            ("gdt_limit", 0x7f),
            ("rip", 0x40_0000),
        ] {
            file.set(name, value);
        }
        session.machine.set_registers(0, &file).unwrap();
        for (at, value) in [
            (0x1000, 0x2007u64),
            (0x1ff8, 0x5003),
            (0x2000, 0x3007),
            (0x5ff8, 0x6003),
            (0x3010, 0x4007),
            (0x6ff8, 0x7003),
            (0x4000, 0x8027),
            (0x4008, 0x9067),
            (0x4010, 0x8000_0000_0000_a001),
            (0x7ff8, 0xb003),
        ] {
            session.machine.memory().write(GuestPhys(at), &value.to_le_bytes());
        }
        session
    }

    #[test]
    fn ranges_as_qemu_prints_them() {
        let mut session = mapped();
        let text = monitor::run(&mut session, "info mem");
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "0000000000400000-0000000000402000 0000000000002000 urw",
                "0000000000402000-0000000000403000 0000000000001000 -r-",
                "fffffffffffff000-10000000000000000 0000000000001000 -rw",
            ]
        );
        let text = monitor::run(&mut session, "info tlb");
        assert_eq!(text.lines().next(), Some("0000000000400000: 0000000000008000 ----A--UW"));
        assert_eq!(text.lines().nth(2), Some("0000000000402000: 000000000000a000 X--------"));
    }

    #[test]
    fn registers_as_pwndbg_looks_for_them() {
        let mut session = mapped();
        let text = monitor::run(&mut session, "info registers");
        for line in [
            "GDT=     fffffe0000001000 0000007f",
            "CR0=80000001 CR2=0000000000000000 CR3=0000000000001000 CR4=00000020",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("RIP=0000000000400000") && text.contains("EFER=0000000000000500"));
        let mut session = self::session(Isa::Aarch64);
        let text = monitor::run(&mut session, "info registers -a");
        assert!(text.contains("CPU#1") && text.contains("X30="), "{text}");
        assert_eq!(monitor::run(&mut session, "info mem"), "PG disabled\n");
        assert!(monitor::run(&mut session, "info").contains("usage"));
    }
}
