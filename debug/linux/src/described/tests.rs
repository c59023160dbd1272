//! A kernel in memory, and what others put beside it.

use super::*;
use arch::ram::fake::Ram;

const RAM: usize = 0xc0_0000;
/// Where the kernel's image is, guest-physical, and parts of it behind its start.
const IMAGE: u64 = 0x20_0000;
const VARIABLE: u64 = 0x10_0000;
const POINTER: u64 = 0x18_0000;
/// The page of its description.
const PAGE_AT: u64 = 0x60_0000;
/// Where its top-level table is.
const TABLES: u64 = 0x8000;
const RELEASE: &str = "6.12.1-real";

/// Where the kernel's image is mapped, and all of memory.
fn mapped(isa: Isa) -> (u64, u64) {
    match isa {
        Isa::X86_64 => (0xffff_ffff_8100_0000, 0xffff_8880_0000_0000),
        Isa::Aarch64 => (0xffff_8000_8000_0000, 0xffff_0000_0000_0000),
    }
}

/// Where another kernel's parts are: what [`Guest::kernel`] makes.
#[derive(Clone, Copy)]
struct Kernel {
    release: &'static str,
    image: u64,
    tables: u64,
    page: u64,
}

const REAL: Kernel = Kernel { release: RELEASE, image: IMAGE, tables: TABLES, page: PAGE_AT };

struct Guest {
    isa: Isa,
    ram: Ram,
}

impl Guest {
    fn new(isa: Isa) -> Guest {
        Guest { isa, ram: Ram::new(RAM) }
    }

    fn word(&self, at: u64, value: u64) {
        assert_eq!(self.ram.write(GuestPhys(at), &value.to_le_bytes()), 8);
    }

    /// Maps 2 MiB by tables that take seven pages from `tables` on.
    fn map(&self, tables: u64, which: u64, from: u64, to: u64) {
        let (table, block) = if self.isa == Isa::X86_64 { (0x3, 0x83) } else { (0x3, 0x701) };
        let middle = tables + (1 + 2 * which) * 0x1000;
        self.word(tables + (from >> 39 & 511) * 8, middle | table);
        self.word(middle + (from >> 30 & 511) * 8, (middle + 0x1000) | table);
        self.word(middle + 0x1000 + (from >> 21 & 511) * 8, to | block);
    }

    fn description(&self, kernel: Kernel) -> String {
        let (image, _) = mapped(self.isa);
        let (text, uts) = (image, image + VARIABLE);
        // Tables are told by where they would be in the image.
        let tables = image.wrapping_add(kernel.tables.wrapping_sub(kernel.image));
        let more = match self.isa {
            Isa::X86_64 => {
                let base = kernel.image.wrapping_sub(0x100_0000).cast_signed();
                format!("NUMBER(phys_base)={base}\nSYMBOL(init_top_pgt)={tables:x}\n")
            }
            Isa::Aarch64 => {
                let offset = image.wrapping_sub(kernel.image);
                format!(
                    "NUMBER(kimage_voffset)={offset:#x}\nSYMBOL(swapper_pg_dir)={tables:x}\n\
                     NUMBER(TCR_EL1_T1SZ)=0x10\n"
                )
            }
        };
        let release = kernel.release;
        format!(
            "OSRELEASE={release}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={uts:x}\n\
             OFFSET(uts_namespace.name)=8\nSYMBOL(_stext)={text:x}\n{more}"
        )
    }

    /// Puts a kernel into memory.
    fn kernel(&self, kernel: Kernel) {
        let (image, direct) = mapped(self.isa);
        self.map(kernel.tables, 0, image, kernel.image);
        for (which, to) in (1u64..).zip((0..RAM as u64).step_by(2 << 20)) {
            // All in one table.
            self.map(kernel.tables, 1, direct + to, to);
            assert!(which < 7);
        }
        let uts = kernel.image + VARIABLE + 8 + UTS_RELEASE;
        self.ram.write(GuestPhys(uts), kernel.release.as_bytes());
        self.page(kernel.page, &self.description(kernel));
        self.word(kernel.image + POINTER, direct + kernel.page);
    }

