//! The shape of our sources, measured: modules that import each other in a circle, and the longest functions that
//! control what happens. A ratchet: both may only fall ([`LIMITS`]).
//!
//! # Circles
//! Among the modules of one folder, each with all that is below it, none may need another one that needs it: then a
//! reader can begin at the bottom. What a module needs is what its paths name (`use crate::…`, `super::…`, in
//! expressions and types, too), tests left out; a path that leads to what a module only hands on (`pub use`, `use … as`)
//! leads to where that is. A module and its own children may need each other.
//!
//! # Flow functions
//! Tables and decoders may be long: arms of a `match` of at most two lines do not count.

use proc_macro2::Span;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// What a crate may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The crate's folder.
    pub folder: &'static str,
    /// Modules that are in a circle.
    pub circles: usize,
    /// Lines of its longest flow function.
    pub longest: usize,
}

const fn limit(folder: &'static str, circles: usize, longest: usize) -> Limit {
    Limit { folder, circles, longest }
}

/// What there is today; a change that has less makes it less.
pub const LIMITS: &[Limit] = &[
    limit("arch", 0, 111),
    limit("debug", 0, 71),
    limit("debug/linux", 0, 70),
    limit("devices", 0, 73),
    limit("devices/disk", 0, 38),
    limit("devices/net", 0, 45),
    limit("devices/share", 0, 46),
    limit("vmm/kvm", 0, 83),
    limit("vmm", 0, 82),
    limit("integration", 0, 118),
];

/// What was measured of a crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The circles: modules that need each other, by their paths.
    pub circles: Vec<Vec<String>>,
    /// The longest flow function, and its lines.
    pub longest: (String, usize),
    /// Which module needs which.
    pub needs: BTreeSet<(Module, Module)>,
}

/// The rooms of `vmm`, in their order: each may use those before it.
pub const ROOMS: &[&str] = &["boot", "machine", "control", "run", "job", "cli"];

/// A module's path, from the crate on.
pub type Module = Vec<String>;
/// What a module has by a `use` alone: by the module and the name there, the path that it stands for.
type HandedOn = BTreeMap<(Module, String), Vec<String>>;

/// Measures the crate in a folder.
///
/// # Errors
/// When its sources cannot be read.
pub fn measure(folder: &Path) -> io::Result<Shape> {
    let source = folder.join("src");
    let mut files = Vec::new();
    collect(&source, &mut files)?;
    let modules: BTreeMap<Module, PathBuf> =
        files.into_iter().filter_map(|file| Some((module(&source, &file)?, file))).collect();
    let known: BTreeSet<Module> = modules.keys().cloned().collect();
    let mut needs = BTreeSet::new();
    let mut longest = (String::new(), 0);
    let mut parsed = Vec::new();
    let mut handed_on = HandedOn::new();
    for (module, file) in &modules {
        let text = fs::read_to_string(file)?;
        let file = syn::parse_file(&text)
            .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
        for item in &file.items {
            if let syn::Item::Use(item) = item
                && !is_test(&item.attrs)
            {
                hand_on(module, &[], &item.tree, &mut handed_on);
            }
        }
        parsed.push((module, file));
    }
    for (module, file) in parsed {
        let (needs, longest) = (&mut needs, &mut longest);
        Reader { module, known: &known, handed_on: &handed_on, needs, longest }.visit_file(&file);
    }
    Ok(Shape { circles: circles(&needs), longest, needs })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    Ok(())
}

/// The module that a file is; `None` for tests and programs.
fn module(source: &Path, file: &Path) -> Option<Module> {
    let path = file.strip_prefix(source).ok()?.with_extension("");
    let mut module: Module =
        path.iter().map(|part| part.to_str().map(str::to_string)).collect::<Option<_>>()?;
    match module.last()?.as_str() {
        "tests" | "testing" | "main" => return None,
        "lib" | "mod" => {
            module.pop();
        }
        _ => {}
    }
    (module.first().map(String::as_str) != Some("bin")).then_some(module)
}

/// Notes the names that a `use` gives a module.
fn hand_on(module: &Module, begin: &[String], tree: &syn::UseTree, names: &mut HandedOn) {
    let with = |part: &syn::Ident| [begin, &[part.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => hand_on(module, &with(&path.ident), &path.tree, names),
        syn::UseTree::Group(group) => {
            group.items.iter().for_each(|tree| hand_on(module, begin, tree, names));
        }
        syn::UseTree::Name(name) => {
            names.insert((module.clone(), name.ident.to_string()), with(&name.ident));
        }
        syn::UseTree::Rename(name) => {
            names.insert((module.clone(), name.rename.to_string()), with(&name.ident));
        }
        syn::UseTree::Glob(_) => {}
    }
}

/// Reads one module.
struct Reader<'a> {
    module: &'a Module,
    known: &'a BTreeSet<Module>,
    handed_on: &'a HandedOn,
    needs: &'a mut BTreeSet<(Module, Module)>,
    longest: &'a mut (String, usize),
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let is_cfg_test = || attribute.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test");
        attribute.path().is_ident("test") || attribute.path().is_ident("cfg") && is_cfg_test()
    })
}

