//! A Linux kernel in memory: its symbols, its types, and what is found by both.

use super::change;
use arch::plain::is_plain;
use debug::linux::VmCoreInfo;
use debug::linux::btf;
use debug::linux::kallsyms::{self, Addresses, Parts};
use debug::linux::lock::{self, LockKind, LockLayout};
use debug::linux::log::{Levels, Log, Wanted};
use debug::linux::mm::MmLayout;
use debug::linux::module::ModuleLayout;
use debug::linux::reader::Reader;
use debug::linux::task::TaskLayout;
use debug::linux::unwind::{Start, cfi, frame_pointer, orc};

/// Where memory is, and how much of it there is.
const BASE: u64 = 0xffff_8000_0000_0000;
const SIZE: usize = 1 << 16;
/// Where in it the first task is, the head of the list of modules, the first of these, and the stack.
const TASK: u64 = BASE;
const MODULES: u64 = BASE + 0x1000;
const MODULE: u64 = BASE + 0x1100;
const STACK: u64 = BASE + 0x8000;
/// Where the tables are that the stack is unwound by, and a module's symbols and their names.
const ADDRESSES: u64 = BASE + 0x4000;
const ENTRIES: u64 = BASE + 0x5000;
const SYMBOLS: u64 = BASE + 0x6000;
const NAMES: u64 = BASE + 0x7000;
/// Stacks of tasks that wait for locks, a piece each, and the locks.
const SLEEPERS: u64 = BASE + 0xa000;
const LOCKS: u64 = BASE + 0xc000;
const PIECE: u64 = 0x400;
/// What processes' memory is described by, and what processors have counted of it.
const MM: u64 = BASE + 0xd000;
const COUNTED: u64 = BASE + 0xd100;
/// The log: its ring, descriptors of records, what is known of them, and their text.
const LOG: u64 = BASE + 0xe000;
const DESCRIPTORS: u64 = BASE + 0xe100;
const INFOS: u64 = BASE + 0xe300;
const TEXT: u64 = BASE + 0xe600;

/// Where the log is, as the kernel describes it.
const INFO: &str = "OSRELEASE=6.12.0\nPAGESIZE=4096\nSYMBOL(prb)=ffff80000000e0f0\nSIZE(prb_desc)=24\nSIZE(printk_info)=32\n\
    OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
    OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n\
    OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\nOFFSET(prb_data_ring.size_bits)=0\n\
    OFFSET(prb_data_ring.data)=8\nOFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\n\
    OFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\nOFFSET(printk_info.seq)=0\n\
    OFFSET(printk_info.ts_nsec)=8\nOFFSET(printk_info.text_len)=16\nOFFSET(printk_info.caller_id)=20\n";

/// Types in the kernel's format, one behind the other; the first has the number 1.
#[derive(Default)]
struct Types {
    types: Vec<u8>,
    names: Vec<u8>,
    count: u32,
}

impl Types {
    fn add(&mut self, name: &str, kind: u32, count: usize, last: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        let info = u32::try_from(count).unwrap_or(0) | kind << 24 | 1 << 31;
        let words = [name, info, last].into_iter().chain(rest.iter().copied());
        self.types.extend(words.flat_map(u32::to_le_bytes));
        self.count += 1;
        self.count
    }

    fn name(&mut self, name: &str) -> u32 {
        if self.names.is_empty() {
            self.names.push(0);
        }
        let at = u32::try_from(self.names.len()).unwrap_or(0);
        self.names.extend(name.bytes().chain([0]));
        at
    }

    fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let mut rest = Vec::new();
        for (name, of, at, bits) in members {
            let name = self.name(name);
            rest.extend([name, *of, bits << 24 | at]);
        }
        self.add(name, 4, members.len(), size, &rest)
    }

    fn whole(&self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(0);
        let words = [24, 0, length(&self.types), length(&self.types), length(&self.names)];
        let header = [0x9f, 0xeb, 1, 0].into_iter().chain(words.into_iter().flat_map(u32::to_le_bytes));
        header.chain(self.types.iter().copied()).chain(self.names.iter().copied()).collect()
    }
}

