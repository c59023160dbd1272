//! Who knows the names of a kernel's addresses: the file that it was linked to, where somebody has named it or it is
//! found, and else the table that the kernel keeps in its own memory.

use super::operator::Operator;
use crate::reply::Refusal;
use crate::symbols::{FoundSymbols, Frame, Moved, Symbol, SymbolFile, Symbols, SymbolsError};
use crate::view::View;
#[cfg(feature = "linux")]
use crate::{
    linux::{self, module::Module, symbols::Kind},
    symbols::{MOST_FOUND, Role},
    view::module_names::{ModuleNames, piece},
};
#[cfg(feature = "linux")]
use std::sync::Arc;

impl From<SymbolsError> for Refusal {
    fn from(error: SymbolsError) -> Refusal {
        Refusal::NotThere(error.to_string())
    }
}

/// Who knows them.
#[derive(Clone, Debug)]
pub enum Names {
    /// The kernel's file.
    File(Moved),
    /// The kernel itself.
    #[cfg(feature = "linux")]
    Kernel(Arc<linux::Symbols>),
}

impl Names {
    /// Whoever knows them in what an operator looks at; in words, why nobody does.
    ///
    /// # Errors
    /// [`Refusal::NotThere`] for a file of another architecture; [`Refusal::Cancelled`].
    pub fn of(operator: &dyn Operator) -> Result<Result<Names, String>, Refusal> {
        let view = operator.view();
        if let Some(symbols) = operator.symbols().and_then(SymbolFile::named) {
            if symbols.isa() != view.isa() {
                return Err(SymbolsError::Architecture(symbols.isa()).into());
            }
            return Ok(Ok(Names::of_file(symbols, &view)));
        }
        match found(operator)? {
            Some(FoundSymbols { symbols, .. }) if symbols.isa() == view.isa() => {
                Ok(Ok(Names::of_file(&symbols, &view)))
            }
            _ => Names::of_kernel(operator),
        }
    }

    fn of_file(symbols: &Symbols, view: &View<'_>) -> Names {
        Names::File(symbols.moved(view.kernel_slide().unwrap_or_default()))
    }

    #[cfg(feature = "linux")]
    fn of_kernel(operator: &dyn Operator) -> Result<Result<Names, String>, Refusal> {
        let view = operator.view();
        match super::kernel::of_kernel(&view, |info| view.kernel_symbols(info)) {
            Ok(symbols) => Ok(Ok(Names::Kernel(symbols))),
            Err(Refusal::NotThere(why)) => Ok(Err(why)),
            Err(refusal) => Err(refusal),
        }
    }

    #[cfg(not(feature = "linux"))]
    fn of_kernel(_: &dyn Operator) -> Result<Result<Names, String>, Refusal> {
        Ok(Err("nor is anything known here of a kernel's own".into()))
    }

    /// In words, who it is.
    pub fn who(&self) -> &'static str {
        match self {
            Names::File(_) => "the kernel's file",
            #[cfg(feature = "linux")]
            Names::Kernel(_) => "the kernel's own table",
        }
    }

    /// The symbols of a name, at most [`crate::symbols::MOST_FOUND`].
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn find(&self, name: &str) -> Result<Vec<Symbol>, SymbolsError> {
        match self {
            Names::File(moved) => moved.find(name),
            #[cfg(feature = "linux")]
            Names::Kernel(symbols) => {
                let found = symbols.named(name).take(MOST_FOUND);
                Ok(found.map(|symbol| of_kernel(symbols, &symbol, 0)).collect())
            }
        }
    }

    /// The symbols of a name, and those of modules where the kernel has none of that name; with why there may be more,
    /// a line each.
    ///
    /// # Errors
    /// As of [`Self::find`], and [`Refusal::Cancelled`].
    pub fn find_everywhere(
        &self,
        operator: &dyn Operator,
        name: &str,
    ) -> Result<(Vec<Symbol>, Vec<String>), Refusal> {
        let own = self.find(name)?;
        match own.is_empty() {
            true => in_modules(operator, Sought::Name(name)),
            false => Ok((own, Vec::new())),
        }
    }

    /// The symbol that an address is in.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn at(&self, address: u64) -> Result<Option<Symbol>, SymbolsError> {
        match self {
            Names::File(moved) => moved.at(address),
            #[cfg(feature = "linux")]
            Names::Kernel(symbols) => {
                // Nothing tells how far the last one reaches.
                let found = symbols.at(address).filter(|(_, size)| *size != u64::MAX);
                Ok(found.map(|(symbol, _)| of_kernel(symbols, &symbol, address - symbol.address)))
            }
        }
    }

    /// The source lines of an address, the innermost first; none where nobody knows them.
    ///
    /// # Errors
    /// [`SymbolsError`].
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>, SymbolsError> {
        match self {
            Names::File(moved) => moved.frames(address),
            #[cfg(feature = "linux")]
            Names::Kernel(_) => Ok(Vec::new()),
        }
    }

    /// The kernel's file, if that is who knows them.
    #[cfg(feature = "linux")]
    pub(super) fn file(&self) -> Option<&Moved> {
        match self {
            Names::File(moved) => Some(moved),
            Names::Kernel(_) => None,
        }
    }

    /// Why the file may not be the guest's kernel's, or the addresses not where it is now.
    ///
    /// # Errors
    /// [`Refusal::Cancelled`].
    pub fn doubt(&self, operator: &dyn Operator) -> Result<Option<String>, Refusal> {
        match self {
            Names::File(_) => doubt(operator),
            #[cfg(feature = "linux")]
            Names::Kernel(_) => Ok(None),
        }
    }
}

