//! What a probe's guest is made of: instructions that are assembled into this program's read-only data, so that who
//! builds it needs no target beside the host's. They refer to nothing outside, and run wherever they are copied to.

use crate::native::PROBE_GUESTS;

/// The guests of an architecture, by name: each is a file in `guests`, whose labels begin with that name, as all are
/// assembled in one.
macro_rules! guests {
    ($isa:literal: $($name:literal)*) => {
        $(std::arch::global_asm!(
            ".pushsection .rodata.vmm_probe_guests, \"a\"",
            // A vector table is aligned within it.
            ".balign 4096",
            concat!(".hidden vmm_probe_", $name, ", vmm_probe_", $name, "_end"),
            concat!(".globl vmm_probe_", $name, ", vmm_probe_", $name, "_end"),
            concat!("vmm_probe_", $name, ":"),
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/guests/", $isa, "/", $name, ".s")),
            concat!("vmm_probe_", $name, "_end:"),
            ".popsection",
            options(raw),
        );)*

        /// Each guest's name and instructions.
        pub const PROBE_GUESTS: &[(&str, fn() -> &'static [u8])] = &[$(($name, || {
            unsafe extern "C" {
                #[link_name = concat!("vmm_probe_", $name)]
                static START: u8;
                #[link_name = concat!("vmm_probe_", $name, "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both labels are in one section, the second behind the first, and nobody writes between them.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        })),*];
    };
}

pub(crate) use guests;

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

    /// What is in the files is there from its first byte to its last, and nothing of it was left to the linker.
    #[test]
    fn guests_are_what_their_files_say() {
        for (name, _) in PROBE_GUESTS {
            let bytes = guest(name).unwrap();
            assert!((8..0x2000).contains(&bytes.len()), "{name}: {}", bytes.len());
            assert_eq!(bytes.as_ptr().addr() % 4096, 0, "{name}");
        }
        assert!(guest("nobody").is_err());
    }
}