/// The types that all of it is made of: as kernels had them until 6.3 where it `is_old`, and else from 6.13 on.
fn types(is_old: bool) -> Vec<u8> {
    let mut types = Types::default();
    let long = types.add("unsigned long", 1, 0, 8, &[64]);
    let int = types.add("unsigned int", 1, 0, 4, &[32]);
    let short = types.add("short", 1, 0, 2, &[1 << 24 | 16]);
    let char = types.add("char", 1, 0, 1, &[8]);
    let name = types.add("", 3, 0, 0, &[char, int, 16]);
    let list = types.structure("list_head", 16, &[("next", long, 0, 0), ("prev", long, 64, 0)]);
    let member = |name, of, at: u32| (name, of, at * 8, 0);
    types.structure("signal_struct", 32, &[member("thread_head", list, 16)]);
    let context = types.structure(
        "cpu_context",
        24,
        &[member("fp", long, 0), member("sp", long, 8), member("pc", long, 16)],
    );
    let thread =
        types.structure("thread_struct", 32, &[member("cpu_context", context, 0), member("sp", long, 24)]);
    types.structure(
        "task_struct",
        160,
        &[
            member("__state", int, 0),
            member("flags", int, 4),
            member("exit_state", int, 8),
            member("pid", int, 12),
            member("tgid", int, 16),
            member("tasks", list, 24),
            member("thread_node", list, 40),
            member("real_parent", long, 56),
            member("signal", long, 64),
            member("mm", long, 72),
            member("comm", name, 80),
            member("thread", thread, 96),
            member("pi_blocked_on", long, 128),
        ],
    );
    let piece = types.structure("module_memory", 16, &[member("base", long, 0), member("size", int, 8)]);
    let pieces = types.add("", 3, 0, 0, &[piece, int, 3]);
    let layout = types.structure(
        "module_layout",
        24,
        &[member("base", long, 0), member("size", int, 8), member("text_size", int, 12)],
    );
    let tables = types.structure(
        "mod_arch_specific",
        24,
        &[member("num_orcs", int, 0), member("orc_unwind_ip", long, 8), member("orc_unwind", long, 16)],
    );
    types.structure("module_use", 24, &[member("source_list", list, 0), member("source", long, 16)]);
    types.structure(
        "mod_kallsyms",
        24,
        &[member("symtab", long, 0), member("num_symtab", int, 8), member("strtab", long, 16)],
    );
    types.structure(
        "module",
        160,
        &[
            member("state", int, 0),
            member("list", list, 8),
            member("name", name, 24),
            if is_old { member("core_layout", layout, 40) } else { member("mem", pieces, 40) },
            if is_old { member("init_layout", layout, 64) } else { member("args", long, 152) },
            member("refcnt", int, 88),
            member("source_list", list, 96),
            member("kallsyms", long, 112),
            member("arch", tables, 120),
        ],
    );
    types.structure(
        "orc_entry",
        6,
        &[
            member("sp_offset", short, 0),
            member("bp_offset", short, 2),
            ("sp_reg", int, 32, 4),
            ("bp_reg", int, 36, 4),
            ("type", int, 40, if is_old { 2 } else { 3 }),
            (if is_old { "end" } else { "signal" }, int, 43, 1),
        ],
    );
    if !is_old {
        types.structure("frame_record_meta", 24, &[member("type", long, 16)]);
    }
    let registers = types.add("", 3, 0, 0, &[long, int, 31]);
    let record = types.add("", 3, 0, 0, &[long, int, 2]);
    types.structure(
        "pt_regs",
        304,
        &[
            member("regs", registers, 0),
            member("bp", long, 32),
            member("r13", long, 16),
            member("r10", long, 56),
            member("dx", long, 96),
            member("di", long, 112),
            member("ip", long, 128),
            member("cs", long, 136),
            member("sp", long, 152),
            member("pc", long, 256),
            member("pstate", long, 264),
            member("stackframe", record, 280),
        ],
    );
    let counted = if is_old {
        let counts = types.add("", 3, 0, 0, &[long, int, 4]);
        types.structure("mm_rss_stat", 32, &[member("count", counts, 0)])
    } else {
        let counter =
            types.structure("percpu_counter", 24, &[member("count", long, 0), member("counters", long, 8)]);
        types.add("", 3, 0, 0, &[counter, int, 4])
    };
    types.structure("mm_struct", 128, &[member("total_vm", long, 0), member("rss_stat", counted, 8)]);
    add_locks(&mut types, [int, long, list]);
    types.structure("thread_union", u32::try_from(PIECE).unwrap_or(0), &[]);
    types.structure("inactive_task_frame", 56, &[member("bp", long, 40), member("ret_addr", long, 48)]);
    types.whole()
}

