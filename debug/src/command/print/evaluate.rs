//! What an expression comes to, by a kernel's symbols and types, and those of its modules.

use super::expression::{Expression, TypeName};
use super::{Printed, Thing};
use crate::linux::reader::{NotThere, Reader};
use crate::linux::typed::{
    Bounds, Comparison, Data, Look, NotCompared, Of, converted, is_char, make, type_name,
};
use crate::linux::types::{Part, TypeId};
use crate::linux::{Symbols, Types};
use std::cell::Cell;
use std::sync::Arc;

/// Members of a list that are told, at most.
const MOST_LISTED: usize = 1000;
/// What the kernel's own types are called among modules', as in `/sys/kernel/btf`.
const OWN: &str = "vmlinux";

/// A kernel's modules, by their places in its list.
pub(super) trait Loaded {
    /// What they are called.
    fn names(&self) -> Vec<String>;

    /// Symbols of a name.
    fn named(&self, name: &str) -> Vec<InModule>;

    /// The one that an address is in.
    fn holding(&self, address: u64) -> Option<usize>;

    /// The types of one, which stand on the kernel's; `None` where the kernel has none of it, and in words, why they
    /// cannot be had.
    fn types(&self, module: usize) -> Result<Option<Arc<Types>>, String>;

    /// What is at an address in their code, in words.
    fn symbol(&self, address: u64) -> Option<String>;

    /// What of their symbols could not be had so far, a line each.
    fn remarks(&self) -> Vec<String>;

    /// Whether somebody still wants to know.
    fn goes_on(&self) -> bool;
}

/// A symbol of a module's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InModule {
    pub module: usize,
    pub address: u64,
    /// Every processor has its own.
    pub is_per_cpu: bool,
}

/// Whose something is: of several types of one name it is that one's that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Unknown,
    Kernel,
    Module(usize),
}

impl Whose {
    /// Whose something is that an address leads to which was found there: the kernel has addresses of everybody's.
    fn behind(self) -> Whose {
        match self {
            Whose::Module(_) => self,
            Whose::Kernel | Whose::Unknown => Whose::Unknown,
        }
    }
}

/// A type, and those that it is one of.
#[derive(Clone, Debug)]
struct Typed {
    types: Arc<Types>,
    of: Of,
}

impl Typed {
    fn name(&self) -> String {
        type_name(&self.types, self.of)
    }

    /// Another one of the same.
    fn with(&self, of: Of) -> Typed {
        Typed { types: Arc::clone(&self.types), of }
    }

    fn target(&self) -> Option<Typed> {
        self.of.target(&self.types).map(|of| self.with(of))
    }

    fn elements(&self) -> Option<(Typed, u64)> {
        self.of.elements(&self.types).map(|(of, count)| (self.with(of), count))
    }

    fn size(&self) -> Option<u64> {
        self.of.size(&self.types)
    }
}

/// Why an expression comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Memory is not there: by other page tables it may be.
    NotThere(String),
    /// It is wrong, whatever it is looked at by.
    Wrong(String),
}

impl Failure {
    /// What is the same by all page tables, without; as an error what may be otherwise by others.
    pub fn settled<T>(self) -> Result<Result<T, String>, String> {
        match self {
            Failure::NotThere(why) => Err(why),
            Failure::Wrong(why) => Ok(Err(why)),
        }
    }
}

/// What an expression comes to.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// Something in memory; of which type is not always known.
    Place(Place),
    /// A number that is not.
    Number(Number),
    /// Several, of a list.
    Several(Vec<Found>),
}

/// Something in memory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    at: u64,
    of: Option<Typed>,
    part: Option<Part>,
    whose: Whose,
}

/// A number.
#[derive(Clone, Debug)]
pub(super) struct Number {
    value: u64,
    of: Option<Typed>,
    whose: Whose,
}

impl Found {
    fn of(&self) -> Option<&Typed> {
        match self {
            Found::Place(Place { of, .. }) | Found::Number(Number { of, .. }) => of.as_ref(),
            Found::Several(_) => None,
        }
    }
}

/// What expressions are about.
pub(super) struct Kernel<'a> {
    types: &'a Arc<Types>,
    symbols: &'a Symbols,
    modules: &'a dyn Loaded,
    reader: &'a Reader<'a>,
    remarks: Vec<String>,
    /// Memory was not there.
    is_absent: Cell<bool>,
}

