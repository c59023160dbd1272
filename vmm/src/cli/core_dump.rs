//! `vmm core`: a memory dump, looked at from the command line or served to a debugger. No KVM is
//! needed, and the host's architecture does not matter.

mod asked;
mod open;
mod shell;
mod unpacked;

use super::candidates::words;
use super::colour::Colour;
use super::{stdout, values};
use crate::error::Error;
use crate::machine::config::SymbolsConfig;
use crate::{outcome, symbols};
use arch::Isa;
use asked::Asked;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use debug::command::Refused;
use debug::dump::DumpError;
use debug::dump::core::Core;
use debug::engine::Engine;
use debug::gdb::endpoint::{Endpoint, ListeningSocket};
use debug::gdb::server::{self, Service};
use debug::gdb::session::Session;
use debug::machine::Machine;
use debug::reply::{Needs, Refusal, number};
use debug::socket::Audience;
use debug::symbols::SymbolFile;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use open::{Description, open};
use shell::Shell;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unpacked::CannotUnpack;

/// Look at a memory dump, of either architecture: by a command, or with gdb
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The dump: an ELF core (ours, QEMU's, /proc/vmcore), a compressed kdump, either of them also in gzip or
    /// Zstandard, or plain memory with --raw
    path: PathBuf,
    /// Serve gdb or lldb
    #[arg(long, value_name = "[HOST]:PORT|unix:PATH", value_parser = clap::builder::ValueParser::new(Endpoint::parse))]
    gdb: Option<Endpoint>,
    /// Serve debuggers of every user of this machine, not only yours and root's
    #[arg(long, requires = "gdb")]
    gdb_any_user: bool,
    /// Let the debugger change registers and memory, in a copy that is gone at the end
    #[arg(long)]
    writable: bool,
    /// Tell which pages of another dump of the same guest differ, by virtual address
    #[arg(long, value_name = "PATH", conflicts_with = "gdb")]
    diff: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Whether the kernel's log is in colour: without this, at a terminal if NO_COLOR is not set
    #[arg(long, value_name = "auto|always|never", default_value = "auto", hide_default_value = true, global = true,
          add = words(Colour::WORDS), value_parser = clap::builder::ValueParser::new(Colour::parse))]
    color: Colour,
    /// The vCPU whose registers and page tables count
    #[arg(long, value_name = "N", default_value = "0", global = true, value_parser = clap::builder::ValueParser::new(vcpu_number))]
    vcpu: u32,
    /// The file is plain memory
    #[arg(long, requires = "arch")]
    raw: bool,
    /// The architecture of plain memory
    #[arg(long, value_name = "x86_64|aarch64", add = words(&["x86_64", "aarch64"]), requires = "raw", value_parser = clap::builder::ValueParser::new(isa))]
    arch: Option<Isa>,
    /// Where plain memory begins, guest-physical
    #[arg(long, value_name = "ADDRESS", requires = "raw", value_parser = number)]
    base: Option<u64>,
    /// A register of all vCPUs that the dump does not have, or has wrong; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    register: Vec<String>,
    /// The kernel's description of itself (VMCOREINFO), if it is not in the dump or not clear: the note's
    /// text, or the guest-physical address (0x...) of the page that has it
    #[arg(long, value_name = "PATH|0xADDRESS", value_parser = clap::builder::ValueParser::new(Description::parse))]
    vmcoreinfo: Option<Description>,
    /// The file that the kernel was linked to (vmlinux), for source lines and names; without this, one of the kernel's
    /// build, where distributions and debuginfod keep those; none: only what is in the dump
    #[arg(long, value_name = "PATH|none", global = true, value_parser = clap::builder::ValueParser::new(values::symbols))]
    symbols: Option<SymbolsConfig>,
    #[command(subcommand)]
    command: Option<Asked>,
}

fn vcpu_number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write the number of a vCPU, from 0 up".into())
}

fn isa(text: &str) -> Result<Isa, String> {
    Isa::ALL.into_iter().find(|isa| isa.name() == text).ok_or_else(|| "write x86_64 or aarch64".into())
}

/// Why a dump does not tell what was asked.
#[derive(Debug, thiserror::Error)]
enum CoreError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Dump { path: PathBuf, source: DumpError },
    #[error("{}: {source}", path.display())]
    Unpack { path: PathBuf, source: CannotUnpack },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotThere(String),
    #[error("{}", in_one_line(.0))]
    Command(Refused),
    #[error(transparent)]
    Other(#[from] Error),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl CoreError {
    fn code(&self) -> u8 {
        match self {
            CoreError::Open { .. } | CoreError::Unpack { source: CannotUnpack::Folder { .. }, .. } => {
                outcome::FILE
            }
            CoreError::Output(_) => outcome::FILE,
            CoreError::Dump { .. } | CoreError::Unpack { source: CannotUnpack::Damaged(_), .. } => {
                outcome::IMAGE
            }
            CoreError::Usage(_) => outcome::USAGE,
            CoreError::NotThere(_) => outcome::NOT_THERE,
            CoreError::Command(refused) => outcome::of_refusal(&refused.why),
            CoreError::Other(error) => error.code(),
        }
    }
}

fn in_one_line(refused: &Refused) -> String {
    match &refused.usage {
        Some(usage) => format!("{} (usage: {usage})", refused.why),
        None => refused.why.to_string(),
    }
}

/// The words of a command line, of which one that is a dump's path is not taken for the command of the same name: in
/// `vmm core dump info` the first is a file, if there is one.
pub fn command_line(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = given.collect();
    if let [_, core, path, ..] = &mut words[..]
        && core == "core"
        && shell::commands().iter().any(|command| path == command.name)
        && Path::new(path).exists()
    {
        *path = Path::new(".").join(&path).into();
    }
    words
}

