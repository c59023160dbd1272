use super::*;
use std::cell::RefCell;
use std::collections::HashMap;

/// A guest's memory and registers.
#[derive(Default)]
struct Guest {
    memory: RefCell<HashMap<u64, u8>>,
    registers: HashMap<&'static str, u64>,
}

impl Guest {
    fn write(&self, at: u64, bytes: &[u8]) {
        let mut memory = self.memory.borrow_mut();
        memory.extend((at..).zip(bytes.iter().copied()));
    }

    /// A gate of 64-bit mode for `handler`.
    fn gate_64(&self, vector: u64, handler: u64, attributes: u8) {
        let [a, b, c, d, e, f, g, h] = handler.to_le_bytes();
        let gate = [a, b, 0x10, 0, 0, attributes, c, d, e, f, g, h, 0, 0, 0, 0];
        self.write(IDT + vector * 16, &gate);
    }

    fn gate_32(&self, vector: u64, handler: u32, attributes: u8) {
        let [a, b, c, d] = handler.to_le_bytes();
        self.write(IDT + vector * 8, &[a, b, 0x08, 0, 0, attributes, c, d]);
    }
}

impl Look for Guest {
    fn memory(&self, linear: u64, bytes: &mut [u8]) -> bool {
        let memory = self.memory.borrow();
        (linear..).zip(bytes).all(|(at, byte)| memory.get(&at).map(|known| *byte = *known).is_some())
    }

    fn register(&self, name: &'static str) -> Option<u64> {
        self.registers.get(name).copied()
    }
}

const IDT: u64 = 0x1000;
const GDT: u64 = 0x3000;
const INTERRUPT: u8 = 0x8e;
const FOR_USERS: u8 = 0xee;
/// A gate that is not present; 0 would be no gate at all.
const ABSENT: u8 = 0x0e;
const HANDLERS: u64 = 0xffff_8000_0000_0000;

fn handler_64(vector: u64) -> u64 {
    HANDLERS + vector * 0x100
}

/// A kernel in long mode with a handler for each exception; user programs may `int3` and `int 0x80`.
fn long_mode() -> (Guest, Processor) {
    let mut guest = Guest::default();
    for vector in 0..32 {
        let attributes = if vector == 3 { FOR_USERS } else { INTERRUPT };
        guest.gate_64(vector, handler_64(vector), attributes);
    }
    for vector in 32..256 {
        guest.gate_64(vector, handler_64(vector), if vector == 0x80 { FOR_USERS } else { ABSENT });
    }
    guest.gate_64(0xff, 0, 0);
    guest.registers.extend([("lstar", 0x64_0000), ("cstar", 0x32_0000), ("star", 0x1234_5678)]);
    guest.registers.insert("rcx", 0x7fff_1234_5678);
    let idt = DescriptorTable { base: IDT, limit: 0xfff };
    let gdt = DescriptorTable { base: GDT, limit: 0x7f };
    let processor = Processor::new(Bits::Code64, [CR0_PE, EFER_LMA | EFER_SCE, 2, 0x10], idt, gdt);
    (guest, processor)
}

fn targets(plan: &Plan) -> Vec<u64> {
    match plan {
        Plan::RunTo { targets, .. } => targets.clone(),
        _ => Vec::new(),
    }
}

fn faults(plan: &Plan) -> Vec<u64> {
    match plan {
        Plan::RunTo { faults, .. } | Plan::Trap { faults, .. } => {
            faults.iter().map(|fault| fault.address).collect()
        }
        Plan::Skip(_) => Vec::new(),
    }
}

#[test]
fn modes() {
    let new = |cr0, efer, flags, cs| {
        let processor = Processor::new(
            Bits::Code32,
            [cr0, efer, flags, cs],
            DescriptorTable::default(),
            DescriptorTable::default(),
        );
        (processor.protection, processor.privilege)
    };
    assert_eq!(new(0, 0, 0, 0xf003), (Protection::Real, 0));
    assert_eq!(new(1, 0, 0, 0x1b), (Protection::Protected, 3));
    assert_eq!(new(1, 0, RFLAGS_VM, 0xf000), (Protection::Virtual8086, 3));
    assert_eq!(new(1, EFER_LMA, 0, 0x23), (Protection::Long, 3));
}

#[test]
fn what_saves_the_flags_is_run_to_where_it_leads() {
    let (guest, kernel) = long_mode();
    let user = Processor { privilege: 3, ..kernel };
    for (code, processor, expected) in [
        (&[0xcc][..], user, vec![handler_64(3)]),
        (&[0xcd, 0x80], user, vec![handler_64(0x80)]),
        (&[0xf1], user, vec![handler_64(1)]),
        (&[0x0f, 0x05], user, vec![0x64_0000]),
        (&[0x0f, 0x05], Processor { bits: Bits::Code32, ..user }, vec![0x32_0000]),
        (&[0x48, 0x0f, 0x07], kernel, vec![0x7fff_1234_5678]),
        (&[0x0f, 0x07], kernel, vec![0x1234_5678]),
        (&[0xfb], kernel, vec![0x5001]),
        // DEC EAX, and what is behind it is another instruction.
        (&[0x48, 0x0f, 0x07], Processor { bits: Bits::Code32, ..kernel }, vec![]),
    ] {
        let plan = plan(code, 0x5000, &processor, &guest);
        assert_eq!(targets(&plan), expected, "{code:x?}: {plan:x?}");
        // Whatever it is, something else may come instead.
        assert!(code == [0xfb] || !faults(&plan).is_empty(), "{code:x?}");
    }
}