/// Those of locks.
fn add_locks(types: &mut Types, [int, long, list]: [u32; 3]) {
    let member = |name, of, at: u32| (name, of, at * 8, 0);
    let waiter = [member("list", list, 0), member("task", long, 16)];
    types.structure("mutex_waiter", 24, &waiter);
    types.structure("rwsem_waiter", 24, &waiter);
    types.structure(
        "mutex",
        32,
        &[member("owner", long, 0), member("osq", int, 8), member("wait_list", list, 16)],
    );
    types.structure("rw_semaphore", 40, &[member("owner", long, 8), member("wait_list", list, 24)]);
    let node = types.structure(
        "rb_node",
        24,
        &[member("__rb_parent_color", long, 0), member("rb_right", long, 8), member("rb_left", long, 16)],
    );
    let root = types.structure("rb_root", 8, &[member("rb_node", long, 0)]);
    let root = types.structure("rb_root_cached", 16, &[member("rb_root", root, 0)]);
    types.structure("rt_mutex_base", 32, &[member("waiters", root, 8), member("owner", long, 24)]);
    types.structure(
        "rt_mutex_waiter",
        48,
        &[member("tree_entry", node, 0), member("task", long, 24), member("lock", long, 32)],
    );
}

/// Memory that all of it is in.
fn memory() -> Vec<u8> {
    let mut memory = vec![0; SIZE];
    let mut put = |at: u64, word: u64| {
        let at = usize::try_from(at - BASE).unwrap_or(0);
        memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
    };
    let ring = |put: &mut dyn FnMut(u64, u64), nodes: &[u64]| {
        for (index, node) in nodes.iter().enumerate() {
            let next = nodes[(index + 1) % nodes.len()];
            put(*node, next);
            put(next + 8, *node);
        }
    };
    let tasks = [TASK, TASK + 0x100, TASK + 0x200];
    ring(&mut put, &tasks.map(|task| task + 24));
    for task in tasks {
        put(task + 64, task + 0xa0);
        ring(&mut put, &[task + 0xb0, task + 40]);
        put(task + 96 + 24, STACK);
        put(task + 96, STACK);
        put(task + 96 + 16, BASE + 0x140);
        put(task + 72, MM);
    }
    put(MM, 1000);
    for index in 0..4 {
        put(MM + 8 + 24 * index, 100);
        put(MM + 16 + 24 * index, COUNTED - BASE + 4 * index);
    }
    put_log(&mut put);
    let modules = [MODULE, MODULE + 0x100];
    ring(&mut put, &[MODULES, MODULE + 8, MODULE + 0x108]);
    for module in modules {
        put(module + 40, BASE);
        put(module + 48, 0x1000);
        put(module + 88, 2);
        ring(&mut put, &[module + 96, MODULES + 0x40]);
        put(MODULES + 0x50, MODULE);
        put(module + 112, MODULES + 0x80);
        put(module + 120, 8);
        put(module + 128, ADDRESSES);
        put(module + 136, ENTRIES);
    }
    put(MODULES + 0x80, SYMBOLS);
    put(MODULES + 0x88, 4);
    put(MODULES + 0x90, NAMES);
    for index in 0..4 {
        put(SYMBOLS + index * 24, 0x0001_0012_0000_0000 | (index * 4));
        put(SYMBOLS + index * 24 + 8, BASE + 0x100 * index);
        put(NAMES + index * 8, u64::from_le_bytes(*b"fun\0con\0"));
    }
    // Every two entries have one address in front of the other; calls by RSP, by RBP, and registers of an interrupt.
    for index in 0..8 {
        let begin = BASE + 0x100 * index;
        let offset = begin.wrapping_sub(ADDRESSES + index * 4) & 0xffff_ffff;
        put(ADDRESSES + index * 4, offset);
        let kinds = [0x0205_0000_0008u64, 0x0214_fff0_0010, 0x0305_0000_0000, 0x0405_0000_0008];
        put(ENTRIES + index * 6, kinds[usize::try_from(index % 4).unwrap_or(0)]);
    }
    // Two wait for what the other has, and the third to read what the first writes.
    for (index, task) in (0..).zip(tasks) {
        let (waiter, lock) = (waiter(index), LOCKS + index * 0x40);
        let list = if index == 2 { lock + 24 } else { lock + 16 };
        put(waiter + 16, task);
        ring(&mut put, &[list, waiter]);
    }
    // The third waits for one that lends priority as well, which the second has, and for which the first waits.
    let lending = LOCKS + 0x100;
    for (index, task) in [(0, tasks[0]), (2, tasks[2])] {
        let at = waiter(index) + 0x80;
        put(task + 128, at);
        put(at, if index == 0 { 1 } else { waiter(0) + 0x81 });
        put(at + 24, task);
        put(at + 32, lending);
    }
    put(waiter(0) + 0x90, waiter(2) + 0x80);
    put(lending + 8, waiter(0) + 0x80);
    put(lending + 24, tasks[1] | 1);
    put(LOCKS, tasks[1] | 1);
    put(LOCKS + 0x40, tasks[0] | 1);
    put(LOCKS + 0x48, 1);
    put(LOCKS + 0x88, tasks[0]);
    for at in (0..0x400).step_by(16) {
        put(STACK + at, STACK + at + 32);
        put(STACK + at + 8, BASE + 0x40 + at);
    }
    memory
}

