//! Expressions over a kernel made here.

use super::evaluate::InModule;
use super::*;
use crate::linux::btf;
use crate::linux::symbols::{Builder, Kind, Symbol};

/// A type as BTF has it: name, kind and count, size or type, and what is behind that.
type Row<'a> = (&'a str, u32, u32, Vec<Word<'a>>);

enum Word<'a> {
    Name(&'a str),
    Number(u32),
}

fn member<'a>(name: &'a str, of: u32, bit: u32) -> [Word<'a>; 3] {
    [Word::Name(name), Word::Number(of), Word::Number(bit)]
}

/// The kernel's types.
fn types() -> Types {
    const INT: u32 = 1 << 24;
    const SIGNED: u32 = 1 << 24;
    const POINTER: u32 = 2 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    const VARIABLE: u32 = 14 << 24;
    /// Of structures: the upper byte of where members are is how many bits they have.
    const HAS_BITS: u32 = 1 << 31;
    let rows: [Row<'_>; 15] = [
        ("unsigned int", INT, 4, vec![Word::Number(32)]),
        ("", POINTER, 3, vec![]),
        (
            "list_head",
            STRUCT | 2,
            16,
            member("next", 2, 0).into_iter().chain(member("prev", 2, 64)).collect(),
        ),
        ("", ARRAY, 0, [1, 1, 4].map(Word::Number).into()),
        (
            "item",
            STRUCT | HAS_BITS | 6,
            64,
            [
                member("id", 1, 0),
                member("link", 3, 64),
                member("numbers", 4, 192),
                member("other", 6, 320),
                member("flags", 1, 3 << 24 | 389),
                member("comm", 8, 400),
            ]
            .into_iter()
            .flatten()
            .collect(),
        ),
        ("", POINTER, 5, vec![]),
        ("char", INT, 1, vec![Word::Number(8)]),
        ("", ARRAY, 0, [7, 1, 8].map(Word::Number).into()),
        ("counts", VARIABLE, 4, vec![Word::Number(1)]),
        ("", POINTER, 7, vec![]),
        ("int", INT, 4, vec![Word::Number(SIGNED | 32)]),
        ("long unsigned int", INT, 8, vec![Word::Number(64)]),
        ("long int", INT, 8, vec![Word::Number(SIGNED | 64)]),
        ("signed char", INT, 1, vec![Word::Number(SIGNED | 8)]),
        ("_Bool", INT, 1, vec![Word::Number(4 << 24 | 8)]),
    ];
    let (mut words, mut names) = (Vec::new(), vec![0u8]);
    let mut name = |text: &str| {
        let at = u32::try_from(names.len()).unwrap();
        names.extend(text.bytes().chain([0]));
        at
    };
    for (own, info, size, rest) in &rows {
        words.extend([name(own), *info, *size]);
        for word in rest {
            words.push(match word {
                Word::Name(text) => name(text),
                Word::Number(number) => *number,
            });
        }
    }
    let size = u32::try_from(4 * words.len()).unwrap();
    let header = [24, 0, size, size, u32::try_from(names.len()).unwrap()];
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    bytes.extend(header.iter().chain(&words).flat_map(|word| word.to_le_bytes()));
    bytes.extend(names);
    btf::types(&bytes).unwrap()
}

const BASE: u64 = 0xffff_8000_0000_0000;
const FIRST: u64 = BASE + 0x100;
const SECOND: u64 = BASE + 0x200;

fn symbols() -> Symbols {
    let mut builder = Builder::default();
    for (name, address) in [
        ("__per_cpu_start", 0),
        ("counts", 0x40),
        ("__per_cpu_end", 0x1000),
        ("head", BASE),
        ("first", FIRST),
        ("twice", BASE + 0x20),
        ("twice", BASE + 0x30),
        ("__per_cpu_offset", BASE + 0x300),
        ("_end", BASE + 0x1000),
    ] {
        let kind = if address < BASE { Kind::Absolute } else { Kind::Data };
        builder.add(Symbol { name, address, kind, is_global: true });
    }
    builder.finish()
}

