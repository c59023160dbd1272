//! A machine with a Linux kernel that has tasks and a module, made for tests: tables, types and symbols are as small as
//! they can be.

use super::session::Session;
use crate::engine::Engine;
use crate::fake::{Still, host};
use crate::linux::symbols::{Builder, Kind, Symbol};
use crate::linux::{Described, VmCoreInfo};
use crate::machine::Machine;
use arch::register::RegisterFile;
use arch::{GuestPhys, Isa};
use std::sync::Arc;

/// Where the kernel is: a page of 2 MiB.
pub const KERNEL: u64 = 0xffff_ffff_8100_0000;
/// The same, guest-physical.
const PLACE: u64 = 0x20_0000;
/// A page of user space. The vCPUs' tables have another one there than the tasks'.
pub const USER: u64 = 0x40_0000;
const OF_VCPUS: u64 = 0x60_0000;
const OF_TASKS: u64 = 0x40_0000;

/// The function that puts to sleep, and the one that sleeps.
pub const SCHEDULE: u64 = KERNEL + 0x1000;
pub const DO_WAIT: u64 = KERNEL + 0x1100;
const TEXT_END: u64 = KERNEL + 0x2000;
const ORC_IPS: u64 = KERNEL + 0x3000;
const ORC: u64 = KERNEL + 0x3100;
const MM: u64 = KERNEL + 0x4000;
const MODULES: u64 = KERNEL + 0x4800;
const MODULE: u64 = KERNEL + 0x5000;
const SECTIONS: u64 = KERNEL + 0x5800;
/// The module's symbols: where they are said to be, the table, and names.
const OF_MODULE: u64 = KERNEL + 0x5a00;
/// Where the module is.
pub const MODULE_TEXT: u64 = 0xffff_ffff_c010_0000;
/// A function of the module's, and a variable of 8 bytes.
pub const HANDLE: u64 = MODULE_TEXT + 0x40;
pub const COUNTER: u64 = MODULE_TEXT + 0x2000;
/// The tables of user space, guest-physical: three pages, the first of which a `struct mm_struct` leads to.
const TABLES: u64 = 0x1_0000;
const BTF: u64 = KERNEL + 0x6_0000;
/// Where vCPUs have variables of their own, and which is the task that they are at.
const OWN: u64 = KERNEL + 0x8000;
const CURRENT_TASK: u64 = 0x40;
const TASKS: u64 = KERNEL + 0x2_0000;
const EACH: u64 = 0x200;
const STACKS: u64 = KERNEL + 0x4_0000;
const EACH_STACK: u64 = 0x400;
/// Where within its stack a task that sleeps has what it has saved.
const SAVED: u64 = 0x100;

/// A task to be made.
#[derive(Clone, Copy, Debug)]
pub struct MadeTask {
    pub pid: u32,
    pub comm: &'static str,
    /// The CPU that it is on.
    pub on: Option<u32>,
    /// When it began.
    pub began: u64,
    pub is_of_kernel: bool,
}

/// One that sleeps.
pub const fn asleep(pid: u32, comm: &'static str) -> MadeTask {
    MadeTask { pid, comm, on: None, began: 5, is_of_kernel: false }
}

/// Types, as a kernel has them in memory.
#[derive(Default)]
struct Btf {
    types: Vec<u8>,
    names: Vec<u8>,
    count: u32,
}

impl Btf {
    fn name(&mut self, name: &str) -> u32 {
        let at = u32::try_from(self.names.len()).unwrap();
        self.names.extend(name.bytes().chain([0]));
        at
    }

    /// Adds a type; its number.
    fn add(&mut self, name: &str, kind: u32, count: usize, size: u32, more: &[u32]) -> u32 {
        let head = [self.name(name), kind << 24 | u32::try_from(count).unwrap(), size];
        head.iter().chain(more).for_each(|word| self.types.extend(word.to_le_bytes()));
        self.count += 1;
        self.count
    }

    fn array(&mut self, of: u32, count: u32) -> u32 {
        self.add("", 3, 0, 0, &[of, 1, count])
    }

    /// Members: name, type, and where each begins, bytes.
    fn compound(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let more: Vec<u32> =
            members.iter().flat_map(|(name, of, at)| [self.name(name), *of, at * 8]).collect();
        self.add(name, 4, members.len(), size, &more)
    }

