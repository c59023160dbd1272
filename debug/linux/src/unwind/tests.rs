//! Stacks in memory made here.

use super::*;
use crate::made::{self, BASE, CHAR, INT, Made, POINTER, compound};
use crate::reader::Reader;
use crate::symbols::{Builder, Kind, Symbol};
use crate::types::{Member, Shape, TypeId, Types};

fn array(types: &mut Types, of: u32, count: u32) -> u32 {
    types.add("", Shape::Array(TypeId(of), count));
    u32::try_from(types.count()).unwrap() - 1
}

/// `struct orc_entry` of a kernel until 6.3, and from 6.4 on, and `struct pt_regs` of x86 as it is.
fn x86(is_new: bool) -> Types {
    let mut types = made::types();
    types.add("short", Shape::Integer { size: 2, is_signed: true, is_bool: false }); // 5
    let member = |name: &str, of: u32, at: u32, bits: Option<u8>| Member {
        name: name.into(),
        of: TypeId(of),
        at,
        bits,
    };
    let mut members = vec![
        member("sp_offset", 5, 0, None),
        member("bp_offset", 5, 16, None),
        member("sp_reg", INT, 32, Some(4)),
        member("bp_reg", INT, 36, Some(4)),
    ];
    match is_new {
        true => members.extend([member("type", INT, 40, Some(3)), member("signal", INT, 43, Some(1))]),
        false => members.extend([member("type", INT, 40, Some(2)), member("end", INT, 43, Some(1))]),
    }
    let members = types.add_members(members.into_iter());
    types.add("orc_entry", Shape::Compound { size: 6, is_union: false, members });
    let names = [
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
        "orig_ax", "ip", "cs", "flags", "sp", "ss",
    ];
    let registers: Vec<_> =
        names.into_iter().zip((0..).step_by(8)).map(|(name, at)| (name, POINTER, at)).collect();
    compound(&mut types, "pt_regs", 168, &registers);
    compound(&mut types, "inactive_task_frame", 56, &[("bp", POINTER, 40), ("ret_addr", POINTER, 48)]);
    types
}

const CALL: u64 = 0;
const REGISTERS: u64 = 1;
const SOME_REGISTERS: u64 = 2;

/// An entry: where it begins, the stack's register and offset, RBP's, and its kind as it is until 6.3.
type Row = (u64, (u64, i16), (u64, i16), u64);

/// Where code begins, and the tables.
const TEXT: u64 = BASE;
const IPS: u64 = BASE + 0x4000;
const ENTRIES: u64 = BASE + 0x5000;
const STACK: u64 = BASE + 0x8000;

const TABLE: &[Row] = &[
    // The outermost: there is nothing behind it.
    (TEXT, (0, 0), (0, 0), 0x8),
    // A function that has pushed RBP and set it.
    (TEXT + 0x100, (4, 16), (1, -16), CALL),
    // One without a frame of its own.
    (TEXT + 0x200, (5, 8), (0, 0), CALL),
    // The entry of an interrupt, with all registers at the stack pointer.
    (TEXT + 0x300, (5, 0), (0, 0), REGISTERS),
    // The same with what the processor has left.
    (TEXT + 0x400, (5, 8), (0, 0), SOME_REGISTERS),
    // By what RBP points to, and by R10.
    (TEXT + 0x500, (8, -8), (0, 0), CALL),
    (TEXT + 0x600, (6, 0), (0, 0), CALL),
    // By what RSP points to.
    (TEXT + 0x700, (9, 16), (0, 0), CALL),
    // Nothing.
    (TEXT + 0x800, (0, 0), (0, 0), CALL),
];

fn kernel(is_new: bool) -> Made {
    let kernel = Made::new(0x1_0000);
    for (index, (begin, sp, bp, kind)) in (0..).zip(TABLE) {
        let at = IPS + index * 4;
        let offset = u32::try_from(begin.wrapping_sub(at) & 0xffff_ffff).unwrap();
        (at..).zip(offset.to_le_bytes()).for_each(|(at, byte)| kernel.byte(at, byte));
        // Two more kinds, in front.
        let kind = match (is_new, kind) {
            (true, 0x8) => 1,
            (true, kind) => kind + 2,
            (false, kind) => *kind,
        };
        let half = |offset: i16| u64::from(offset.cast_unsigned());
        let word = half(sp.1) | half(bp.1) << 16 | sp.0 << 32 | bp.0 << 36 | kind << 40;
        let bytes = word.to_le_bytes();
        (ENTRIES + index * 6..).zip(&bytes[..6]).for_each(|(at, byte)| kernel.byte(at, *byte));
    }
    kernel
}