/// Two items in a list, and data of two processors.
fn memory() -> Vec<u8> {
    let mut memory = vec![0; 0x1000];
    let mut put = |at: u64, word: u64| {
        let at = usize::try_from(at - BASE).unwrap();
        memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
    };
    let links = [BASE, FIRST + 8, SECOND + 8];
    for (index, link) in links.iter().enumerate() {
        put(*link, links[(index + 1) % 3]);
        put(*link + 8, links[(index + 2) % 3]);
    }
    for (item, id) in [(FIRST, 7), (SECOND, 8)] {
        put(item, id);
        put(item + 24, 0x1_0000_0000 | id);
        put(item + 32, 0x3_0000_0002);
        put(item + 48, 0b1010_0000 | 0x6968 << 16);
    }
    put(FIRST + 40, SECOND);
    put(OF_MODULE, 0x12);
    put(BASE + 0x300, BASE + 0x400);
    put(BASE + 0x308, BASE + 0x500);
    put(BASE + 0x54c, 99);
    memory
}

fn printed(text: &str) -> Result<Printed, String> {
    printed_within(text, Bounds::USUAL)
}

fn printed_within(text: &str, bounds: Bounds) -> Result<Printed, String> {
    printed_by(text, bounds, |_| Box::new(Nobody))
}

/// The same, of a kernel with modules.
fn printed_with_modules(text: &str) -> Result<Printed, String> {
    printed_by(text, Bounds::USUAL, |kernel| Box::new(Made { kernel, has_unread: false, goes_on: true }))
}

fn printed_by(
    text: &str,
    bounds: Bounds,
    modules: impl FnOnce(Arc<Types>) -> Box<dyn Loaded>,
) -> Result<Printed, String> {
    let (types, symbols, memory) = (types(), symbols(), memory());
    let read = |at: u64, bytes: &mut [u8]| {
        let rest =
            usize::try_from(at.wrapping_sub(BASE)).ok().and_then(|at| memory.get(at..)).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        count
    };
    let reader = Reader::new(&read);
    let types = Arc::new(types);
    let modules = modules(Arc::clone(&types));
    let printed = Kernel::new(&types, &symbols, &*modules, &reader).print(&Parser::whole(text)?, bounds);
    printed.map_err(|failure| match failure {
        Failure::NotThere(why) => format!("not there: {why}"),
        Failure::Wrong(why) => why,
    })
}

/// No modules.
struct Nobody;

impl Loaded for Nobody {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn named(&self, _: &str) -> Vec<InModule> {
        Vec::new()
    }

    fn holding(&self, _: u64) -> Option<usize> {
        None
    }

    fn types(&self, _: usize) -> Result<Option<Arc<Types>>, String> {
        Ok(None)
    }

    fn symbol(&self, _: u64) -> Option<String> {
        None
    }

    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    fn goes_on(&self) -> bool {
        true
    }
}

/// Two modules: each has a `struct item` and a `struct job` of its own, which the kernel has one and none of.
struct Made {
    kernel: Arc<Types>,
    /// There is one more, whose types and symbols cannot be read.
    has_unread: bool,
    goes_on: bool,
}

/// Where the first one has its memory.
const OF_MODULE: u64 = BASE + 0x600;
/// And the one that cannot be read.
const OF_UNREAD: u64 = BASE + 0x800;

impl Loaded for Made {
    fn names(&self) -> Vec<String> {
        let names = ["wedge", "other", "unread"].map(String::from);
        names[..if self.has_unread { 3 } else { 2 }].to_vec()
    }

    fn named(&self, name: &str) -> Vec<InModule> {
        let one = |module, address, is_per_cpu| InModule { module, address, is_per_cpu };
        match name {
            "waiting" => vec![one(0, OF_MODULE, false)],
            "counted" => vec![one(0, 0x40, true)],
            "both" => vec![one(0, OF_MODULE, false), one(1, OF_MODULE + 0x100, false)],
            _ => Vec::new(),
        }
    }

