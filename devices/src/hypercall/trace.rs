//! The trace of hypercalls: a line or a JSON object for each, and the counts at the end.

use super::call::Call;
use super::decode::{Decoded, shown_result};
use crate::tell;
use serde_json::json;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
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
    pub fn has(&self, name: &str, op: Option<(&str, &str)>) -> bool {
        let is_one = |wanted: &String| {
            wanted == name || op.is_some_and(|(label, full)| wanted == label || wanted == full)
        };
        self.names.is_empty() || self.names.iter().any(is_one)
    }
}

/// Where the trace goes.
pub type Sink = Box<dyn Write + Send>;

/// Counts of one call.
#[derive(Debug, Default)]
pub struct Count {
    calls: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
}

impl Count {
    /// Counts a call, and the time it took if that is known.
    pub fn add(&self, time: Option<Duration>, is_error: bool) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(is_error), Ordering::Relaxed);
        if let Some(time) = time {
            self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// Calls with their counts, the longest first, as `strace -c` has them.
pub fn summary<'a>(counts: impl Iterator<Item = (&'static str, &'a Count)>) -> String {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let mut rows: Vec<(&str, u64, u64, Duration)> = counts
        .map(|(name, count)| {
            (name, load(&count.calls), load(&count.errors), Duration::from_nanos(load(&count.nanos)))
        })
        .filter(|(_, calls, ..)| *calls > 0)
        .collect();
    rows.sort_by_key(|(name, _, _, time)| (std::cmp::Reverse(*time), *name));
    let total = rows.iter().fold(("total", 0, 0, Duration::ZERO), |(name, calls, errors, time), row| {
        (name, calls + row.1, errors + row.2, time + row.3)
    });
    let whole = total.3.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut text = String::from("% time     seconds  usecs/call     calls    errors hypercall\n");
    for (name, calls, errors, time) in rows.into_iter().chain([total]) {
        let micros = time.as_micros().checked_div(u128::from(calls)).unwrap_or(0);
        let errors = if errors > 0 { errors.to_string() } else { String::new() };
        let seconds = time.as_secs_f64();
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{:6.2} {seconds:11.6} {micros:11} {calls:9} {errors:>9} {name}",
            100.0 * seconds / whole
        )
        .ok();
    }
    text
}

/// Writes calls.
pub struct Tracer {
    style: Style,
    filter: Filter,
    sink: Option<Mutex<Sink>>,
    started: Instant,
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
    /// A trace to `sink`; without one, nothing is written.
    pub fn new(sink: Option<Sink>, style: Style, filter: Filter) -> Tracer {
        Tracer { style, filter, sink: sink.map(Mutex::new), started: Instant::now() }
    }

    /// Whether a call is to be decoded.
    pub(super) fn wants(&self, call: &Call<'_>) -> bool {
        self.sink.is_some() && self.filter.has(call.row.name, call.op_names())
    }

    /// Writes a call, if it is to be.
    pub(super) fn write(
        &self,
        begun: Option<Instant>,
        call: &Decoded,
        vcpu: u32,
        result: i64,
        error: Option<&'static str>,
    ) {
        let Some(sink) = self.sink.as_ref().filter(|_| self.filter.has(call.name, call.op)) else { return };
        let time = begun.unwrap_or_else(Instant::now).duration_since(self.started);
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
            tell!(Debug, "the trace of hypercalls cannot be written: {error}");
        }
    }

    /// Has everything written.
    pub fn flush(&self) {
        if let Some(sink) = &self.sink
            && let Err(error) = lock(sink).flush()
        {
            tell!(Warn, "the trace of hypercalls cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_know_calls_and_operations() {
        let filter = Filter::new(vec!["console_io".into(), "EVTCHNOP_send".into()]);
        assert!(filter.has("console_io", Some(("write", "CONSOLEIO_write"))));
        assert!(filter.has("event_channel_op", Some(("send", "EVTCHNOP_send"))));
        assert!(
            !filter.has("event_channel_op", Some(("close", "EVTCHNOP_close")))
                && !filter.has("sched_op", None)
        );
        // One that ends as another does is another.
        let filter = Filter::new(vec!["GNTTABOP_get_version".into()]);
        assert!(!filter.has("xen_version", Some(("version", "XENVER_version"))));
        assert!(!filter.has("hypfs_op", Some(("get_version", "XEN_HYPFS_OP_get_version"))));
        assert!(Filter::default().has("anything", None));
    }

    #[test]
    fn results() {
        assert_eq!(shown_result(0, None), "0");
        assert_eq!(shown_result(-22, Some("EINVAL")), "-EINVAL");
        assert_eq!(shown_result(0x4_0014, None), "0x40014");
    }
}
