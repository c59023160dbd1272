//! The trace of hypercalls: a line or a JSON object for each, and the counts at the end.

use super::Call;
use super::decode::Decoded;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a call is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// As strace does.
    #[default]
    Lines,
    /// An object on a line.
    Json,
}

/// Which calls are written: names of calls, or of their sub-operations with their table's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    names: Vec<String>,
}

impl Filter {
    /// Only calls of these names; all if there are none.
    pub fn new(names: Vec<String>) -> Filter {
        Filter { names }
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a call is one of them, by its name and its sub-operation's.
    pub fn has(&self, name: &str, op: Option<&str>) -> bool {
        let is_one = |wanted: &String| {
            wanted == name || op.is_some_and(|op| wanted == op || wanted.ends_with(&format!("_{op}")))
        };
        self.names.is_empty() || self.names.iter().any(is_one)
    }
}

/// Where the trace goes.
pub type Sink = Box<dyn Write + Send>;

/// Counts of one call.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    calls: u64,
    errors: u64,
    time: Duration,
}

/// Writes and counts calls.
pub struct Tracer {
    style: Style,
    filter: Filter,
    sink: Option<Mutex<Sink>>,
    started: Instant,
    counts: Mutex<BTreeMap<&'static str, Count>>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("style", &self.style)
            .field("filter", &self.filter)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tracer {
    /// A trace to `sink`; without one, calls are only counted.
    pub fn new(sink: Option<Sink>, style: Style, filter: Filter) -> Tracer {
        Tracer {
            style,
            filter,
            sink: sink.map(Mutex::new),
            started: Instant::now(),
            counts: Mutex::new(BTreeMap::new()),
        }
    }

    /// When a call begins.
    pub(super) fn begin(&self) -> Instant {
        Instant::now()
    }

    /// Whether a call is to be decoded.
    pub(super) fn wants(&self, call: &Call<'_>) -> bool {
        self.sink.is_some() && self.filter.has(call.row.name, call.op.map(|op| op.label))
    }

    /// Counts a call.
    pub(super) fn count(&self, begun: Instant, name: &'static str, is_error: bool) {
        let mut counts = lock(&self.counts);
        let count = counts.entry(name).or_default();
        count.calls += 1;
        count.errors += u64::from(is_error);
        count.time += begun.elapsed();
    }

    /// Writes and counts a call.
    pub(super) fn end(
        &self,
        begun: Instant,
        call: &Decoded,
        vcpu: u32,
        result: i64,
        error: Option<&'static str>,
    ) {
        self.count(begun, call.name, error.is_some());
        let Some(sink) = self.sink.as_ref().filter(|_| self.filter.has(call.name, call.op)) else { return };
        let time = begun.duration_since(self.started);
        let line = match self.style {
            Style::Lines => format!(
                "[vcpu {vcpu} {:3}.{:06}] {} = {}\n",
                time.as_secs(),
                time.subsec_micros(),
                call.text(),
                shown_result(result, error)
            ),
            Style::Json => {
                let mut object = call.json();
                object["vcpu"] = json!(vcpu);
                object["time"] = json!(time.as_secs_f64());
                object["result"] = json!(result);
                object["error"] = json!(error);
                format!("{object}\n")
            }
        };
        // A trace that cannot be written, a full disk for instance, does not stop the guest.
        if let Err(error) = lock(sink).write_all(line.as_bytes()) {
            log::debug!("the trace of hypercalls cannot be written: {error}");
        }
    }

    /// Has everything written.
    pub fn flush(&self) {
        if let Some(sink) = &self.sink
            && let Err(error) = lock(sink).flush()
        {
            log::warn!("the trace of hypercalls cannot be written: {error}");
        }
    }

    /// Calls with their counts, the longest first, as `strace -c` has them.
    pub fn summary(&self) -> String {
        let counts = lock(&self.counts);
        let mut rows: Vec<_> = counts.iter().map(|(name, count)| (*name, *count)).collect();
        rows.sort_by_key(|(name, count)| (std::cmp::Reverse(count.time), *name));
        let mut total = Count::default();
        for (_, count) in &rows {
            total.calls += count.calls;
            total.errors += count.errors;
            total.time += count.time;
        }
        let whole = total.time.as_secs_f64().max(f64::MIN_POSITIVE);
        let mut text = String::from("% time     seconds  usecs/call     calls    errors hypercall\n");
        let mut push = |name: &str, count: &Count| {
            let micros = count.time.as_micros().checked_div(u128::from(count.calls)).unwrap_or(0);
            // Writing to a String cannot fail.
            writeln!(
                text,
                "{:6.2} {:11.6} {micros:11} {:9} {:>9} {name}",
                100.0 * count.time.as_secs_f64() / whole,
                count.time.as_secs_f64(),
                count.calls,
                if count.errors > 0 { count.errors.to_string() } else { String::new() },
            )
            .ok();
        };
        rows.iter().for_each(|(name, count)| push(name, count));
        push("total", &total);
        text
    }
}

/// A result as strace shows it.
pub fn shown_result(result: i64, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("-{error}"),
        None if (-4095..4096).contains(&result) => result.to_string(),
        None => format!("{result:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_know_calls_and_operations() {
        let filter = Filter::new(vec!["console_io".into(), "EVTCHNOP_send".into()]);
        assert!(filter.has("console_io", Some("write")));
        assert!(filter.has("event_channel_op", Some("send")));
        assert!(!filter.has("event_channel_op", Some("close")) && !filter.has("sched_op", None));
        assert!(Filter::default().has("anything", None));
    }

    #[test]
    fn results() {
        assert_eq!(shown_result(0, None), "0");
        assert_eq!(shown_result(-22, Some("EINVAL")), "-EINVAL");
        assert_eq!(shown_result(0x4_0014, None), "0x40014");
    }
}