    fn holding(&self, address: u64) -> Option<usize> {
        let is_in_unread = self.has_unread && (OF_UNREAD..OF_UNREAD + 0x100).contains(&address);
        let is_in_first = (OF_MODULE..OF_MODULE + 0x100).contains(&address);
        if is_in_unread { Some(2) } else { is_in_first.then_some(0) }
    }

    fn types(&self, module: usize) -> Result<Option<Arc<Types>>, String> {
        if module == 2 {
            return Err("the types of unread cannot be read".into());
        }
        const STRUCT: u32 = 4 << 24;
        const VARIABLE: u32 = 14 << 24;
        let first = u32::try_from(self.kernel.count()).unwrap();
        // Names count on from the kernel's, of which none is used here.
        let names = ["item", "job", "number", "pair", "counted", "list_head", "next", "prev"];
        let at = |name: &str| {
            let index = names.iter().position(|it| *it == name).unwrap();
            u32::try_from(names[..index].iter().map(|name| name.len() + 1).sum::<usize>()).unwrap()
        };
        let size = [8, 16][module];
        let mut words = vec![at("item"), STRUCT | 1, size, at("number"), 12, 0];
        words.extend([at("job"), STRUCT | 1, size, at("number"), 12, 0]);
        // A copy of the kernel's.
        words.extend([at("list_head"), STRUCT | 2, 16, at("next"), 2, 0, at("prev"), 2, 64]);
        if module == 0 {
            words.extend([at("pair"), STRUCT | 1, 8, at("number"), 12, 0]);
            words.extend([at("pair"), STRUCT | 1, 8, at("number"), 1, 0]);
            words.extend([at("counted"), VARIABLE, first, 0]);
        }
        let text: Vec<u8> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
        let size = u32::try_from(4 * words.len()).unwrap();
        let header = [24, 0, size, size, u32::try_from(text.len()).unwrap()];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        bytes.extend(header.iter().chain(&words).flat_map(|word| word.to_le_bytes()));
        bytes.extend(text);
        Ok(Some(Arc::new(btf::split(&bytes, Arc::clone(&self.kernel), &[]).unwrap())))
    }

    fn symbol(&self, address: u64) -> Option<String> {
        (address == OF_MODULE).then(|| "waiting [wedge]".into())
    }

    fn remarks(&self) -> Vec<String> {
        if self.has_unread { vec!["the symbols of 1 module cannot be had".into()] } else { Vec::new() }
    }

    fn goes_on(&self) -> bool {
        self.goes_on
    }
}

#[test]
fn names_and_types_of_modules_are_found() {
    for (text, expected) in [
        ("&waiting", "(unsigned long) 0xffff800000000600 <__per_cpu_offset+0x300>\n"),
        // The module's own, as the symbol, or the place, is the module's.
        ("*(struct item *)waiting", "(struct item) 0xffff800000000600: {\n  number = 18,\n}\n"),
        ("*(struct item *)0xffff800000000600", "(struct item) 0xffff800000000600: {\n  number = 18,\n}\n"),
        ("((struct job *)waiting)->number", "(long unsigned int) 0xffff800000000600: 18\n"),
        // The kernel's, as that is the kernel's, and by the module's name, or the kernel's.
        ("((struct item *)first)->id", "(unsigned int) 0xffff800000000100: 7\n"),
        ("((vmlinux:struct item *)waiting)->id", "(unsigned int) 0xffff800000000600: 18\n"),
        ("((wedge:struct item *)first)->number", "(long unsigned int) 0xffff800000000100: 7\n"),
        ("((vmlinux:struct item *)0xffff800000000100)->id", "(unsigned int) 0xffff800000000100: 7\n"),
        // What a module has not, the kernel has.
        ("((struct list_head *)waiting)->next", "(struct list_head *) 0xffff800000000600: 0x12\n"),
        ("((struct pair#1 *)waiting)->number", "(long unsigned int) 0xffff800000000600: 18\n"),
        ("((wedge:struct pair#2 *)first)->number", "(unsigned int) 0xffff800000000100: 7\n"),
        ("per_cpu(counted, 1)", "(struct item) 0xffff800000000540: {\n  number = 0,\n}\n"),
        (
            "list(head, vmlinux:struct item, link).id",
            "(unsigned int) 0xffff800000000100: 7\n(unsigned int) 0xffff800000000200: 8\n",
        ),
    ] {
        match printed_with_modules(text) {
            Ok(printed) => assert_eq!(printed.to_string(), expected, "{text}"),
            Err(why) => panic!("{text}: {why}"),
        }
    }
}

