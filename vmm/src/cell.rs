//! The cell: what the monitor keeps itself from, so that a guest which has got the better of it has little to go on with.
//! `docs/cell.md` says what that is.
//!
//! Each thread has a filter of its system calls, by its kind (`table`); all of them may open only the paths that
//! they need. It is for all of a process, so it is the command line that begins one: the library does not.
//!
//! Threads begin by [`debug::threads`] and [`devices::threads`]. Filters are inherited, so they are made by a thread that
//! may do what any of them may (`nursery`), and which does nothing else.

mod filter;
mod nursery;
mod paths;
mod table;
mod violation;

pub use paths::{For, Grant, Rule};
pub use table::{kinds, text};
pub use violation::Ending;

use debug::threads::Work;
use kvm::HOST_ISA;
use nursery::Nursery;
use paths::Bounds;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};
use table::Kind;

/// Whether there is a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the host has it.
    #[default]
    On,
    /// None.
    Off,
    /// A host that has not all of it is refused.
    Require,
}

impl Sandbox {
    /// What it is called.
    pub const NAMES: &'static [&'static str] = &["on", "off", "require"];

    /// By its name.
    ///
    /// # Errors
    /// What there is.
    pub fn parse(text: &str) -> Result<Sandbox, String> {
        match text {
            "on" => Ok(Sandbox::On),
            "off" => Ok(Sandbox::Off),
            "require" => Ok(Sandbox::Require),
            _ => Err("write on, off or require".into()),
        }
    }
}

/// The process's cell.
#[derive(Debug)]
struct Cell {
    nursery: Nursery,
    /// Whether the host takes filters.
    filters: bool,
    /// What shares and the others may open, where the host has Landlock.
    bounds: Option<[Bounds; 2]>,
    /// Folders that dumps may be written below.
    owned: Vec<PathBuf>,
    sandbox: Sandbox,
}

static CELL: OnceLock<Cell> = OnceLock::new();

/// Begins the process's cell: threads that are made from here on are confined, and the calling one may open what `rules`
/// say and nothing else. Its filter comes with [`settle`]. Does nothing when there is to be none, or there is one already.
///
/// # Errors
/// Why there is none, if there has to be.
pub fn begin(sandbox: Sandbox, mut rules: Vec<Rule>, ending: Ending) -> io::Result<()> {
    if sandbox == Sandbox::Off || CELL.get().is_some() {
        return Ok(());
    }
    violation::install(ending)?;
    // SAFETY: the option takes numbers, and changes nothing that this process needs.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        refused(sandbox, "no new privileges", &io::Error::last_os_error())?;
    }
    rules.extend(paths::common());
    let bounds = match bound(&rules) {
        Ok(bounds) => Some(bounds),
        Err(why) => refused(sandbox, "Landlock", &why).map(|()| None)?,
    };
    let owned = rules.iter().filter(|rule| rule.grant == Grant::Own && rule.by == For::Others);
    let owned = owned.filter_map(|rule| rule.path.canonicalize().ok()).collect();
    let (nursery, confined) = Nursery::start(|| confine(Kind::Nursery))?;
    let filters = confined.is_ok();
    if let Err(why) = confined {
        refused(sandbox, "filters of system calls", &why)?;
    }
    CELL.get_or_init(|| Cell { nursery, filters, bounds, owned, sandbox });
    debug::threads::set_starter(start);
    debug::threads::set_late(enter_by_name);
    devices::threads::set_starter(start);
    Ok(())
}

/// The host has not got something.
fn refused(sandbox: Sandbox, what: &str, why: &dyn std::fmt::Display) -> io::Result<()> {
    match sandbox {
        Sandbox::Require => {
            Err(io::Error::other(format!("--sandbox require: this host refuses {what}: {why}")))
        }
        Sandbox::On | Sandbox::Off => {
            log::info!("the cell lacks {what}, which this host refuses: {why}");
            Ok(())
        }
    }
}

/// Holds the calling thread to all rules; those that shares, and others, are held to.
fn bound(rules: &[Rule]) -> Result<[Bounds; 2], String> {
    let bounds = |by: &[For]| Bounds::new(rules, by).map_err(|error| error.to_string());
    let parts = [bounds(&[For::Shares])?, bounds(&[For::Others])?];
    match bounds(&[For::Shares, For::Others])?.hold()? {
        true => Ok(parts),
        false => Err("its kernel has none".into()),
    }
}

/// Has the calling thread be confined as the main one: what is left to do is the event loop's, and shared folders are open.
pub fn settle() {
    if CELL.get().is_some() {
        enter(Kind::Main, true);
    }
}

/// Whether the process has one.
pub fn is_confined() -> bool {
    CELL.get().is_some_and(|cell| cell.filters)
}

/// Whether dumps may be written below a folder.
pub fn may_write_below(folder: &Path) -> bool {
    let Some(cell) = CELL.get().filter(|cell| cell.bounds.is_some()) else { return true };
    folder.canonicalize().is_ok_and(|folder| cell.owned.iter().any(|owned| folder.starts_with(owned)))
}

fn start(kind: &'static str, thread: Builder, work: Work) -> io::Result<JoinHandle<()>> {
    let Some(cell) = CELL.get() else { return thread.spawn(work) };
    let known = table::kind_of(kind)
        .ok_or_else(|| io::Error::other(format!("no filter is known for threads of the kind '{kind}'")))?;
    let work = move || {
        enter(known, true);
        work();
    };
    cell.nursery.make(thread, Box::new(work))
}

fn enter_by_name(kind: &'static str) {
    if let Some(kind) = table::kind_of(kind) {
        enter(kind, false);
    }
}

/// Confines the calling thread.
fn enter(kind: Kind, narrows: bool) {
    let Some(cell) = CELL.get() else { return };
    let mut confined = Ok(());
    if let Some([shares, others]) = cell.bounds.as_ref().filter(|_| narrows) {
        let its = if kind == Kind::Share { shares } else { others };
        confined = its.hold().map(drop);
    }
    if cell.filters {
        confined = confined.and(confine(kind));
    }
    let Err(why) = confined else { return };
    let thread = table::name_of(kind);
    match cell.sandbox {
        // It would do what it does without its bounds, and there is nobody to tell.
        Sandbox::Require => panic!("--sandbox require: the thread '{thread}' cannot be confined: {why}"),
        Sandbox::On | Sandbox::Off => log::warn!("the thread '{thread}' is not confined: {why}"),
    }
}

/// Puts the filter of a kind of thread on the calling one.
fn confine(kind: Kind) -> Result<(), String> {
    let program = filter::program(HOST_ISA, kind).map_err(|error| error.to_string())?;
    violation::expect(kind);
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}
