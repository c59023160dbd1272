//! A kernel's types, wherever they come from: sizes, members and where they are.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A type, in [`Types`] that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(pub u32);

impl TypeId {
    /// `void`: of no size.
    pub const VOID: TypeId = TypeId(0);
}

/// What a type is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing.
    Void,
    /// A number, or a truth.
    Integer {
        /// Bytes that it has in memory.
        size: u32,
        /// It has a sign.
        is_signed: bool,
        /// It is true or false.
        is_bool: bool,
    },
    /// A number with a fraction, of so many bytes.
    Float(u32),
    /// An address, of so many bytes in all of a kernel's types ([`Types::pointer_size`]), of this.
    Pointer(TypeId),
    /// So many of one type.
    Array(TypeId, u32),
    /// Members behind each other, or for a union at one place.
    Compound {
        /// Bytes.
        size: u32,
        /// They share one place.
        is_union: bool,
        /// Which of all members it has.
        members: Range<u32>,
    },
    /// A number with names for some of its values.
    Enumeration {
        /// Bytes.
        size: u32,
        /// It has a sign.
        is_signed: bool,
        /// Which of all values it has.
        values: Range<u32>,
    },
    /// A structure or a union of which no more than the name is known.
    Forward,
    /// Another name for a type.
    Alias(TypeId),
    /// A type that is constant, volatile, restricted or tagged.
    Qualified(TypeId),
    /// What takes and returns something: code.
    Function,
    /// Something of a type: a variable.
    Variable(TypeId),
    /// What none of the kernel's data is made of.
    Other,
}

/// A member of a structure or a union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; empty for one without, whose members are as if they were the outer one's.
    pub name: Box<str>,
    /// Its type.
    pub of: TypeId,
    /// Where it begins, bits from the beginning of what it is a member of.
    pub at: u32,
    /// Bits that it has, if it is a bit field.
    pub bits: Option<u8>,
}

/// A value of an enumeration that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enumerator {
    /// Its name.
    pub name: Box<str>,
    /// The value, sign-extended.
    pub value: u64,
}

#[derive(Clone, Debug)]
struct Type {
    name: Box<str>,
    shape: Shape,
}

/// Where something is within a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its type.
    pub of: TypeId,
    /// Where it begins, bits from the beginning of the whole.
    pub at: u64,
    /// Bits that it has, if it is a bit field.
    pub bits: Option<u8>,
}

impl Part {
    /// Where it begins, bytes; `None` within a byte.
    pub fn offset(&self) -> Option<u64> {
        self.at.is_multiple_of(8).then_some(self.at / 8)
    }
}

/// Where and how large a member is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the beginning of what it is a member of.
    pub at: u64,
    /// Bytes.
    pub size: u64,
}

/// Types that are aliases of aliases, or members of members without a name, as deep as they are followed.
const DEEPEST: usize = 32;
/// Members that are looked through for one name.
const MOST_LOOKED_AT: usize = 100_000;

/// Types. A module's may stand on the kernel's: these have the lower numbers.
#[derive(Clone, Debug)]
pub struct Types {
    base: Option<Arc<Types>>,
    types: Vec<Type>,
    members: Vec<Member>,
    values: Vec<Enumerator>,
    /// Compounds and enumerations by their tags, which have names of their own, then others.
    tags: HashMap<Box<str>, Vec<TypeId>>,
    names: HashMap<Box<str>, Vec<TypeId>>,
    pointer_size: u32,
}

impl Types {
    /// `void`, and nothing else, with addresses of so many bytes.
    pub fn new(pointer_size: u32) -> Types {
        let void = Type { name: "void".into(), shape: Shape::Void };
        let (tags, names) = (HashMap::new(), HashMap::new());
        Types {
            base: None,
            types: vec![void],
            members: Vec::new(),
            values: Vec::new(),
            tags,
            names,
            pointer_size,
        }
    }