fn table(pc: u64) -> Option<orc::Table> {
    let count = TABLE.len() as u64;
    (pc < TEXT + 0x1000).then_some(orc::Table { addresses: IPS, entries: ENTRIES, count })
}

fn stack(kernel: &Made, is_new: bool, start: Start) -> Stack {
    let read = kernel.read();
    let layout = orc::Layout::new(&x86(is_new)).unwrap();
    layout.stack(start, table, &cfi::none, &Reader::new(&read))
}

fn unwound(kernel: &Made, is_new: bool, start: Start) -> (Vec<(u64, bool)>, StackEnd) {
    let Stack { frames, end } = stack(kernel, is_new, start);
    (frames.iter().map(|frame| (frame.pc - TEXT, frame.is_exact)).collect(), end)
}

fn here(pc: u64, sp: u64, fp: u64) -> Start {
    Start { pc: TEXT + pc, sp, fp, is_exact: true, general: Some([0; 16]), ..Start::default() }
}

#[test]
fn calls_lead_back_to_where_the_stack_begins() {
    for is_new in [false, true] {
        let kernel = kernel(is_new);
        // In a function without a frame, which was called by one with, which was called by the outermost.
        kernel.put(STACK, TEXT + 0x140);
        let caller = STACK + 0x40;
        kernel.put(caller, 0x1234);
        kernel.put(caller + 8, TEXT + 0x20);
        let (frames, end) = unwound(&kernel, is_new, here(0x210, STACK, caller));
        assert_eq!(
            (&frames[..], end),
            (&[(0x210, true), (0x140, false), (0x20, false)][..], StackEnd::Bottom)
        );
        // The call was a function's last instruction: it is the byte before that counts.
        kernel.put(STACK, TEXT + 0x200);
        assert_eq!(
            unwound(&kernel, is_new, here(0x210, STACK, caller)).0[1..],
            [(0x200, false), (0x20, false)]
        );
    }
}

#[test]
fn interrupts_lead_to_what_they_have_interrupted() {
    for is_new in [false, true] {
        let kernel = kernel(is_new);
        let put = |at: u64, ip: u64, cs: u64, sp: u64, bp: u64| {
            kernel.put(at + 32, bp);
            kernel.put(at + 128, ip);
            kernel.put(at + 136, cs);
            kernel.put(at + 152, sp);
        };
        // All registers, of the kernel, in front of a function's first instruction; then it was called by the outermost.
        put(STACK, TEXT + 0x200, 0x10, STACK + 0x400, 0x77);
        kernel.put(STACK + 0x400, TEXT + 0x20);
        let frames = unwound(&kernel, is_new, here(0x310, STACK, 0));
        assert_eq!(frames, (vec![(0x310, true), (0x200, true), (0x20, false)], StackEnd::Bottom));
        // What R10 was is there, too.
        put(STACK, TEXT + 0x610, 0x10, STACK + 0x400, 0);
        kernel.put(STACK + 56, STACK + 0x508);
        kernel.put(STACK + 0x500, TEXT + 0x20);
        assert_eq!(unwound(&kernel, is_new, here(0x310, STACK, 0)).0[1..], [(0x610, true), (0x20, false)]);
        // Of user space.
        put(STACK, 0x40_1000, 0x33, 0x7fff_0000, 0);
        assert_eq!(
            unwound(&kernel, is_new, here(0x310, STACK, 0)),
            (vec![(0x310, true)], StackEnd::User(0x40_1000))
        );
        // Only what the processor has left, behind one word: RIP, CS, flags, RSP.
        kernel.put(STACK + 8, TEXT + 0x210);
        kernel.put(STACK + 16, 0x10);
        kernel.put(STACK + 32, STACK + 0x400);
        kernel.put(STACK + 0x400, TEXT + 0x20);
        let frames = unwound(&kernel, is_new, here(0x410, STACK, 0));
        assert_eq!(frames, (vec![(0x410, true), (0x210, true), (0x20, false)], StackEnd::Bottom));
    }
}