/// A ring of eight records, of which the last is being written.
fn put_log(put: &mut dyn FnMut(u64, u64)) {
    put(BASE + 0xe0f0, LOG);
    for (at, word) in [(0, 3), (8, DESCRIPTORS), (16, INFOS), (24, 11), (32, 4), (48, 8), (56, TEXT)] {
        put(LOG + at, word);
    }
    for id in 4..12u64 {
        let (descriptor, info, at) = (DESCRIPTORS + id % 8 * 24, INFOS + id % 8 * 32, id * 24);
        let state = if id == 11 { 0 } else { 2 };
        (0..)
            .zip([state << 62 | id, at, at + 24])
            .for_each(|(index, word)| put(descriptor + 8 * index, word));
        let known = [id, id * 1_000_000, (0x8000_0000 | id) << 32 | (id % 8) << 29 | 8];
        (0..).zip(known).for_each(|(index, word)| put(info + 8 * index, word));
        put(TEXT + (at % 256) + 8, u64::from_le_bytes(*b"Oops\n\x1b[m"));
    }
}

/// The log from a record on, or all of it.
fn log(read: impl Fn(u64, &mut [u8]) -> usize, since: Option<u64>) -> Option<Log> {
    let info = VmCoreInfo::parse(INFO.as_bytes())?;
    info.log(read, &Wanted { most: usize::MAX, levels: Levels::ALL, since }).ok()
}

/// Where a task's waiter is on its stack.
fn waiter(index: u64) -> u64 {
    SLEEPERS + index * PIECE + 0x200
}

/// The stacks of those tasks.
fn stack_of(task: u64) -> Option<std::ops::Range<u64>> {
    let index = task.checked_sub(TASK).filter(|at| at % 0x100 == 0 && *at < 0x300)? / 0x100;
    let begin = SLEEPERS + index * PIECE;
    Some(begin..begin + PIECE)
}

