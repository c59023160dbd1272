//! Where a kernel's image is mapped, for one that has moved itself (KASLR).
//!
//! Source: Linux, `Documentation/arch/x86/x86_64/mm.rst`, `Documentation/arch/arm64/booting.rst` and `memory.rst`.

use arch::paging::Regime;
use arch::ram::Memory;
use arch::{GuestVirt, Isa};

/// Where x86's kernel image is mapped, at the least, and how much room there is for it, bytes.
const X86_IMAGES: u64 = 0xffff_ffff_8000_0000;
const X86_IMAGES_SIZE: u64 = 1 << 30;
/// Kernel images are aligned to this, bytes.
pub(super) const IMAGE_ALIGNMENT: u64 = 2 << 20;
/// How far the vectors are behind the start of an image, at most, bytes.
const LARGEST_IMAGE: u64 = 128 << 20;

/// The guest-virtual address of the kernel image's first byte, `_text`: the start of the first
/// loadable segment of its ELF file. `vbar` is aarch64's `VBAR_EL1`. `None` while no kernel is
/// mapped where one would be.
pub fn text(isa: Isa, regime: &Regime, memory: &dyn Memory, vbar: u64) -> Option<u64> {
    let mapped = |at: u64| regime.translate(memory, GuestVirt(at));
    match isa {
        Isa::X86_64 => {
            // The kernel unmaps what is in front of its image, and aligns the image.
            let mut at = X86_IMAGES;
            while at - X86_IMAGES < X86_IMAGES_SIZE {
                if mapped(at).is_ok_and(|mapping| mapping.permissions.execute) {
                    return (at > X86_IMAGES).then_some(at);
                }
                at += IMAGE_ALIGNMENT;
            }
            None
        }
        Isa::Aarch64 => {
            // The vectors are in the image; what is in front of it is not mapped.
            // What is mapped in one piece is gone over in one go.
            let first = |at: u64| mapped(at).ok().map(|mapping| at & !(mapping.page_size - 1));
            let mut at = first(vbar)?;
            while let Some(before) = at.checked_sub(1).and_then(first) {
                at = before;
                if vbar - at > LARGEST_IMAGE {
                    return None;
                }
            }
            (at >> 63 != 0).then_some(at & !(IMAGE_ALIGNMENT - 1))
        }
    }
}
