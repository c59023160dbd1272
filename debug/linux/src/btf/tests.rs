//! BTF as compilers write it, made here.

use super::*;

/// Collects types and names.
#[derive(Default)]
struct Blob {
    types: Vec<u8>,
    names: Vec<u8>,
}

impl Blob {
    fn new() -> Blob {
        Blob { types: Vec::new(), names: vec![0] }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.names.len()).unwrap();
        self.names.extend(name.bytes().chain([0]));
        at
    }

    /// A type, with what its kind has more; members are words of which each first one is a name already.
    fn add(
        &mut self,
        name: &str,
        (kind, count, has_flag): (u32, u32, bool),
        size: u32,
        more: &[u32],
    ) -> &mut Blob {
        let head = [self.name(name), count | kind << 24 | u32::from(has_flag) << 31, size];
        self.types.extend(head.iter().chain(more).flat_map(|word| word.to_le_bytes()));
        self
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend([1, 0]);
        let (types, names) =
            (u32::try_from(self.types.len()).unwrap(), u32::try_from(self.names.len()).unwrap());
        for word in [24, 0, types, types, names] {
            bytes.extend(word.to_le_bytes());
        }
        [bytes, self.types.clone(), self.names.clone()].concat()
    }
}

/// `struct task { int pid; struct list { struct list *next, *prev; } tasks; union { long state; u8 bytes[8]; };
/// unsigned on: 1, cpu: 7; };` and more.
fn blob() -> Vec<u8> {
    let mut blob = Blob::new();
    let names = ["pid", "tasks", "next", "prev", "state", "bytes", "on", "cpu", "RED", "BLUE", "x"];
    let [pid, tasks, next, prev, state, bytes, on, cpu, red, blue, x] = names.map(|name| blob.name(name));
    blob.add("int", (kind::INT, 0, false), 4, &[1 << 24 | 32]) // 1
        .add("list", (kind::STRUCT, 2, false), 16, &[next, 3, 0, prev, 3, 64]) // 2
        .add("", (kind::PTR, 0, false), 2, &[]) // 3
        .add("unsigned char", (kind::INT, 0, false), 1, &[8]) // 4
        .add("u8", (kind::TYPEDEF, 0, false), 4, &[]) // 5
        .add("", (kind::ARRAY, 0, false), 0, &[5, 1, 8]) // 6
        .add("long", (kind::INT, 0, false), 8, &[1 << 24 | 64]) // 7
        .add("", (kind::UNION, 2, false), 8, &[state, 7, 0, bytes, 6, 0]) // 8
        .add("", (kind::CONST, 0, false), 1, &[]) // 9
        .add(
            "task",
            (kind::STRUCT, 5, true),
            40,
            &[pid, 9, 0, tasks, 2, 64, 0, 8, 192, on, 1, 1 << 24 | 256, cpu, 1, 7 << 24 | 257],
        ) // 10
        .add("color", (kind::ENUM, 2, true), 4, &[red, 0, blue, u32::MAX]) // 11
        .add("wide", (kind::ENUM64, 1, false), 8, &[red, 5, 1]) // 12
        .add("", (kind::FUNC_PROTO, 1, false), 1, &[x, 1]) // 13
        .add("main", (kind::FUNC, 1, false), 13, &[]) // 14
        .add("init_task", (kind::VAR, 0, false), 10, &[1]) // 15
        .add(".data", (kind::DATASEC, 1, false), 40, &[15, 0, 40]) // 16
        .add("half", (kind::FLOAT, 0, false), 2, &[]) // 17
        .add("hidden", (kind::FWD, 0, false), 0, &[]) // 18
        .add("tag", (kind::DECL_TAG, 0, false), 10, &[u32::MAX]) // 19
        .add("user", (kind::TYPE_TAG, 0, false), 1, &[]); // 20
    blob.finish()
}