    fn page(&self, at: u64, text: &str) {
        assert_eq!(self.ram.write(GuestPhys(at), text.as_bytes()), text.len());
    }

    fn anchor(&self, kernel: Kernel) -> Anchor {
        let mut registers = RegisterFile::new(self.isa);
        let values = match self.isa {
            Isa::X86_64 => {
                [("cr0", 0x8000_0011), ("cr3", kernel.tables), ("cr4", 0x20), ("efer", 0xd00)].to_vec()
            }
            Isa::Aarch64 => [
                ("SCTLR_EL1", 1),
                ("TCR_EL1", 2 << 30 | 16 << 16 | 16),
                ("TTBR0_EL1", 0),
                ("TTBR1_EL1", kernel.tables),
                ("VBAR_EL1", mapped(self.isa).0 + 0x800),
            ]
            .to_vec(),
        };
        values.iter().for_each(|(name, value)| registers.set(name, *value));
        Anchor::new(&registers).unwrap()
    }

    fn find(&self, anchors: &[Anchor], scope: Scope) -> Described {
        find(self.isa, &self.ram, anchors, scope, &mut || Ok::<(), ()>(())).unwrap()
    }

    fn release(&self, anchors: &[Anchor], scope: Scope) -> Option<String> {
        self.find(anchors, scope).info.map(|info| info.release().to_string())
    }
}

fn some(release: &str) -> Option<String> {
    Some(release.to_string())
}

#[test]
fn a_page_that_comes_first_is_no_kernel() {
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        assert_eq!(guest.find(&[], Scope::Everything), Described::default());
        guest.page(0x4000, "OSRELEASE=not whole");
        guest.page(0x5000, "OSRELEASE=1-forged\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff81100000\n");
        guest.page(0x6000, &guest.description(Kernel { release: "2-forged", ..REAL }));
        let anchors = [guest.anchor(REAL)];
        assert_eq!(guest.release(&anchors, Scope::Running), None);
        guest.kernel(REAL);
        for anchors in [&anchors[..], &[]] {
            for scope in [Scope::Running, Scope::Everything] {
                let found = guest.find(anchors, scope);
                assert_eq!(found.info.as_ref().map(VmCoreInfo::release), Some(RELEASE), "{isa} {found:?}");
                let is_said = found.remarks.iter().any(|line| line.starts_with("3 pages like a kernel's"));
                // Without a search, nothing is seen of others.
                assert_eq!(is_said, scope == Scope::Everything || anchors.is_empty(), "{found:?}");
            }
        }
    }
}

#[test]
fn the_truth_with_one_lie_is_not_believed() {
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        let lie = guest.description(REAL) + "SYMBOL(prb)=41414141\n";
        guest.kernel(REAL);
        guest.page(0x5000, &lie);
        // A copy of all of it is nothing that differs.
        guest.page(0x6000, &guest.description(REAL));
        for anchors in [&[guest.anchor(REAL)][..], &[]] {
            let found = guest.find(anchors, Scope::Everything);
            assert!(found.info.as_ref().is_some_and(|info| info.address("prb").is_none()), "{found:?}");
            assert_eq!(found.remarks.len(), 1, "{found:?}");
            assert!(
                found.remarks[0].starts_with("not believed, because nothing in that kernel points to it")
            );
        }
        // It is not believed alone either.
        guest.page(PAGE_AT, "something else");
        guest.page(0x6000, "something else");
        let found = guest.find(&[guest.anchor(REAL)], Scope::Running);
        assert!(found.info.is_none() && found.remarks[0].contains("described at 0x5000"), "{found:?}");
        // In physical memory, whatever is the kernel's.
        assert!(fits(isa, &guest.ram, &VmCoreInfo::parse(lie.as_bytes()).unwrap()));
        let other = Kernel { release: "other", ..REAL };
        assert!(!fits(isa, &guest.ram, &VmCoreInfo::parse(guest.description(other).as_bytes()).unwrap()));
    }
}

