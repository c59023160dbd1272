//! Addresses as a person writes them: a number, a register of the vCPU that is looked through (`$rsp`, `rsp`, `pc`),
//! a symbol where somebody knows the kernel's (`jiffies`) or one of its modules', or one of them with a number added or
//! taken away.

use super::names::Names;
use super::nearest::nearest;
use super::operator::Operator;
use crate::reply::{Refusal, number};
use crate::symbols::Role;
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
    let base = match number_or_register(operator, base) {
        Ok(value) => value,
        Err(why) => match symbol(operator, base)? {
            Ok(address) => address,
            Err(about) => return Err(Refusal::Usage(format!("{why}; {about}"))),
        },
    };
    match offset.split_at_checked(1) {
        None => Ok(base),
        Some(("-", rest)) => Ok(base.wrapping_sub(count(rest)?)),
        Some((_, rest)) => Ok(base.wrapping_add(count(rest)?)),
    }
}

/// What is no symbol; in words, that it is none.
pub(super) fn number_or_register(operator: &dyn Operator, text: &str) -> Result<u64, String> {
    number(text).or_else(|_| {
        let found = register(&operator.view(), text.strip_prefix('$').unwrap_or(text));
        found.map_err(|why| format!("'{text}' is no number (0x1000, 4096) and {why}"))
    })
}

/// That nobody knows a symbol of a name, in words; with why there may be one, a line each.
pub(super) fn unknown(names: &Names, remarks: &[String]) -> String {
    let first = format!("nor has {} a symbol of this name", names.who());
    std::iter::once(first).chain(remarks.iter().cloned()).collect::<Vec<_>>().join("; ")
}

/// Where the symbol of a name is; in words, who knows none of that name.
fn symbol(operator: &dyn Operator, name: &str) -> Result<Result<u64, String>, Refusal> {
    let Ok(names) = Names::of(operator)? else { return Ok(Err(operator.about_symbols().into())) };
    let (found, remarks) = names.find_everywhere(operator, name)?;
    match &found[..] {
        [] => Ok(Err(unknown(&names, &remarks))),
        [symbol] if symbol.role == Role::PerCpu => {
            let text = format!("every processor has a '{name}' of its own: it has no one address");
            Err(Refusal::Usage(text))
        }
        [symbol] => Ok(Ok(symbol.address)),
        several => {
            let of = match several.iter().any(|symbol| symbol.module.is_some()) {
                true => " of modules",
                false => "",
            };
            let text =
                format!("there are {} symbols '{name}'{of}: 'sym {name}' has their addresses", several.len());
            Err(Refusal::Usage(text))
        }
    }
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