#[test]
fn members_are_where_they_are() {
    let types = types(&blob()).unwrap();
    assert_eq!(types.count(), 21);
    for (path, at) in
        [("pid", 0), ("tasks", 8), ("tasks.next", 8), ("tasks.prev", 16), ("state", 24), ("bytes", 24)]
    {
        assert_eq!(types.offset("task", path), Some(at), "{path}");
    }
    for path in ["", "nothing", "pid.x", "tasks.", "tasks.next.next"] {
        assert_eq!(types.offset("task", path), None, "{path}");
    }
    assert_eq!(types.offset("nothing", "pid"), None);
    let task = types.tagged("task").unwrap();
    // Bit fields.
    let cpu = types.part(task, "cpu").unwrap();
    assert_eq!((cpu.at, cpu.bits, cpu.offset()), (257, Some(7), None));
    assert_eq!(types.part(task, "on").unwrap().offset(), Some(32));
    assert_eq!(types.part(task, "pid").unwrap().bits, None);
    assert_eq!(types.members(task).len(), 5);
    let is_union = |path| matches!(types.shape(types.part(task, path).unwrap().of), Shape::Compound { .. });
    assert!(is_union("tasks") && !is_union("pid"));
}

#[test]
fn types_have_sizes() {
    let types = types(&blob()).unwrap();
    let size = |id| types.size(TypeId(id));
    for (id, bytes) in
        [(1, 4), (2, 16), (3, 8), (5, 1), (6, 8), (8, 8), (9, 4), (10, 40), (12, 8), (15, 40), (17, 2)]
    {
        assert_eq!(size(id), Some(bytes), "{id}");
    }
    for id in [0, 14, 16, 18, 19, 21, u32::MAX] {
        assert_eq!(size(id), None, "{id}");
    }
    assert_eq!((types.variable("init_task"), types.named("u8")), (Some(TypeId(15)), Some(TypeId(5))));
    assert_eq!((types.named("init_task"), types.variable("u8")), (None, None));
    assert_eq!((types.named("task"), types.tagged("u8")), (None, None));
    let values = |tag| {
        let values = types.values(types.tagged(tag).unwrap()).iter();
        values.map(|it| (&*it.name, it.value)).collect::<Vec<_>>()
    };
    assert_eq!(values("color"), [("RED", 0), ("BLUE", u64::MAX)]);
    assert_eq!(values("wide"), [("RED", 1 << 32 | 5)]);
    // The name of a function is that of its symbol.
    assert_eq!([5, 14, 99].map(|id| types.name(TypeId(id))), ["u8", "", ""]);
}

/// Where no symbol tells, the kernel's types are found in its image: not what begins like them, nor what is no kernel's.
#[test]
fn types_are_found_in_an_image() {
    const BASE: u64 = 0xffff_8000_0800_0000;
    let whole = |name: &str| {
        let mut blob = Blob::new();
        blob.add("int", (kind::INT, 0, false), 4, &[32]).add(name, (kind::STRUCT, 0, false), 8, &[]);
        blob.finish()
    };
    let (kernels, modules) = (whole("task_struct"), whole("of_a_module"));
    let mut image = vec![0; 0x9000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1000, &modules);
    // One that is cut off, one that is not aligned, and the beginning of one.
    put(0x2000, &kernels[..40]);
    put(0x3001, &kernels);
    put(0x4000, &kernels[..12]);
    put(0x5008, &kernels);
    let info = VmCoreInfo::parse(
        format!("OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(_stext)={:x}\n", BASE + 0x10000).as_bytes(),
    );
    let found = |image: &[u8]| {
        searched(&info.clone().unwrap(), |at, bytes| {
            let from = usize::try_from(at.wrapping_sub(BASE)).unwrap_or(usize::MAX);
            let rest = image.get(from..).unwrap_or_default();
            let good = rest.len().min(bytes.len());
            bytes[..good].copy_from_slice(&rest[..good]);
            good
        })
    };
    assert_eq!(found(&image), Some(kernels));
    image.truncate(0x5000);
    assert_eq!(found(&image), None);
}