#[test]
fn several_kernels_are_told_apart() {
    let before = Kernel { release: "5.10-before", image: 0x80_0000, tables: 0x10_000, page: 0x3000 };
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        guest.kernel(before);
        guest.kernel(REAL);
        let [first, second] = [before, REAL].map(|kernel| guest.anchor(kernel));
        assert_eq!(guest.release(&[second], Scope::Running), some(RELEASE));
        assert_eq!(guest.release(&[first], Scope::Running), some("5.10-before"));
        let found = guest.find(&[second], Scope::Everything);
        assert_eq!(
            found.remarks,
            ["another kernel is in memory, which no vCPU runs: 5.10-before (described at 0x3000)"]
        );
        // Where no vCPU tells, or each tells something else, nobody guesses.
        for anchors in [&[][..], &[first, second]] {
            for scope in [Scope::Running, Scope::Everything] {
                let found = guest.find(anchors, scope);
                let told = "several kernels fit alike and cannot be told apart: ";
                assert!(found.info.is_none() && found.remarks[0].starts_with(told), "{isa} {found:?}");
            }
        }
    }
}

/// A kernel that was found is known again until another one runs, also of the same release.
#[test]
fn a_known_kernel_runs_until_another_one_does() {
    let other = Kernel { release: RELEASE, image: 0x80_0000, tables: 0x10_000, page: 0x3000 };
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        guest.kernel(REAL);
        let version = GuestPhys(IMAGE + VARIABLE + 8 + UTS_RELEASE + UTS_FIELD as u64);
        guest.ram.write(version, b"#1 SMP Tue");
        let anchor = guest.anchor(REAL);
        let info = guest.find(&[anchor], Scope::Running).info.unwrap();
        let known = Known::new(isa, &guest.ram, &info).unwrap();
        assert_eq!(known.info(), &info);
        let runs = |anchors: &[Anchor]| known.runs(isa, &guest.ram, anchors);
        assert!(runs(&[anchor]) && !runs(&[]), "{isa}");
        // As kexec leaves the former one in memory.
        guest.kernel(other);
        assert!(runs(&[anchor]) && !runs(&[guest.anchor(other)]), "{isa}");
        // Another build at the same place.
        guest.ram.write(version, b"#2 SMP Wed");
        assert!(!runs(&[anchor]), "{isa}");
    }
}

#[test]
fn a_flood_of_pages_hides_nothing() {
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        for (number, at) in (0u64..).zip((0x40_0000..PAGE_AT).step_by(4096)) {
            let lie = format!("{}SYMBOL(prb)={number:x}\n", guest.description(REAL));
            guest.page(at, &lie);
        }
        guest.kernel(REAL);
        for anchors in [&[guest.anchor(REAL)][..], &[]] {
            let found = guest.find(anchors, Scope::Everything);
            assert_eq!(found.info.as_ref().map(|info| info.address("prb")), Some(None), "{isa} {found:?}");
            // Copies of the kernel's own release are not all listed.
            assert!(found.remarks.len() <= MOST_KEPT + 1, "{found:?}");
        }
    }
}

#[test]
fn it_can_be_broken_off() {
    let guest = Guest::new(Isa::X86_64);
    guest.kernel(REAL);
    assert_eq!(
        find(guest.isa, &guest.ram, &[], Scope::Running, &mut || Err("broken off")),
        Err("broken off")
    );
}

#[test]
fn thousands_of_vcpus_are_not_all_looked_at() {
    for isa in Isa::ALL {
        let guest = Guest::new(isa);
        guest.kernel(REAL);
        let asked = |anchors: &[Anchor]| {
            let mut asked = 0;
            let mut go_on = || {
                asked += 1;
                Ok::<(), ()>(())
            };
            let found = find(isa, &guest.ram, anchors, Scope::Running, &mut go_on).unwrap();
            (asked, found.info.is_some())
        };
        // They are alike, or each has tables of its own, where there is nothing.
        let (alone, _) = asked(&[guest.anchor(REAL)]);
        assert_eq!(asked(&vec![guest.anchor(REAL); 5000]), (alone, true), "{isa}");
        let others =
            (0..5000).map(|number| guest.anchor(Kernel { tables: 0x10_0000 + number * 4096, ..REAL }));
        let (asked, is_found) = asked(&others.collect::<Vec<_>>());
        assert!(asked < 300 && is_found, "{isa}: {asked}");
    }
}