    /// Nothing but what these are made of that it stands on.
    pub fn on(base: Arc<Types>) -> Types {
        let pointer_size = base.pointer_size;
        let (tags, names) = (HashMap::new(), HashMap::new());
        let (types, members, values) = (Vec::new(), Vec::new(), Vec::new());
        Types { base: Some(base), types, members, values, tags, names, pointer_size }
    }

    /// Adds one, which is the next.
    pub(crate) fn add(&mut self, name: &str, shape: Shape) {
        let id = TypeId(u32::try_from(self.count()).unwrap_or(u32::MAX));
        let by_name = match shape {
            Shape::Compound { .. } | Shape::Enumeration { .. } => Some(&mut self.tags),
            Shape::Integer { .. } | Shape::Float(_) | Shape::Alias(_) | Shape::Variable(_) => {
                Some(&mut self.names)
            }
            _ => None,
        };
        if let Some(by_name) = by_name.filter(|_| !name.is_empty()) {
            by_name.entry(name.into()).or_default().push(id);
        }
        self.types.push(Type { name: name.into(), shape });
    }

    /// Adds members, for the compound that is added next.
    pub(crate) fn add_members(&mut self, members: impl Iterator<Item = Member>) -> Range<u32> {
        let begin = self.members.len();
        self.members.extend(members);
        range(begin, self.members.len())
    }

    /// Adds values, for the enumeration that is added next.
    pub(crate) fn add_values(&mut self, values: impl Iterator<Item = Enumerator>) -> Range<u32> {
        let begin = self.values.len();
        self.values.extend(values);
        range(begin, self.values.len())
    }

    /// How many there are, `void` among them.
    pub fn count(&self) -> usize {
        self.below() + self.types.len()
    }