/// Who waits for what.
fn waits(types: &debug::linux::Types, reader: &Reader<'_>) -> Vec<lock::Wait> {
    let (layout, mut seen) = (LockLayout::new(types), lock::Seen::default());
    let kinds = [LockKind::Mutex, LockKind::Mutex, LockKind::Read];
    let wait = |(task, kind)| {
        let stack = stack_of(task)?;
        layout.wait((task, stack.start + 0x40), kind, &stack_of, &mut seen, reader)
    };
    let tasks = || (0..3).map(|index| TASK + index * 0x100);
    let mut found: Vec<lock::Wait> = tasks().zip(kinds).filter_map(wait).collect();
    let blocked = |task| {
        let stack = stack_of(task).filter(|_| layout.is_blocked(task, reader))?;
        layout.blocked((task, stack.start + 0x40), ["mutex_lock"].into_iter(), &stack_of, reader)
    };
    found.extend(tasks().filter_map(blocked));
    found
}

/// What a task spins for that has all of the locks in its registers.
fn spun_for(types: &debug::linux::Types, reader: &Reader<'_>) -> Option<lock::Wait> {
    let words: Vec<u64> = (0..32).map(|index| LOCKS + index * 8).collect();
    let layout = LockLayout::new(types);
    layout.spun_for(TASK + 0x200, LockKind::Mutex, &words, &|task| task == TASK, reader)
}

/// Reads memory; how many bytes are good.
fn copy(memory: &[u8], at: u64, bytes: &mut [u8]) -> usize {
    let from = usize::try_from(at.wrapping_sub(BASE)).unwrap_or(usize::MAX);
    let rest = memory.get(from..).unwrap_or_default();
    let count = rest.len().min(bytes.len());
    bytes[..count].copy_from_slice(&rest[..count]);
    count
}

/// What may be shown of a name.
fn is_harmless(name: &str) -> bool {
    name.chars().all(is_plain)
}