#[test]
fn of_several_types_of_one_name_none_is_taken_in_silence() {
    let all = "vmlinux:struct item (64 bytes: id, link, numbers, other, ...), wedge:struct item (8 bytes: number), \
               other:struct item (16 bytes: number)";
    for (text, says) in [
        // It may be anybody's.
        ("*(struct item *)0xffff800000000200", all),
        // What was found in the kernel's memory may be, as well.
        ("*(struct item *)((struct item *)first)->other", all),
        ("*(struct job *)first", "write one of wedge:struct job (8 bytes: number), other:struct job (16"),
        (
            "*(struct pair *)first",
            "wedge:struct pair#1 (8 bytes: number), wedge:struct pair#2 (8 bytes: number)",
        ),
        ("*(struct pair#3 *)first", "there is no 'struct pair#3': they are counted from 1 to 2"),
        ("*(struct pair#0 *)first", "counted from 1"),
        ("*(nobody:struct item *)first", "there is no module 'nobody'"),
        ("*(other:struct pair *)first", "other has no type 'struct pair'"),
        ("*(struct nothing *)waiting", "the kernel has no type 'struct nothing', nor has one of its modules"),
        ("both", "modules have several symbols 'both'"),
        ("counted", "write per_cpu(counted, 0)"),
        ("per_cpu(waiting, 0)", "one 'waiting' for all"),
        ("nobody", "nor has one of its modules"),
    ] {
        let why = printed_with_modules(text).unwrap_err();
        assert!(why.contains(says), "{text}: {why}");
    }
}

/// Of one that a module has as well, made alike, there are no two.
#[test]
fn a_copy_of_the_kernels_type_is_the_kernels() {
    let found = printed_with_modules("((struct list_head *)0xffff800000000108)->next").unwrap();
    assert_eq!(
        found.to_string(),
        "(struct list_head *) 0xffff800000000108: 0xffff800000000208 <first+0x108>\n"
    );
    assert_eq!(found.remarks, [""; 0]);
}

#[test]
fn a_module_that_cannot_be_read_is_told_of() {
    let made =
        |goes_on| move |kernel| Box::new(Made { kernel, has_unread: true, goes_on }) as Box<dyn Loaded>;
    let printed = |text: &str| printed_by(text, Bounds::USUAL, made(true));
    // It may have one of that name, too.
    let remark = ["the types of unread cannot be read: it may have a 'struct list_head' of its own"];
    assert_eq!(printed("((struct list_head *)0xffff800000000108)->next").unwrap().remarks, remark);
    assert_eq!(printed("((struct list_head *)0xffff800000000808)->next").unwrap().remarks, remark);
    // What is asked of the kernel alone needs no other.
    assert_eq!(printed("*(struct item *)first").unwrap().remarks, [""; 0]);
    for (text, says) in [
        (
            "*(unread:struct item *)first",
            "unread has no type 'struct item'; the types of unread cannot be read",
        ),
        ("*(struct nothing *)first", "nor has one of its modules; the types of unread cannot be read"),
        // It is its memory, and another one's type.
        (
            "*(struct pair#1 *)0xffff800000000808",
            "whether the module has a type 'struct pair' is not known; the types",
        ),
        ("nobody", "nor has one of its modules; the symbols of 1 module cannot be had"),
    ] {
        let why = printed(text).unwrap_err();
        assert!(why.contains(says), "{text}: {why}");
    }
    let one_more = printed("&waiting").unwrap().remarks;
    assert_eq!(one_more, ["the symbols of 1 module cannot be had"]);
    let stopped = printed_by("*(struct item *)0xffff800000000200", Bounds::USUAL, made(false)).unwrap_err();
    assert!(stopped.ends_with("it was broken off"), "{stopped}");
}