impl<'a> Kernel<'a> {
    pub fn new(
        types: &'a Arc<Types>,
        symbols: &'a Symbols,
        modules: &'a dyn Loaded,
        reader: &'a Reader<'a>,
    ) -> Kernel<'a> {
        Kernel { types, symbols, modules, reader, remarks: Vec::new(), is_absent: Cell::new(false) }
    }

    /// What there is of an expression.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn print(mut self, expression: &Expression, bounds: Bounds) -> Result<Printed, Failure> {
        let found = match self.find(expression) {
            Ok(found) => found,
            Err(why) if self.is_absent.get() => return Err(Failure::NotThere(why)),
            Err(why) => return Err(Failure::Wrong(why)),
        };
        let things = self.tell(&found, bounds);
        Ok(Printed { things, remarks: self.remarks })
    }

    fn not_there(&self, error: NotThere) -> String {
        self.is_absent.set(true);
        error.to_string()
    }

    /// Says once what could not be had.
    fn remark(&mut self, text: String) {
        if !self.remarks.contains(&text) {
            self.remarks.push(text);
        }
    }

    fn find(&mut self, expression: &Expression) -> Result<Found, String> {
        Ok(match expression {
            Expression::Number(value) => {
                Found::Number(Number { value: *value, of: None, whose: Whose::Unknown })
            }
            Expression::Symbol(name) => self.symbol(name)?,
            Expression::PerCpu(name, cpu) => self.per_cpu(name, *cpu)?,
            Expression::List { head, of, member } => self.list(head, of, member)?,
            Expression::Cast { to, stars, what } => {
                let what = self.find(what)?;
                // Of several it is the first that tells.
                let (id, whose) = match &what {
                    Found::Several(all) => match all.first() {
                        Some(first) => self.type_for(to, first)?,
                        None => self.type_of(to, Whose::Unknown)?,
                    },
                    one => self.type_for(to, one)?,
                };
                let of = id.with(Of { stars: *stars, ..id.of });
                each(what, &mut |it| {
                    let (value, _) = self.as_number(&it)?;
                    Ok(Found::Number(Number { value, of: Some(of.clone()), whose }))
                })?
            }
            Expression::Target(what) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.target(&it).map(Found::Place))?
            }
            Expression::Address(what) => {
                let what = self.find(what)?;
                each(what, &mut |it| match it {
                    Found::Place(Place { at, of, part: None, whose }) => {
                        let of = of.map(|of| of.with(Of { stars: of.of.stars + 1, ..of.of }));
                        Ok(Found::Number(Number { value: at, of, whose }))
                    }
                    _ => Err("only what is in memory has an address".into()),
                })?
            }
            Expression::Member(what, name) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.member(&it, name))?
            }
            Expression::Element(what, index) => {
                let what = self.find(what)?;
                each(what, &mut |it| self.element(&it, *index))?
            }
        })
    }

    /// The type of a name that something is to be of.
    fn type_for(&mut self, name: &TypeName, what: &Found) -> Result<(Typed, Whose), String> {
        let (value, was_read) = self.as_number(what)?;
        let whose = match what {
            Found::Place(Place { whose, .. }) | Found::Number(Number { whose, .. }) if was_read => {
                whose.behind()
            }
            Found::Place(Place { whose, .. }) | Found::Number(Number { whose, .. }) => *whose,
            Found::Several(_) => Whose::Unknown,
        };
        let holder = || self.modules.holding(value).map_or(Whose::Unknown, Whose::Module);
        let hint = if whose == Whose::Unknown { holder() } else { whose };
        let (of, owner) = self.type_of(name, hint)?;
        // What a module's type is of is that module's.
        Ok((of, if matches!(owner, Whose::Module(_)) { owner } else { whose }))
    }

    fn types_of(&self, whose: Whose) -> Result<Option<Arc<Types>>, String> {
        match whose {
            Whose::Module(module) => self.modules.types(module),
            Whose::Kernel | Whose::Unknown => Ok(Some(Arc::clone(self.types))),
        }
    }

    /// Whoever has types of a name, as `hint` says whose is meant: several only where theirs are made differently. And whose
    /// types could not be read, a line each.
    fn owners(
        &self,
        (words, named): (&[&str], Option<Whose>),
        hint: Whose,
        comparison: &mut Comparison<'_>,
    ) -> Result<(Vec<Owner>, Vec<String>), String> {
        let written = words.join(" ");
        let uncompared = |why| format!("which types '{written}' there are is not known: {why}");
        let mut unread = Vec::new();
        let mut all_of = |whose: Whose, comparison: &mut Comparison<'_>| -> Result<Option<Owner>, String> {
            let types = match self.types_of(whose) {
                Ok(Some(types)) => types,
                Ok(None) => return Ok(None),
                Err(why) => {
                    unread.push(why);
                    return Ok(None);
                }
            };
            let found = comparison.all_by_name(&types, words).map_err(uncompared)?;
            Ok((!found.is_empty()).then_some(Owner { whose, types, found }))
        };
        if let Some(whose) = named {
            let owner = all_of(whose, comparison)?;
            return Ok((owner.into_iter().collect(), unread));
        }
        // One that is loaded knows its own, and the kernel's.
        let both = [hint, Whose::Kernel];
        let first = match hint {
            Whose::Module(_) => &both[..],
            Whose::Kernel => &both[..1],
            Whose::Unknown => &[],
        };
        for whose in first {
            if let Some(owner) = all_of(*whose, comparison)? {
                return Ok((vec![owner], unread));
            }
        }
        let mut owners: Vec<Owner> = Vec::new();
        let everybody = (0..self.modules.names().len()).map(Whose::Module);
        for whose in std::iter::once(Whose::Kernel).chain(everybody) {
            if !self.modules.goes_on() {
                return Err(uncompared(NotCompared::Stopped));
            }
            let Some(owner) = all_of(whose, comparison)? else { continue };
            let mut is_known = false;
            for other in &owners {
                is_known = is_known || other.is_same(&owner, comparison).map_err(uncompared)?;
            }
            if !is_known {
                owners.push(owner);
            }
        }
        Ok((owners, unread))
    }

    /// The type of a name, and whose it is; `hint` says whose is meant.
    fn type_of(&mut self, name: &TypeName, hint: Whose) -> Result<(Typed, Whose), String> {
        let words: Vec<&str> = name.words.iter().map(String::as_str).collect();
        let written = words.join(" ");
        if name.words == ["void"] && name.module.is_none() {
            return Ok((Typed { types: Arc::clone(self.types), of: Of::plain(TypeId::VOID) }, hint));
        }
        let names = self.modules.names();
        let named = match &name.module {
            None => None,
            Some(module) if module == OWN => Some(Whose::Kernel),
            Some(module) => match names.iter().position(|name| name == module) {
                Some(index) => Some(Whose::Module(index)),
                None => return Err(format!("there is no module '{module}'")),
            },
        };
        let modules = self.modules;
        let go_on = || modules.goes_on();
        let (owners, unread) = self.owners((&words, named), hint, &mut Comparison::new(&go_on))?;
        let but = |why: String| std::iter::once(why).chain(unread.clone()).collect::<Vec<_>>().join("; ");
        // Whoever's it is meant to be may have it.
        if let (None, Whose::Module(_), [one], false) = (named, hint, &owners[..], unread.is_empty())
            && !matches!(one.whose, Whose::Kernel)
            && one.whose != hint
        {
            return Err(but(format!("whether the module has a type '{written}' is not known")));
        }
        let [Owner { whose, types, found }] = &owners[..] else {
            return Err(but(match owners.is_empty() {
                true => match &name.module {
                    Some(module) => format!("{module} has no type '{written}'"),
                    None => format!("the kernel has no type '{written}', nor has one of its modules"),
                },
                false => several(&written, &owners, &names),
            }));
        };
        let index = match (found.len(), name.which) {
            (1, None) => 0,
            (_, None) => return Err(several(&written, &owners, &names)),
            (count, Some(which)) => {
                let index = which.checked_sub(1).and_then(|index| usize::try_from(index).ok());
                index.filter(|index| *index < count).ok_or_else(|| {
                    format!("there is no '{written}#{which}': they are counted from 1 to {count}")
                })?
            }
        };
        let found = (Typed { types: Arc::clone(types), of: Of::plain(found[index]) }, *whose);
        unread
            .into_iter()
            .for_each(|why| self.remark(format!("{why}: it may have a '{written}' of its own")));
        Ok(found)
    }

    /// The one symbol of a name: the kernel's, or else a module's.
    fn one(&mut self, name: &str) -> Result<(u64, bool, Whose), String> {
        let symbols = self.symbols;
        let mut all = symbols.named(name);
        match (all.next(), all.next()) {
            (None, _) => {}
            (Some(symbol), None) => {
                let is_per_cpu = self.is_per_cpu(symbol.address);
                return Ok((symbol.address, is_per_cpu, Whose::Kernel));
            }
            _ => return Err(format!("there are several symbols '{name}': 'sym {name}' has their addresses")),
        }
        drop(all);
        let found = self.modules.named(name);
        let remarks = self.modules.remarks();
        match found[..] {
            [] => {
                let none = format!("the kernel has no symbol '{name}' in memory, nor has one of its modules");
                Err(std::iter::once(none).chain(remarks).collect::<Vec<_>>().join("; "))
            }
            [one] => {
                // One of those may have another one of the name.
                remarks.into_iter().for_each(|why| self.remark(why));
                Ok((one.address, one.is_per_cpu, Whose::Module(one.module)))
            }
            _ => Err(format!("modules have several symbols '{name}': 'sym {name}' has their addresses")),
        }
    }

    /// The type of a variable, where somebody has one: of what every processor has one of, as a rule.
    fn type_of_variable(&mut self, name: &str, whose: Whose) -> Option<Typed> {
        let types = match self.types_of(whose) {
            Ok(types) => types?,
            Err(why) => {
                self.remark(why);
                return None;
            }
        };
        let id = types.variable(name)?;
        // The kernel's of this name is another one than a module's.
        let is_its = !matches!(whose, Whose::Module(_)) || id.0 as usize >= self.types.count();
        is_its.then(|| Typed { types, of: Of::plain(id) })
    }

    fn is_per_cpu(&self, at: u64) -> bool {
        // Numbers, and no places, where processors' data is counted from 0.
        let bound = |name| self.symbols.named(name).next().map(|symbol| symbol.address);
        match (bound("__per_cpu_start"), bound("__per_cpu_end")) {
            (Some(start), Some(end)) => (start..end).contains(&at),
            _ => false,
        }
    }

    fn symbol(&mut self, name: &str) -> Result<Found, String> {
        let (at, is_per_cpu, whose) = self.one(name)?;
        if is_per_cpu {
            return Err(format!("every processor has a '{name}' of its own: write per_cpu({name}, 0)"));
        }
        Ok(Found::Place(Place { at, of: self.type_of_variable(name, whose), part: None, whose }))
    }

    fn per_cpu(&mut self, name: &str, cpu: u64) -> Result<Found, String> {
        let (at, is_per_cpu, whose) = self.one(name)?;
        if !is_per_cpu {
            return Err(format!("there is one '{name}' for all processors"));
        }
        // Of what is no processor there is an offset as well, or what stands behind the offsets.
        let count = self.symbols.address("nr_cpu_ids").and_then(|at| self.reader.number(at, 4).ok());
        if count.is_some_and(|count| cpu >= count) {
            return Err(format!("the kernel has no processor {cpu}"));
        }
        let offsets = self.symbols.address("__per_cpu_offset");
        let offsets =
            offsets.ok_or("the kernel does not say where its processors' data is (__per_cpu_offset)")?;
        let most = self.types.variable("__per_cpu_offset").and_then(|id| Of::plain(id).elements(self.types));
        if cpu >= most.map_or(8192, |(_, count)| count) {
            return Err(format!("the kernel has no processor {cpu}"));
        }
        let offset =
            self.reader.address(offsets.wrapping_add(8 * cpu)).map_err(|error| self.not_there(error))?;
        // Processors that are not there have what the linker has put there, or nothing.
        let (at, of) = (at.wrapping_add(offset), self.type_of_variable(name, whose));
        Ok(Found::Place(Place { at, of, part: None, whose }))
    }

    fn list(&mut self, head: &Expression, of: &TypeName, member: &str) -> Result<Found, String> {
        let (head, hint) = match self.find(head)? {
            Found::Place(Place { at, whose, .. }) => (at, whose),
            Found::Number(Number { value, whose, .. }) => (value, whose),
            Found::Several(_) => return Err("a list of lists is not gone through".into()),
        };
        // Whoever has a list's head need not be who knows what is linked to it, but is asked first.
        let (of, owner) = self.type_of(of, hint)?;
        let field = of.types.part(of.of.id, member).and_then(|part| part.offset());
        let field = field.ok_or_else(|| format!("{} has no '{member}'", of.name()))?;
        let (members, remarks) = crate::linux::linked(head, self.reader, MOST_LISTED);
        self.remarks.extend(remarks);
        let whose = owner.behind();
        let place = |at: u64| {
            Found::Place(Place { at: at.wrapping_sub(field), of: Some(of.clone()), part: None, whose })
        };
        Ok(Found::Several(members.into_iter().map(place).collect()))
    }

    /// What stands for an address or a number, and whether that was found in memory.
    fn as_number(&self, found: &Found) -> Result<(u64, bool), String> {
        match found {
            Found::Number(Number { value, of, .. }) => {
                Ok((of.as_ref().map_or(*value, |of| converted(&of.types, *value, of.of)), false))
            }
            // Where something is, where nothing else is known of it.
            Found::Place(Place { at, of: None, .. }) => Ok((*at, false)),
            Found::Place(Place { at, of: Some(of), .. }) if of.elements().is_some() => Ok((*at, false)),
            Found::Place(Place { at, of: Some(of), part, .. }) => {
                if part.is_some_and(|part| part.bits.is_some()) {
                    return Err("a bit field is printed by itself alone".into());
                }
                let Some(size) = of.size().filter(|size| (1..=8).contains(size)) else {
                    // As `(struct T *)init_task` means where it is.
                    return Ok((*at, false));
                };
                let value = self.reader.number(*at, size).map_err(|error| self.not_there(error))?;
                Ok((converted(&of.types, value, of.of), true))
            }
            Found::Several(_) => Err("there are several".into()),
        }
    }

    fn target(&self, found: &Found) -> Result<Place, String> {
        let of = found.of().ok_or("of what type it is is not known: write *(struct T *) in front of it")?;
        let element = of.elements().map(|(element, _)| element);
        let target = element.or_else(|| of.target());
        let target = target.ok_or_else(|| format!("a {} is no address", of.name()))?;
        let (at, was_read) = self.as_number(found)?;
        let whose = match found {
            Found::Place(Place { whose, .. }) | Found::Number(Number { whose, .. }) => *whose,
            Found::Several(_) => Whose::Unknown,
        };
        let whose = if was_read { whose.behind() } else { whose };
        Ok(Place { at, of: Some(target), part: None, whose })
    }

    fn member(&self, found: &Found, name: &str) -> Result<Found, String> {
        let is_address = found.of().is_some_and(|of| of.target().is_some());
        let place = match found {
            found if is_address => Some(self.target(found)?),
            Found::Place(place) => Some(place.clone()),
            _ => None,
        };
        let Some(Place { at, of: Some(of), part: None, whose }) = place else {
            return Err(format!(
                "of what type that is that has a '{name}' is not known: write ((struct T *)ADDRESS)->{name}"
            ));
        };
        let part = of.types.member(of.of.id, name).filter(|_| of.of.stars == 0);
        let part = part.ok_or_else(|| format!("{} has no '{name}'", of.name()))?;
        let place = at.wrapping_add(part.at / 8);
        // A bit field is looked at as a part of what it is in.
        let rest = part.bits.is_some().then_some(Part { at: part.at % 8, ..part });
        Ok(Found::Place(Place { at: place, of: Some(of.with(Of::plain(part.of))), part: rest, whose }))
    }

    fn element(&self, found: &Found, index: u64) -> Result<Found, String> {
        let Place { at, of, whose, .. } = self.target(found)?;
        let Some(of) = of else { return Err("it has no elements".into()) };
        if let Found::Place(Place { of: Some(of), .. }) = found
            && let Some((_, count)) = of.elements()
            // One at a structure's end has as many as there are.
            && count > 1
            && index >= count
        {
            return Err(format!("it has {count} elements, from 0 on"));
        }
        let size = of.size().ok_or_else(|| format!("how large a {} is is not known", of.name()))?;
        let at = at.wrapping_add(size.wrapping_mul(index));
        Ok(Found::Place(Place { at, of: Some(of), part: None, whose }))
    }

    /// What there is to be told of what was found: of all of it together, as much as there is room for.
    fn tell(&mut self, found: &Found, bounds: Bounds) -> Vec<Thing> {
        let symbol = |at: u64| {
            let Some((symbol, _)) = self.symbols.at(at).filter(|(_, size)| *size != u64::MAX) else {
                return self.modules.symbol(at);
            };
            let behind = at - symbol.address;
            Some(if behind == 0 { symbol.name.into() } else { format!("{}+{behind:#x}", symbol.name) })
        };
        let mut told = Told { things: Vec::new(), bounds, is_cut: false };
        self.tell_each(found, &symbol, &mut told);
        if told.is_cut {
            let Bounds { values, bytes, .. } = Bounds::USUAL;
            let text =
                format!("no more than {values} values and {} MiB are told: ask for a part", bytes >> 20);
            self.remarks.push(text);
        }
        told.things
    }

    fn tell_each(&self, found: &Found, symbol: &dyn Fn(u64) -> Option<String>, told: &mut Told) {
        let types = found.of().map_or(self.types, |of| &of.types);
        let mut look = Look::new(types, self.reader, symbol, told.bounds);
        if !look.has_room() {
            told.is_cut = true;
            return;
        }
        let thing = match found {
            Found::Several(all) => return all.iter().for_each(|it| self.tell_each(it, symbol, told)),
            Found::Place(Place { at, of: Some(of), part, .. }) => {
                let data = match part {
                    Some(part) => look.part(*at, *part),
                    None => look.at(*at, of.of),
                };
                Thing { type_name: of.name(), address: Some(*at), data }
            }
            Found::Place(Place { at, of: None, .. }) => {
                Thing { type_name: "void".into(), address: Some(*at), data: Data::Unknown }
            }
            Found::Number(Number { value, of: Some(of), .. }) => {
                let is_text = of.target().is_some_and(|target| is_char(&target.types, target.of));
                let data = if is_text { look.text(*value) } else { look.number(*value, of.of) };
                Thing { type_name: of.name(), address: None, data }
            }
            Found::Number(Number { value, of: None, .. }) => {
                let data = Data::Address(*value, symbol(*value));
                Thing { type_name: "unsigned long".into(), address: None, data }
            }
        };
        // With its address, and what stands around both.
        look.spend(thing.type_name.len() + "() 0xffffffffffffffff: \n".len());
        told.is_cut |= look.is_cut();
        told.bounds = look.left();
        told.things.push(thing);
    }
}

