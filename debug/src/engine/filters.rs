//! Filters: which hits at an address are anybody's business, whatever breakpoints come and go there. A debugger that takes
//! its breakpoints out at each stop need not know of them.

use crate::breakpoint::{Breakpoint, Condition, Purpose};
use arch::GuestVirt;
use std::collections::BTreeMap;

/// Filters that there may be at a time.
const MOST: usize = 1024;

/// What of an address's hits is let through.
#[derive(Clone, Debug)]
pub struct Filter {
    /// It holds for them. What cannot be evaluated holds.
    pub condition: Condition,
    /// The same in words: `task 42`.
    pub words: String,
}

/// There are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MOST} such addresses already")]
pub struct TooManyFilters;

/// All of a guest's, by the guest-virtual address that breakpoints are asked for at.
#[derive(Clone, Debug, Default)]
pub struct Filters(BTreeMap<GuestVirt, Filter>);

impl Filters {
    /// Puts one in the place of the one that is there.
    ///
    /// # Errors
    /// [`TooManyFilters`].
    pub fn set(&mut self, address: GuestVirt, filter: Filter) -> Result<(), TooManyFilters> {
        if self.0.len() >= MOST && !self.0.contains_key(&address) {
            return Err(TooManyFilters);
        }
        self.0.insert(address, filter);
        Ok(())
    }

    /// Takes one away; whether it was there.
    pub fn lift(&mut self, address: GuestVirt) -> bool {
        self.0.remove(&address).is_some()
    }

    /// All of them, by their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (GuestVirt, &Filter)> {
        self.0.iter().map(|(address, filter)| (*address, filter))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that a breakpoint's hits go through: a step's own goes through none.
    pub fn of(&self, breakpoint: &Breakpoint) -> Option<&Filter> {
        self.0.get(&breakpoint.address).filter(|_| breakpoint.purpose == Purpose::Asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Mode, Point};
    use crate::fake::simulated::{self, CODE};
    use arch::Isa;
    use std::sync::Arc;
    use std::time::Duration;

    fn filter(holds: impl Fn(&crate::breakpoint::Hit<'_>) -> bool + Send + Sync + 'static) -> Filter {
        Filter { condition: Condition::Closure(Arc::new(holds)), words: "some".into() }
    }

    #[test]
    fn a_hit_is_told_where_the_filter_and_a_condition_hold() {
        for isa in Isa::ALL {
            let code = simulated::calling(isa);
            let mut guest = simulated::debuggee(isa, 1, &code.code).unwrap();
            let (all, limit) = (guest.root(), Duration::from_secs(60));
            let counter = if isa == Isa::X86_64 { "rax" } else { "x0" };
            let at = CODE + code.leaf;
            let set = guest.engine.requests().filters.set(
                GuestVirt(at),
                filter(move |hit| hit.register(counter).is_some_and(|count| count % 10 == 0)),
            );
            assert_eq!(set, Ok(()));
            let above = move |hit: &crate::breakpoint::Hit<'_>| hit.register(counter) >= Some(14);
            let id = guest.add(Point::execute(at).when(above)).unwrap();
            let stop = guest.go_until(all, Mode::Run, limit).unwrap();
            assert_eq!(guest.register(stop.context, counter).unwrap(), 20, "{isa}");
            // Taken out and put in again, as gdb does, it goes through the same.
            guest.take_out(id);
            guest.add(Point::execute(at)).unwrap();
            let stop = guest.go_until(all, Mode::Run, limit).unwrap();
            assert_eq!(guest.register(stop.context, counter).unwrap(), 30, "{isa}");
            // A step's own goes through none: it comes to its return.
            let out = guest.go_until(stop.context, Mode::StepOut, limit).unwrap();
            assert_eq!(guest.pc(out.context).unwrap(), CODE + code.behind, "{isa}");
            assert!(guest.engine.requests().filters.lift(GuestVirt(at)));
            let stop = guest.go_until(all, Mode::Run, limit).unwrap();
            assert_eq!(guest.register(stop.context, counter).unwrap(), 32, "{isa}");
            // Who lets the guest go lets all of them go.
            guest.engine.requests().filters.set(GuestVirt(at), filter(|_| false)).unwrap();
            guest.detach();
            assert!(guest.engine.requests().filters.is_empty());
        }
    }

    #[test]
    fn there_is_an_end_to_them() {
        let mut filters = Filters::default();
        for address in 0..MOST as u64 {
            assert_eq!(filters.set(GuestVirt(address), filter(|_| true)), Ok(()));
        }
        assert_eq!(filters.set(GuestVirt(MOST as u64), filter(|_| true)), Err(TooManyFilters));
        assert_eq!(filters.set(GuestVirt(7), filter(|_| true)), Ok(()));
        assert!(filters.lift(GuestVirt(7)) && !filters.lift(GuestVirt(7)));
    }
}
