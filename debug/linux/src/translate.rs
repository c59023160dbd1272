//! Translation for a dump: by the registers that it has, or by what the kernel says of itself.
//!
//! Both architectures offer the same: a [`regime`] for a vCPU, one for [the kernel](kernel_regime)
//! where no register tells it, one for [a process's tables](user_regime); and, for those who write dumps,
//! where the kernel has all of memory mapped ([`direct_map`]) and where its image is ([`image`]).
//!
//! Source: Linux, `Documentation/admin-guide/kdump/vmcoreinfo.rst`; `arch/x86/include/asm/page_64_types.h`
//! (`__START_KERNEL_map`); `arch/arm64/include/asm/pgtable-hwdef.h`.

use crate::info::VmCoreInfo;
use crate::text::text;
use arch::address::PhysRange;
use arch::paging::{Fault, Regime};
use arch::ram::Memory;
use arch::register::{RegisterFile, Source, table};
use arch::{GuestPhys, GuestVirt, Isa};

/// Where an x86-64 kernel's image is linked.
pub(super) const X86_IMAGE: u64 = 0xffff_ffff_8000_0000;
const CR0_ON: u64 = 1 << 31 | 1;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// `EFER`: long mode enabled and active, and no-execute.
const EFER_LONG: u64 = 1 << 8 | 1 << 10 | 1 << 11;

/// How a vCPU translates, by its registers. An x86-64 core whose notes have no `EFER`, as QEMU's have
/// none, is one of long mode.
///
/// # Errors
/// [`Fault::NoRegister`].
pub fn regime(registers: &RegisterFile) -> Result<Regime, Fault> {
    if registers.isa() == Isa::X86_64
        && registers.get("efer").is_none()
        && let (Some(cr0), Some(cr3), Some(cr4)) =
            (registers.get("cr0"), registers.get("cr3"), registers.get("cr4"))
    {
        return Ok(Regime::X86(arch::paging::x86::Paging::new(cr0, cr3, cr4, EFER_LONG)));
    }
    Regime::new(registers)
}

/// How the kernel translates, by its description of itself; `None` if that does not say enough.
pub fn kernel_regime(isa: Isa, info: &VmCoreInfo) -> Option<Regime> {
    match isa {
        Isa::X86_64 => {
            let table = info.address("init_top_pgt").or_else(|| info.address("swapper_pg_dir"))?;
            let cr3 = table.checked_sub(X86_IMAGE)?.wrapping_add(info.number("phys_base").unwrap_or(0));
            let has_five = info.number("pgtable_l5_enabled") == Some(1);
            let cr4 = CR4_PAE | if has_five { CR4_LA57 } else { 0 };
            Some(Regime::X86(arch::paging::x86::Paging::new(CR0_ON, cr3, cr4, EFER_LONG)))
        }
        Isa::Aarch64 => {
            let table = info.address("swapper_pg_dir")?;
            let physical = table.wrapping_sub(info.number("kimage_voffset")?);
            Some(Regime::Aarch64(aarch64_regime(info, 0, physical)?))
        }
    }
}

/// `TCR_EL1` as the kernel's description has it: the size of kernel addresses and the granule. User
/// addresses are taken to be as many, as Linux has them but for 52-bit kernels.
fn aarch64_regime(info: &VmCoreInfo, low: u64, high: u64) -> Option<arch::paging::aarch64::Paging> {
    const SCTLR_M: u64 = 1;
    let size = match info.number("TCR_EL1_T1SZ") {
        Some(size) => size,
        None => 64u64.checked_sub(info.number("VA_BITS")?)?,
    };
    // TG0 and TG1 have different numbers for the same granules.
    let (granule0, granule1) = match info.page_size()? {
        4096 => (0, 2),
        16384 => (2, 1),
        65536 => (1, 3),
        _ => return None,
    };
    // TBI0: a process may have tags in its addresses.
    let tcr = 1 << 37 | size & 0x3f | granule0 << 14 | (size & 0x3f) << 16 | granule1 << 30;
    Some(arch::paging::aarch64::Paging::new(SCTLR_M, tcr, low, high))
}

/// Sets the masks of pointers' authentication codes, if the kernel says that it has any.
pub fn set_pointer_masks(file: &mut RegisterFile, info: &VmCoreInfo) {
    let has_codes = info.number("KERNELPACMASK").is_some_and(|mask| mask != 0);
    if has_codes && let Some(Regime::Aarch64(paging)) = kernel_regime(Isa::Aarch64, info) {
        for (row, register) in (0..).zip(table(Isa::Aarch64)) {
            if let Source::PointerMask { is_high, is_code } = register.source {
                file.set_row(row, paging.pointer_mask(is_high, is_code));
            }
        }
    }
}