/// What has been told, and how much room there is left.
struct Told {
    things: Vec<Thing>,
    bounds: Bounds,
    is_cut: bool,
}

/// Who has types of a name, and which.
#[derive(Clone, Debug)]
struct Owner {
    whose: Whose,
    types: Arc<Types>,
    found: Vec<TypeId>,
}

impl Owner {
    /// Whether each of another one's types is one of these, and there are as many.
    fn is_same(&self, other: &Owner, comparison: &mut Comparison<'_>) -> Result<bool, NotCompared> {
        if self.found.len() != other.found.len() {
            return Ok(false);
        }
        for (one, its) in self.found.iter().zip(&other.found) {
            if !comparison.is_same((&self.types, *one), (&other.types, *its))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// That there are several types of a name, and how each of them is written.
fn several(written: &str, owners: &[Owner], names: &[String]) -> String {
    const MOST: usize = 8;
    let mut all = Vec::new();
    for Owner { whose, types, found } in owners {
        let owner = match whose {
            Whose::Module(module) => names.get(*module).map_or("?", String::as_str),
            Whose::Kernel | Whose::Unknown => OWN,
        };
        for (id, number) in found.iter().zip(1..) {
            let which = if found.len() > 1 { format!("#{number}") } else { String::new() };
            all.push(format!("{owner}:{written}{which} ({})", make(types, *id)));
        }
    }
    let more = if all.len() > MOST { format!(", and {} more", all.len() - MOST) } else { String::new() };
    all.truncate(MOST);
    format!("there are several types '{written}': write one of {}{more}", all.join(", "))
}

/// Does something with one, or with each of several.
fn each(found: Found, work: &mut dyn FnMut(Found) -> Result<Found, String>) -> Result<Found, String> {
    match found {
        Found::Several(all) => Ok(Found::Several(all.into_iter().map(work).collect::<Result<_, _>>()?)),
        one => work(one),
    }
}
