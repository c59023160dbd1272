//! Which of types that have one name are made differently.

use super::{DEEPEST_NAME, Of, type_name};
use crate::types::{Shape, TypeId, Types};
use std::fmt;

/// Types of one name that are looked at, at most, and steps that telling types apart takes, for one question in all: a member
/// or an enumerator each, and one more for so many bytes of names.
const MOST_ALIKE: usize = 64;
const MOST_COMPARED: usize = 200_000;
const NAME_AT_ONCE: usize = 64;
/// Steps between two questions whether to go on.
const BETWEEN_QUESTIONS: usize = 1024;

/// Why types were not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCompared {
    /// They have more members than are gone through.
    #[error("they are too large to be compared")]
    TooMuch,
    /// Nobody wants it any more.
    #[error("it was broken off")]
    Stopped,
}

/// Tells types apart that have one name, for one question, which has so much work done and no more: a guest says how many
/// there are, and how large.
pub struct Comparison<'a> {
    left: usize,
    go_on: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparison").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<'a> Comparison<'a> {
    /// One that goes on as long as `go_on` says so, which is asked every thousand steps.
    pub fn new(go_on: &'a dyn Fn() -> bool) -> Comparison<'a> {
        Comparison { left: MOST_COMPARED, go_on }
    }

    /// All types of a name, written as C has it (`struct NAME`, `union NAME`, `enum NAME`, or the name of a number or another
    /// name for a type; numbers also as `unsigned long`), that are of these types alone, without those that they stand on,
    /// and are made differently: files may have structures of one name, and a compiler may leave one of them twice.
    ///
    /// # Errors
    /// [`NotCompared`].
    pub fn all_by_name(&mut self, types: &Types, words: &[&str]) -> Result<Vec<TypeId>, NotCompared> {
        let is_it = |wanted: &str, id: TypeId| match types.shape(id) {
            Shape::Compound { is_union, .. } => wanted == if *is_union { "union" } else { "struct" },
            Shape::Enumeration { .. } => wanted == "enum",
            _ => false,
        };
        let all: Vec<TypeId> = match words {
            [wanted @ ("struct" | "union" | "enum"), name] => {
                let all = types.all_tagged(name).iter().copied();
                all.filter(|id| is_it(wanted, *id)).take(MOST_ALIKE).collect()
            }
            [name] if types.all_named(name).next().is_some() => {
                types.all_named(name).take(MOST_ALIKE).collect()
            }
            words => match integer(words) {
                Some(name) => types.all_named(&name).take(MOST_ALIKE).collect(),
                None => Vec::new(),
            },
        };
        let mut different: Vec<TypeId> = Vec::new();
        for id in all {
            let mut is_known = false;
            for other in &different {
                is_known = is_known || self.is_same((types, id), (types, *other))?;
            }
            if !is_known {
                different.push(id);
            }
        }
        Ok(different)
    }

    /// Whether two types are made alike, which may be of different modules, but of one kernel: what addresses lead to counts
    /// by its name.
    ///
    /// # Errors
    /// [`NotCompared`].
    pub fn is_same(&mut self, one: (&Types, TypeId), other: (&Types, TypeId)) -> Result<bool, NotCompared> {
        self.is_same_within(one, other, DEEPEST_NAME)
    }

    fn is_same_within(
        &mut self,
        (types, one): (&Types, TypeId),
        (its_types, other): (&Types, TypeId),
        depth: usize,
    ) -> Result<bool, NotCompared> {
        self.step()?;
        let (one, other) = (types.plain(one), its_types.plain(other));
        if one == other && types.have_in_common(its_types, one) {
            return Ok(true);
        }
        let Some(depth) = depth.checked_sub(1) else { return Err(NotCompared::TooMuch) };
        match (types.shape(one), its_types.shape(other)) {
            (Shape::Pointer(one), Shape::Pointer(other)) => self
                .is_same_text(&type_name(types, Of::plain(*one)), &type_name(its_types, Of::plain(*other))),
            (Shape::Array(one, count), Shape::Array(other, its)) => {
                Ok(count == its && self.is_same_within((types, *one), (its_types, *other), depth)?)
            }
            (
                Shape::Compound { size, is_union, .. },
                Shape::Compound { size: its_size, is_union: is_its_union, .. },
            ) => {
                let (members, its) = (types.members(one), its_types.members(other));
                if (size, is_union, members.len()) != (its_size, is_its_union, its.len()) {
                    return Ok(false);
                }
                for (one, other) in members.iter().zip(its) {
                    let is_same = (one.at, one.bits) == (other.at, other.bits)
                        && self.is_same_text(&one.name, &other.name)?
                        && self.is_same_within((types, one.of), (its_types, other.of), depth)?;
                    if !is_same {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (Shape::Enumeration { size, .. }, Shape::Enumeration { size: its_size, .. }) => {
                let (values, its) = (types.values(one), its_types.values(other));
                if (size, values.len()) != (its_size, its.len()) {
                    return Ok(false);
                }
                for (one, other) in values.iter().zip(its) {
                    if one.value != other.value || !self.is_same_text(&one.name, &other.name)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            (one_shape, other_shape) => {
                Ok(one_shape == other_shape && self.is_same_text(types.name(one), its_types.name(other))?)
            }
        }
    }

    fn is_same_text(&mut self, one: &str, other: &str) -> Result<bool, NotCompared> {
        (0..=one.len().min(other.len()) / NAME_AT_ONCE).try_for_each(|_| self.step())?;
        Ok(one == other)
    }

    fn step(&mut self) -> Result<(), NotCompared> {
        self.left = self.left.checked_sub(1).ok_or(NotCompared::TooMuch)?;
        if self.left.is_multiple_of(BETWEEN_QUESTIONS) && !(self.go_on)() {
            return Err(NotCompared::Stopped);
        }
        Ok(())
    }
}

/// The name that compilers give to one of C's numbers (DWARF's base types, which BTF has as well).
fn integer(words: &[&str]) -> Option<String> {
    let count = |word: &str| words.iter().filter(|it| **it == word).count();
    let known = ["unsigned", "signed", "long", "short", "int", "char"];
    if words.is_empty() || words.iter().any(|word| !known.contains(word)) {
        return None;
    }
    let sign = if count("unsigned") > 0 { "unsigned " } else { "" };
    Some(match (count("long"), count("short"), count("char")) {
        (0, 0, 0) => format!("{sign}int"),
        (1, 0, 0) => format!("long {sign}int"),
        (2, 0, 0) => format!("long long {sign}int"),
        (0, 1, 0) => format!("short {sign}int"),
        (0, 0, 1) => format!("{}char", if count("signed") > 0 { "signed " } else { sign }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{make, tests::types};
    use super::*;
    use crate::made::{self, INT, POINTER, compound};
    use crate::types::Member;
    use std::sync::Arc;

    #[test]
    fn types_of_one_name_are_told_apart_by_what_they_are_made_of() {
        let mut types = types();
        let all = |types: &Types, text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            let all = Comparison::new(&|| true).all_by_name(types, &words).unwrap();
            all.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(all(&types, "struct thing"), [13]);
        // The same once more, another one, and one of another kind.
        compound(&mut types, "pair", 16, &[("one", POINTER, 0), ("other", INT, 8)]); // 15
        compound(&mut types, "pair", 16, &[("one", POINTER, 0), ("other", INT, 8)]); // 16
        compound(&mut types, "pair", 16, &[("one", POINTER, 0), ("other", 10, 8)]); // 17
        compound(&mut types, "outer", 16, &[("pair", 15, 0)]); // 18
        compound(&mut types, "outer", 16, &[("pair", 16, 0)]); // 19
        compound(&mut types, "outer", 16, &[("pair", 17, 0)]); // 20
        let members = types.add_members(std::iter::empty());
        types.add("pair", Shape::Compound { size: 16, is_union: true, members }); // 21
        assert_eq!(all(&types, "struct pair"), [15, 17]);
        assert_eq!(all(&types, "struct outer"), [18, 20]);
        assert_eq!(all(&types, "union pair"), [21]);
        assert_eq!([all(&types, "enum pair"), all(&types, "pair")], [vec![], vec![]]);
        assert_eq!([all(&types, "unsigned"), all(&types, "thing_t")], [[1], [14]]);
        assert_eq!(make(&types, TypeId(17)), "16 bytes: one, other");
        assert_eq!(make(&types, TypeId(13)), "464 bytes: name, mode, low, all, ...");
        assert_eq!(make(&types, TypeId(12)), "of no size");
        // Hostile ones, each of which has the next one twice: they are not gone through to the end.
        let mut deep = made::types();
        for _ in 0..2 {
            for _ in 0..40 {
                let next = u32::try_from(deep.count()).unwrap() + 1;
                compound(&mut deep, "deep", 16, &[("a", next, 0), ("b", next, 8)]);
            }
            compound(&mut deep, "end", 16, &[]);
        }
        let mut comparison = Comparison::new(&|| true);
        assert_eq!(comparison.all_by_name(&deep, &["struct", "deep"]), Err(NotCompared::TooMuch));
    }

    /// All members are of one type, which is the same without a look: they are counted all the same.
    #[test]
    fn members_that_are_alike_cost_something() {
        let mut types = made::types();
        let names: Vec<String> = (0..4000).map(|number| format!("member{number}")).collect();
        for last in 0..8 {
            let members = names.iter().zip(0u32..).map(|(name, at)| {
                let bits = (at == 3999).then_some(last);
                Member { name: name.as_str().into(), of: TypeId(INT), at: at * 32, bits }
            });
            let members = types.add_members(members);
            types.add("wide", Shape::Compound { size: 16000, is_union: false, members });
        }
        let words = ["struct", "wide"];
        let mut comparison = Comparison::new(&|| true);
        // Of eight there are 28 pairs, more than are looked through.
        assert_eq!(comparison.all_by_name(&types, &words), Err(NotCompared::TooMuch));
        assert_eq!(comparison.left, 0);
        // What one question has used up, the next part of it has not.
        assert_eq!(comparison.all_by_name(&types, &words), Err(NotCompared::TooMuch));
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            asked.get() < 3
        };
        assert_eq!(Comparison::new(&go_on).all_by_name(&types, &words), Err(NotCompared::Stopped));
        // Names that are long.
        let mut types = made::types();
        let name = "x".repeat(NAME_AT_ONCE * MOST_COMPARED);
        compound(&mut types, "long", 4, &[(&name, INT, 0)]);
        compound(&mut types, "long", 4, &[(&name, INT, 0)]);
        let found = Comparison::new(&|| true).all_by_name(&types, &["struct", "long"]);
        assert_eq!(found, Err(NotCompared::TooMuch));
    }

    #[test]
    fn types_are_found_by_what_people_write() {
        let types = types();
        let find = |text: &str| {
            let words: Vec<&str> = text.split(' ').collect();
            Comparison::new(&|| true).all_by_name(&types, &words).unwrap().first().map(|id| id.0)
        };
        assert_eq!([find("struct thing"), find("thing_t"), find("enum mode")], [Some(13), Some(14), Some(7)]);
        assert_eq!([find("union thing"), find("thing"), find("struct mode")], [None; 3]);
        assert_eq!([find("unsigned"), find("long"), find("signed long int")], [Some(1), Some(10), Some(10)]);
        assert_eq!([find("long char"), find(""), find("long long long")], [None; 3]);
    }

    /// Modules have their copies of what the kernel has, and numbers that mean something else in each.
    #[test]
    fn types_of_two_modules_are_compared() {
        let mut kernel = made::types();
        compound(&mut kernel, "pair", 16, &[("one", POINTER, 0), ("other", INT, 8)]);
        let (kernel, own) = (Arc::new(kernel.clone()), TypeId(u32::try_from(kernel.count()).unwrap() - 1));
        let first = TypeId(own.0 + 1);
        let module = |other: u32| {
            let mut types = Types::on(Arc::clone(&kernel));
            compound(&mut types, "pair", 16, &[("one", POINTER, 0), ("other", other, 8)]);
            compound(&mut types, "outer", 16, &[("pair", first.0, 0)]);
            types
        };
        let (same, alike, another) = (module(INT), module(INT), module(made::CHAR));
        let mut comparison = Comparison::new(&|| true);
        let mut is_same = |one, other| comparison.is_same(one, other).unwrap();
        assert!(is_same((&same, first), (&*kernel, own)) && is_same((&same, first), (&same, own)));
        assert!(is_same((&same, first), (&alike, first)) && is_same((&kernel, own), (&alike, own)));
        assert!(!is_same((&another, first), (&*kernel, own)) && !is_same((&another, first), (&same, first)));
        let outer = TypeId(first.0 + 1);
        assert!(!is_same((&another, outer), (&same, outer)) && is_same((&alike, outer), (&same, outer)));
    }
}
