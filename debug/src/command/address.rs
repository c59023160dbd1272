//! Addresses as a person writes them: a number, a register of the vCPU that is looked through (`$rsp`, `rsp`, `pc`),
//! a symbol where the kernel's file is known (`jiffies`),
//! or one of them with a number added or taken away.

use super::nearest::nearest;
use super::operator::Operator;
use crate::reply::{Refusal, number};
#[cfg(feature = "dwarf")]
use crate::symbols::{Moved, SymbolsError};
use crate::view::View;
use arch::Isa;
use arch::register::{Bank, table};
use arch::words::counted;

/// Reads an address.
///
/// # Errors
/// [`Refusal::Usage`], with what may have been meant; [`Refusal::NotThere`].
pub fn address(operator: &dyn Operator, text: &str) -> Result<u64, Refusal> {
    let at = text.find(['+', '-']).filter(|at| *at > 0).unwrap_or(text.len());
    let (base, offset) = text.split_at(at);
    let base = match number(base) {
        Ok(value) => value,
        Err(_) => match register(&operator.view(), base.strip_prefix('$').unwrap_or(base)) {
            Ok(value) => value,
            Err(why) => match symbol(operator, base)? {
                Some(address) => address,
                None => {
                    let about = about_symbols(operator);
                    let text = format!("'{base}' is no number (0x1000, 4096) and {why}; {about}");
                    return Err(Refusal::Usage(text));
                }
            },
        },
    };
    match offset.split_at_checked(1) {
        None => Ok(base),
        Some(("-", rest)) => Ok(base.wrapping_sub(count(rest)?)),
        Some((_, rest)) => Ok(base.wrapping_add(count(rest)?)),
    }
}

/// The file's symbols, where the guest's kernel has moved to; `None` where there is no file.
///
/// # Errors
/// [`Refusal::NotThere`] for a file of another architecture.
#[cfg(feature = "dwarf")]
pub(super) fn moved(operator: &dyn Operator) -> Result<Option<Moved>, Refusal> {
    let Some(symbols) = operator.symbols() else { return Ok(None) };
    let view = operator.view();
    if symbols.isa() != view.isa() {
        return Err(SymbolsError::Architecture(symbols.isa()).into());
    }
    Ok(Some(symbols.moved(view.kernel_slide().unwrap_or_default())))
}

/// Where the symbol of a name is; `None` where there is none, or no file that has them.
#[cfg(feature = "dwarf")]
fn symbol(operator: &dyn Operator, name: &str) -> Result<Option<u64>, Refusal> {
    use crate::symbols::Role;
    let Some(moved) = moved(operator)? else { return Ok(None) };
    match &moved.find(name)?[..] {
        [] => Ok(None),
        [symbol] if symbol.role == Role::PerCpu => {
            let text = format!("every processor has a '{name}' of its own: it has no one address");
            Err(Refusal::Usage(text))
        }
        [symbol] => Ok(Some(symbol.address)),
        several => {
            let text =
                format!("there are {} symbols '{name}': 'sym {name}' has their addresses", several.len());
            Err(Refusal::Usage(text))
        }
    }
}

#[cfg(not(feature = "dwarf"))]
fn symbol(_operator: &dyn Operator, _name: &str) -> Result<Option<u64>, Refusal> {
    Ok(None)
}

/// What is said of a name that is no register's.
fn about_symbols(operator: &dyn Operator) -> &'static str {
    #[cfg(feature = "dwarf")]
    if operator.symbols().is_some() {
        return "nor has the kernel's file a symbol of this name";
    }
    operator.about_symbols()
}

/// Reads a plain number.
///
/// # Errors
/// [`Refusal::Usage`].
pub fn count(text: &str) -> Result<u64, Refusal> {
    number(text).map_err(Refusal::Usage)
}

fn register(view: &View<'_>, name: &str) -> Result<u64, String> {
    let isa = view.isa();
    let known = || table(isa).iter().map(|row| row.name);
    let name = match (isa, name) {
        (Isa::X86_64, "pc") => "rip",
        (Isa::X86_64, "sp") => "rsp",
        (_, name) => name,
    };
    let Some(row) = known().position(|known| known.eq_ignore_ascii_case(name)) else {
        return Err(format!("no register{}", nearest(name, known())));
    };
    let file = view.machine.registers(view.vcpu, &Bank::ALL).map_err(|error| error.to_string())?;
    file.get_row(row).ok_or_else(|| format!("register {name} has no value of 64 bits"))
}

/// A number of bytes, in the largest unit that it is a multiple of.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{} GiB", bytes >> 30),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => counted(bytes, "byte"),
    }
}
