//! The test guests, as bytes.

/// One guest in one form.
#[derive(Clone, Copy, Debug)]
pub struct TestGuest {
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
pub fn find(isa: &str, name: &str, flat: bool) -> Option<&'static TestGuest> {
    GUESTS.iter().find(|guest| guest.isa == isa && guest.name == name && guest.flat == flat)
}

/// Names and addresses of the symbols of an ELF guest; `None` when it has none.
pub fn symbols(file: &[u8]) -> Option<Vec<(String, u64)>> {
    let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(file).ok()?;
    let (table, names) = file.symbol_table().ok()??;
    let named = |symbol: elf::symbol::Symbol| {
        let name = names.get(usize::try_from(symbol.st_name).ok()?).ok()?;
        Some((name.to_string(), symbol.st_value))
    };
    Some(table.iter().filter_map(named).collect())
}