/// What is wrong is so by all page tables.
#[test]
fn what_is_not_there_is_told_from_what_is_wrong() {
    for text in ["((struct item *)0x1000)->other->id", "*((struct item *)0x1000)->other"] {
        let why = printed(text).unwrap_err();
        assert!(why.starts_with("not there: the kernel's memory cannot be read at"), "{text}: {why}");
    }
    for text in
        ["((struct item *)first)->nothing", "*(struct nothing *)first", "twice", "per_cpu(counts, 9000)"]
    {
        let why = printed(text).unwrap_err();
        assert!(!why.starts_with("not there"), "{text}: {why}");
    }
    assert_eq!(Failure::NotThere("x".into()).settled::<()>(), Err("x".into()));
    assert_eq!(Failure::Wrong("x".into()).settled::<()>(), Ok(Err("x".into())));
}

#[test]
fn expressions_are_read_as_c_has_them() {
    let item = "(struct item) 0xffff800000000100: {\n  id = 7,\n  link = {\n    next = 0xffff800000000208 \
                <first+0x108>,\n    prev = 0xffff800000000000 <head>,\n  },\n  numbers = {7, 1, 2, 3},\n  other = \
                0xffff800000000200 <first+0x100>,\n  flags = 5,\n  comm = \"hi\",\n}\n";
    for (text, expected) in [
        ("*(struct item *)first", item),
        ("*( struct item* )0xffff800000000100", item),
        ("*((struct item *)first)", item),
        ("((struct item *)first)->id", "(unsigned int) 0xffff800000000100: 7\n"),
        ("((struct item *)first)->numbers[2]", "(unsigned int) 0xffff800000000120: 2\n"),
        ("*((struct item *)first)->numbers", "(unsigned int) 0xffff800000000118: 7\n"),
        ("((struct item *)first)->other->id", "(unsigned int) 0xffff800000000200: 8\n"),
        ("((struct item *)first)->other->comm", "(char [8]) 0xffff800000000232: \"hi\"\n"),
        ("(*(struct item *)first).flags", "(unsigned int) 0xffff800000000130: 5\n"),
        ("&((struct item *)first)->link", "(struct list_head *) 0xffff800000000108 <first+0x8>\n"),
        ("((struct item *)first)[4].id", "(unsigned int) 0xffff800000000200: 8\n"),
        ("(char *)((struct item *)first)->comm", "(char *) \"hi\"\n"),
        ("per_cpu(counts, 1)[3]", "(unsigned int) 0xffff80000000054c: 99\n"),
        ("per_cpu(counts, 0)", "(unsigned int [4]) 0xffff800000000440: {0, 0, 0, 0}\n"),
        ("head", "(void) 0xffff800000000000: <of what it is made is not known>\n"),
        ("&head", "(unsigned long) 0xffff800000000000 <head>\n"),
        (
            "list(head, struct item, link).id",
            "(unsigned int) 0xffff800000000100: 7\n(unsigned int) 0xffff800000000200: 8\n",
        ),
        ("((struct item *)0x1000)->id", "(unsigned int) 0x1000: <not there: 0x1000>\n"),
    ] {
        match printed(text) {
            Ok(printed) => assert_eq!(printed.to_string(), expected, "{text}"),
            Err(why) => panic!("{text}: {why}"),
        }
    }
    assert_eq!(
        printed("((struct item *)0x1000)->id").unwrap().shortfall().as_deref(),
        Some("the kernel's memory cannot be read at 0x1000")
    );
}

