//! Commands on a machine that stands still, and on a dump.

use super::{Operator, Refused, commands, common, run, run_line};
use crate::breakpoint::{Breakpoint, Kind, Place};
use crate::cancel::{Cancel, Cancelled};
use crate::disassemble::OperatingMode;
use crate::dump::core::Core;
use crate::dump::read::raw;
use crate::dump::write::WriteError;
use crate::dump::write::destination::Destination;
use crate::engine::Engine;
use crate::fake::Still;
use crate::linux::{Described, VmCoreInfo};
use crate::machine::{Code, Machine};
use crate::reply::{Command, Json, Needs, Offer, Refusal, Said, json};
use crate::symbols::SymbolFile;
use crate::view::View;
use arch::register::RegisterFile;
use arch::{GuestPhys, GuestVirt, Isa};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Somebody who gives commands, and may write below a folder. A command's own tests have one as well.
pub(super) struct Desk<M> {
    machine: M,
    engine: Engine,
    vcpu: u32,
    cancel: Cancel,
    folder: PathBuf,
    pub symbols: SymbolFile,
}

impl<M: Machine> Desk<M> {
    pub fn new(machine: M) -> Desk<M> {
        let engine = Engine::new(machine.isa(), machine.abilities().clone(), machine.vcpus());
        let symbols = SymbolFile::Absent;
        Desk { machine, engine, vcpu: 0, cancel: Cancel::never(), folder: "/nowhere".into(), symbols }
    }

    /// What a command says to a person, with what is lacking behind it.
    pub fn say(&mut self, line: &str) -> String {
        match run_line(self, line) {
            Ok(value) => format!("{value}{}", value.shortfall().unwrap_or_default()),
            Err(refused) => refused.to_string(),
        }
    }

    /// What a command says to a program.
    pub fn json(&mut self, line: &str) -> Json {
        run_line(self, line).unwrap_or_else(|refused| panic!("{line}: {refused}")).json()
    }

    pub fn refusal(&mut self, line: &str) -> Refusal {
        match run_line(self, line) {
            Ok(value) => panic!("{line}: {value}"),
            Err(refused) => refused.why,
        }
    }
}

impl<M: Machine> Operator for Desk<M> {
    fn view(&self) -> View<'_> {
        View {
            machine: &self.machine,
            engine: &self.engine,
            vcpu: self.vcpu,
            is_physical: false,
            cancel: &self.cancel,
        }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.machine
    }

    fn prefix(&self) -> &'static str {
        "desk"
    }

    fn about_symbols(&self) -> &'static str {
        "symbols are elsewhere"
    }

    fn most_bytes(&self) -> u64 {
        0x2000
    }

    fn destination(&self, path: &Path) -> Result<Destination, WriteError> {
        Destination::below(&self.folder, path)
    }

    fn symbols(&self) -> Option<&SymbolFile> {
        Some(&self.symbols)
    }

    fn refused(&self) -> Vec<(Kind, u64, String)> {
        vec![(Kind::Hardware, 0x5000, "there is no room".into())]
    }
}

/// x86's registers for 4-level tables at 0x1000.
fn paging() -> RegisterFile {
    let mut file = RegisterFile::new(Isa::X86_64);
    for (name, value) in [
        ("cr0", 0x8000_0001),
        ("cr3", 0x1000),
        ("cr4", 0x20),
        ("efer", 0x500),
        ("gdt_base", 0xffff_fe00_0000_1000),
        ("gdt_limit", 0x7f),
        ("rip", 0x40_0000),
        ("rsp", 0x40_1000),
    ] {
        file.set(name, value);
    }
    file
}

/// Those tables: two pages that may be written next to one that may not, a device's page, and one at the end of all
/// addresses.
const TABLES: &[(u64, u64)] = &[
    (0x1000, 0x2007),
    (0x1ff8, 0x5003),
    (0x2000, 0x3007),
    (0x5ff8, 0x6003),
    (0x3010, 0x4007),
    (0x6ff8, 0x7003),
    (0x4000, 0x8027),
    (0x4008, 0x9067),
    (0x4010, 0x8000_0000_0000_a001),
    (0x7ff8, 0xb003),
];

/// A guest of two vCPUs with these tables, of which the first has them.
fn mapped() -> Desk<Still> {
    let machine = Still::new(Isa::X86_64, 2, 1 << 20).unwrap();
    machine.set_registers(0, &paging()).unwrap();
    for (at, value) in TABLES {
        machine.memory().write(GuestPhys(*at), &value.to_le_bytes());
    }
    machine.memory().write(GuestPhys(0x8000), b"\x0f\x0bhello");
    Desk::new(machine)
}

