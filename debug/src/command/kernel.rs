//! What commands ask of the Linux kernel that runs.

use crate::linux::described::Scope;
use crate::linux::{Described, VmCoreInfo};
use crate::reply::Refusal;
use crate::view::View;

/// What `look` finds of it.
///
/// # Errors
/// [`Refusal::NotThere`] without a kernel that is known, and with what `look` says; [`Refusal::Cancelled`].
pub(crate) fn of_kernel<T>(
    view: &View<'_>,
    look: impl FnOnce(&VmCoreInfo) -> Result<T, String>,
) -> Result<T, Refusal> {
    let found = with_kernel(view, look)?;
    // What could not be read as nobody wants more is not missing.
    view.cancel.check()?;
    found.map_err(Refusal::NotThere)
}

/// What `look` makes of it, also where nobody wants more in the middle of that.
///
/// # Errors
/// As [`of_kernel`], without a kernel.
pub(super) fn with_kernel<T>(view: &View<'_>, look: impl FnOnce(&VmCoreInfo) -> T) -> Result<T, Refusal> {
    let known = view.kernel(Scope::Running)?;
    let info = known.info.as_ref().ok_or_else(|| Refusal::NotThere(nobody(&known)))?;
    Ok(look(info))
}

fn nobody(known: &Described) -> String {
    let none = "no Linux kernel has described itself in memory (yet)";
    std::iter::once(none).chain(known.remarks.iter().map(String::as_str)).collect::<Vec<_>>().join("; ")
}