/// The file that nobody has named, and that is found by what the kernel says of its build.
///
/// # Errors
/// [`Refusal::Cancelled`].
#[cfg(feature = "linux")]
pub(super) fn found(operator: &dyn Operator) -> Result<Option<FoundSymbols>, Refusal> {
    let Some(file @ SymbolFile::Sought(_)) = operator.symbols() else { return Ok(None) };
    let known = operator.view().kernel(linux::described::Scope::Running)?;
    let find = |info: &linux::VmCoreInfo| file.found(info.build_id()?, info.release());
    Ok(known.info.as_ref().and_then(find))
}

/// Nothing is known of the kernel's build.
#[cfg(not(feature = "linux"))]
fn found(_: &dyn Operator) -> Result<Option<FoundSymbols>, Refusal> {
    Ok(None)
}

#[cfg(feature = "linux")]
fn doubt(operator: &dyn Operator) -> Result<Option<String>, Refusal> {
    let known = operator.view().kernel(linux::described::Scope::Running)?;
    let Some(info) = &known.info else {
        return Ok(Some("no Linux kernel has described itself in memory (yet): taken as not moved".into()));
    };
    let named = operator.symbols().and_then(SymbolFile::named);
    let build_id = named.and_then(|named| named.build_id());
    let ours = build_id.map(|it| it.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(match (info.build_id(), ours) {
        (Some(theirs), Some(ours)) if *theirs != ours => {
            Some(format!("the guest's kernel is another build ({theirs}; the file is {ours})"))
        }
        _ => None,
    })
}

#[cfg(not(feature = "linux"))]
fn doubt(_operator: &dyn Operator) -> Result<Option<String>, Refusal> {
    Ok(Some("the kernel is taken as not moved".into()))
}

/// A symbol as it is told. The kernel notes where each begins, not how long it is: that is how far it is to the next.
#[cfg(feature = "linux")]
fn of_kernel(symbols: &linux::Symbols, symbol: &linux::symbols::Symbol<'_>, offset: u64) -> Symbol {
    // Offsets on x86-64 until 6.14; elsewhere where the kernel has what each processor gets a copy of.
    let bound = |name| symbols.named(name).next().map(|it| (it.kind == Kind::Absolute, it.address));
    let is_per_cpu = || match (bound("__per_cpu_start"), bound("__per_cpu_end")) {
        (Some((is_number, begin)), Some((_, end))) => {
            is_number == (symbol.kind == Kind::Absolute) && (begin..end).contains(&symbol.address)
        }
        _ => false,
    };
    let (role, size) = match symbol.kind {
        Kind::Absolute | Kind::Data if is_per_cpu() => (Role::PerCpu, 0),
        Kind::Absolute => (Role::Absolute, 0),
        Kind::Text => (Role::Function, symbols.at(symbol.address).map_or(0, |(_, size)| size)),
        Kind::Data => (Role::Variable, symbols.at(symbol.address).map_or(0, |(_, size)| size)),
    };
    let size = if size == u64::MAX { 0 } else { size };
    Symbol { name: symbol.name.into(), address: symbol.address, size, offset, role, module: None }
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Sought<'a> {
    /// A symbol of this name.
    Name(&'a str),
    /// The symbol that an address is in.
    Address(u64),
}

/// What there is of it in the kernel's modules, which no file that the kernel was linked to has. And why there may be more, a line each.
///
/// # Errors
/// [`Refusal::Cancelled`].
#[cfg(feature = "linux")]
pub fn in_modules(
    operator: &dyn Operator,
    sought: Sought<'_>,
) -> Result<(Vec<Symbol>, Vec<String>), Refusal> {
    let view = operator.view();
    let found = super::kernel::of_kernel(&view, |info| {
        let own = view.kernel_symbols(info)?;
        let modules = ModuleNames::new(view, info, &*view.kernel_types(info)?);
        let mut found = Vec::new();
        match sought {
            Sought::Name(name) => modules.named(name, |module, symbols, symbol| {
                if found.len() < MOST_FOUND {
                    let size = modules.size_of(module, symbol.address);
                    found.push(of_module(&own, (module, symbols), symbol, size));
                }
            }),
            Sought::Address(address) => {
                let at = |symbol: Symbol| Symbol { offset: address - symbol.address, ..symbol };
                let of_code = modules
                    .at(address, |module, symbols, symbol| at(of_module(&own, (module, symbols), symbol, 0)));
                found.extend(of_code.or_else(|| {
                    modules.variable_at(address, |module, symbols, symbol, size| {
                        at(of_module(&own, (module, symbols), symbol, size))
                    })
                }));
            }
        }
        Ok((found, modules.shortfall()))
    });
    match found {
        Err(Refusal::NotThere(why)) => Ok((Vec::new(), vec![format!("modules are not looked into: {why}")])),
        found => found,
    }
}

/// A module's symbol as it is told, which says that it has so many bytes. What is in none of its code is a variable. A
/// function reaches to the next one.
#[cfg(feature = "linux")]
fn of_module(
    own: &linux::Symbols,
    (module, symbols): (&Module, &linux::Symbols),
    symbol: &linux::symbols::Symbol<'_>,
    size: u64,
) -> Symbol {
    let address = symbol.address;
    let (role, size) = match piece(module, address) {
        Some((begin, bytes)) => {
            let next = symbols.at(address).map_or(0, |(_, size)| size);
            (Role::Function, next.min(begin.wrapping_add(bytes).wrapping_sub(address)))
        }
        None if is_per_cpu(own, address) => (Role::PerCpu, size),
        None => (Role::Variable, size),
    };
    Symbol { name: symbol.name.into(), address, size, offset: 0, role, module: Some(module.name.clone()) }
}

/// Whether an address is that of a module's variable which every processor has of its own: they are as the kernel's own
/// such are, a number, or in its image.
#[cfg(feature = "linux")]
pub(super) fn is_per_cpu(own: &linux::Symbols, address: u64) -> bool {
    let image = own.address("_text").or_else(|| own.address("_stext")).zip(own.address("_end"));
    address >> 63 == 0 || image.is_some_and(|(begin, end)| (begin..end).contains(&address))
}

/// Nothing is known of any.
///
/// # Errors
/// None.
#[cfg(not(feature = "linux"))]
pub fn in_modules(_: &dyn Operator, _: Sought<'_>) -> Result<(Vec<Symbol>, Vec<String>), Refusal> {
    Ok((Vec::new(), Vec::new()))
}

#[cfg(all(test, feature = "linux"))]
mod tests {
    use super::*;
    use linux::symbols::{Builder, Symbol as Own};

    #[test]
    fn the_kernels_own_table_is_one_of_names_without_sizes() {
        let mut builder = Builder::default();
        for (name, address, kind) in [
            ("__per_cpu_start", 0, Kind::Absolute),
            ("current_task", 0x20, Kind::Absolute),
            ("__per_cpu_end", 0x1000, Kind::Absolute),
            ("a_number", 0x2000, Kind::Absolute),
            ("schedule", 0xffff_0000, Kind::Text),
            ("jiffies", 0xffff_0100, Kind::Data),
            ("_end", 0xffff_0200, Kind::Data),
        ] {
            builder.add(Own { name, address, kind, is_global: true });
        }
        let names = Names::Kernel(Arc::new(builder.finish()));
        let found = |name| names.find(name).unwrap().pop().map(|it| (it.role, it.address, it.size));
        assert_eq!(found("schedule"), Some((Role::Function, 0xffff_0000, 0x100)));
        assert_eq!(found("jiffies"), Some((Role::Variable, 0xffff_0100, 0x100)));
        assert_eq!(found("current_task"), Some((Role::PerCpu, 0x20, 0)));
        assert_eq!(found("a_number"), Some((Role::Absolute, 0x2000, 0)));
        // How far the last one reaches is not known.
        assert_eq!(found("_end"), Some((Role::Variable, 0xffff_0200, 0)));
        assert_eq!(found("nobody"), None);
        let at = |address| names.at(address).unwrap().map(|it| (it.name, it.offset));
        assert_eq!(at(0xffff_0010), Some(("schedule".into(), 0x10)));
        assert_eq!((at(0xfffe_ffff), at(0x20), at(0xffff_0200)), (None, None, None));
        assert_eq!(names.frames(0xffff_0010), Ok(Vec::new()));
        // In the image, as on aarch64.
        let mut builder = Builder::default();
        for (name, address) in [
            ("__per_cpu_start", 0x1000),
            ("runqueues", 0x1100),
            ("__per_cpu_end", 0x2000),
            ("jiffies", 0x2100),
        ] {
            builder.add(Own { name, address, kind: Kind::Data, is_global: true });
        }
        let names = Names::Kernel(Arc::new(builder.finish()));
        let role = |name| names.find(name).unwrap()[0].role;
        assert_eq!((role("runqueues"), role("jiffies")), (Role::PerCpu, Role::Variable));
    }
}
