//! The test guests, as bytes.

/// One guest in one form.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its architecture's name.
    pub isa: &'static str,
    /// The name of its source.
    pub name: &'static str,
    /// Whether this is the flat form rather than ELF.
    pub flat: bool,
    /// The file.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// Looks a guest up.
pub fn find(isa: &str, name: &str, flat: bool) -> Option<&'static Guest> {
    GUESTS.iter().find(|guest| guest.isa == isa && guest.name == name && guest.flat == flat)
}