/// How a process translates whose top-level table is at `table`, guest-physical: what x86's CR3 and
/// aarch64's `TTBR0_EL1` would have. `registers` are those of any vCPU.
pub fn user_regime(registers: &RegisterFile, info: Option<&VmCoreInfo>, table: GuestPhys) -> Option<Regime> {
    let mut file = registers.clone();
    let (name, needs) = match file.isa() {
        Isa::X86_64 => ("cr3", "cr0"),
        Isa::Aarch64 => ("TTBR0_EL1", "TCR_EL1"),
    };
    if file.get(needs).is_some() {
        file.set(name, table.0);
        return regime(&file).ok();
    }
    match (file.isa(), kernel_regime(file.isa(), info?)?) {
        (Isa::X86_64, Regime::X86(paging)) => {
            let has_five = paging.mode() == arch::paging::x86::Mode::Level5;
            let cr4 = CR4_PAE | if has_five { CR4_LA57 } else { 0 };
            Some(Regime::X86(arch::paging::x86::Paging::new(CR0_ON, table.0, cr4, EFER_LONG)))
        }
        _ => {
            let info = info?;
            let high = info.address("swapper_pg_dir")?.wrapping_sub(info.number("kimage_voffset")?);
            Some(Regime::Aarch64(aarch64_regime(info, table.0, high)?))
        }
    }
}

/// Steps that the search for the direct map makes at most.
const MOST_STEPS: usize = 4096;
/// Places of each range of memory that are tried.
const SAMPLES: u64 = 16;

/// What the kernel's direct map adds to a guest-physical address, if it has one: Linux maps all memory
/// in one piece, in front of everything else in the kernel's half of addresses.
pub fn direct_map(regime: &Regime, memory: &dyn Memory) -> Option<u64> {
    if !regime.is_on() {
        return None;
    }
    let ranges = memory.ranges();
    let (first, last) = regime.ranges().into_iter().rfind(|(first, _)| first.0 >> 63 != 0)?;
    let holds = |delta: u64| {
        ranges.iter().all(|range| {
            let step = (range.size / SAMPLES).max(1) & !0xfff;
            let mut hits = (0..SAMPLES).filter(|index| {
                let at = range.start.0 + index * step;
                let mapped = regime.translate(memory, GuestVirt(at.wrapping_add(delta)));
                mapped.is_ok_and(|mapping| mapping.address == GuestPhys(at))
            });
            // Kernels leave out what firmware has kept.
            hits.nth(usize::try_from(SAMPLES / 4).unwrap_or(0)).is_some()
        })
    };
    let mut at = first.0;
    let mut tried = Vec::new();
    for _ in 0..MOST_STEPS {
        let span = match regime.translate(memory, GuestVirt(at)) {
            Ok(mapping) => {
                let delta = at.wrapping_sub(mapping.address.0);
                if !tried.contains(&delta) {
                    if holds(delta) {
                        return Some(delta);
                    }
                    tried.push(delta);
                }
                mapping.page_size
            }
            Err(fault) => fault.span(),
        };
        at = (at | (span - 1)).checked_add(1)?;
        if at > last.0 {
            return None;
        }
    }
    None
}

/// A piece of memory that is mapped in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-virtual address.
    pub start: GuestVirt,
    /// Where it is.
    pub range: PhysRange,
}

/// The largest image of a kernel that is looked for, bytes.
pub(super) const LARGEST_IMAGE: u64 = 256 << 20;
/// Pieces that it may have.
const MOST_PIECES: usize = 64;

/// Where the kernel's image is mapped: in several pieces, as kernels unmap what they have needed for
/// their start only.
pub fn image(isa: Isa, regime: &Regime, memory: &dyn Memory, vbar: u64) -> Vec<Piece> {
    text(isa, regime, memory, vbar).map_or_else(Vec::new, |start| image_from(regime, memory, start))
}

/// The same of an image that begins at `start` or not far behind.
pub(super) fn image_from(regime: &Regime, memory: &dyn Memory, start: u64) -> Vec<Piece> {
    /// What is in front of the text may not be mapped.
    const LARGEST_HEAD: u64 = 2 << 20;
    let mut delta = None;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = start;
    while at - start < LARGEST_IMAGE {
        let span = match regime.translate(memory, GuestVirt(at)) {
            Ok(mapping) => {
                let address = mapping.address.0;
                if *delta.get_or_insert(at.wrapping_sub(address)) != at.wrapping_sub(address) {
                    break;
                }
                let left = mapping.bytes_left();
                let is_full = pieces.len() >= MOST_PIECES;
                match pieces.last_mut() {
                    Some(piece) if piece.start.0 + piece.range.size == at => piece.range.size += left,
                    _ if is_full => break,
                    _ => pieces.push(Piece { start: GuestVirt(at), range: PhysRange::new(address, left) }),
                }
                mapping.page_size
            }
            Err(_) if delta.is_none() && at - start > LARGEST_HEAD => break,
            Err(fault) => fault.span(),
        };
        match (at | (span - 1)).checked_add(1) {
            Some(next) => at = next,
            None => break,
        }
    }
    pieces.retain(|piece| is_ram(memory, &piece.range));
    pieces
}

fn is_ram(memory: &dyn Memory, range: &PhysRange) -> bool {
    memory.ranges().iter().any(|ram| ram.contains(range.start, range.size))
}

/// The page at an address, if it is RAM.
pub fn page(regime: &Regime, memory: &dyn Memory, at: GuestVirt, size: u64) -> Option<Piece> {
    let mapping = regime.translate(memory, at).ok()?;
    let range = PhysRange::new(mapping.address.0, size);
    is_ram(memory, &range).then_some(Piece { start: at, range })
}
