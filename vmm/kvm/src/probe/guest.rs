//! What a probe's guest is made of: instructions that are assembled into this program, so that who
//! builds it needs no target beside the host's. They refer to nothing outside, and run wherever they are copied to.

/// The guests of an architecture, by name: each is a file in `guests`, whose labels are the assembler's own (`.L`) and
/// begin with that name, as all are assembled in one. A program may have two versions of this library.
macro_rules! guests {
    ($isa:literal: $($name:literal)*) => {
        $(std::arch::global_asm!(
            // As code, so that what aligns it is instructions that do nothing.
            ".pushsection .text.vmm_probe_guests, \"ax\"",
            // A vector table is aligned within it.
            ".balign 4096",
            concat!(".hidden ", "\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "\"", ", ", "\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "_end\""),
            concat!(".globl ", "\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "\"", ", ", "\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "_end\""),
            concat!("\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "\"", ":"),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/guests/", $isa, "/", $name, ".s")),
            concat!("\"vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "_end\"", ":"),
            ".popsection",
            options(raw),
        );)*

        /// Each guest's name and instructions.
        const PROBE_GUESTS: &[(&str, fn() -> &'static [u8])] = &[$(($name, || {
            unsafe extern "C" {
                #[link_name = concat!("vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name)]
                static START: u8;
                #[link_name = concat!("vmm_probe_", env!("CARGO_PKG_VERSION"), "_", $name, "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels are in one section, the second behind the first, and nobody writes between them.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        })),*];
    };
}

#[cfg(target_arch = "x86_64")]
guests!("x86_64": "clock" "cmpxchg16b" "debug" "exits" "int3" "user_mode" "xrstor");
#[cfg(target_arch = "aarch64")]
guests!("aarch64": "brk" "clock" "debug" "exits" "user_mode");

/// A probe's guest.
///
/// # Errors
/// There is none of that name; in words.
pub fn guest(name: &str) -> Result<&'static [u8], String> {
    let found = PROBE_GUESTS.iter().find(|(known, _)| *known == name);
    found.map(|(_, guest)| guest()).ok_or_else(|| format!("there is no probe guest {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Isa;

    /// What is in the files is there from its first byte to its last, and nothing of it was left to the linker; between
    /// the pieces of the one that debugging is tried with nothing happens.
    #[test]
    fn guests_are_what_their_files_say() {
        for (name, _) in PROBE_GUESTS {
            let bytes = guest(name).unwrap();
            assert!((8..0x2000).contains(&bytes.len()), "{name}: {}", bytes.len());
            assert_eq!(bytes.as_ptr().addr() % 4096, 0, "{name}");
        }
        assert!(guest("nobody").is_err());
        let debug = guest("debug").unwrap();
        match crate::HOST_ISA {
            // NOP; INT3; LEA RBX, [RIP - 0x37], which is the guest's beginning. NOPs of several bytes begin so, too.
            Isa::X86_64 => {
                assert_eq!((debug[0], debug[1], debug[0x10], debug[0x20]), (0x90, 0x90, 0x90, 0xcc));
                assert_eq!(debug[0x30..0x37], [0x48, 0x8d, 0x1d, 0xc9, 0xff, 0xff, 0xff]);
                for padded in [2, 0x11, 0x21] {
                    assert!([0x90, 0x66, 0x0f].contains(&debug[padded]), "{debug:02x?}");
                }
            }
            // NOP; BRK #0; ADR X1, .-0x30.
            Isa::Aarch64 => {
                let word = |at| arch::bytes::u32_at(debug, at).unwrap();
                for at in (0..0x30).step_by(4).filter(|at| *at != 0x20) {
                    assert_eq!(word(at), 0xd503_201f, "{at:#x}");
                }
                assert_eq!((word(0x20), word(0x30)), (0xd420_0000, 0x10ff_fe81));
            }
        }
    }
}