    /// How many there are that it stands on.
    fn below(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.count())
    }

    /// Whether a type's number means the same type to others: they are these, or both stand on the one kernel's that has it.
    pub(crate) fn have_in_common(&self, others: &Types, id: TypeId) -> bool {
        let common = |one: &Arc<Types>| (id.0 as usize) < one.count();
        match (&self.base, &others.base) {
            _ if std::ptr::eq(self, others) => true,
            (Some(base), Some(its)) => Arc::ptr_eq(base, its) && common(base),
            (Some(base), None) => std::ptr::eq(&**base, others),
            (None, Some(its)) => std::ptr::eq(self, &**its),
            (None, None) => false,
        }
    }

    /// A type, and who has it.
    fn of(&self, id: TypeId) -> Option<(&Types, &Type)> {
        match (&self.base, (id.0 as usize).checked_sub(self.below())) {
            (Some(base), None) => base.of(id),
            (_, index) => self.types.get(index?).map(|found| (self, found)),
        }
    }

    /// Bytes of an address.
    pub fn pointer_size(&self) -> u32 {
        self.pointer_size
    }

    /// What a type is made of; [`Shape::Other`] where there is none.
    pub fn shape(&self, id: TypeId) -> &Shape {
        self.of(id).map_or(&Shape::Other, |(_, it)| &it.shape)
    }

    /// Its name; empty where it has none, and of functions.
    pub fn name(&self, id: TypeId) -> &str {
        self.of(id).map_or("", |(_, it)| &it.name)
    }

    /// `struct NAME`, `union NAME` or `enum NAME`.
    pub fn tagged(&self, name: &str) -> Option<TypeId> {
        self.all_tagged(name).first().copied().or_else(|| self.base.as_ref()?.tagged(name))
    }

    /// All of these of a tag, without those that they stand on: files may have structures of one name.
    pub fn all_tagged(&self, name: &str) -> &[TypeId] {
        self.tags.get(name).map_or(&[], Vec::as_slice)
    }

    /// All numbers of a name, and other names for a type, likewise.
    pub fn all_named(&self, name: &str) -> impl Iterator<Item = TypeId> {
        let all = self.names.get(name).map_or(&[][..], Vec::as_slice);
        all.iter().copied().filter(|id| !matches!(self.shape(*id), Shape::Variable(_)))
    }

    /// A number, or another name for a type.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.all_named(name).next().or_else(|| self.base.as_ref()?.named(name))
    }

    /// The type that a variable has; of those that every processor has one of, as a rule.
    pub fn variable(&self, name: &str) -> Option<TypeId> {
        let own = self.names.get(name).map_or(&[][..], Vec::as_slice);
        let own = own.iter().copied().find(|id| matches!(self.shape(*id), Shape::Variable(_)));
        own.or_else(|| self.base.as_ref()?.variable(name))
    }

    /// What a type is without other names and qualifications.
    pub fn plain(&self, mut id: TypeId) -> TypeId {
        for _ in 0..DEEPEST {
            match self.shape(id) {
                Shape::Alias(of) | Shape::Qualified(of) | Shape::Variable(of) => id = *of,
                _ => break,
            }
        }
        id
    }

    /// Bytes that something of a type has; `None` for what has none, or is not known.
    pub fn size(&self, id: TypeId) -> Option<u64> {
        let (mut id, mut count) = (id, 1u64);
        for _ in 0..DEEPEST {
            id = self.plain(id);
            let one = match self.shape(id) {
                Shape::Integer { size, .. }
                | Shape::Float(size)
                | Shape::Compound { size, .. }
                | Shape::Enumeration { size, .. } => *size,
                Shape::Pointer(_) => self.pointer_size,
                Shape::Array(of, times) => {
                    count = count.checked_mul((*times).into())?;
                    id = *of;
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(one.into());
        }
        None
    }

    /// The members of a structure or a union; none of what is neither.
    pub fn members(&self, id: TypeId) -> &[Member] {
        match self.of(self.plain(id)) {
            Some((owner, Type { shape: Shape::Compound { members, .. }, .. })) => {
                owner.members.get(members.start as usize..members.end as usize).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// The values of an enumeration that have names; none of what is no enumeration.
    pub fn values(&self, id: TypeId) -> &[Enumerator] {
        match self.of(self.plain(id)) {
            Some((owner, Type { shape: Shape::Enumeration { values, .. }, .. })) => {
                owner.values.get(values.start as usize..values.end as usize).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// A member by its name, also one of a member without a name.
    pub fn member(&self, id: TypeId, name: &str) -> Option<Part> {
        let mut left = MOST_LOOKED_AT;
        // Those without one are not asked for by it.
        (!name.is_empty()).then(|| self.member_within(id, name, 0, &mut left)).flatten()
    }

    fn member_within(&self, id: TypeId, name: &str, depth: usize, left: &mut usize) -> Option<Part> {
        let members = self.members(id);
        *left = left.checked_sub(members.len())?;
        if let Some(found) = members.iter().find(|member| *member.name == *name) {
            return Some(Part { of: found.of, at: found.at.into(), bits: found.bits });
        }
        if depth == DEEPEST {
            return None;
        }
        members.iter().filter(|member| member.name.is_empty()).find_map(|member| {
            let inner = self.member_within(member.of, name, depth + 1, left)?;
            Some(Part { at: inner.at + u64::from(member.at), ..inner })
        })
    }

    /// What is at a path of members, such as `se.group_node.next`, of `struct`, `union` or whatever it is.
    pub fn part(&self, id: TypeId, path: &str) -> Option<Part> {
        let whole = Part { of: id, at: 0, bits: None };
        path.split('.').try_fold(whole, |outer, name| {
            let inner = self.member(outer.of, name)?;
            Some(Part { at: outer.at.checked_add(inner.at)?, ..inner })
        })
    }

    /// A member that begins with a byte, by its path.
    pub fn field(&self, id: TypeId, path: &str) -> Option<Field> {
        let part = self.part(id, path)?;
        Some(Field { at: part.offset()?, size: self.size(part.of)? })
    }

    /// How many bytes from the beginning of `struct TAG` a member is, by its path.
    pub fn offset(&self, tag: &str, path: &str) -> Option<u64> {
        self.part(self.tagged(tag)?, path)?.offset()
    }
}

fn range(begin: usize, end: usize) -> Range<u32> {
    let index = |at| u32::try_from(at).unwrap_or(u32::MAX);
    index(begin)..index(end)
}
