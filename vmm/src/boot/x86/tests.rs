use super::*;
use crate::boot::testing::{Scratch, Segment, Setting, board, elf, read, string, word};
use arch::Isa;
use std::path::PathBuf;

const X86_64: u16 = 62;
const BANNER: &[u8] = b"Linux version 6.12.0 (a@b)\0";

fn boot(file: &[u8], setting: &Setting) -> Result<(Booted, GuestMemory), BootError> {
    let (kernel, memory) = setting.open(Isa::X86_64, file)?;
    prepare(&memory, &kernel, &setting.config(&board(Isa::X86_64))).map(|booted| (booted, memory))
}

fn refused(file: &[u8], setting: &Setting) -> String {
    let error = boot(file, setting).map(|(booted, _)| booted).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn state(booted: &Booted) -> &BootState {
    match &booted.state {
        State::X86(state) => state,
        State::Aarch64(_) => panic!("the other architecture's"),
    }
}

fn plain(at: u64, bytes: &[u8]) -> Vec<u8> {
    elf(X86_64, at, &[Segment { at, bytes, memory: 0x2000 }], None)
}

fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note: Vec<u8> = [4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes).collect();
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

fn multiboot2(tags: &[&[u32]]) -> Vec<u8> {
    let mut words: Vec<u32> = Vec::new();
    for tag in tags {
        words.extend(*tag);
        words.resize(words.len().next_multiple_of(2), 0);
    }
    words.extend([0, 8]);
    let length = 16 + 4 * u32::try_from(words.len()).unwrap();
    let head = [0xe852_50d6, 0, length, 0u32.wrapping_sub(0xe852_50d6).wrapping_sub(length)];
    head.into_iter().chain(words).flat_map(u32::to_le_bytes).collect()
}

fn multiboot1() -> Vec<u8> {
    [0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)].into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Tags of Multiboot 2 information: their types and where they are.
fn tags(memory: &GuestMemory, information: u64) -> Vec<(u64, u64)> {
    let (mut at, mut tags) = (information + 8, Vec::new());
    while word(memory, at) != 0 {
        tags.push((word(memory, at), at));
        at = (at + word(memory, at + 4)).next_multiple_of(8);
    }
    tags
}

fn tag(memory: &GuestMemory, information: u64, kind: u64) -> u64 {
    tags(memory, information).into_iter().find(|(found, _)| *found == kind).unwrap().1
}

#[test]
fn a_kernel_is_entered_by_the_protocol_that_it_speaks() {
    let (one, two) = (multiboot1(), multiboot2(&[]));
    let both = [two.clone(), one.clone()].concat();
    for (bytes, note, protocol) in [
        (&[0x90; 16][..], None, "Linux's 64-bit protocol"),
        (&[0x90; 16], Some(pvh_note(0x10_0000)), "PVH"),
        (&one, Some(pvh_note(0x10_0000)), "Multiboot"),
        (&two, None, "Multiboot 2"),
        (&both, None, "Multiboot 2"),
    ] {
        // The headers are looked for at multiples of 8 in the file.
        let count = 1 + u64::from(note.is_some());
        assert!((64 + count * 56).is_multiple_of(8));
        let file =
            elf(X86_64, 0x10_0000, &[Segment { at: 0x10_0000, bytes, memory: 0x2000 }], note.as_deref());
        let (booted, _) = boot(&file, &Setting::default()).unwrap();
        assert_eq!((booted.protocol, booted.entry), (protocol, GuestPhys(0x10_0000)));
    }
}

#[test]
fn multiboot_kernels_get_names_first_and_modules_with_strings() {
    let (first, second) = (Scratch::new("first.bin", &[1; 5000]), Scratch::new("second", b"mod1"));
    let given = PathBuf::from(format!("{} root=x  y", second.0.display()));
    let initrds = [first.0.clone(), given];
    for (exact, line, strings) in [
        (false, "kernel caf\u{e9} verbose", ["first.bin", "second root=x  y"]),
        (true, "caf\u{e9} verbose", ["", "root=x  y"]),
    ] {
        let setting =
            Setting { cmdline: "caf\u{e9} verbose", exact, initrds: &initrds, ..Setting::default() };
        let (booted, memory) = boot(&plain(0x10_0000, &multiboot2(&[])), &setting).unwrap();
        let state = state(&booted);
        assert_eq!((state.rax, state.cr0 & 0x8000_0001, state.efer), (0x36d7_6289, 1, 0));
        let information = state.rbx;
        assert!(information.is_multiple_of(8) && information < layout::LOW_MEMORY_END);
        assert_eq!(string(&memory, tag(&memory, information, 1) + 8), line);
        let modules: Vec<u64> =
            tags(&memory, information).into_iter().filter(|(kind, _)| *kind == 3).map(|(_, at)| at).collect();
        for (module, (text, size)) in modules.iter().zip(strings.into_iter().zip([5000, 4])) {
            let (start, end) = (word(&memory, module + 8), word(&memory, module + 12));
            assert!(start.is_multiple_of(PAGE) && start >= 0x10_2000);
            assert_eq!((end - start, string(&memory, module + 16).as_str()), (size, text));
        }
        assert_eq!(read(&memory, word(&memory, modules[1] + 8), 4), b"mod1");

        let (booted, memory) = boot(&plain(0x10_0000, &multiboot1()), &setting).unwrap();
        let information = self::state(&booted).rbx;
        assert_eq!(string(&memory, word(&memory, information + 16)), line);
        let list = word(&memory, information + 24);
        assert_eq!(word(&memory, information + 20), 2);
        assert_eq!(string(&memory, word(&memory, list + 16 + 8)), strings[1]);
    }
}

#[test]
fn pvh_kernels_get_modules_and_linux_is_entered_by_its_own_protocol() {
    let (first, second) = (Scratch::new("first", &[1; 5]), Scratch::new("second", b"mod1"));
    let initrds = [first.0.clone(), second.0.clone()];
    let setting = Setting { cmdline: "x", initrds: &initrds, ..Setting::default() };
    let kernel = |bytes| {
        let segment = Segment { at: 0x10_0000, bytes, memory: 0x2000 };
        elf(X86_64, 0x10_0000, &[segment], Some(&pvh_note(0x10_0000)))
    };
    let (booted, memory) = boot(&kernel(b"other"), &setting).unwrap();
    let info = state(&booted).rbx;
    assert_eq!(word(&memory, info + 12), 2);
    assert_eq!(string(&memory, word(&memory, info + 24)), "x");
    let modules = word(&memory, info + 16);
    assert_eq!(word(&memory, modules + 8), 5);
    // With one initrd, and a seed.
    let (booted, memory) = boot(&kernel(BANNER), &setting).unwrap();
    assert_eq!(booted.protocol, Protocol::Linux64.name());
    assert_eq!(word(&memory, layout::ZERO_PAGE.0 + 0x21c), 12);
    assert_eq!(word(&memory, layout::ZERO_PAGE.0 + 0x250), layout::SETUP_DATA.0);
    let with_string = [PathBuf::from(format!("{} a=b", first.0.display()))];
    let setting = Setting { initrds: &with_string, ..setting };
    for note in [None, Some(pvh_note(0x10_0000))] {
        let segment = Segment { at: 0x10_0000, bytes: BANNER, memory: 0x2000 };
        let error = refused(&elf(X86_64, 0x10_0000, &[segment], note.as_deref()), &setting);
        assert!(error.contains("'a=b'") && error.contains("Multiboot and PVH modules"), "{error}");
    }
    let missing = [PathBuf::from("/no/such/file a=b")];
    let setting = Setting { initrds: &missing, ..setting };
    assert!(refused(&plain(0x10_0000, BANNER), &setting).contains("/no/such/file a=b"));
}

#[test]
fn what_linux_would_cut_off_is_refused_and_no_other_kernel_minds() {
    let long = "x".repeat(2048);
    let setting = Setting { cmdline: &long, ..Setting::default() };
    let linux = Segment { at: 0x10_0000, bytes: BANNER, memory: 0x2000 };
    let by_pvh = elf(X86_64, 0x10_0000, &[linux], Some(&pvh_note(0x10_0000)));
    for file in [plain(0x10_0000, BANNER), by_pvh] {
        let error = refused(&file, &setting);
        assert!(error.contains("2048 bytes are too many, this kernel takes 2047"), "{error}");
        assert!(boot(&file, &Setting { cmdline: &long[1..], ..Setting::default() }).is_ok());
    }
    for bytes in [&[0x90; 8][..], &multiboot1(), &multiboot2(&[])] {
        boot(&plain(0x10_0000, bytes), &setting).unwrap();
    }
}

#[test]
fn a_multiboot_2_kernel_may_be_moved_and_say_where_it_is_entered() {
    // Type 10: from 2 MiB to 64 MiB at multiples of 2 MiB. Type 3: another entry.
    let moved = |preference| multiboot2(&[&[10, 24, 0x20_0000, 0x3ff_ffff, 0x20_0000, preference]]);
    for (at, preference, place) in
        [(0x10_0000, 0, 0x20_0000), (0x40_0000, 0, 0x40_0000), (0x40_0000, 2, 0x3e0_0000), (0, 1, 0x20_0000)]
    {
        let (booted, memory) = boot(&plain(at, &moved(preference)), &Setting::default()).unwrap();
        assert_eq!(booted.entry, GuestPhys(place), "linked to {at:#x}");
        assert_eq!(word(&memory, place), 0xe852_50d6);
        assert_eq!(word(&memory, tag(&memory, state(&booted).rbx, 21) + 8), place);
    }
    let small = Setting { memory: 4 << 20, ..Setting::default() };
    let high = multiboot2(&[&[10, 24, 0x40_0000, 0x3ff_ffff, 0x20_0000, 0]]);
    assert!(refused(&plain(0x10_0000, &high), &small).contains("more --memory"));
    let (booted, _) =
        boot(&plain(0x10_0000, &multiboot2(&[&[3, 12, 0x10_0100]])), &Setting::default()).unwrap();
    assert_eq!(booted.entry, GuestPhys(0x10_0100));
    // That entry moves along.
    let both = multiboot2(&[&[3, 12, 0x10_0100], &[10, 24, 0x20_0000, 0x3ff_ffff, 0x20_0000, 0]]);
    let (booted, _) = boot(&plain(0x10_0000, &both), &Setting::default()).unwrap();
    assert_eq!(booted.entry, GuestPhys(0x20_0100));
    for entry in [0, 0x10_2000] {
        let error = refused(&plain(0x10_0000, &multiboot2(&[&[3, 12, entry]])), &Setting::default());
        assert!(error.contains("entry point"), "{error}");
    }
    // By its addresses, though it is ELF.
    let mut file = multiboot2(&[&[2, 24, 0x30_0000, 0x30_0000, 0, 0x30_4000], &[3, 12, 0x30_0008]]);
    file.resize(4096, 0x90);
    let (booted, memory) = boot(&file, &Setting::default()).unwrap();
    assert_eq!((booted.entry, word(&memory, 0x30_0000)), (GuestPhys(0x30_0008), 0xe852_50d6));
}

#[test]
fn information_goes_where_the_kernel_is_not() {
    // It fills low memory.
    let bytes = multiboot2(&[]);
    let segment = Segment { at: 0x1000, bytes: &bytes, memory: layout::LOW_MEMORY_END - 0x1000 };
    let (booted, memory) = boot(&elf(X86_64, 0x1000, &[segment], None), &Setting::default()).unwrap();
    let information = state(&booted).rbx;
    assert!(information >= layout::HIGH_MEMORY.0);
    assert_eq!(string(&memory, tag(&memory, information, 1) + 8), "kernel");
    // What has a place of its own cannot give way.
    for (at, what) in [
        (0x7000, "boot parameters"),
        (0x500, "boot tables"),
        (0x410, "BIOS data area"),
        (0xe_0000, "ACPI"),
        (0xf_f000, "vector"),
    ] {
        let error = refused(&plain(at, BANNER), &Setting::default());
        assert!(error.contains(what) && error.contains("where the kernel lies"), "{error}");
    }
}

/// A bzImage without code.
fn bzimage(xloadflags: u16, initrd_max: u32, relocatable: bool, preferred: u64) -> Vec<u8> {
    let mut file = vec![0u8; 2048];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &64u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &initrd_max.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[u8::from(relocatable)]);
    put(0x236, &xloadflags.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &preferred.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    file
}

#[test]
fn an_initrd_that_is_too_large_below_4_gib_goes_above_if_the_kernel_takes_it() {
    // Kernels that leave 16 MiB of what is below.
    const NEEDED: u64 = 0xbe00_0000;
    let large = Scratch::sparse("large", 20 << 20);
    let initrds = [large.0.clone()];
    let setting = Setting { memory: 5 << 30, initrds: &initrds, ..Setting::default() };
    let kernel = |xloadflags, initrd_max| {
        let mut file = bzimage(xloadflags, initrd_max, true, 0x100_0000);
        file[0x260..0x264].copy_from_slice(&u32::try_from(NEEDED).unwrap().to_le_bytes());
        file
    };
    let (_, memory) = boot(&kernel(3, 0x7fff_ffff), &setting).unwrap();
    let field = |at| word(&memory, layout::ZERO_PAGE.0 + at);
    // Up to the end of memory, at 6 GiB.
    assert_eq!((field(0x218), field(0xc0), field(0x21c), field(0xc4)), (0x7ec0_0000, 1, 0x140_0000, 0));
    // More memory helps only where it can be used.
    let small = Setting { memory: 3 << 30, ..setting };
    assert!(refused(&kernel(3, 0x7fff_ffff), &small).contains("more --memory"));
    let setting = Setting { memory: 5 << 30, ..small };
    let segment = |bytes| Segment { at: 0x100_0000, bytes, memory: NEEDED };
    for (file, end) in [
        (kernel(1, 0x7fff_ffff), "0x80000000"),
        (elf(X86_64, 0x100_0000, &[segment(&multiboot2(&[]))], None), "0xc0000000"),
        (elf(X86_64, 0x100_0000, &[segment(&multiboot1())], None), "0xc0000000"),
    ] {
        let error = refused(&file, &setting);
        assert!(error.contains(end) && error.contains("make it smaller"), "{error}");
        assert!(!error.contains("more --memory"), "{error}");
    }
}

#[test]
fn a_kernel_that_is_not_relocatable_goes_where_it_says() {
    for (relocatable, preferred, place) in
        [(true, 0x100_0000, 0x100_0000), (false, 0x110_0000, 0x110_0000), (true, 0x110_0000, 0x120_0000)]
    {
        let (booted, _) = boot(&bzimage(3, 0, relocatable, preferred), &Setting::default()).unwrap();
        assert_eq!(booted.entry, GuestPhys(place + 0x200));
    }
    let error = refused(&bzimage(3, 0, false, 0x8_0000), &Setting::default());
    assert!(error.contains("not relocatable") && error.contains("0x80000"), "{error}");
}

#[test]
fn linux_gets_a_seed() {
    let (_, memory) = boot(&plain(0x10_0000, BANNER), &Setting::default()).unwrap();
    let data = word(&memory, layout::ZERO_PAGE.0 + 0x250);
    assert_eq!((word(&memory, data + 8), word(&memory, data + 12)), (9, 32));
    assert_eq!(read(&memory, data + 16, 32), [7; 32]);
}