#[test]
fn what_the_caller_may_not_do_faults() {
    let (guest, kernel) = long_mode();
    let user = Processor { privilege: 3, ..kernel };
    let without = Processor { has_syscall: false, ..user };
    let short = Processor { idt: DescriptorTable { base: IDT, limit: 16 * 0x20 - 1 }, ..user };
    for (code, processor, first) in [
        (&[0xcd, 0x0d][..], user, 13),
        (&[0xcd, 0x81], kernel, 11),
        (&[0xcd, 0x81], user, 13),
        (&[0xcd, 0xff], kernel, 13),
        (&[0xcd, 0x80], short, 13),
        (&[0x0f, 0x05], without, 6),
        (&[0x0f, 0x07], Processor { privilege: 0, ..without }, 6),
    ] {
        let plan = plan(code, 0, &processor, &guest);
        assert_eq!(targets(&plan), vec![], "{code:x?}");
        assert_eq!(faults(&plan)[0], handler_64(first), "{code:x?}");
    }
    let sysret = plan(&[0x48, 0x0f, 0x07], 0, &user, &guest);
    assert!(faults(&sysret).contains(&handler_64(13)) && targets(&sysret).is_empty());
    // A user's STI and HLT are #GP, whatever comes of them.
    for code in [[0xfb], [0xf4]] {
        let plan = plan(&code, 0, &user, &guest);
        assert!(matches!(plan, Plan::Trap { .. }) && faults(&plan).contains(&handler_64(13)), "{code:x?}");
    }
    assert_eq!(plan(&[0xf4], 0, &kernel, &guest), Plan::Skip(1));
    assert_eq!(plan(&[0xf3, 0xf4], 0, &kernel, &guest), Plan::Skip(2));
}

#[test]
fn likely_faults_come_first() {
    let (guest, kernel) = long_mode();
    for (code, first) in [
        (&[0xf7, 0xf1][..], 0),
        (&[0x48, 0xf7, 0xf9], 0),
        (&[0xf7, 0xd8], 14),
        (&[0x8b, 0x07], 14),
        (&[0xd9, 0xe8], 7),
        (&[0x0f, 0x0b], 6),
        (&[0x62, 0x01], 14),
        (&[0xc5, 0xf8], 14),
    ] {
        let plan = plan(code, 0, &kernel, &guest);
        assert_eq!(faults(&plan)[0], handler_64(first), "{code:x?}");
    }
    // VEX and EVEX are LES, LDS and BOUND of old where they name memory.
    let narrow = Processor { bits: Bits::Code32, ..kernel };
    for (code, processor, vector, is_watched) in [
        (&[0xc5, 0xf8, 0x10][..], &kernel, 7, true),
        (&[0xc4, 0xe2], &kernel, 19, true),
        (&[0x62, 0xf1], &kernel, 19, true),
        (&[0xc5, 0xf8, 0x10], &narrow, 19, true),
        (&[0xc5, 0x10], &narrow, 19, false),
        (&[0xc5, 0x10], &narrow, 11, true),
        (&[0x62, 0x10], &narrow, 5, true),
    ] {
        let watched = &faults(&plan(code, 0, processor, &guest))[..4].to_vec();
        assert_eq!(watched.contains(&handler_64(vector)), is_watched, "{code:x?}, {vector}");
    }
    // A program that has its accesses checked.
    let user = Processor { privilege: 3, ..kernel };
    for (processor, is_first) in [
        (user, false),
        (Processor { flags: 1 << 18, ..user }, true),
        (Processor { flags: 1 << 18, ..kernel }, false),
    ] {
        for code in [[0x8b, 0x07], [0x50, 0x90], [0x8e, 0x07]] {
            assert_eq!(
                faults(&plan(&code, 0, &processor, &guest))[0] == handler_64(17),
                is_first,
                "{code:x?}"
            );
        }
    }
    let mut flags = HashMap::new();
    if let Plan::Trap { faults, .. } = plan(&[0x8b, 0x07], 0, &kernel, &guest) {
        flags.extend(faults.iter().map(|fault| (fault.address, fault.flags)));
    }
    assert_eq!((flags[&handler_64(14)], flags[&handler_64(6)]), (24, 16));
}