/// The first byte says whether the kernel is an old one, and how many changes, of ten bytes each, are of types; the
/// others are of memory.
pub fn linux(data: &[u8]) {
    let (choice, data) = data.split_first().unwrap_or((&0, &[]));
    let (of_types, of_memory) = data.split_at((usize::from(choice & 0x7f) * 10).min(data.len()));
    let (mut types, mut memory) = (types(choice & 0x80 != 0), memory());
    change(&mut types, of_types);
    change(&mut memory, of_memory);
    let read = |at: u64, bytes: &mut [u8]| copy(&memory, at, bytes);
    let reader = Reader::new(&read);
    // Its own symbols, in what may be no table at all.
    let [count, names, token_table, token_index, offsets, base] =
        [0, 8, 0x1000, 0x2000, 0x3000, 0x4000].map(|at| BASE + at);
    for addresses in [Addresses::Absolute(offsets), Addresses::Relative { offsets, base }] {
        let place = Parts { count, names, token_table, token_index, addresses };
        if let Ok(symbols) = kallsyms::symbols(&place, read) {
            assert!(symbols.iter().all(|symbol| is_harmless(symbol.name)));
        }
    }
    for since in [None, Some(0), Some(8), Some(u64::MAX)] {
        let lines = log(read, since).map_or(Vec::new(), |log| log.lines());
        assert!(lines.iter().all(|line| is_harmless(&line.replace('\t', " "))));
    }
    let Ok(types) = btf::types(&types) else { return };
    let mut rounds = 0;
    let mut go_on = || {
        rounds += 1;
        if rounds < 100_000 { Ok(()) } else { Err(()) }
    };
    if let Ok(layout) = TaskLayout::new(&types)
        && let Ok(Ok(tasks)) = layout.tasks(TASK, &reader, &mut go_on)
    {
        assert!(tasks.all.iter().all(|task| is_harmless(&task.comm)));
        if let Ok(layout) = MmLayout::new(&types) {
            for task in tasks.all.iter().take(16) {
                // Whatever it has.
                layout.memory(task.mm, &[BASE, BASE + 0x10], &reader).ok();
            }
        }
    }
    let mut table = Some(orc::Table { addresses: ADDRESSES, entries: ENTRIES, count: 8 });
    if let Ok(layout) = ModuleLayout::new(&types)
        && let Ok(Ok(modules)) = layout.modules(MODULES, &reader, &mut go_on)
    {
        for module in modules.all.iter().take(4) {
            assert!(is_harmless(&module.name));
            if let Ok(symbols) = layout.symbols(module, &reader) {
                assert!(symbols.iter().all(|symbol| is_harmless(symbol.name)));
            }
            table = module.orc.or(table);
        }
    }
    let waits = waits(&types, &reader);
    assert!(spun_for(&types, &reader).is_none_or(|wait| wait.holder == lock::Holder::Task(TASK)));
    assert!(lock::circles(&waits).iter().all(|circle| !circle.is_empty() && circle.len() <= waits.len()));
    let starts = [orc::asleep(&types, STACK, &reader), frame_pointer::asleep(&types, TASK, &reader)];
    let here = Start {
        pc: BASE + 0x210,
        sp: STACK,
        fp: STACK + 0x20,
        is_guessed: false,
        is_exact: true,
        link: Some(1),
        general: Some([STACK; 16]),
    };
    for start in starts.into_iter().flatten().chain([here]) {
        let mut stacks = Vec::new();
        if let Ok(layout) = orc::Layout::new(&types) {
            stacks.push(layout.stack(start, |_| table, &cfi::none, &reader));
        }
        if let Ok(layout) = frame_pointer::Layout::new(&types, 0) {
            stacks.push(layout.stack(start, |pc| Some(pc & !0xff), &cfi::none, &reader));
        }
        assert!(stacks.iter().all(|stack| stack.frames.first().is_some_and(|frame| frame.pc == start.pc)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nothing was changed in is found, all of it: or else nothing is fuzzed.
    #[test]
    fn what_is_whole_is_found() {
        for is_old in [false, true] {
            all_is_found(is_old);
        }
    }

    fn all_is_found(is_old: bool) {
        let (types, memory) = (btf::types(&types(is_old)).unwrap(), memory());
        let read = |at: u64, bytes: &mut [u8]| copy(&memory, at, bytes);
        let reader = Reader::new(&read);
        let mut go_on = || Ok::<(), ()>(());
        let tasks = TaskLayout::new(&types).unwrap().tasks(TASK, &reader, &mut go_on).unwrap().unwrap();
        assert_eq!((tasks.all.len(), tasks.remarks.len()), (3, 0), "{tasks:?}");
        let counted =
            MmLayout::new(&types).unwrap().memory(tasks.all[2].mm, &[BASE, BASE + 0x10], &reader).unwrap();
        assert_eq!(
            (counted.mapped, counted.is_exact, counted.resident > 100),
            (1000, true, true),
            "{counted:?}"
        );
        let whole = log(read, None).unwrap();
        assert_eq!(
            (whole.records.len(), whole.next, &*whole.lines()[1]),
            (7, 11, "               \u{fffd}[m"),
            "{whole:?}"
        );
        assert_eq!(log(read, Some(8)).unwrap().records.len(), 3);
        let layout = ModuleLayout::new(&types).unwrap();
        let modules = layout.modules(MODULES, &reader, &mut go_on).unwrap().unwrap();
        assert_eq!(modules.all.len(), 2, "{modules:?}");
        assert_eq!(layout.symbols(&modules.all[0], &reader).unwrap().count(), 4);
        let table = modules.all[0].orc.unwrap();
        let start =
            Start { pc: BASE + 0x10, sp: STACK, fp: STACK + 0x20, is_exact: true, ..Start::default() };
        let stack = orc::Layout::new(&types).unwrap().stack(start, |_| Some(table), &cfi::none, &reader);
        assert!(stack.frames.len() > 2, "{stack:?}");
        let start = frame_pointer::asleep(&types, TASK, &reader).unwrap();
        let stack = frame_pointer::Layout::new(&types, 0).unwrap().stack(
            start,
            |pc| Some(pc & !0xff),
            &cfi::none,
            &reader,
        );
        assert!(stack.frames.len() > 2, "{stack:?}");
        assert!(orc::asleep(&types, STACK, &reader).is_ok());
        let waits = waits(&types, &reader);
        assert_eq!(waits.len(), 5, "{waits:?}");
        assert_eq!(waits[4].lock, LOCKS + 0x100, "{waits:?}");
        assert_eq!(spun_for(&types, &reader).map(|wait| wait.lock), Some(LOCKS + 0x40));
        assert_eq!(lock::circles(&waits), [vec![TASK, TASK + 0x100]]);
    }
}