fn still(isa: Isa) -> Desk<Still> {
    Desk::new(Still::new(isa, 2, 1 << 20).unwrap())
}

/// A dump of that memory.
fn dumped() -> Desk<Core> {
    let mut bytes = vec![0; 0x10000];
    for (at, value) in TABLES {
        let at = usize::try_from(*at).unwrap();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[0x8000..0x8007].copy_from_slice(b"\x0f\x0bhello");
    let contents = raw::read(Arc::new(bytes), Isa::X86_64, 0, paging()).unwrap();
    Desk::new(Core::new(contents, false).unwrap())
}

/// Lines of commands, what they say to a person, and what to a program; of a guest and of its dump alike.
fn alike() -> Vec<(&'static str, &'static str, Json)> {
    vec![
        (
            "translate 0x401008",
            "4-level paging, CR3 0x1000\n\
             \x20 PML4E    at 0x000000001000: 0x0000000000002007\n\
             \x20 PDPTE    at 0x000000002000: 0x0000000000003007\n\
             \x20 PDE      at 0x000000003010: 0x0000000000004007\n\
             \x20 PTE      at 0x000000004008: 0x0000000000009067\n\
             0x401008 is at 0x9008, 4 KiB page, rwx rwx\n",
            json!({
                "address": "0x401008",
                "regime": "4-level paging, CR3 0x1000",
                "steps": [
                    { "name": "PML4E", "at": "0x1000", "value": "0x2007" },
                    { "name": "PDPTE", "at": "0x2000", "value": "0x3007" },
                    { "name": "PDE", "at": "0x3010", "value": "0x4007" },
                    { "name": "PTE", "at": "0x4008", "value": "0x9067" },
                ],
                "physical": "0x9008", "page_size": 4096, "permissions": "rwx rwx", "fault": null,
            }),
        ),
        (
            "read $pc+2 5",
            "0x0000000000400002  68 65 6c 6c 6f                                   hello\n",
            json!({ "address": "0x400002", "bytes": "68656c6c6f" }),
        ),
        (
            "read --physical 32768 0x12",
            "0x0000000000008000  0f 0b 68 65 6c 6c 6f 00 00 00 00 00 00 00 00 00  ..hello.........\n\
             0x0000000000008010  00 00                                            ..\n",
            json!({ "address": "0x8000", "bytes": format!("0f0b68656c6c6f{}", "00".repeat(11)) }),
        ),
        (
            "map",
            "4-level paging, CR3 0x1000\n\
             0x0000000000400000-0x0000000000401fff rwx rwx 8 KiB\n\
             0x0000000000402000-0x0000000000402fff r-- --- 4 KiB\n\
             0xfffffffffffff000-0xffffffffffffffff rwx --- 4 KiB\n",
            json!({
                "regime": "4-level paging, CR3 0x1000",
                "memory": null,
                "ranges": [
                    { "start": "0x400000", "last": "0x401fff", "permissions": "rwx rwx" },
                    { "start": "0x402000", "last": "0x402fff", "permissions": "r-- ---" },
                    { "start": "0xfffffffffffff000", "last": "0xffffffffffffffff", "permissions": "rwx ---" },
                ],
                "more": false,
            }),
        ),
        (
            "info mem",
            "0000000000400000-0000000000402000 0000000000002000 urw\n\
             0000000000402000-0000000000403000 0000000000001000 -r-\n\
             fffffffffffff000-10000000000000000 0000000000001000 -rw\n",
            json!([
                { "start": "0x400000", "last": "0x401fff", "permissions": "urw" },
                { "start": "0x402000", "last": "0x402fff", "permissions": "-r-" },
                { "start": "0xfffffffffffff000", "last": "0xffffffffffffffff", "permissions": "-rw" },
            ]),
        ),
        (
            "info tlb",
            "0000000000400000: 0000000000008000 ----A--UW\n\
             0000000000401000: 0000000000009000 ---DA--UW\n\
             0000000000402000: 000000000000a000 X--------\n\
             fffffffffffff000: 000000000000b000 --------W\n",
            json!([
                { "virtual": "0x400000", "physical": "0x8000", "flags": "----A--UW" },
                { "virtual": "0x401000", "physical": "0x9000", "flags": "---DA--UW" },
                { "virtual": "0x402000", "physical": "0xa000", "flags": "X--------" },
                { "virtual": "0xfffffffffffff000", "physical": "0xb000", "flags": "--------W" },
            ]),
        ),
    ]
}

#[test]
fn a_guest_and_its_dump_say_the_same_to_people_and_to_programs() {
    for (line, text, json) in alike() {
        assert_eq!((mapped().say(line), mapped().json(line)), (text.into(), json.clone()), "{line}");
        assert_eq!((dumped().say(line), dumped().json(line)), (text.into(), json), "{line} of a dump");
    }
}

#[test]
fn what_a_machine_is() {
    let facts = "architecture: x86_64\nvCPUs: 2\nmemory: 1 MiB in 1 range\n  0x000000000000-0x0000000fffff\n\
                 translation: 4-level paging, CR3 0x1000\n\
                 no Linux kernel has described itself in memory (yet)\n\
                 not mapped where a kernel would be (yet)\n";
    assert_eq!(mapped().say("info"), facts);
    let expected = json!({
        "format": null, "architecture": "x86_64", "vcpus": 2, "memory": [{ "start": "0x0", "size": 1 << 20 }],
        "translation": "4-level paging, CR3 0x1000", "release": null, "slide": null, "mapped": null,
        "remarks": [],
    });
    assert_eq!(mapped().json("info"), expected);
    let dump = dumped().say("info");
    assert!(dump.starts_with("format: "), "{dump}");
    assert!(dump.contains("memory: 1 MiB in 1 range") && dump.contains("vCPUs: 1\n"), "{dump}");
    assert_eq!(dumped().say("mem"), "0x000000000000-0x00000000ffff 64 KiB\n");
    assert_eq!(dumped().json("mem"), json!([{ "start": "0x0", "size": 0x10000 }]));
}

#[test]
fn vcpus_and_their_registers() {
    let mut desk = mapped();
    desk.machine.started = 1;
    assert_eq!(
        desk.say("threads"),
        "vCPU 0 [running]: pc 0x0000000000400000, sp 0x0000000000401000\n\
         vCPU 1 [not started]: pc 0x0000000000000000, sp 0x0000000000000000\n"
    );
    let first = json!({ "vcpu": 0, "state": "running", "pc": "0x400000", "sp": "0x401000" });
    assert_eq!(desk.json("threads")[0], first);
    let text = desk.say("regs");
    assert!(text.starts_with("vCPU 0 at 0x400000: 0f 0b 68"), "{text}");
    assert!(text.contains("ud2") && text.contains("cr3=0000000000001000"), "{text}");
    // What is printed for a person is there for a program.
    let general = desk.json("regs");
    assert_eq!((&general["rip"], &general["cr3"]), (&json!("0x400000"), &json!("0x1000")));
    assert!(desk.json("regs general").get("cr3").is_none());
    assert_eq!(dumped().json("regs system")["cr3"], "0x1000");
    for isa in Isa::ALL {
        let text = still(isa).say("info registers -a");
        assert!(text.contains("CPU#1"), "{text}");
        let all = still(isa).json("info registers -a");
        assert_eq!((all[1]["vcpu"].as_u64(), all[1]["state"].as_str()), (Some(1), Some("running")));
    }
    let text = mapped().say("info registers");
    for line in [
        "GDT=     fffffe0000001000 0000007f",
        "CR0=80000001 CR2=0000000000000000 CR3=0000000000001000 CR4=00000020",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("RIP=0000000000400000") && text.contains("EFER=0000000000000500"));
    assert!(still(Isa::Aarch64).say("info registers").contains("X30="));
    assert_eq!(still(Isa::Aarch64).say("info mem"), "PG disabled\n");
    assert_eq!(still(Isa::Aarch64).json("info tlb"), Json::Null);
}

#[test]
fn what_is_not_there_is_said_and_what_is_there_too() {
    for (mut desk, place) in [(mapped(), "0x500000"), (mapped(), "0xffff800000000000")] {
        let value = run_line(&mut desk, &format!("translate {place}")).unwrap();
        let why = value.shortfall().unwrap();
        assert!(why.starts_with(&format!("{place}: ")), "{why}");
        assert!(value.json()["fault"].is_string() && value.json()["physical"].is_null());
    }
    // Up to the end of what is mapped.
    let mut desk = dumped();
    let value = run_line(&mut desk, "read 0x402ffc 8").unwrap();
    assert_eq!(value.json()["bytes"], "00000000");
    let why = value.shortfall().unwrap();
    assert!(why.starts_with("4 of 8 bytes, up to 0x403000: not mapped: PTE at 0x4018"), "{why}");
    // Mapped, where there is no memory.
    let mut desk = mapped();
    desk.machine.memory().write(GuestPhys(0x4018), &0xfee0_0003u64.to_le_bytes());
    let text = desk.say("translate 0x403000");
    assert!(text.ends_with("rwx ---\nthere is no memory at 0xfee00000\n"), "{text}");
    // By a process's own table.
    desk.machine.memory().write(GuestPhys(0xc000), &0x2007u64.to_le_bytes());
    let walk = desk.json("translate 0x401000 --table 0xc000");
    assert_eq!((&walk["steps"][0]["at"], &walk["physical"]), (&json!("0xc000"), &json!("0x9000")));
    for isa in Isa::ALL {
        let refusal = still(isa).refusal("dmesg");
        let none = "no Linux kernel has described itself in memory (yet)";
        assert_eq!(refusal, Refusal::NotThere(none.into()));
    }
}

#[test]
fn a_vcpu_that_is_not_started_sees_by_anothers_tables() {
    let mut desk = mapped();
    (desk.machine.started, desk.vcpu) = (1, 1);
    let begin = "vCPU 1 has not been started; by the tables of vCPU 0:\n4-level";
    for line in ["translate 0x400000", "map"] {
        let text = desk.say(line);
        assert!(text.starts_with(begin), "{text}");
    }
    assert_eq!(desk.json("read 0x400002 5")["bytes"], "68656c6c6f");
    assert!(desk.say("info").contains("(vCPU 0's; paging is off in vCPU 1)"));
}

#[test]
fn what_makes_no_sense_for_a_dump_says_so() {
    let needy: Vec<&str> =
        common().filter(|command| command.needs == Needs::Running).map(|command| command.name).collect();
    assert_eq!(needy, ["exits", "breakpoints", "nmi", "host", "reset"]);
    let help = dumped().say("help");
    for name in needy {
        let why = format!("'{name}' is for a guest that runs, and this is a dump of one that has stopped");
        assert_eq!(dumped().refusal(name), Refusal::Senseless(why));
        assert!(!help.contains(&format!("\n  {name} ")), "{help}");
        let text = mapped().say(name);
        assert!(!text.contains("makes no sense") && !text.contains("usage"), "{text}");
    }
}

#[test]
fn everything_has_its_line_of_help_and_refuses_what_it_does_not_take() {
    let mut desk = mapped();
    let all = commands(&desk);
    let help = desk.say("help");
    assert_eq!(help.lines().count(), all.len());
    assert_eq!(desk.json("help").as_array().map(Vec::len), Some(all.len()));
    let names: BTreeSet<&str> = all.iter().map(|command| command.name).collect();
    assert_eq!(names.len(), all.len(), "a name is there twice");
    for command in &all {
        assert!(!command.what.is_empty() && !command.what.ends_with('.'), "{}", command.name);
        let one = desk.say(&format!("help {}", command.name));
        assert!(one.starts_with(&format!("desk {command}\n  {}", command.what)), "{one}");
        for words in ["--nonsense", "a b c d"] {
            let text = desk.say(&format!("{} {words}", command.name));
            let usage = format!("\nusage: desk {}\n", command.synopsis());
            assert!(text.ends_with(&usage), "{}: {text}", command.name);
        }
    }
}

#[test]
fn names_are_found_by_their_beginning_and_mistakes_are_helped_with() {
    let mut desk = mapped();
    assert_eq!(desk.say("tran 0x400000"), desk.say("translate 0x400000"));
    assert_eq!(desk.say(""), desk.say("help"));
    assert_eq!(desk.say("re"), "'re' may be regs or read\n");
    assert_eq!(
        desk.say("tranlsate 0"),
        "there is no command 'tranlsate': do you mean 'translate'?; see 'desk help'\n"
    );
    assert!(!desk.say("xyzzy").contains("do you mean"));
    assert!(desk.say("help breakpoint").contains("do you mean 'breakpoints'?"));
    // By its whole name only.
    assert!(matches!(run(&mut desk, "tran", &["0"]), Err(Refused { why: Refusal::Unknown(_), usage: None })));
    for (line, why) in [
        (
            "translate linux_banner",
            "no register; symbols are elsewhere\nusage: desk translate ADDRESS [--table ADDRESS]\n",
        ),
        ("translate $eflag", "do you mean 'eflags'?"),
        ("read 0 0x2001", "at most 8 KiB are read at a time\nusage: desk read ADDRESS LENGTH [--physical]\n"),
        ("regs some", "there is no group 'some': general, segment, system, float, vector, debug, all\n"),
        ("dmesg all", "'all' is not a number: write 0x1000 or 4096\n"),
        ("dmesg 0", "write how many lines, at least one\n"),
        ("dmesg -l loud", "'loud' is no level: there are emerg, alert, crit, err, warn,"),
        ("dmesg --follow", "'vmm monitor NAME dmesg --follow' asks a guest that runs again\n"),
        ("ps --user --kernel", "no task is of both kinds"),
        ("help dmesg", "\n  -l, --level LEVELS: records of these levels"),
        ("info nonsense", "what there is to ask for is mem, tlb, registers or registers -a\n"),
        ("info mem -a", "what there is to ask for is"),
    ] {
        let text = desk.say(line);
        assert!(text.contains(why), "{line}: {text}");
    }
    for (address, expected) in [
        ("$rip+0x10", "0x400010 "),
        ("rsp", "0x401000 "),
        ("0x401000-8", "0x400ff8 "),
        ("4198400", "0x401000 "),
    ] {
        let text = desk.say(&format!("translate {address}"));
        assert!(text.contains(&format!("\n{expected}is at")), "{address}: {text}");
    }
}

#[test]
fn how_breakpoints_are_noticed() {
    let mut desk = mapped();
    let point = |kind, address, length, place| Breakpoint {
        hits: 3,
        ..Breakpoint::new(kind, GuestVirt(address), length, place)
    };
    {
        let mut requests = desk.engine.requests();
        for breakpoint in [
            point(Kind::Software, 0x40_0000, 1, Place::Planted(GuestPhys(0x8000))),
            point(Kind::Write, 0x40_1000, 8, Place::Register),
        ] {
            requests.table.insert(desk.machine.memory(), breakpoint).unwrap();
        }
    }
    assert_eq!(
        desk.say("breakpoints"),
        "breakpoint at 0x400000: instruction planted at 0x8000; hits: 3\n\
         watchpoint at 0x401000, 8 bytes: debug register; hits: 3\n\
         hardware breakpoint at 0x5000: refused, because there is no room\n"
    );
    let json = desk.json("breakpoints");
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    assert_eq!((&json[0]["hits"], &json[1]["length"]), (&json!(3), &json!(8)));
    assert_eq!(json[2]["refused"], "there is no room");
    // What is planted is not seen.
    assert_eq!(desk.json("read 0x400000 2")["bytes"], "0f0b");
    assert!(desk.say("regs").contains("0f 0b 68"));
}

#[test]
fn a_kernel_that_has_described_itself() {
    let mut desk = mapped();
    let info = VmCoreInfo::parse(b"OSRELEASE=6.12.1\nPAGESIZE=4096\nKERNELOFFSET=1c00000\n");
    desk.machine.kernel = Some(Described { info, remarks: vec!["there is another".into()] });
    let text = desk.say("linux");
    assert!(text.starts_with("release: 6.12.1\nmoved by 0x1c00000 from where it was linked\n"), "{text}");
    assert!(text.contains("  add-symbol-file vmlinux -o 0x1c00000 -s .data..percpu 0\n"), "{text}");
    assert!(text.ends_with("there is another\n"), "{text}");
    let expected = json!({
        "release": "6.12.1", "build_id": null, "slide": "0x1c00000", "left_per_cpu": true, "mapped": null, "symbols": null,
        "remarks": ["there is another"],
    });
    assert_eq!(desk.json("linux"), expected);
    assert!(desk.say("info").ends_with(&text));
    assert_eq!(desk.json("info")["release"], "6.12.1");
}

#[test]
fn a_dump_goes_where_its_operator_may_write() {
    let folder = std::env::temp_dir().join(format!("vmm-commands-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut desk = mapped();
    assert!(matches!(desk.refusal("dump core"), Refusal::Failed(_)));
    desk.folder.clone_from(&folder);
    assert!(matches!(desk.refusal("dump ../core"), Refusal::Failed(why) if why.contains("below")));
    let text = desk.say("dump core");
    assert!(text.starts_with("core: 1 MiB of memory, 1 MiB of them not zeros"), "{text}");
    assert_eq!(desk.json("dump other")["memory"], 1 << 20);
    let mut again = Desk::new(
        Core::new(crate::dump::open(Arc::new(std::fs::read(folder.join("core")).unwrap())).unwrap(), false)
            .unwrap(),
    );
    assert_eq!(again.say("read 0x400002 5"), mapped().say("read 0x400002 5"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn without_a_kernel_there_is_nothing_of_it() {
    for isa in Isa::ALL {
        let mut desk = Desk::new(Still::new(isa, 1, 1 << 16).unwrap());
        for line in ["ps", "bt", "lsmod", "dmesg"] {
            let said = desk.say(line);
            assert!(said.contains("no Linux kernel has described itself"), "{line}: {said}");
            assert!(matches!(desk.refusal(&format!("{line} x")), Refusal::Usage(_)));
        }
    }
}

#[test]
fn code_is_read_where_its_segment_has_it() {
    let mut machine = Still::new(Isa::X86_64, 1, 1 << 16).unwrap();
    machine.code = Code { mode: OperatingMode::Real16, base: 0x8000 };
    let mut file = RegisterFile::new(Isa::X86_64);
    file.set("rip", 0x4);
    machine.set_registers(0, &file).unwrap();
    machine.memory().write(GuestPhys(0x8004), &[0x0f, 0xa2]);
    let said = Desk::new(machine).say("regs");
    assert!(said.starts_with("vCPU 0 at 0x4: 0f a2 00"), "{said}");
}

#[test]
fn a_monitor_that_counts_no_exits_says_so() {
    let mut desk = Desk::new(Still::new(Isa::Aarch64, 1, 1 << 16).unwrap());
    assert_eq!(desk.say("exits"), "nobody counts exits here\n");
    assert_eq!(desk.json("exits"), json!([]));
}

#[test]
fn what_is_not_wanted_any_more_is_broken_off() {
    for line in ["read 0x400000 16", "dump vmm-is-not-written", "linux", "info", "ps", "lsmod", "bt"] {
        let mut desk = mapped();
        desk.folder = std::env::temp_dir();
        desk.cancel.cancel();
        match desk.refusal(line) {
            Refusal::Cancelled(Cancelled) => {}
            Refusal::Failed(why) => assert!(why.contains("broken off"), "{why}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn an_embedders_machine_adds_commands_with_values() {
    const OFFERS: &[Offer<Still>] = &[Offer {
        command: Command::new("balloon", "[SIZE]", "how much memory the guest has lent"),
        run: |machine, arguments| match arguments.words() {
            [] => {
                Ok(Said::new(format!("{} vCPUs", machine.vcpus()), json!({ "vcpus": machine.vcpus() }))
                    .reply())
            }
            _ => Err(Refusal::Usage("it cannot be set".into())),
        },
    }];
    let mut desk = mapped();
    desk.machine.offers = OFFERS;
    assert_eq!((desk.say("ball"), desk.json("balloon")), ("2 vCPUs\n".into(), json!({ "vcpus": 2 })));
    assert_eq!(desk.say("balloon 3"), "it cannot be set\nusage: desk balloon [SIZE]\n");
    assert!(desk.say("help").contains("balloon [SIZE]"));
    assert!(desk.say("baloon").contains("do you mean 'balloon'?"));
}

#[test]
fn two_dumps_of_a_guest() {
    use super::dump::Changes;
    let (one, other) = (mapped(), mapped());
    other.machine.memory().write(GuestPhys(0x9000), b"changed");
    other.machine.memory().write(GuestPhys(0xf000), b"as well");
    let changes = Changes::between(&one.view(), &other.machine).unwrap();
    assert_eq!(
        crate::reply::Value::json(&changes),
        json!({
            "pages": 2,
            "mapped": [{ "virtual": "0x401000", "physical": "0x9000", "size": 4096 }],
            "unmapped": [{ "start": "0xf000", "size": 4096 }],
            "only_in_one": [],
        })
    );
    assert_eq!(
        changes.to_string(),
        "0x0000000000401000-0x0000000000401fff 1 page at 0x9000\n\
         0xf000-0xffff, guest-physical: mapped nowhere\n2 pages differ\n"
    );
    let arm = still(Isa::Aarch64);
    assert!(matches!(Changes::between(&one.view(), &arm.machine), Err(Refusal::Usage(_))));
}
