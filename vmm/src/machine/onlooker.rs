//! Somebody who looks at a guest that nobody needs to debug: it stands still meanwhile, and nothing of it is changed.

use super::dumper::{Dumper, Moment, Still};
use super::vcpus::Vcpus;
use arch::GuestPhys;
use arch::address::PhysRange;
use debug::cancel::Cancel;
use debug::command::breakpoints::{BREAKPOINTS, Points};
use debug::command::dump::DUMP;
use debug::command::host::{EXITS, Exits, HOST, HostAbilities, QUIT};
use debug::command::why::Why;
use debug::command::{self, Operator, Refused};
use debug::dump::core::Core;
use debug::dump::{Contents, Image};
use debug::engine::Engine;
use debug::linux::described::Scope;
use debug::live::link::Link;
use debug::live::vcpus::Monitor;
use debug::machine::{Machine, Memory};
use debug::reply::{Arguments, Command, Needs, Refusal, Reply, Said, json};
use debug::symbols::SymbolFile;
use debug::view::View;
use kvm::ram::LiveMemory;
use kvm::{HOST_ISA, probe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes of memory that one answer has, at most.
const MOST_BYTES: u64 = 1 << 20;

impl Dumper {
    /// Has somebody look at the guest as it is at a moment, as long as `wanted` says so.
    ///
    /// # Errors
    /// In words, why nobody can.
    fn look<R>(
        &self,
        moment: Moment,
        symbols: &SymbolFile,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
        look: impl FnOnce(&mut Onlooker<'_>) -> R,
    ) -> Result<R, String> {
        let is_closed = self.end();
        let cancel = Cancel::new(move || is_closed.load(Ordering::Acquire) || !wanted());
        let looked = self.standing_still(moment, |still| {
            let known = still.known();
            let Still { cpus, memory, link, kernel } = still;
            let its = link.clone();
            let contents = Contents {
                format: "a guest that runs, held for this look".into(),
                isa: HOST_ISA,
                image: Box::new(StillMemory { memory, link }),
                cpus,
                info: None,
                remarks: Vec::new(),
            };
            let core = Core::new(contents, false).map_err(|error| error.to_string())?;
            let core = core.looking_for(Scope::Running).explaining(LOOKS_ONLY);
            let is_known = known.is_some();
            let mut core = match known {
                Some(known) => core.knowing(known),
                None => core,
            };
            core.set_cancel(&cancel);
            let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
            let engine = engine.keeping(Arc::clone(&kernel.kept));
            let mut onlooker =
                Onlooker { core, engine, cancel: &cancel, symbols, link: its, vcpus: self.vcpus() };
            let looked = look(&mut onlooker);
            if let (false, Some(found)) = (is_known, onlooker.core.found()) {
                kernel.remember(found, onlooker.core.memory());
            }
            Ok(looked)
        });
        looked.ok_or("the guest is gone")?
    }

    /// A page on the guest's Linux kernel that hangs or has crashed, as `monitor why` has it; with source lines by
    /// `symbols`. The guest stands still meanwhile, for `limit` at most, and as long as `wanted` says so.
    ///
    /// # Errors
    /// In words, why there is none.
    pub fn why(
        &self,
        symbols: &SymbolFile,
        limit: Duration,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Why, String> {
        let until = Instant::now() + limit;
        let page = |onlooker: &mut Onlooker<'_>| Why::of(onlooker).map_err(|refusal| refusal.to_string());
        self.look(Moment::End, symbols, move || Instant::now() < until && wanted(), page)?
    }

    /// What a command of `monitor` answers that looks at the guest, as it is typed. The guest stands still meanwhile, for as
    /// long as `wanted` says so.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn command(
        &self,
        symbols: &SymbolFile,
        line: &str,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Reply, Refused> {
        let run = |onlooker: &mut Onlooker<'_>| match onlooker.of_live(line) {
            Some(answer) => answer,
            None => command::run_line(onlooker, line),
        };
        let answered = self.look(Moment::Running, symbols, wanted, run);
        let answered = answered.unwrap_or_else(|why| Err(Refusal::Failed(why).into()));
        // What others have, under any beginning of its name.
        let name = line.split_whitespace().next().unwrap_or_default();
        let is_others = || command::common().any(|command| command.name.starts_with(name));
        answered.map_err(|refused| match refused.why {
            Refusal::Unknown(_) if is_others() => Refusal::Senseless(LOOKS_ONLY.into()).into(),
            _ => refused,
        })
    }
}

/// Whether a command does no more than look.
pub(crate) fn looks(command: &Command) -> bool {
    looks_at_any(command) || [HOST.name, EXITS.name, BREAKPOINTS.name].contains(&command.name)
}

/// The same, at a dump just so.
fn looks_at_any(command: &Command) -> bool {
    command.needs == Needs::Nothing && ![QUIT.name, DUMP.name].contains(&command.name)
}

/// Of the commands that are for a guest that runs, those that only look. They are answered by what runs it, and not by what
/// is seen of it while it stands still.
const OF_LIVE: [Command; 4] = [
    HOST,
    EXITS,
    Command::new(
        "breakpoints",
        "",
        "breakpoints of the debugger that is attached: kind, place, hits, and why this kind",
    ),
    Command::new("clock", "", "what becomes of the guest's time while it is held"),
];

/// What somebody is told who wants to do more than look.
const LOOKS_ONLY: &str = "this only looks at the guest: a debugger does more (vmm gdb NAME), and so do vmm dump, stop, quit, nmi and sysrq";

/// Its memory, without what a debugger has planted.
struct StillMemory {
    memory: LiveMemory,
    link: Option<Arc<Link>>,
}

impl std::fmt::Debug for StillMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StillMemory").finish_non_exhaustive()
    }
}

