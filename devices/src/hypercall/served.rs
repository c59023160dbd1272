//! A family's calls as they are served: looked up, decoded for whoever looks, answered, counted.

use super::call::Call;
use super::caller::{Caller, RawCall};
use super::decode::Decoded;
use super::family::{Answer, Family};
use super::table::{Field, Kind};
use super::trace::{self, Count, Filter, Tracer};
use arch::hypercall::Abi;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A family with whoever looks at its calls.
#[derive(Debug)]
pub struct Hypercalls {
    family: Arc<dyn Family>,
    tracer: Tracer,
    /// The time that calls take is counted too, which costs some of it.
    is_timed: AtomicBool,
    /// A debugger looks at calls.
    is_caught: AtomicBool,
    /// At which.
    caught: Mutex<Filter>,
    /// Counts by place in the table, and behind them those of calls that are not in it.
    counts: Vec<Count>,
}

impl Hypercalls {
    /// A family and its trace. With `is_timed`, the time that calls take is counted.
    pub fn new(family: Arc<dyn Family>, tracer: Tracer, is_timed: bool) -> Hypercalls {
        // A table is parsed when it is first looked at, which is not to be in a guest's call.
        let counts = (0..=family.table().calls.len()).map(|_| Count::default()).collect();
        let (is_caught, caught) = (AtomicBool::new(false), Mutex::default());
        let is_timed = AtomicBool::new(is_timed);
        Hypercalls { family, tracer, is_timed, is_caught, caught, counts }
    }

    /// Has the time counted that calls take from now on: somebody may ask.
    pub fn count_time(&self) {
        self.is_timed.store(true, Ordering::Relaxed);
    }

    /// The family.
    pub fn family(&self) -> &dyn Family {
        &*self.family
    }

    /// The trace.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Has a debugger see these calls before they are answered, or none.
    pub fn catch(&self, which: Option<Filter>) {
        self.is_caught.store(which.is_some(), Ordering::Relaxed);
        *self.caught.lock().unwrap_or_else(PoisonError::into_inner) = which.unwrap_or_default();
    }

    /// Whether a debugger is to see any calls before they are answered.
    pub fn is_caught(&self) -> bool {
        self.is_caught.load(Ordering::Relaxed)
    }

    /// What a debugger is to see, in words.
    pub fn caught(&self) -> String {
        let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.is_caught(), caught.names()) {
            (false, _) => "no hypercall is caught".into(),
            (true, []) => "all hypercalls are caught".into(),
            (true, names) => format!("hypercalls that are caught: {}", names.join(" ")),
        }
    }

    /// Whether the family has a call or an operation of this name.
    pub fn has(&self, name: &str) -> bool {
        self.family.table().has(name)
    }

    /// Whether a debugger is to see this one.
    pub fn catches(&self, call: &Decoded) -> bool {
        let caught = self.caught.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_caught() && caught.has(call.name, call.op)
    }

    /// Decodes a call without answering it.
    pub fn look(&self, raw: RawCall, caller: &dyn Caller) -> Decoded {
        match Call::new(self.family.table(), raw, caller) {
            Some(mut call) => {
                let mut decoded = Decoded::of(&mut call);
                decoded.complete(&call, &*self.family, false);
                decoded
            }
            None => Decoded::unknown(raw.number),
        }
    }

    /// How many argument registers a call has, and whether the first is a sub-operation, of which no
    /// more than the lower half counts; `first` reads that half.
    pub fn argument_count(&self, number: u64, abi: Abi, first: impl FnOnce() -> u64) -> (usize, bool) {
        let Some(call) = self.family.table().call(number, abi) else { return (0, false) };
        match call.arguments.as_slice() {
            [Field { kind: Kind::Ops(_), .. }] => {
                (1 + call.op(first() & 0xffff_ffff).map_or(0, |op| op.arguments.len()), true)
            }
            arguments => (arguments.len(), false),
        }
    }

    /// Serves a call.
    pub fn serve(&self, raw: RawCall, caller: &dyn Caller) -> Answer {
        let begun = self.is_timed.load(Ordering::Relaxed).then(Instant::now);
        let table = self.family.table();
        let place = table.place(raw.number, raw.abi);
        let count = place.map_or(self.counts.last(), |place| self.counts.get(place));
        let (answer, error) = match Call::new(table, raw, caller) {
            Some(mut call) => self.answer(&mut call, begun),
            None => {
                let result = self.family.unknown();
                let error = self.family.error(result);
                self.tracer.write(begun, &Decoded::unknown(raw.number), caller.vcpu(), result, error);
                (result.into(), error)
            }
        };
        if let Some(count) = count {
            count.add(begun.map(|begun| begun.elapsed()), error.is_some());
        }
        answer
    }

    fn answer(&self, call: &mut Call<'_>, begun: Option<Instant>) -> (Answer, Option<&'static str>) {
        // What is shown is what was there before the answer.
        let mut decoded = self.tracer.wants(call).then(|| Decoded::of(call));
        let mut answer = self.family.answer(call);
        if call.flush().is_err() {
            answer = self.family.fault().into();
        }
        let error = self.family.error(answer.result);
        if let Some(decoded) = &mut decoded {
            decoded.complete(call, &*self.family, error.is_none());
            self.tracer.write(begun, decoded, call.caller.vcpu(), answer.result, error);
        }
        (answer, error)
    }

    /// Calls with their counts, as `strace -c` has them.
    pub fn summary(&self) -> String {
        let names = self.family.table().calls.iter().map(|call| call.name).chain(["hypercall"]);
        trace::summary(names.zip(&self.counts))
    }
}