#[test]
fn loops_come_to_an_end() {
    let mut blob = Blob::new();
    let x = blob.name("x");
    // A name for itself, an array of itself, and a structure that has itself without a name, twice.
    blob.add("loop", (kind::TYPEDEF, 0, false), 1, &[])
        .add("", (kind::ARRAY, 0, false), 0, &[2, 1, u32::MAX])
        .add("own", (kind::STRUCT, 3, false), 8, &[0, 3, 0, 0, 3, 0, x, 1, 0]);
    let types = types(&blob.finish()).unwrap();
    assert_eq!((types.size(TypeId(1)), types.size(TypeId(2))), (None, None));
    assert_eq!(types.offset("own", "nothing"), None);
    assert_eq!(types.offset("own", "x"), Some(0));
}

#[test]
fn what_is_no_btf_is_told() {
    let good = blob();
    let told = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        types(&bytes).unwrap_err()
    };
    assert_eq!(told(&|it| it.truncate(10)), BtfError::Format);
    assert_eq!(told(&|it| it[0] = 0), BtfError::Format);
    assert_eq!(told(&|it| it[2] = 2), BtfError::Version(2));
    let is_damaged = |error| matches!(error, Damaged(_));
    assert!(is_damaged(told(&|it| it.truncate(it.len() - 1))));
    // More members than there are words, names that are nowhere, kinds that nobody knows, a length that wraps.
    assert!(is_damaged(told(&|it| it[24 + 4 + 16..][..2].fill(0xff))));
    assert!(is_damaged(told(&|it| it[24..28].fill(0xff))));
    assert!(is_damaged(told(&|it| it[24 + 7] = 31)));
    assert!(is_damaged(told(&|it| it[4..8].fill(0xff))));
    assert!(is_damaged(told(&|it| it[12..16].fill(0xff))));
    // A name that would do something to a terminal.
    let names = good.len() - 4;
    assert!(is_damaged(told(&|it| it[names] = 0x1b)));
}

#[test]
fn bytes_of_any_kind_come_to_an_end() {
    let (good, mut state) = (blob(), 7u64);
    let mut chance = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    let mut read = 0;
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..=chance() % 4 {
            let at = chance() % bytes.len();
            bytes[at] = u8::try_from(chance() & 0xff).unwrap();
        }
        if let Ok(types) = types(&bytes) {
            for id in (0..types.count()).map(|id| TypeId(u32::try_from(id).unwrap())) {
                types.size(id);
                types.part(id, "tasks.next.prev.x");
            }
            read += 1;
        }
    }
    assert!((1..2000).contains(&read), "{read}");
}

/// Names that many types share are kept as often: so many bytes of them, and no more, are.
#[test]
fn names_have_bounds() {
    let with = |length: usize, count: usize| {
        let mut blob = Blob::new();
        let name = blob.name(&"a".repeat(length));
        let head = [name, kind::FWD << 24, 0];
        let one: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        blob.types = one.repeat(count);
        types(&blob.finish()).map(|types| types.count())
    };
    assert_eq!(with(LONGEST_NAME - 1, 10), Ok(11));
    assert!(matches!(with(LONGEST_NAME, 10), Err(Damaged("a name has no end"))));
    let count = MOST_NAMES / (LONGEST_NAME - 1);
    assert_eq!(with(LONGEST_NAME - 1, count), Ok(count + 1));
    assert!(matches!(with(LONGEST_NAME - 1, count + 1), Err(Damaged(_))));
    assert!(matches!(types(&vec![0; MOST_BYTES + 1]), Err(Damaged(_))));
}

/// A module's: its own names and types count on from the kernel's.
fn of_module(base_types: u32, base_names: u32) -> Vec<u8> {
    let mut blob = Blob { types: Vec::new(), names: Vec::new() };
    let mut own = |name: &str| blob.name(name) + base_names;
    let [work, list, count, task] = ["work", "list", "count", "task"].map(&mut own);
    // The kernel's first name.
    let pid = 1;
    let types: Vec<u32> = [
        // struct work { struct list list; int count; int pid; } with a name and a type of the kernel's.
        vec![work, 3 | kind::STRUCT << 24, 24, list, 2, 0, count, 1, 128, pid, 1, 160],
        vec![0, kind::PTR << 24, base_types],
        // Another struct task, and a variable.
        vec![task, 1 | kind::STRUCT << 24, 8, count, 1, 0],
        vec![work, kind::VAR << 24, base_types, 0],
    ]
    .concat();
    blob.types = types.iter().flat_map(|word| word.to_le_bytes()).collect();
    blob.finish()
}