#[test]
fn numbers_are_converted_as_in_c() {
    for (text, expected) in [
        ("(int)0xffffffff", "(int) -1\n"),
        ("(long)(int)0xffffffff", "(long int) -1\n"),
        ("(unsigned long)(int)0xffffffff", "(long unsigned int) 18446744073709551615\n"),
        ("(long)(unsigned)0xffffffff", "(long int) 4294967295\n"),
        ("(unsigned long)(unsigned)0x1ffffffff", "(long unsigned int) 4294967295\n"),
        ("(unsigned)(signed char)0x80", "(unsigned int) 4294967168\n"),
        ("(long)(_Bool)0x100", "(long int) 1\n"),
        // What is in memory has its type's sign: 0xa0 of the flags.
        ("(long)*(signed char *)0xffff800000000130", "(long int) -96\n"),
        ("*(struct item *)(long)first", "(struct item) 0xffff800000000100: "),
        ("(int)((struct item *)first)->id", "(int) 7\n"),
        ("((struct item *)(first))->id", "(unsigned int) 0xffff800000000100: 7\n"),
    ] {
        let printed = printed(text).unwrap_or_else(|why| panic!("{text}: {why}")).to_string();
        assert!(
            printed == expected || expected.ends_with(": ") && printed.starts_with(expected),
            "{text}: {printed}"
        );
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (text, says) in [
        ("", "a name is missing at the end"),
        ("first second", "'second' is one too many"),
        ("(first", "')' is missing at the end"),
        ("first->", "a name is missing at the end"),
        ("first[x]", "'x' is no number"),
        ("first + 1", "'+' is one too many"),
        ("nobody", "no symbol 'nobody'"),
        ("twice", "several symbols 'twice'"),
        ("*first", "write *(struct T *) in front of it"),
        ("first->id", "write ((struct T *)ADDRESS)->id"),
        ("*(struct nothing *)first", "no type 'struct nothing'"),
        ("*(union item *)first", "no type 'union item'"),
        ("((struct item *)first)->none", "struct item has no 'none'"),
        ("((struct item *)first)->numbers[4]", "it has 4 elements"),
        ("((struct item *)first)->id->x", "unsigned int has no 'x'"),
        ("*((struct item *)first)->id", "a unsigned int is no address"),
        ("&((struct item *)first)->flags", "only what is in memory has an address"),
        ("counts", "write per_cpu(counts, 0)"),
        ("per_cpu(head, 0)", "one 'head' for all"),
        ("per_cpu(counts, 9000)", "no processor 9000"),
        ("list(head, struct item, none)", "struct item has no 'none'"),
        ("list(list(head, struct item, link), struct item, link)", "a list of lists"),
        (&"*".repeat(100), "no more than 32 within each other"),
        (&format!("first{}", ".a".repeat(100)), "no more than 32 behind each other"),
    ] {
        let why = printed(text).unwrap_err();
        assert!(why.contains(says), "{text}: {why}");
    }
}

#[test]
fn programs_get_the_same() {
    let json = printed("*(struct item *)first").unwrap().json();
    let thing = &json["things"][0];
    assert_eq!((&thing["type"], &thing["address"]), (&json!("struct item"), &json!("0xffff800000000100")));
    assert_eq!((&thing["value"]["id"], &thing["value"]["comm"]), (&json!(7), &json!("hi")));
    assert_eq!(thing["value"]["other"]["symbol"], "first+0x100");
    assert_eq!(thing["value"]["numbers"], json!([7, 1, 2, 3]));
    let few =
        printed_within("*(struct item *)first", Bounds { elements: 2, ..Bounds::USUAL }).unwrap().json();
    assert_eq!(few["things"][0]["value"]["numbers"], json!({ "elements": [7, 1], "more": 2 }));
    let text = |is_cut| as_json(&Data::Text { text: "a".into(), is_cut });
    assert_eq!((text(false), text(true)), (json!("a"), json!({ "text": "a", "more": true })));
}

#[test]
fn what_there_is_no_room_for_is_said() {
    let of = |bytes| {
        printed_within("list(head, struct item, link).id", Bounds { bytes, ..Bounds::USUAL }).unwrap()
    };
    let whole = of(1000);
    assert_eq!((whole.things.len(), whole.shortfall()), (2, None));
    let cut = of(30);
    assert_eq!(cut.things, whole.things[..1]);
    let text = cut.to_string();
    assert!(text.ends_with("no more than 20000 values and 1 MiB are told: ask for a part\n"), "{text}");
    assert!(cut.shortfall().is_some());
}