    fn bytes(&self) -> Vec<u8> {
        let [types, names] = [&self.types, &self.names].map(|part| u32::try_from(part.len()).unwrap());
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        [24, 0, types, types, names].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(&self.types);
        bytes.extend(&self.names);
        bytes
    }
}

fn types(isa: Isa) -> Vec<u8> {
    let mut types = Btf::default();
    let int = types.add("unsigned int", 1, 0, 4, &[32]);
    let short = types.add("short", 1, 0, 2, &[16]);
    let char = types.add("char", 1, 0, 1, &[8]);
    let pointer = types.add("", 2, 0, 0, &[]);
    let list = types.compound("list_head", 16, &[("next", pointer, 0), ("prev", pointer, 8)]);
    let (comm, pair, registers) = (types.array(char, 16), types.array(pointer, 2), types.array(pointer, 31));
    let thread = match isa {
        Isa::X86_64 => {
            let names = ["r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"];
            let members: Vec<_> =
                names.into_iter().zip((0..).step_by(8)).map(|(n, at)| (n, pointer, at)).collect();
            types.compound("inactive_task_frame", 56, &members);
            let members = [
                ("sp_offset", short, 0),
                ("bp_offset", short, 2),
                ("sp_reg", char, 4),
                ("bp_reg", char, 5),
                ("type", char, 6),
            ];
            types.compound("orc_entry", 8, &members);
            let names = ["ip", "cs", "sp", "bp", "r10", "r13", "di", "dx"];
            let members: Vec<_> =
                names.into_iter().zip((0..).step_by(8)).map(|(n, at)| (n, pointer, at)).collect();
            types.compound("pt_regs", 64, &members);
            types.compound("thread_struct", 8, &[("sp", pointer, 0)])
        }
        Isa::Aarch64 => {
            let names =
                ["x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "fp", "sp", "pc"];
            let members: Vec<_> =
                names.into_iter().zip((0..).step_by(8)).map(|(n, at)| (n, pointer, at)).collect();
            let context = types.compound("cpu_context", 104, &members);
            let members = [
                ("regs", registers, 0),
                ("sp", pointer, 248),
                ("pc", pointer, 256),
                ("pstate", pointer, 264),
                ("stackframe", pair, 272),
            ];
            types.compound("pt_regs", 288, &members);
            types.compound("thread_struct", 104, &[("cpu_context", context, 0)])
        }
    };
    let members = [
        ("__state", int, 0),
        ("on_cpu", int, 4),
        ("flags", int, 8),
        ("exit_state", int, 12),
        ("pid", int, 16),
        ("tgid", int, 20),
        ("tasks", list, 24),
        ("real_parent", pointer, 40),
        ("signal", pointer, 48),
        ("mm", pointer, 56),
        ("comm", comm, 64),
        ("cpu", int, 80),
        ("stack", pointer, 88),
        ("start_time", pointer, 96),
        ("thread", thread, 128),
    ];
    types.compound("task_struct", 256, &members);
    types.compound("mm_struct", 8, &[("pgd", pointer, 0)]);
    let layout = types.compound(
        "module_layout",
        16,
        &[("base", pointer, 0), ("size", int, 8), ("text_size", int, 12)],
    );
    let members = [
        ("state", int, 0),
        ("list", list, 8),
        ("name", comm, 24),
        ("core_layout", layout, 40),
        ("init_layout", layout, 56),
        ("sect_attrs", pointer, 72),
        ("kallsyms", pointer, 80),
    ];
    types.compound("module", 88, &members);
    types.compound(
        "mod_kallsyms",
        24,
        &[("symtab", pointer, 0), ("num_symtab", int, 8), ("strtab", pointer, 16)],
    );
    let attribute = types.compound("attribute", 8, &[("name", pointer, 0)]);
    let attribute = types.compound("bin_attribute", 16, &[("attr", attribute, 0), ("private", pointer, 8)]);
    let section =
        types.compound("module_sect_attr", 24, &[("battr", attribute, 0), ("address", pointer, 16)]);
    let sections = types.array(section, 0);
    types.compound("module_sect_attrs", 8, &[("nsections", int, 0), ("attrs", sections, 8)]);
    types.bytes()
}

/// A session with a machine of two vCPUs, and its kernel.
pub struct MadeKernel {
    pub session: Session<Still>,
}

impl MadeKernel {
    /// With these tasks, of which the first is `init_task`.
    pub fn new(isa: Isa, tasks: &[MadeTask]) -> MadeKernel {
        let mut machine = Still::new(isa, 2, 8 << 20).unwrap();
        // Where its symbols are said to be nobody looks: they are known.
        let tables = ["num_syms", "names", "token_table", "token_index", "addresses"];
        let tables: String = tables.iter().map(|name| format!("SYMBOL(kallsyms_{name})=1000\n")).collect();
        let text = format!("OSRELEASE=6.12.0-made\nPAGESIZE=4096\n{tables}");
        let info = VmCoreInfo::parse(text.as_bytes()).unwrap();
        machine.kernel = Some(Described { info: Some(info.clone()), remarks: Vec::new() });
        let engine = Engine::new(isa, host(), 2);
        let types = types(isa);
        let symbols = symbols(types.len() as u64);
        engine.kept().symbols(&info, || Ok(Ok(symbols))).unwrap();
        let made = MadeKernel { session: Session::new(machine, Arc::new(engine)) };
        made.map();
        made.session.debuggee.machine.memory().write(GuestPhys(BTF - KERNEL + PLACE), &types);
        made.put(MM, KERNEL + TABLES);
        made.unwind_table();
        made.set_tasks(tasks);
        made.module();
        made.session.debuggee.machine.memory().write(GuestPhys(OF_VCPUS), b"vcpu");
        made.session.debuggee.machine.memory().write(GuestPhys(OF_TASKS), b"task");
        made
    }

    fn isa(&self) -> Isa {
        self.session.isa()
    }

    fn put_at(&self, place: u64, word: u64) {
        self.session.debuggee.machine.memory().write(GuestPhys(place), &word.to_le_bytes());
    }

    /// Writes a word of the kernel's memory.
    pub fn put(&self, at: u64, word: u64) {
        self.put_at(at - KERNEL + PLACE, word);
    }

    fn put_int(&self, at: u64, word: u32) {
        let memory = self.session.debuggee.machine.memory();
        memory.write(GuestPhys(at - KERNEL + PLACE), &word.to_le_bytes());
    }

    fn text(&self, at: u64, text: &str) {
        let bytes = [text.as_bytes(), &[0]].concat();
        self.session.debuggee.machine.memory().write(GuestPhys(at - KERNEL + PLACE), &bytes);
    }

    /// Tables of the vCPUs, and of the tasks' user space, and the registers that lead to them.
    fn map(&self) {
        let tables = PLACE + TABLES;
        let mut file = RegisterFile::new(self.isa());
        match self.isa() {
            Isa::X86_64 => {
                for (name, value) in [("cr0", 0x8000_0001), ("cr3", 0x1000), ("cr4", 0x20), ("efer", 0x500)] {
                    file.set(name, value);
                }
                for (at, value) in [
                    (0x1ff8, 0x2003),
                    (0x2ff0, 0x3003),
                    (0x3040, PLACE | 0x83),
                    (0x1000, 0x4007),
                    (0x4000, 0x5007),
                    (0x5010, OF_VCPUS | 0x87),
                    (tables, tables + 0x1007),
                    (tables + 0x1000, tables + 0x2007),
                    (tables + 0x2010, OF_TASKS | 0x87),
                ] {
                    self.put_at(at, value);
                }
            }
            Isa::Aarch64 => {
                // Addresses of 39 bits in either half, pages of 4 KiB.
                let tcr = 25 | 25 << 16 | 2 << 30;
                for (name, value) in
                    [("SCTLR_EL1", 1), ("TCR_EL1", tcr), ("TTBR0_EL1", 0x4000), ("TTBR1_EL1", 0x2000)]
                {
                    file.set(name, value);
                }
                for (at, value) in [
                    (0x2ff0, 0x3003),
                    (0x3040, PLACE | 0x701),
                    (0x4000, 0x5003),
                    (0x5010, OF_VCPUS | 0x741),
                    (tables, tables + 0x1003),
                    (tables + 0x1010, OF_TASKS | 0x741),
                ] {
                    self.put_at(at, value);
                }
            }
        }
        for vcpu in 0..2 {
            self.session.debuggee.machine.set_registers(vcpu, &file).unwrap();
        }
    }

    /// `schedule` has a frame of a word; the stack begins behind `do_wait`.
    fn unwind_table(&self) {
        const CALL: u64 = 2 << 48 | 5 << 32;
        const END: u64 = 1 << 48;
        for (index, (function, entry)) in (0..).zip([(SCHEDULE, CALL | 8), (DO_WAIT, END)]) {
            let at = ORC_IPS + 4 * index;
            let offset = i32::try_from(function.cast_signed() - at.cast_signed()).unwrap();
            self.put_int(at, offset.cast_unsigned());
            self.put(ORC + 8 * index, entry);
        }
    }

    /// Makes tasks, in the place of those that were there.
    pub fn set_tasks(&self, tasks: &[MadeTask]) {
        let nodes: Vec<u64> = (0..).zip(tasks).map(|(index, _)| TASKS + EACH * index + 24).collect();
        for (index, task) in (0..).zip(tasks) {
            let (at, stack) = (TASKS + EACH * index, STACKS + EACH_STACK * index);
            let next = nodes[(usize::try_from(index).unwrap() + 1) % nodes.len()];
            self.put(at + 24, next);
            self.put(next + 8, at + 24);
            self.put_int(at, 1);
            self.put_int(at + 4, task.on.is_some().into());
            self.put_int(at + 8, if task.is_of_kernel { 0x20_0000 } else { 0 });
            self.put_int(at + 12, 0);
            self.put_int(at + 16, task.pid);
            self.put_int(at + 20, task.pid);
            self.put(at + 40, TASKS);
            self.put(at + 56, if task.is_of_kernel { 0 } else { MM });
            self.text(at + 64, task.comm);
            self.put_int(at + 80, task.on.unwrap_or(0));
            self.put(at + 88, stack);
            self.put(at + 96, task.began);
            self.save(at, stack + SAVED);
        }
    }

    /// The list of tasks leads nowhere behind one, both ways.
    pub fn break_list(&self, index: u64) {
        let at = TASKS + EACH * index + 24;
        self.put(at, 0x10);
        self.put(TASKS + 32, 0x10);
    }

    /// A vCPU is at a task, in the kernel.
    pub fn run_on(&mut self, vcpu: u32, index: u64) {
        let (own, task) = (OWN + 0x100 * u64::from(vcpu), Self::task(index));
        self.put(own + CURRENT_TASK, task);
        let mut file = RegisterFile::new(self.isa());
        let values = match self.isa() {
            Isa::X86_64 => [("cs", 0x10), ("gs_base", own)],
            Isa::Aarch64 => [("cpsr", 0x3c5), ("SP_EL0", task)],
        };
        values.iter().for_each(|(name, value)| file.set(name, *value));
        self.session.debuggee.machine.set_registers(vcpu, &file).unwrap();
    }

    /// Where a task's `struct task_struct` is.
    pub fn task(index: u64) -> u64 {
        TASKS + EACH * index
    }

    /// What a task has saved: each register has a number of its own, and `schedule` was called by `do_wait`.
    fn save(&self, task: u64, sp: u64) {
        match self.isa() {
            Isa::X86_64 => {
                self.put(task + 128, sp);
                for (index, value) in
                    (0..).zip([0x15, 0x14, 0x13, 0x12, 0xb, 0xbb, SCHEDULE + 0x20, DO_WAIT + 0x10])
                {
                    self.put(sp + 8 * index, value);
                }
            }
            Isa::Aarch64 => {
                for (index, value) in (0..).zip((19..29).chain([sp, sp - 0x40, SCHEDULE + 0x20])) {
                    self.put(task + 128 + 8 * index, value);
                }
                // A record, and behind it the last one.
                let last = sp + 0x200;
                self.put(sp, last);
                self.put(sp + 8, DO_WAIT + 0x10);
                self.put(last, 0);
                self.put(last + 8, 0);
            }
        }
    }

    fn module(&self) {
        self.put(MODULES, MODULE + 8);
        self.put(MODULES + 8, MODULE + 8);
        self.put(MODULE + 8, MODULES);
        self.put(MODULE + 16, MODULES);
        self.text(MODULE + 24, "virtio_net");
        self.put(MODULE + 40, MODULE_TEXT);
        // Four pages, the first of which is code.
        self.put(MODULE + 48, 0x1000 << 32 | 0x4000);
        self.put(MODULE + 72, SECTIONS);
        self.put(MODULE + 80, OF_MODULE);
        let (table, names) = (OF_MODULE + 0x40, OF_MODULE + 0x100);
        self.put(OF_MODULE, table);
        self.put_int(OF_MODULE + 8, 4);
        self.put(OF_MODULE + 16, names);
        // Name, and what it is: STT_FUNC or STT_OBJECT, of the first section.
        for (index, (name, kind, address, size)) in (0..).zip([
            ("handle", 2, HANDLE, 0x20),
            ("counter", 1, COUNTER, 8),
            ("twice", 2, HANDLE + 0x20, 0x20),
            ("twice", 2, HANDLE + 0x40, 0x20),
        ]) {
            let at = table + 24 * index;
            self.text(names + 16 * index, name);
            self.put(at, 1 << 48 | kind << 32 | (16 * index));
            self.put(at + 8, address);
            self.put(at + 16, size);
        }
        self.put_int(SECTIONS, 2);
        for (index, (name, address)) in
            (0..).zip([(".text", 0xffff_ffff_c010_0040u64), (".data", 0xffff_ffff_c011_0000)])
        {
            let (at, place) = (SECTIONS + 8 + 24 * index, SECTIONS + 0x100 + 0x20 * index);
            self.text(place, name);
            self.put(at, place);
            self.put(at + 16, address);
        }
    }

    /// Has the module say what tells its build from others: four bytes.
    pub fn tell_build(&self, id: u32) {
        let (note, name) = (KERNEL + 0x5e00, KERNEL + 0x5e40);
        // Behind the two that it has.
        let at = SECTIONS + 8 + 24 * 2;
        self.put_int(SECTIONS, 3);
        self.text(name, ".note.gnu.build-id");
        self.put(at, name);
        self.put(at + 16, note);
        self.put(note, 4 << 32 | 4);
        self.put(note + 8, u64::from(u32::from_le_bytes(*b"GNU\0")) << 32 | 3);
        self.put_int(note + 16, id);
    }

    /// Has a task that sleeps go on, once what has put it to sleep returns, at an address.
    pub fn returns_to(&self, index: u64, address: u64) {
        let sp = STACKS + EACH_STACK * index + SAVED;
        match self.isa() {
            Isa::X86_64 => self.put(sp + 56, address),
            Isa::Aarch64 => self.put(sp + 8, address),
        }
    }

    /// Where a task's stack pointer is once it goes on.
    pub fn stack_of(&self, index: u64) -> u64 {
        let sp = STACKS + EACH_STACK * index + SAVED;
        match self.isa() {
            Isa::X86_64 => sp + 56,
            Isa::Aarch64 => sp - 0x40,
        }
    }
}

/// With so many bytes of types.
fn symbols(types: u64) -> crate::linux::Symbols {
    let mut builder = Builder::default();
    for (name, address) in [
        ("_stext", SCHEDULE),
        ("__sched_text_start", SCHEDULE),
        ("schedule", SCHEDULE),
        ("__sched_text_end", DO_WAIT - 0x10),
        ("do_wait", DO_WAIT),
        ("finish_task_switch.isra.0", DO_WAIT + 0x100),
        ("_etext", TEXT_END),
        ("__start_orc_unwind_ip", ORC_IPS),
        ("__stop_orc_unwind_ip", ORC_IPS + 8),
        ("__start_orc_unwind", ORC),
        ("modules", MODULES),
        ("init_task", TASKS),
        ("__start_BTF", BTF),
        ("__stop_BTF", BTF + types),
    ] {
        builder.add(Symbol { name, address, kind: Kind::Text, is_global: true });
    }
    let (name, address) = ("current_task", CURRENT_TASK);
    builder.add(Symbol { name, address, kind: Kind::Absolute, is_global: true });
    builder.finish()
}