impl Reader<'_> {
    /// Notes a path that the module names.
    fn note(&mut self, path: &[String]) {
        if let Some(at) = self.lead(self.module, path, 0)
            && at != *self.module
        {
            self.needs.insert((self.module.clone(), at));
        }
    }

    /// The module in which what a path names stands, as `from` has the path; `None` for what is of another crate, or its
    /// own.
    fn lead(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        /// Modules that hand something on from each other.
        const DEEPEST: usize = 8;
        let (mut at, rest): (Module, &[String]) = match path.first().map(String::as_str) {
            Some("crate") => (Vec::new(), &path[1..]),
            Some("self") => (from.clone(), &path[1..]),
            Some("super") => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                let kept = from.len().saturating_sub(ups);
                (from[..kept].to_vec(), &path[ups..])
            }
            // A child of the module, or another crate.
            _ => (from.clone(), path),
        };
        let begin = at.len();
        for (index, part) in rest.iter().enumerate() {
            at.push(part.clone());
            if self.known.contains(&at) {
                continue;
            }
            at.pop();
            let is_own = at == *self.module;
            if let Some(stands_for) = self.handed_on.get(&(at.clone(), part.clone()))
                && !is_own
                && depth < DEEPEST
            {
                let whole = [stands_for, &rest[index + 1..]].concat();
                return self.lead(&at, &whole, depth + 1).or(Some(at));
            }
            break;
        }
        let is_path = path.first().is_some_and(|first| ["crate", "self", "super"].contains(&first.as_str()));
        (is_path || at.len() > begin).then_some(at)
    }

    fn note_tree(&mut self, begin: &[String], tree: &syn::UseTree) {
        let with = |part: String| [begin, &[part]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_tree(&with(path.ident.to_string()), &path.tree),
            syn::UseTree::Name(name) => self.note(&with(name.ident.to_string())),
            syn::UseTree::Rename(name) => self.note(&with(name.ident.to_string())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.note_tree(begin, tree)),
            _ => {
                if !begin.is_empty() {
                    self.note(begin);
                }
            }
        }
    }

    fn measure(&mut self, name: &syn::Ident, whole: Span, block: &syn::Block) {
        let mut tables = Tables(0);
        tables.visit_block(block);
        let lines = lines(whole).saturating_sub(tables.0);
        if lines > self.longest.1 {
            *self.longest = (format!("{}::{name}", self.module.join("::")), lines);
        }
    }
}

fn lines(span: Span) -> usize {
    span.end().line - span.start().line + 1
}

/// Counts lines that are arms of tables.
struct Tables(usize);

impl<'a> Visit<'a> for Tables {
    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        match lines(arm.span()) {
            length @ ..=2 => self.0 += length,
            _ => visit::visit_arm(self, arm),
        }
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.note_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if parts.len() > 1 {
            self.note(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.measure(
            &item.sig.ident,
            item.sig.span().join(item.block.span()).unwrap_or(item.block.span()),
            &item.block,
        );
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.measure(
            &item.sig.ident,
            item.sig.span().join(item.block.span()).unwrap_or(item.block.span()),
            &item.block,
        );
        visit::visit_impl_item_fn(self, item);
    }
}

/// The circles among modules of the same folder, each with all that is below it.
fn circles(needs: &BTreeSet<(Module, Module)>) -> Vec<Vec<String>> {
    // By folder: which of its modules needs which.
    let mut folders: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (from, to) in needs {
        let common = from.iter().zip(to).take_while(|(one, other)| one == other).count();
        if let (Some(one), Some(other)) = (from.get(common), to.get(common)) {
            let folder = folders.entry(from[..common].to_vec()).or_default();
            folder.entry(one.clone()).or_default().insert(other.clone());
        }
    }
    let mut found = Vec::new();
    for (folder, graph) in folders {
        let mut left: BTreeSet<&String> = graph.keys().collect();
        while let Some(first) = left.pop_first() {
            let reached = reach(&graph, first);
            let circle: Vec<&String> = reached
                .iter()
                .copied()
                .filter(|other| *other == first || reach(&graph, other).contains(first))
                .collect();
            circle.iter().for_each(|other| {
                left.remove(*other);
            });
            if circle.len() > 1 {
                let path = |name: &String| [&folder[..], std::slice::from_ref(name)].concat().join("::");
                found.push(circle.into_iter().map(path).collect());
            }
        }
    }
    found
}

/// All that a module needs, itself among them, directly or not.
fn reach<'a>(graph: &'a BTreeMap<String, BTreeSet<String>>, from: &'a String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::from([from]);
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for needed in graph.get(module).into_iter().flatten() {
            if reached.insert(needed) {
                next.push(needed);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(files: &[(&str, &str)]) -> Shape {
        let folder =
            std::env::temp_dir().join(format!("vmm-structure-{}-{}", std::process::id(), files.len()));
        for (name, text) in files {
            let path = folder.join("src").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let shape = measure(&folder);
        fs::remove_dir_all(&folder).unwrap();
        shape.unwrap()
    }

    #[test]
    fn circles_are_found_and_trees_are_none() {
        let tree = shape(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod c; use crate::b::B; pub use c::C; pub struct A;"),
            ("a/c.rs", "use super::A; pub struct C; #[cfg(test)] mod tests { use crate::b::B; }"),
            ("b.rs", "pub struct B; #[cfg(test)] use crate::a::A;"),
        ]);
        assert!(tree.circles.is_empty(), "{tree:?}");
        // By a path in an expression, below one of them.
        let circle = shape(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "mod c; pub struct A;"),
            ("a/c.rs", "fn f() { crate::b::g() }"),
            ("b.rs", "use crate::a::A; pub fn g() {}"),
            ("d.rs", "use crate::{a, b};"),
        ]);
        assert_eq!(circle.circles, [["a", "b"]]);
    }