#[test]
fn stacks_that_are_found_by_other_registers() {
    let kernel = kernel(true);
    // What is 8 bytes in front of where RBP points to.
    kernel.put(STACK + 0x38, STACK + 0x108);
    kernel.put(STACK + 0x100, TEXT + 0x20);
    assert_eq!(unwound(&kernel, true, here(0x510, STACK, STACK + 0x40)).0[1..], [(0x20, false)]);
    // 16 bytes behind what RSP points to.
    kernel.put(STACK, STACK + 0xf8);
    assert_eq!(unwound(&kernel, true, here(0x710, STACK, 0)).0[1..], [(0x20, false)]);
    // A caller's register that nobody has saved.
    kernel.put(STACK, TEXT + 0x610);
    let (frames, end) = unwound(&kernel, true, here(0x210, STACK, 0));
    assert_eq!(frames.len(), 2);
    assert!(matches!(end, StackEnd::Lost(why) if why.contains("nobody has saved")));
}

#[test]
fn what_is_not_known_is_said() {
    let kernel = kernel(true);
    let lost = |start| match unwound(&kernel, true, start).1 {
        StackEnd::Lost(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(lost(here(0x810, STACK, 0)).contains("has no stack at 0x"));
    // Outside memory, and round and round.
    assert!(lost(here(0x210, 0x1000, 0)).contains("cannot be read at 0x1000"));
    kernel.put(STACK + 0x40, STACK + 0x40);
    kernel.put(STACK + 0x48, TEXT + 0x140);
    assert!(lost(here(0x110, STACK, STACK + 0x40)).contains("leads back"));
    // Without end: each frame is a little further up.
    for at in (0..0x7000).step_by(16) {
        kernel.put(STACK + at, STACK + at + 16);
        kernel.put(STACK + at + 8, TEXT + 0x140);
    }
    assert!(lost(here(0x110, STACK - 8, STACK)).contains("more than 512 frames"));
    // No table has it: by the frame pointer, and where that is none, not at all.
    let (frames, _) = unwound(&kernel, true, here(0x2000, STACK, STACK + 0x100));
    assert_eq!(frames[..2], [(0x2000, true), (0x140, false)]);
    // And what that leads to, by a table or not, is as good as it.
    let guessed =
        |start| stack(&kernel, true, start).frames.iter().map(|it| it.is_guessed).collect::<Vec<_>>();
    assert_eq!(guessed(here(0x2000, STACK, STACK + 0x100))[..4], [false, true, true, true]);
    assert!(guessed(here(0x110, STACK - 8, STACK)).iter().all(|is_guessed| !is_guessed));
    assert!(lost(here(0x2000, STACK, STACK - 16)).contains("nothing tells"));
    let types = made::types();
    assert!(orc::Layout::new(&types).unwrap_err().contains("CONFIG_UNWINDER_ORC"));
}

#[test]
fn the_kernels_own_table_is_where_its_symbols_say() {
    let symbols = |names: &[(&str, u64)]| {
        let mut builder = Builder::default();
        for &(name, address) in names {
            builder.add(Symbol { name, address, kind: Kind::Data, is_global: true });
        }
        builder.finish()
    };
    let all =
        [("__start_orc_unwind_ip", 0x1000), ("__stop_orc_unwind_ip", 0x1040), ("__start_orc_unwind", 0x2000)];
    let table = orc::Table::of_kernel(&symbols(&all)).unwrap();
    assert_eq!((table.addresses, table.entries, table.count), (0x1000, 0x2000, 16));
    assert_eq!(orc::Table::of_kernel(&symbols(&all[..2])), None);
    let turned = [("__start_orc_unwind_ip", 0x1040), ("__stop_orc_unwind_ip", 0x1000), all[2]];
    assert_eq!(orc::Table::of_kernel(&symbols(&turned)), None);
}

#[test]
fn a_task_that_sleeps_goes_on_where_it_has_saved() {
    let kernel = kernel(true);
    kernel.put(STACK + 40, 0x1234);
    kernel.put(STACK + 48, TEXT + 0x140);
    let read = kernel.read();
    let start = orc::asleep(&x86(true), STACK, &Reader::new(&read)).unwrap();
    assert_eq!((start.pc, start.fp, start.sp, start.is_exact), (TEXT + 0x140, 0x1234, STACK + 56, false));
    // A function that is nowhere was called from the one with a frame.
    let called = Start { pc: 0, sp: STACK + 48, fp: STACK + 0x100, is_exact: true, ..Start::default() };
    kernel.put(STACK + 0x108, TEXT + 0x20);
    let layout = orc::Layout::new(&x86(true)).unwrap();
    let stack = layout.stack(called, table, &cfi::none, &Reader::new(&read));
    let pcs: Vec<u64> = stack.frames.iter().map(|frame| frame.pc).collect();
    assert_eq!((pcs, stack.end), (vec![0, TEXT + 0x140, TEXT + 0x20], StackEnd::Bottom));
    // Those that have no member are not saved.
    let saved = orc::saved(&x86(true), STACK, &Reader::new(&read)).unwrap();
    assert_eq!(
        (saved.pc(), saved.get("rsp"), saved.get("rbp")),
        (Some(start.pc), Some(start.sp), Some(0x1234))
    );
    assert_eq!((saved.get("rbx"), saved.get("rax"), saved.iter().count()), (None, None, 3));
    let mut whole = made::types();
    let names = ["r15", "r14", "r13", "r12", "bx", "bp", "ret_addr"];
    let members: Vec<(&str, u32, u32)> =
        names.into_iter().zip((0..).step_by(8)).map(|(name, at)| (name, POINTER, at)).collect();
    compound(&mut whole, "inactive_task_frame", 56, &members);
    kernel.put(STACK + 24, 0x12);
    kernel.put(STACK + 32, 0xb);
    let saved = orc::saved(&whole, STACK, &Reader::new(&read)).unwrap();
    assert_eq!((saved.get("r12"), saved.get("rbx"), saved.iter().count()), (Some(0x12), Some(0xb), 8));
    assert!(orc::asleep(&made::types(), STACK, &Reader::new(&read)).is_err());
    assert!(orc::asleep(&x86(true), 0x10, &Reader::new(&read)).unwrap_err().contains("cannot be read"));
}

/// `struct pt_regs` of aarch64, until 6.12 and from 6.13 on.
fn aarch64(is_new: bool) -> Types {
    let mut types = made::types();
    let registers = array(&mut types, POINTER, 31);
    let record = if is_new { 3 } else { 2 };
    let record = array(&mut types, POINTER, record);
    compound(
        &mut types,
        "pt_regs",
        304,
        &[
            ("regs", registers, 0),
            ("sp", POINTER, 248),
            ("pc", POINTER, 256),
            ("pstate", POINTER, 264),
            ("stackframe", record, 280),
        ],
    );
    if is_new {
        compound(&mut types, "frame_record_meta", 24, &[("type", POINTER, 16)]);
    }
    let name = array(&mut types, CHAR, 16);
    compound(&mut types, "cpu_context", 32, &[("fp", POINTER, 0), ("sp", POINTER, 8), ("pc", POINTER, 16)]);
    let context = u32::try_from(types.count()).unwrap() - 1;
    compound(&mut types, "thread_struct", 32, &[("cpu_context", context, 0)]);
    compound(&mut types, "task_struct", 64, &[("comm", name, 0), ("thread", context + 1, 16)]);
    types
}

/// Bits of an authentication code, and an address that has one.
const CODE_BITS: u64 = 0x007f_0000_0000_0000;
fn signed(address: u64) -> u64 {
    address & !CODE_BITS | 0x0015_0000_0000_0000
}
fn text(offset: u64) -> u64 {
    (TEXT + offset) | CODE_BITS
}

#[test]
fn frames_of_aarch64_lead_to_each_other() {
    for is_new in [false, true] {
        let kernel = Made::new(0x1_0000);
        let regs = STACK + 0x1000;
        let record = |at: u64, fp: u64, pc: u64| {
            kernel.put(at, fp);
            kernel.put(at + 8, pc);
        };
        record(STACK, STACK + 0x40, signed(TEXT + 0x140));
        record(STACK + 0x40, regs + 280, signed(TEXT + 0x240));
        // The registers of an exception, in the kernel.
        let (fp, pc) = (STACK + 0x2000, text(0x300));
        kernel.put(regs + 29 * 8, fp);
        kernel.put(regs + 30 * 8, signed(TEXT + 0x440));
        kernel.put(regs + 248, STACK + 0x1f00);
        kernel.put(regs + 256, pc);
        kernel.put(regs + 264, 5);
        match is_new {
            true => kernel.put(regs + 280 + 16, 2),
            false => record(regs + 280, fp, pc),
        }
        // And then those of user space.
        let user = STACK + 0x3000;
        record(fp, user + 280, signed(TEXT + 0x540));
        kernel.put(user + 256, 0x40_1000);
        kernel.put(user + 280 + 16, 1);
        let read = kernel.read();
        let reader = Reader::new(&read);
        let layout = frame_pointer::Layout::new(&aarch64(is_new), CODE_BITS).unwrap();
        let start =
            Start { pc: text(0x40), sp: STACK, fp: STACK, link: Some(1), is_exact: true, ..Start::default() };
        let unwound = |start, function: &dyn Fn(u64) -> Option<u64>| {
            let Stack { frames, end } = layout.stack(start, function, &cfi::none, &reader);
            let frames: Vec<_> = frames.iter().map(|it| (it.pc - text(0), it.is_exact)).collect();
            (frames, end)
        };
        let all = [(0x40, true), (0x140, false), (0x240, false), (0x300, true), (0x540, false)];
        // Functions have 256 bytes each.
        let known = |pc: u64| Some(pc & !0xff).filter(|begin| (text(0)..text(0x1000)).contains(begin));
        // What was interrupted had no frame yet, or no more: its caller is in the link register.
        let with_leaf = [&all[..4], &[(0x440, false), (0x540, false)]].concat();
        assert_eq!(unwound(start, &known), (with_leaf.clone(), StackEnd::User(0x40_1000)), "{is_new}");
        // It had one: the register leads to where it has called from itself, to where its record leads, or nowhere.
        for link in [signed(TEXT + 0x320), signed(TEXT + 0x540), 0x1234] {
            kernel.put(regs + 30 * 8, link);
            assert_eq!(
                unwound(start, &known),
                (all.to_vec(), StackEnd::User(0x40_1000)),
                "{is_new} {link:#x}"
            );
        }
        // A function that is nowhere was called.
        kernel.put(regs + 30 * 8, signed(TEXT + 0x440));
        let nowhere = Start { pc: 0, link: Some(signed(TEXT + 0x640)), ..start };
        let frames = layout.stack(nowhere, known, &cfi::none, &reader).frames;
        assert_eq!((frames[0].pc, frames[1].pc, frames[2].pc), (0, text(0x640), text(0x140)));
        // A thread of the kernel's.
        kernel.put(user + 256, 0);
        assert_eq!(unwound(start, &known).1, StackEnd::Bottom);
        // What is no frame.
        let odd = |fp| unwound(Start { fp, link: None, ..start }, &known).1;
        assert_eq!(odd(0), StackEnd::Bottom);
        assert!(matches!(odd(STACK + 1), StackEnd::Lost(_)) && matches!(odd(0x1000), StackEnd::Lost(_)));
    }
    assert!(frame_pointer::Layout::new(&made::types(), 0).unwrap_err().contains("struct pt_regs's"));
}

#[test]
fn a_task_of_aarch64_goes_on_where_it_has_saved() {
    let kernel = Made::new(0x1000);
    let read = kernel.read();
    let task = BASE + 0x100;
    kernel.put(task + 16, 1);
    kernel.put(task + 24, 2);
    kernel.put(task + 32, 3);
    let start = frame_pointer::asleep(&aarch64(true), task, &Reader::new(&read)).unwrap();
    assert_eq!((start.fp, start.sp, start.pc, start.link), (1, 2, 3, None));
    let saved = frame_pointer::saved(&aarch64(true), task, &Reader::new(&read)).unwrap();
    assert_eq!(
        (saved.get("x29"), saved.get("sp"), saved.pc(), saved.iter().count()),
        (Some(1), Some(2), Some(3), 3)
    );
    assert!(
        frame_pointer::saved(&made::types(), task, &Reader::new(&read))
            .unwrap_err()
            .contains("cpu_context.pc")
    );
}

/// What a file says of functions of x86: of one that has pushed nothing, of one that has pushed two words, and of one that
/// is the outermost.
fn x86_rows(pc: u64) -> Option<cfi::Row> {
    let row = |frame, fp| cfi::Row { frame, pc: cfi::Rule::Saved(-8), fp };
    match pc.wrapping_sub(TEXT) {
        0x2000..0x2100 => Some(row((7, 8), cfi::Rule::Same)),
        0x2100..0x2200 => Some(row((7, 24), cfi::Rule::Saved(-16))),
        // By a register that only a processor's own frame has: RDX, which instructions call 2.
        0x2200..0x2300 => Some(row((1, 8), cfi::Rule::Same)),
        0x2300..0x2400 => Some(cfi::Row { frame: (7, 8), pc: cfi::Rule::Lost, fp: cfi::Rule::Same }),
        0x800..0x900 => Some(row((7, 8), cfi::Rule::Same)),
        _ => None,
    }
}

#[test]
fn what_no_table_has_a_file_may_have() {
    let kernel = kernel(true);
    let layout = orc::Layout::new(&x86(true)).unwrap();
    let read = kernel.read();
    let reader = Reader::new(&read);
    let unwound = |start| {
        let Stack { frames, end } = layout.stack(start, table, &x86_rows, &reader);
        (frames.iter().map(|it| (it.pc - TEXT, it.sp, it.is_guessed)).collect::<Vec<_>>(), end)
    };
    // Called by one that is in no table either, which was called by one that is, by its RBP.
    kernel.put(STACK, TEXT + 0x2140);
    kernel.put(STACK + 16, STACK + 0x40);
    kernel.put(STACK + 24, TEXT + 0x140);
    kernel.put(STACK + 0x48, TEXT + 0x20);
    let frames = vec![
        (0x2010, STACK, false),
        (0x2140, STACK + 8, false),
        (0x140, STACK + 32, false),
        (0x20, STACK + 0x50, false),
    ];
    assert_eq!(unwound(here(0x2010, STACK, 0x77)), (frames, StackEnd::Bottom));
    // Of what the table says that nothing is known.
    let undefined = orc::Table { addresses: IPS, entries: ENTRIES, count: 0 };
    let nowhere = layout.stack(here(0x810, STACK, 0), |_| Some(undefined), &x86_rows, &reader);
    assert_eq!(nowhere.frames[1].pc, TEXT + 0x2140);
    // By RDX; the caller's is not known, and then it is by the frame pointer.
    kernel.put(STACK + 0x100, TEXT + 0x2240);
    let mut start = here(0x2210, STACK, STACK + 0x200);
    start.general = Some(std::array::from_fn(|number| if number == 2 { STACK + 0x100 } else { 0 }));
    kernel.put(STACK + 0x208, TEXT + 0x20);
    let (frames, _) = unwound(start);
    assert_eq!(frames.iter().map(|it| it.0).collect::<Vec<_>>(), [0x2210, 0x2240, 0x20]);
    assert_eq!(frames.iter().map(|it| it.2).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(unwound(here(0x2310, STACK, 0)), (vec![(0x2310, STACK, false)], StackEnd::Bottom));
    // What leads to itself comes to an end, and so does what leads nowhere.
    let round = |_| Some(cfi::Row { frame: (7, 0), pc: cfi::Rule::Saved(0), fp: cfi::Rule::Same });
    kernel.put(STACK, TEXT + 0x2000);
    let stack = layout.stack(here(0x2000, STACK, 0), |_| None, &round, &reader);
    assert!(matches!(&stack.end, StackEnd::Lost(why) if why.contains("leads back")), "{stack:?}");
    let far = |_| {
        Some(cfi::Row {
            frame: (7, i64::MIN),
            pc: cfi::Rule::Saved(i64::MIN),
            fp: cfi::Rule::Address(i64::MAX),
        })
    };
    let stack = layout.stack(here(0x2000, u64::MAX, 0), |_| None, &far, &reader);
    assert!(matches!(&stack.end, StackEnd::Lost(why) if why.contains("cannot be read")), "{stack:?}");
}

#[test]
fn on_aarch64_a_file_knows_where_a_function_returns_to() {
    const CALLER: u64 = TEXT + 0x140;
    const OUTER: u64 = TEXT + 0x240;
    for is_new in [false, true] {
        let kernel = Made::new(0x1_0000);
        let regs = STACK + 0x1000;
        let layout = frame_pointer::Layout::new(&aarch64(is_new), CODE_BITS).unwrap();
        // The caller's record, and behind it the one of a thread that began here.
        kernel.put(STACK + 0x40, regs + 280);
        kernel.put(STACK + 0x48, signed(OUTER));
        kernel.put(regs + 280 + 16, 1);
        // Where the function has its own, once it has made it.
        kernel.put(STACK, STACK + 0x40);
        kernel.put(STACK + 8, signed(CALLER));
        let read = kernel.read();
        let reader = Reader::new(&read);
        let function =
            |pc: u64| Some((pc | CODE_BITS) & !0xff).filter(|begin| begin.wrapping_sub(text(0)) < 0x1000);
        // In front of its first instruction that saves something, behind that, and in front of the last.
        let rows = |pc: u64| {
            let row = |frame, pc, fp| Some(cfi::Row { frame, pc, fp });
            match (pc | CODE_BITS).wrapping_sub(text(0)) {
                0x300..0x304 | 0x340..0x344 => row((31, 0), cfi::Rule::Same, cfi::Rule::Same),
                0x304..0x340 => row((31, 0x20), cfi::Rule::Saved(-24), cfi::Rule::Saved(-32)),
                0x380 => row((31, 0), cfi::Rule::Register(9), cfi::Rule::Same),
                _ => None,
            }
        };
        let unwound = |start, frames: &cfi::CallFrames<'_>| {
            let Stack { frames, end } = layout.stack(start, function, frames, &reader);
            assert_eq!(end, StackEnd::Bottom);
            frames.iter().map(|it| (it.pc | CODE_BITS) - text(0)).collect::<Vec<_>>()
        };
        let at = |pc, sp, fp, link| Start { pc: text(pc), sp, fp, link, is_exact: true, ..Start::default() };
        let called = Some(signed(CALLER));
        let (bare, inner) = (STACK + 0x20, STACK);
        for (start, frames) in [
            (at(0x300, bare, STACK + 0x40, called), vec![0x300, 0x140, 0x240]),
            (at(0x304, inner, STACK + 0x40, called), vec![0x304, 0x140, 0x240]),
            (at(0x320, inner, inner, called), vec![0x320, 0x140, 0x240]),
            // What is in the register has nothing to do with where it returns to.
            (at(0x320, inner, inner, Some(text(0x640))), vec![0x320, 0x140, 0x240]),
            (at(0x340, bare, STACK + 0x40, called), vec![0x340, 0x140, 0x240]),
            // It has called itself: the register leads into the function, and is right.
            (at(0x300, bare, STACK, Some(text(0x330))), vec![0x300, 0x330, 0x140, 0x240]),
        ] {
            assert_eq!(unwound(start, &rows), frames, "{is_new} {start:x?}");
        }
        // Without it two of these are wrong.
        assert_eq!(unwound(at(0x320, inner, inner, Some(text(0x640))), &cfi::none)[1], 0x640);
        assert_eq!(unwound(at(0x300, bare, STACK, Some(text(0x330))), &cfi::none)[1], 0x140);
        // A register that nobody knows, what is not there, and what leads to no code: as without it.
        let plain = unwound(at(0x380, inner, inner, None), &cfi::none);
        assert_eq!(unwound(at(0x380, inner, inner, None), &rows), plain);
        for row in [
            cfi::Row { frame: (31, 0), pc: cfi::Rule::Saved(i64::MAX), fp: cfi::Rule::Same },
            cfi::Row { frame: (31, 0), pc: cfi::Rule::Saved(0x800), fp: cfi::Rule::Same },
            cfi::Row { frame: (31, 0), pc: cfi::Rule::Lost, fp: cfi::Rule::Same },
        ] {
            assert_eq!(
                unwound(at(0x320, inner, inner, None), &|_| Some(row)),
                [0x320, 0x140, 0x240],
                "{row:?}"
            );
        }
    }
}