#[test]
fn handlers_of_32_bit_kernels() {
    let guest = Guest::default();
    for vector in 0..32 {
        guest.gate_32(vector, 0x0010_0000 + u32::try_from(vector).unwrap() * 0x10, INTERRUPT);
    }
    guest.gate_32(8, 0, 0x85);
    guest.gate_32(7, 0x1234_5678, 0x86);
    // A flat code segment, and one that begins at 0x5000_0000.
    guest.write(GDT + 8, &[0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0]);
    guest.write(GDT + 16, &[0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0x50]);
    let table = |base, limit| DescriptorTable { base, limit };
    let kernel = Processor::new(Bits::Code32, [CR0_PE, 0, 2, 0x08], table(IDT, 0xff), table(GDT, 0x17));
    let handler = |vector| kernel.handler(&guest, vector);
    assert_eq!(handler(14), Some(Handler { address: 0x1000e0, flags: 12, flags_size: 4 }));
    assert_eq!(handler(6), Some(Handler { address: 0x100060, flags: 8, flags_size: 4 }));
    // A task gate, a gate of 16 bits, and none.
    assert_eq!(handler(8), None);
    assert_eq!(handler(7), Some(Handler { address: 0x5678, flags: 4, flags_size: 2 }));
    assert_eq!(handler(32), None);
    guest.write(IDT + 14 * 8 + 2, &[0x10]);
    assert_eq!(handler(14), Some(Handler { address: 0x5010_00e0, flags: 12, flags_size: 4 }));
    // SYSCALL of AMD's processors, and none of Intel's.
    let plan = plan(&[0x0f, 0x05], 0, &Processor { has_syscall: true, ..kernel }, &guest);
    assert!(faults(&plan).contains(&0x100060));
    // INTO only with the flag.
    let overflow = Processor { flags: RFLAGS_OF, ..kernel };
    assert_eq!(targets(&super::plan(&[0xce], 0, &overflow, &guest)), vec![0x100040]);
    assert_eq!(targets(&super::plan(&[0xce], 0, &kernel, &guest)), vec![]);
}

#[test]
fn real_mode_has_vectors() {
    let guest = Guest::default();
    guest.write(0x21 * 4, &[0x34, 0x12, 0x00, 0xf0]);
    let idt = DescriptorTable { base: 0, limit: 0x3ff };
    let real = Processor::new(Bits::Code16, [0, 0, 2, 0], idt, DescriptorTable::default());
    assert_eq!(targets(&plan(&[0xcd, 0x21], 0x7c00, &real, &guest)), vec![0xf1234]);
    let Delivery::To(handler) = real.software_interrupt(&guest, 0x21) else { panic!("no handler") };
    assert_eq!(handler.flags, 4);
}

#[test]
fn instructions_that_load_the_flags() {
    for (code, bits, at) in [
        (&[0x9d][..], Bits::Code64, Some(0)),
        (&[0x66, 0x9d], Bits::Code32, Some(0)),
        (&[0x48, 0xcf], Bits::Code64, Some(16)),
        (&[0xcf], Bits::Code64, Some(8)),
        (&[0x66, 0xcf], Bits::Code64, Some(4)),
        (&[0xcf], Bits::Code32, Some(8)),
        (&[0xcf], Bits::Code16, Some(4)),
        // DEC EAX.
        (&[0x48, 0xcf], Bits::Code32, None),
        (&[0x9c], Bits::Code64, None),
        (&[], Bits::Code64, None),
    ] {
        assert_eq!(loads_flags(code, bits), at, "{code:x?}");
    }
}

#[test]
fn whatever_memory_says_there_is_a_plan() {
    let mut chance = 1u64;
    let mut next = || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chance >> 16
    };
    for _ in 0..2_000 {
        let guest = Guest::default();
        let bytes: Vec<u8> = (0..0x800).map(|_| next().to_le_bytes()[0]).collect();
        guest.write(next() & 0xfff, &bytes);
        let bits = [Bits::Code16, Bits::Code32, Bits::Code64][(next() % 3) as usize];
        let table = |base: u64, limit: u64| DescriptorTable { base, limit: limit & 0xffff };
        let state = [next(), next(), next(), next()];
        let (idt, gdt) = (table(next() & 0xfff, next()), table(next(), next()));
        let processor = Processor::new(bits, state, idt, gdt);
        let code: Vec<u8> = (0..next() % 16).map(|_| next().to_le_bytes()[0]).collect();
        drop(plan(&code, next(), &processor, &guest));
        loads_flags(&code, bits);
    }
}

/// None of these may have a LOCK prefix: each ends in the handler of #UD.
#[test]
fn what_is_locked_in_vain_is_undefined() {
    let (guest, kernel) = long_mode();
    for code in [&[0xf4][..], &[0xcc], &[0xcd, 0x80], &[0xf1], &[0xfb], &[0x0f, 0x05], &[0x48, 0x0f, 0x07]] {
        let locked = [&[0xf0], code].concat();
        let plan = plan(&locked, 0x1000, &kernel, &guest);
        assert!(matches!(plan, Plan::Trap { .. }), "{code:x?} {plan:?}");
        assert_eq!(faults(&plan).first(), Some(&handler_64(6)), "{code:x?}");
    }
}