#[test]
fn a_modules_types_stand_on_the_kernels() {
    let kernel = blob();
    let base = Arc::new(types(&kernel).unwrap());
    let base_names = names(&kernel).unwrap();
    let (count, length) = (u32::try_from(base.count()).unwrap(), u32::try_from(base_names.len()).unwrap());
    let module = of_module(count, length);
    let split = split(&module, Arc::clone(&base), base_names).unwrap();
    assert_eq!(split.count(), base.count() + 4);
    let work = split.tagged("work").unwrap();
    assert_eq!((work.0, split.size(work)), (count, Some(24)));
    // Through the kernel's own structure, and with a name of the kernel's.
    for (path, at) in [("list.next", 0), ("list.prev", 8), ("count", 16), ("pid", 20)] {
        assert_eq!(split.offset("work", path), Some(at), "{path}");
    }
    assert_eq!(split.shape(TypeId(count + 1)), &Shape::Pointer(work));
    assert_eq!(
        (split.variable("work"), split.variable("init_task")),
        (Some(TypeId(count + 3)), Some(TypeId(15)))
    );
    // Its own comes first; the kernel's are the kernel's.
    assert_eq!((split.tagged("task"), split.size(TypeId(10))), (Some(TypeId(count + 2)), Some(40)));
    assert_eq!((split.all_tagged("task").len(), split.all_tagged("list").len()), (1, 0));
    assert_eq!((split.tagged("list"), split.named("u8")), (base.tagged("list"), base.named("u8")));
    assert_eq!(split.values(base.tagged("color").unwrap()).len(), 2);
    assert_eq!(base.tagged("work"), None);
    // On other names than the kernel's, and what is cut off.
    assert!(split_fails(&module, &base, &base_names[..1]));
    assert!(split_fails(&module[..module.len() - 1], &base, base_names));
    assert_eq!(names(b"no").unwrap_err(), BtfError::Format);
}

fn split_fails(module: &[u8], base: &Arc<Types>, names: &[u8]) -> bool {
    split(module, Arc::clone(base), names).is_err()
}

#[test]
fn modules_types_are_where_the_kernels_list_leads() {
    use crate::made::{self, BASE, INT, LIST, Made, POINTER, compound};
    use crate::reader::Reader;
    let mut types = made::types();
    assert!(modules::Layout::new(&types).is_none());
    compound(&mut types, "btf", 24, &[("data", POINTER, 0), ("data_size", INT, 8), ("start_id", INT, 12)]);
    let members = [("module", POINTER, 0), ("list", LIST, 8), ("btf", POINTER, 24)];
    compound(&mut types, "btf_module", 32, &members);
    let count = types.count() as u64;
    let memory = Made::new(0x1000);
    let (head, first, second, nowhere) = (BASE, BASE + 0x100, BASE + 0x200, BASE + 0x300);
    memory.ring(&[head, first + 8, second + 8, nowhere + 8]);
    for (at, module, types) in
        [(first, 0x10, BASE + 0x400), (second, 0x20, BASE + 0x500), (nowhere, 0x30, 0x10)]
    {
        memory.put(at, module);
        memory.put(at + 24, types);
    }
    memory.put(BASE + 0x400, 0xd000);
    memory.put(BASE + 0x408, count << 32 | 0x99);
    // One that stands on others than the kernel's.
    memory.put(BASE + 0x508, 1 << 32 | 0x99);
    let read = memory.read();
    let (places, remarks) = modules::Layout::new(&types).unwrap().places(head, &Reader::new(&read));
    assert_eq!(places, [modules::Place { module: 0x10, data: 0xd000, size: 0x99 }]);
    assert!(remarks.len() == 1 && remarks[0].contains("cannot be read"), "{remarks:?}");
    // A list that leads nowhere.
    memory.put(head, 0x10);
    memory.put(head + 8, 0x10);
    let (places, remarks) = modules::Layout::new(&types).unwrap().places(head, &Reader::new(&read));
    assert!(places.is_empty() && remarks[0].contains("a list is broken"), "{remarks:?}");
}
