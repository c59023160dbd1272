//! What is mapped where, page by page.

use super::View;
use crate::cancel::Cancelled;
use arch::GuestVirt;
use arch::paging::{Mapping, Regime};
use std::ops::ControlFlow;

/// Pages between two looks whether what is found is still wanted.
const PAGES_BETWEEN: usize = 1 << 12;

/// A page that is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Its first address.
    pub start: u64,
    /// Its last one, or that of what was asked for.
    pub last: u64,
    /// The entry that maps it.
    pub entry: u64,
    /// Where it leads.
    pub mapping: Mapping,
}

impl View<'_> {
    /// Walks all pages that a regime maps between two addresses, both included; `visit` breaks it off.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn pages(
        &self,
        regime: &Regime,
        (first, last): (u64, u64),
        visit: &mut dyn FnMut(Page) -> ControlFlow<()>,
    ) -> Result<(), Cancelled> {
        for (from, to) in regime.ranges() {
            let (mut at, to) = (from.0.max(first), to.0.min(last));
            let mut count = 0;
            while at <= to {
                count += 1;
                if count % PAGES_BETWEEN == 0 {
                    self.cancel.check()?;
                }
                let mut entry = 0;
                let found = regime.walk(self.memory(), GuestVirt(at), |step| entry = step.value);
                let span = match &found {
                    Ok(mapping) => mapping.page_size,
                    Err(fault) => fault.span(),
                };
                let end = (at | (span - 1)).min(to);
                if let Ok(mapping) = found
                    && visit(Page { start: at, last: end, entry, mapping }).is_break()
                {
                    return Ok(());
                }
                match end.checked_add(1) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
        Ok(())
    }
}
