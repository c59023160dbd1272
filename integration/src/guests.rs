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

/// Those of a large ELF file's symbols that have one of these names: name, address and size. `None` when it has none.
pub fn symbols_of(file: std::fs::File, names: &[&str]) -> Option<Vec<(String, u64, u64)>> {
    let mut file = elf::ElfStream::<elf::endian::LittleEndian, _>::open_stream(file).ok()?;
    let (table, strings) = file.symbol_table().ok()??;
    let named = |symbol: elf::symbol::Symbol| {
        let name = strings.get(usize::try_from(symbol.st_name).ok()?).ok()?;
        names.contains(&name).then(|| (name.to_string(), symbol.st_value, symbol.st_size))
    };
    Some(table.iter().filter_map(named).collect())
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
