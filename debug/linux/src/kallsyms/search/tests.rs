//! Images with a table, as each version lays it out, made here.

use super::super::{Kind, LONG, Symbols, made, searched};
use super::*;
use crate::info::VmCoreInfo;
use std::cell::Cell;

/// Where the image is, its text behind a head, and the table.
const IMAGE: u64 = 0xffff_8000_8000_0000;
const TEXT: u64 = IMAGE + 0x1_0000;
const TABLE: u64 = IMAGE + 0x1_2340;
/// How many symbols there are beside `_stext`.
const COUNT: u64 = 700;

/// How a version has its table.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// Bytes of the number of symbols, and of a marker.
    width: usize,
    alignment: usize,
    addresses: Kept,
    /// Addresses are behind all else.
    are_addresses_last: bool,
    /// Between markers and tokens there is the order of names.
    has_order: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Absolute,
    Relative,
    RelativeAndNumbers,
}

const V4_19: Version = Version {
    width: 8,
    alignment: 8,
    addresses: Kept::Relative,
    are_addresses_last: false,
    has_order: false,
};
const V5_4: Version = Version { width: 4, ..V4_19 };

/// An image, and where the parts of its table are in it.
struct Image {
    bytes: Vec<u8>,
    parts: Vec<(&'static str, usize)>,
    asked: Cell<usize>,
}

impl Image {
    fn new(version: Version) -> Image {
        let names: Vec<String> = (0..COUNT).map(|number| format!("tsys_name{number}_lock")).collect();
        let has_numbers = version.addresses == Kept::RelativeAndNumbers;
        let number = [("Ahot", 0x1000)].into_iter().filter(|_| has_numbers);
        let named = names.iter().map(String::as_str).zip((1..).map(|number| TEXT + number * 16));
        let symbols: Vec<(&str, u64)> = number.chain([("T_stext", TEXT)]).chain(named).collect();
        let mut image = Image {
            bytes: vec![0x90; usize::try_from(TABLE - IMAGE).unwrap()],
            parts: vec![],
            asked: Cell::new(0),
        };
        let mut put = |name: &'static str, bytes: &[u8]| {
            image.bytes.resize(image.bytes.len().next_multiple_of(version.alignment), 0);
            image.parts.push((name, image.bytes.len()));
            image.bytes.extend(bytes);
        };
        let word = |word: u64| word.to_le_bytes()[..version.width].to_vec();
        let addresses = |put: &mut dyn FnMut(&'static str, &[u8])| {
            let offset = |address: u64| match version.addresses {
                Kept::RelativeAndNumbers if address >= IMAGE => !u32::try_from(address - TEXT).unwrap(),
                Kept::RelativeAndNumbers => u32::try_from(address).unwrap(),
                _ => u32::try_from(address - TEXT).unwrap(),
            };
            let values = symbols.iter().map(|(_, address)| *address);
            match version.addresses {
                Kept::Absolute => put("addresses", &values.flat_map(u64::to_le_bytes).collect::<Vec<_>>()),
                _ => {
                    put("addresses", &values.map(offset).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
                    put("base", &TEXT.to_le_bytes());
                }
            }
        };
        if !version.are_addresses_last {
            addresses(&mut put);
        }
        let (packed, markers) = made::names(&symbols);
        put("count", &word(symbols.len() as u64));
        put("names", &packed);
        put("markers", &markers.iter().flat_map(|marker| word(u64::from(*marker))).collect::<Vec<_>>());
        if version.has_order {
            put(
                "order",
                &(0..symbols.len()).flat_map(|number| [0, 1, u8::from(number % 5 == 0)]).collect::<Vec<_>>(),
            );
        }
        let (table, index) = made::tokens();
        put("tokens", &table);
        put("index", &index);
        if version.are_addresses_last {
            addresses(&mut put);
        }
        // Whatever comes behind.
        put("others", b"others");
        image
    }