impl Image for StillMemory {
    fn ranges(&self) -> Vec<PhysRange> {
        self.memory.ranges()
    }

    fn populated(&self) -> Vec<PhysRange> {
        self.memory.populated()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let count = self.memory.read(GuestPhys(address), bytes);
        if let Some(link) = &self.link {
            link.engine.requests().table.unmask(GuestPhys(address), &mut bytes[..count]);
        }
        count
    }
}

/// Who looks at it.
struct Onlooker<'a> {
    core: Core,
    engine: Engine,
    cancel: &'a Cancel,
    symbols: &'a SymbolFile,
    /// Who debugs the guest.
    link: Option<Arc<Link>>,
    vcpus: Option<Arc<Vcpus>>,
}

impl Onlooker<'_> {
    /// What one of [`OF_LIVE`] answers, if a line has it, by its name or by a beginning that no other name has.
    fn of_live(&mut self, line: &str) -> Option<Result<Reply, Refused>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, words) = words.split_first()?;
        let live = of_live(name, &command::commands(self))?;
        let answer = Arguments::new(&live, words).and_then(|arguments| self.run_live(live.name, &arguments));
        Some(answer.map_err(|why| {
            let usage = || format!("{} {}", self.prefix(), live.synopsis());
            let usage = matches!(why, Refusal::Usage(_)).then(usage);
            Refused { why, usage }
        }))
    }

    fn run_live(&self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        arguments.none()?;
        let gone = || Refusal::Failed("the guest is gone".into());
        let monitor = || self.vcpus.as_ref().map(|vcpus| vcpus.monitor()).ok_or_else(gone);
        match name {
            _ if name == HOST.name => {
                let abilities = probe::host_debug();
                Ok(Box::new(HostAbilities { abilities, ..HostAbilities::of(&self.view()) }))
            }
            _ if name == EXITS.name => {
                let monitor = monitor()?;
                if !monitor.count_exits() {
                    return Ok(Said::new("exits are counted from now on: ask again", json!([])).reply());
                }
                let mut exits = monitor.exits();
                exits.iter_mut().for_each(|counts| counts.retain(|(_, count)| *count > 0));
                Ok(Box::new(Exits(exits)))
            }
            _ if name == BREAKPOINTS.name => match self.link.as_ref().filter(|link| link.is_attached()) {
                // Those that it was refused it has been told.
                Some(link) => {
                    Ok(Box::new(Points::of(&View { engine: &link.engine, ..self.view() }, Vec::new())))
                }
                None => Ok(Said::new("no debugger is attached", json!([])).reply()),
            },
            _ => monitor()?.run_command(name, arguments),
        }
    }
}

/// The command of [`OF_LIVE`] that a word is the name of, or the beginning of and of no other of `all`.
fn of_live(name: &str, all: &[Command]) -> Option<Command> {
    let is_other = |command: &&Command| command.name.starts_with(name);
    let mut matching = all.iter().filter(is_other);
    let only = match (all.iter().find(|command| command.name == name), matching.next(), matching.next()) {
        (Some(whole), ..) | (None, Some(whole), None) => whole,
        _ => return None,
    };
    OF_LIVE.iter().find(|live| live.name == only.name).copied()
}

impl Operator for Onlooker<'_> {
    fn view(&self) -> View<'_> {
        View { machine: &self.core, engine: &self.engine, vcpu: 0, is_physical: false, cancel: self.cancel }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        &mut self.core
    }

    fn offers(&self, command: &Command) -> bool {
        looks_at_any(command)
    }

    fn commands(&self) -> Vec<Command> {
        OF_LIVE.to_vec()
    }

    fn prefix(&self) -> &'static str {
        "vmm monitor NAME"
    }

    fn about_symbols(&self) -> &'static str {
        "a guest that is started with --symbols vmlinux has more"
    }

    fn most_bytes(&self) -> u64 {
        MOST_BYTES
    }

    fn symbols(&self) -> Option<&SymbolFile> {
        Some(self.symbols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_looks_is_let_through_and_nothing_else() {
        let looked_at: Vec<Command> = command::common().filter(looks_at_any).chain(OF_LIVE).collect();
        for (name, wanted) in [
            ("host", Some("host")),
            ("ho", Some("host")),
            ("exits", Some("exits")),
            ("cl", Some("clock")),
            ("breakpoints", Some("breakpoints")),
            ("br", Some("breakpoints")),
            // `bt` as well.
            ("b", None),
            ("ps", None),
            ("", None),
            ("nmi", None),
        ] {
            assert_eq!(of_live(name, &looked_at).map(|it| it.name), wanted, "{name}");
        }
        for command in command::common() {
            let does = ["nmi", "reset", "quit", "dump"].contains(&command.name);
            assert_eq!(looks(&command), !does, "{}", command.name);
        }
        // Whom a breakpoint stops is the debugger's to say.
        assert!(OF_LIVE.iter().all(|it| it.flags.is_empty()));
    }
}
