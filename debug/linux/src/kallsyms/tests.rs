//! Tables as kernels have them, made here.

use super::*;
use std::collections::BTreeMap;

const BASE: u64 = 0xffff_8000_8000_0000;

/// Memory that has a table.
struct Image {
    bytes: BTreeMap<u64, Vec<u8>>,
    place: Parts,
}

impl Image {
    /// With symbols: what `nm` says with the name, and the value of the table of addresses.
    fn new(symbols: &[(&str, u64)], addresses: Addresses) -> Image {
        let (table, index) = made::tokens();
        let (names, _) = made::names(symbols);
        let place =
            Parts { count: 0x1000, names: 0x2000, token_table: 0x50_0000, token_index: 0x60_0000, addresses };
        let count = u32::try_from(symbols.len()).unwrap().to_le_bytes().to_vec();
        let mut bytes = BTreeMap::from([
            (place.count, count),
            (place.names, names),
            (place.token_table, table),
            (place.token_index, index),
        ]);
        match addresses {
            Addresses::Absolute(at) => {
                bytes.insert(at, symbols.iter().flat_map(|(_, value)| value.to_le_bytes()).collect());
            }
            Addresses::Relative { offsets, base } => {
                let words = symbols.iter().map(|(_, value)| u32::try_from(value & 0xffff_ffff).unwrap());
                bytes.insert(offsets, words.flat_map(u32::to_le_bytes).collect());
                bytes.insert(base, BASE.to_le_bytes().to_vec());
            }
        }
        Image { bytes, place }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> usize {
        let Some((begin, there)) = self.bytes.range(..=at).next_back() else { return 0 };
        let rest = there.get(usize::try_from(at - begin).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        count
    }

    fn symbols(&self) -> Result<Symbols, KallsymsError> {
        symbols(&self.place, |at, bytes| self.read(at, bytes))
    }

    fn all(&self) -> Vec<(String, u64, Kind, bool)> {
        let symbols = self.symbols().unwrap();
        symbols.iter().map(|it| (it.name.into(), it.address, it.kind, it.is_global)).collect()
    }
}

const RELATIVE: Addresses = Addresses::Relative { offsets: 0x70_0000, base: 0x80_0000 };

#[test]
fn offsets_from_a_base() {
    let image = Image::new(&[("T_text", 0), ("tsys_read", 0x1_0000), ("Dinit_lock", 0x9000_0000)], RELATIVE);
    assert_eq!(
        image.all(),
        [
            ("_text".into(), BASE, Kind::Text, true),
            ("sys_read".into(), BASE + 0x1_0000, Kind::Text, false),
            ("init_lock".into(), BASE + 0x9000_0000, Kind::Data, true),
        ]
    );
}

#[test]
fn numbers_beside_negative_offsets() {
    let down = |offset: u64| (-1 - i64::try_from(offset).unwrap()).cast_unsigned();
    let image = Image::new(
        &[
            ("A__per_cpu_start", 0),
            ("Apcpu_hot", 0x3_2000),
            ("T_text", down(0)),
            ("Wa", down(8)),
            ("d.b", down(0x10)),
        ],
        RELATIVE,
    );
    assert_eq!(
        image.all(),
        [
            ("_text".into(), BASE, Kind::Text, true),
            ("a".into(), BASE + 8, Kind::Text, true),
            (".b".into(), BASE + 0x10, Kind::Data, false),
            ("__per_cpu_start".into(), 0, Kind::Absolute, true),
            ("pcpu_hot".into(), 0x3_2000, Kind::Absolute, true),
        ]
    );
}

#[test]
fn addresses_as_they_are_and_names_of_two_bytes_length() {
    let long = format!("T{}", "x".repeat(300));
    let image = Image::new(&[(&long, BASE), ("Anumber", 7)], Addresses::Absolute(0x70_0000));
    let all = image.all();
    assert_eq!((all[0].0.len(), all[0].1), (300, BASE));
    assert_eq!(all[1], ("number".into(), 7, Kind::Absolute, true));
}

#[test]
fn a_table_that_is_none_is_told() {
    let good = || Image::new(&[("T_text", 0), ("tb", 8)], RELATIVE);
    let told = |change: &dyn Fn(&mut Image)| {
        let mut image = good();
        change(&mut image);
        image.symbols().unwrap_err()
    };
    let at = |image: &mut Image, at: u64| image.bytes.get_mut(&at).unwrap().clone();
    assert_eq!(told(&|it| drop(it.bytes.remove(&0x1000))), KallsymsError::NotMapped(0x1000));
    // What is there ends within.
    assert_eq!(told(&|it| it.bytes.get_mut(&0x2000).unwrap().truncate(3)), KallsymsError::NotMapped(0x2003));
    assert_eq!(
        told(&|it| it.bytes.get_mut(&0x70_0000).unwrap().truncate(5)),
        KallsymsError::NotMapped(0x70_0005)
    );
    for count in [0, u32::MAX] {
        let found = told(&|it| drop(it.bytes.insert(0x1000, count.to_le_bytes().to_vec())));
        assert!(matches!(found, Damaged(_)), "{found}");
    }
    // A token that would do something to a terminal, and one without an end.
    let found = told(&|it| {
        let mut table = at(it, 0x50_0000);
        table[0] = 0x1b;
        it.bytes.insert(0x50_0000, table);
    });
    assert!(matches!(found, Damaged(_)), "{found}");
    let found = told(&|it| {
        let mut table = at(it, 0x50_0000);
        table.fill(b'x');
        it.bytes.insert(0x50_0000, table);
    });
    assert!(matches!(found, Damaged(_)), "{found}");
    // No name at all, and one longer than any.
    let found = told(&|it| drop(it.bytes.insert(0x2000, vec![0; 64])));
    assert_eq!(found, Damaged("a symbol without a name"));
    let found = told(&|it| {
        let names = [&[0xff, 0x7f][..], &[b'x'; 0x4000]].concat();
        it.bytes.insert(0x2000, names);
    });
    assert_eq!(found, Damaged("a name is longer than any"));
}

#[test]
fn a_kernel_says_where_its_table_is() {
    let text = |more: &str| {
        let all = format!(
            "OSRELEASE=6.12.0\nPAGESIZE=4096\nSYMBOL(kallsyms_names)=1\nSYMBOL(kallsyms_num_syms)=2\n\
             SYMBOL(kallsyms_token_table)=3\nSYMBOL(kallsyms_token_index)=4\n{more}"
        );
        Parts::described(&VmCoreInfo::parse(all.as_bytes()).unwrap())
    };
    let relative = text("SYMBOL(kallsyms_offsets)=5\nSYMBOL(kallsyms_relative_base)=6\n").unwrap();
    assert_eq!(relative.addresses, Addresses::Relative { offsets: 5, base: 6 });
    assert_eq!((relative.names, relative.count, relative.token_table, relative.token_index), (1, 2, 3, 4));
    assert_eq!(text("SYMBOL(kallsyms_addresses)=5\n").unwrap().addresses, Addresses::Absolute(5));
    assert_eq!(text(""), None);
}

/// Whatever is in memory, it ends, and says so.
#[test]
fn bytes_of_any_kind_come_to_an_end() {
    let mut state = 1u64;
    let mut chance = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let symbols: Vec<(String, u64)> =
        (0..50).map(|number| (format!("tname_lock{number}"), number * 16)).collect();
    let symbols: Vec<(&str, u64)> = symbols.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let mut good = 0;
    for _ in 0..500 {
        let mut image = Image::new(&symbols, RELATIVE);
        for bytes in image.bytes.values_mut() {
            for _ in 0..chance() % 3 {
                let at = usize::try_from(chance()).unwrap() % bytes.len();
                bytes[at] = u8::try_from(chance() & 0xff).unwrap();
            }
        }
        if let Ok(found) = image.symbols() {
            assert!(found.iter().all(|it| it.name.len() <= LONGEST_NAME && it.name.is_ascii()));
            good += 1;
        }
    }
    assert!((1..500).contains(&good), "{good}");
}

/// Memory that says the same everywhere, as one page that is mapped again and again does.
#[test]
fn names_have_bounds() {
    let place = Parts {
        count: 0x1000,
        names: 0x10_0000_0000,
        token_table: 0x20_0000_0000,
        token_index: 0x30_0000_0000,
        addresses: Addresses::Absolute(0x40_0000_0000),
    };
    // Each name has one token of 256 characters; or as many empty ones as there can be.
    for (length, stream, token) in [(256, [1, 1], b'a'), (0, [0xff, 0xff], 0)] {
        let mut asked = 0;
        let read = std::cell::RefCell::new(&mut asked);
        let memory = |at: u64, bytes: &mut [u8]| {
            **read.borrow_mut() += bytes.len();
            match at >> 36 {
                0 => {
                    bytes.copy_from_slice(&u32::try_from(MOST_SYMBOLS).unwrap().to_le_bytes()[..bytes.len()])
                }
                1 => bytes.iter_mut().zip(stream.iter().cycle()).for_each(|(byte, it)| *byte = *it),
                2 => {
                    (0..).zip(&mut *bytes).for_each(|(at, byte)| *byte = if at < length { token } else { 0 })
                }
                _ => bytes.fill(0),
            }
            bytes.len()
        };
        assert!(matches!(symbols(&place, memory), Err(Damaged(_))), "{length}");
        assert!(asked < 3 * MOST_NAMES, "{asked} bytes were read");
    }
}