    /// By what the crate's root hands on, under another name, and by a module that does so for one below it.
    #[test]
    fn a_circle_by_names_that_are_handed_on_is_one() {
        let circle = shape(&[
            ("lib.rs", "mod a; mod b; mod c; use b as native; pub use c::C; pub use std::fmt;"),
            ("a.rs", "use super::native::g; use crate::fmt::Debug; pub struct A;"),
            ("b.rs", "mod d; pub use d::D; pub fn g() { crate::C::new() }"),
            ("b/d.rs", "pub struct D;"),
            ("c.rs", "use crate::a::A; pub struct C;"),
            ("e.rs", "use crate::native::D;"),
        ]);
        assert_eq!(circle.circles, [["a", "b", "c"]]);
        // What a module has by its own `use` is where that leads to, once.
        let tree = shape(&[
            ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub use a::A as Again;"),
            ("a.rs", "pub struct A;"),
            ("b.rs", "use crate::Again; pub fn g(_: Again) {}"),
            ("c.rs", "use crate::{b, A};"),
            ("d.rs", "pub use crate::d::Round;"),
            ("f.rs", "use crate::d::Round;"),
        ]);
        assert!(tree.circles.is_empty(), "{tree:?}");
    }

    #[test]
    fn tables_are_not_flow() {
        let table = shape(&[(
            "lib.rs",
            "fn table(x: u32) -> u32 {\n match x {\n 1 => 2,\n 2 => 3,\n _ => {\n let y = 1;\n y\n }\n }\n}\n",
        )]);
        assert_eq!(table.longest, ("::table".to_string(), 8));
    }

    #[test]
    fn each_room_uses_those_before_it() {
        let needs = measure(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm")).unwrap().needs;
        let room =
            |module: &Module| ROOMS.iter().position(|room| module.first().is_some_and(|it| it == room));
        let pairs = needs.iter().filter_map(|(from, to)| Some((room(from)?, room(to)?)));
        let used: BTreeSet<(usize, usize)> = pairs.collect();
        let wrong: Vec<_> = used.iter().filter(|(from, to)| to > from).collect();
        assert!(wrong.is_empty() && used.len() > ROOMS.len(), "{wrong:?} of {ROOMS:?}");
    }

    /// Where a crate has less than its limit, the limit is to be lowered.
    #[test]
    fn nothing_grows() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut wrong = Vec::new();
        for limit in LIMITS {
            let shape = measure(&root.join(limit.folder)).unwrap();
            let modules = shape.circles.iter().map(Vec::len).sum::<usize>();
            if modules != limit.circles {
                let folder = limit.folder;
                wrong.push(format!(
                    "{folder}: {modules} modules in circles, not {}: {:?}",
                    limit.circles, shape.circles
                ));
            }
            if shape.longest.1 != limit.longest {
                let (name, lines) = &shape.longest;
                wrong.push(format!("{}: {name} has {lines} lines, not {}", limit.folder, limit.longest));
            }
        }
        assert!(
            wrong.is_empty(),
            "more is not allowed, and less is to be noted in LIMITS:\n{}",
            wrong.join("\n")
        );
    }
}