    fn at(&self, part: &str) -> usize {
        self.parts.iter().find(|(name, _)| *name == part).unwrap().1
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> usize {
        let from = usize::try_from(at.wrapping_sub(IMAGE)).unwrap_or(usize::MAX);
        let rest = self.bytes.get(from..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        self.asked.set(self.asked.get() + count);
        bytes[..count].copy_from_slice(&rest[..count]);
        count
    }

    fn find(&self) -> Option<Symbols> {
        let text = format!("OSRELEASE=5.4.0\nPAGESIZE=4096\nSYMBOL(_stext)={TEXT:x}\n");
        searched(&VmCoreInfo::parse(text.as_bytes()).unwrap(), |at, bytes| self.read(at, bytes)).ok()
    }
}

/// What a table that was changed has.
fn changed(version: Version, change: impl FnOnce(&mut Image)) -> Option<Symbols> {
    let mut image = Image::new(version);
    change(&mut image);
    image.find()
}

#[test]
fn tables_are_found_as_each_version_has_them() {
    let aarch64 = Version { alignment: 256, ..V4_19 };
    let later = Version { are_addresses_last: true, ..V5_4 };
    for version in [V4_19, aarch64, V5_4, Version { has_order: true, ..V5_4 }, later] {
        for addresses in [Kept::Absolute, Kept::Relative, Kept::RelativeAndNumbers] {
            let version = Version { addresses, ..version };
            let found = Image::new(version).find().unwrap_or_else(|| panic!("{version:?}"));
            let has_number = addresses == Kept::RelativeAndNumbers;
            assert_eq!(found.count() as u64, COUNT + 1 + u64::from(has_number), "{version:?}");
            assert_eq!(found.address("_stext"), Some(TEXT), "{version:?}");
            assert_eq!(found.address("sys_name699_lock"), Some(TEXT + COUNT * 16), "{version:?}");
            let number = found.named("hot").next().map(|it| (it.address, it.kind));
            assert_eq!(number, has_number.then_some((0x1000, Kind::Absolute)), "{version:?}");
        }
    }
}

#[test]
fn an_image_has_holes_and_what_looks_like_a_table() {
    let found = changed(V5_4, |image| {
        // Digits, as in a table of tokens, with something else around them.
        image.bytes[0x100..0x100 + DIGITS.len()].copy_from_slice(DIGITS);
        image.bytes[0x1000..0x1000 + DIGITS.len()].copy_from_slice(DIGITS);
    });
    assert!(found.is_some());
    // The text is there, a hole, and the rest.
    let image = Image::new(V4_19);
    let hole = IMAGE + 0x1000..IMAGE + 0x3000;
    let read = |at: u64, bytes: &mut [u8]| match hole.contains(&at) {
        true => 0,
        false if at < hole.start => {
            let most = bytes.len().min(usize::try_from(hole.start - at).unwrap());
            image.read(at, &mut bytes[..most])
        }
        false => image.read(at, bytes),
    };
    let text = format!("OSRELEASE=5.4.0\nPAGESIZE=4096\nSYMBOL(_stext)={TEXT:x}\n");
    assert!(searched(&VmCoreInfo::parse(text.as_bytes()).unwrap(), read).is_ok());
}

#[test]
fn a_table_that_contradicts_itself_is_none() {
    type Change = fn(&mut Image);
    let changes: [(&str, Change); 9] = [
        ("a token is longer", |it| *it.byte("tokens", 4) = b'x'),
        ("the index is another's", |it| *it.byte("index", 200) ^= 1),
        ("a marker lies", |it| *it.byte("markers", 4) ^= 1),
        ("there are more markers than names", |it| *it.byte("markers", 0) = 1),
        ("the count is another", |it| *it.byte("count", 0) ^= 1),
        ("and by far", |it| *it.byte("count", 3) = 0x7f),
        ("a name is longer", |it| *it.byte("names", 0) += 1),
        ("a name is longer than all", |it| *it.byte("names", 0) |= LONG),
        ("it is cut off", |it| it.bytes.truncate(it.at("index") + 8)),
    ];
    for (what, change) in changes {
        assert!(changed(V5_4, change).is_none(), "{what}");
    }
    // `_stext` is not where the kernel says; addresses go up and down.
    assert!(changed(V5_4, |it| *it.byte("base", 0) ^= 1).is_none());
    assert!(changed(V5_4, |it| *it.byte("addresses", 8 * 4 + 3) = 0x70).is_none());
    // The name is another's.
    assert!(changed(V5_4, |it| *it.byte("names", 3) = b'x').is_none());
}

impl Image {
    fn byte(&mut self, part: &str, behind: usize) -> &mut u8 {
        let at = self.at(part) + behind;
        &mut self.bytes[at]
    }
}

/// Many tables that are good up to what is behind the names, before each of which a megabyte is read.
#[test]
fn tables_that_are_nearly_good_are_not_all_gone_through() {
    let image = Image::new(V5_4);
    let [markers, index] = ["markers", "index"].map(|part| image.at(part));
    let mut one = image.bytes[image.at("addresses")..index + 2 * TOKENS].to_vec();
    // The last name goes on behind the end, where there are no zeros.
    let padding = markers - image.at("addresses");
    one[padding - 1] = 0x7f;
    one[padding - 2] = 0x7f;
    one.resize(one.len().next_multiple_of(256), 0);
    let bytes: Vec<u8> = one.iter().copied().cycle().take(2 * MOST_CANDIDATES * one.len()).collect();
    let asked = Cell::new(0);
    let read = |at: u64, to: &mut [u8]| {
        let from = usize::try_from(at.wrapping_sub(IMAGE)).unwrap_or(usize::MAX);
        let rest = bytes.get(from..).unwrap_or_default();
        // What is in front of the image is there, too, and says nothing.
        let count = if at < IMAGE { to.len() } else { rest.len().min(to.len()) };
        asked.set(asked.get() + to.len());
        if at >= IMAGE {
            to[..count].copy_from_slice(&rest[..count]);
        }
        count
    };
    let memory = Memory(read);
    let digits = image::places(IMAGE..IMAGE + bytes.len() as u64, DIGITS, MOST_CANDIDATES, &memory.0);
    assert_eq!(digits.len(), MOST_CANDIDATES);
    asked.set(0);
    assert_eq!(tables(IMAGE..IMAGE + bytes.len() as u64, &memory), []);
    let of_each = MOST_CANDIDATES * (2 * MOST_TOKENS + 2 * (12 * MOST_MARKERS + 2 * PADDING));
    let most = bytes.len() + MOST_WALKED + of_each;
    assert!(asked.get() > MOST_WALKED / 2, "too little was asked for: {}", asked.get());
    assert!(asked.get() < most, "{} bytes were read, of {most}", asked.get());
}

/// Memory that says the same everywhere, and tables that lead to much work.
#[test]
fn a_search_has_bounds() {
    const SIZE: u64 = 4 << 20;
    let (table, index) = made::tokens();
    let table: Vec<u8> = table.into_iter().chain([0; 8]).chain(index).collect();
    for pattern in [&[0u8][..], DIGITS, &[1, 0, 0, 0], &table] {
        let asked = Cell::new(0);
        let read = |at: u64, bytes: &mut [u8]| {
            asked.set(asked.get() + bytes.len());
            let at = usize::try_from(at % pattern.len() as u64).unwrap();
            bytes.iter_mut().zip(pattern.iter().cycle().skip(at)).for_each(|(to, from)| *to = *from);
            bytes.len()
        };
        assert_eq!(tables(IMAGE..IMAGE + SIZE, &Memory(read)), []);
        let most = usize::try_from(SIZE).unwrap() + MOST_WALKED + MOST_CANDIDATES * MOST_TOKENS * 2;
        assert!(asked.get() < most, "{} bytes were read", asked.get());
    }
    // At the end of all addresses.
    let text = "OSRELEASE=5.4.0\nPAGESIZE=4096\nSYMBOL(_stext)=ffffffffffffff00\n";
    let info = VmCoreInfo::parse(text.as_bytes()).unwrap();
    assert!(searched(&info, |_, bytes| bytes.len()).is_err());
}