/// The error for a refused command line, of these words behind the program's name: of a word behind a dump that is no
/// command, clap says only that it is one too many.
pub fn explain(error: clap::Error, words: &[OsString]) -> clap::Error {
    let (kind, suggested) = match error.kind() {
        ErrorKind::UnknownArgument => (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        ErrorKind::InvalidSubcommand => (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        _ => return error,
    };
    let (Some(ContextValue::String(refused)), None) = (error.get(kind), error.get(suggested)) else {
        return error;
    };
    let commands = shell::commands();
    let is_command = |word: &str| word == "help" || commands.iter().any(|command| command.name == word);
    let mut words = words.iter().filter_map(|word| word.to_str());
    let is_of_a_dump = words.next() == Some("core") && !refused.starts_with('-');
    // Behind a command it is that one's.
    if !is_of_a_dump || words.take_while(|word| word != refused).skip(1).any(is_command) {
        return error;
    }
    let known = commands.iter().filter(|command| command.needs != Needs::Running).map(|command| command.name);
    let text = format!(
        "a dump has no command '{refused}': there are {}; `vmm core --help` says what each does",
        known.collect::<Vec<_>>().join(", ")
    );
    let mut ours = super::definition();
    ours.build();
    match ours.find_subcommand_mut("core") {
        Some(core) => core.error(error.kind(), text),
        None => error,
    }
}

/// Does what was asked; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    match run(args) {
        Ok(()) => 0,
        Err(CoreError::Output(error)) => stdout::written(Err(error), 0),
        Err(error) => {
            log::error!("{error}");
            error.code()
        }
    }
}

fn run(args: &Args) -> Result<(), CoreError> {
    let core = open(args, &args.path)?;
    for remark in core.remarks() {
        log::warn!("{}: {remark}", args.path.display());
    }
    if args.vcpu >= core.vcpus() {
        let there = match core.vcpus() {
            1 => "one vCPU, 0".to_string(),
            vcpus => format!("vCPUs 0 to {}", vcpus - 1),
        };
        return Err(CoreError::Usage(format!("--vcpu {}: the dump has {there}", args.vcpu)));
    }
    let symbols = symbols::of(&args.symbols.clone().unwrap_or_default(), core.isa(), None)?;
    match &args.gdb {
        Some(_) if args.command.is_some() || args.json => {
            let text = "--gdb serves until it is ended; give no command and no --json with it";
            Err(CoreError::Usage(text.into()))
        }
        Some(address) => Ok(serve(core, address, args.gdb_any_user, symbols)?),
        None => answer(args, core, symbols, &mut io::BufWriter::new(io::stdout().lock())),
    }
}

fn session(core: Core) -> Session<Core> {
    let engine = Engine::new(core.isa(), core.abilities().clone(), core.vcpus());
    Session::new(core, Arc::new(engine))
}

/// Serves debuggers until a signal, or `kill`.
fn serve(core: Core, address: &Endpoint, any_user: bool, symbols: SymbolFile) -> Result<(), Error> {
    let audience = if any_user { Audience::Everyone } else { Audience::Owner };
    let listener = ListeningSocket::bind(address, audience)
        .map_err(|source| Error::Listen { address: address.to_string(), source })?;
    if address.is_open() {
        log::warn!("whoever can connect to {} can read the dump", listener.address());
    }
    let signals: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    let quit = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))?;
    let quit = quit.as_fd().try_clone_to_owned().map_err(Error::system("cannot duplicate a signalfd"))?;
    log::warn!("waiting for gdb at {}", listener.address());
    let service = Service { admission: crate::peer::admission(any_user), ..Service::plain(quit) };
    let mut session = session(core);
    (session.name, session.symbols) = ("vmm".into(), symbols);
    server::run(listener, session, service);
    Ok(())
}

/// Has a command carried out, and prints what it says; without one, what the file is.
fn answer(args: &Args, core: Core, symbols: SymbolFile, out: &mut impl Write) -> Result<(), CoreError> {
    let mut shell = Shell::new(core, symbols, args);
    let reply = match (&args.diff, &args.command) {
        (Some(other), _) => shell.compare(other)?,
        (None, None) => shell.run("info", &[])?,
        (None, Some(Asked { name, words })) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            shell.run(name, &words)?
        }
    };
    match args.json {
        true => writeln!(out, "{}", reply.json())?,
        false if args.color.is_wanted() => write!(out, "{}", reply.in_colour())?,
        false => write!(out, "{reply}")?,
    }
    out.flush()?;
    reply.shortfall().map_or(Ok(()), |why| Err(CoreError::Command(Refusal::NotThere(why).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_not_there_is_answered_with_those_that_are() {
        let explained = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let all = std::iter::once(OsString::from("vmm")).chain(words.iter().cloned());
            explain(crate::cli::definition().try_get_matches_from(all).unwrap_err(), &words).to_string()
        };
        for line in ["core x nosuch", "core --json x nosuch", "core x --vcpu 0 nosuch"] {
            let text = explained(line);
            assert!(text.contains("a dump has no command 'nosuch': there are info, regs,"), "{line}: {text}");
            // What is for a guest that runs.
            assert!(!text.contains(" nmi,"), "{text}");
        }
        assert!(explained("core x inf").contains("'info'"));
        for line in ["core x info --nosuch", "core x mem nosuch", "check nosuch"] {
            assert!(!explained(line).contains("a dump has no command"), "{line}");
        }
    }
}
