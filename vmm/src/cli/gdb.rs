//! `vmm gdb`: starts gdb for a guest, or has a guest serve it at an address, or no more.

mod modules;
mod start;

use super::candidates::words;
use super::named_guest::NamedGuest;
use super::values;
use crate::control::client::{ask, ask_with};
use crate::control::protocol::{Request, Response, ServeGdb};
use crate::machine::config::GdbConfig;
use crate::outcome;
use clap::builder::ValueParser;
use debug::gdb::endpoint::Endpoint;
use debug::gdb::server::OnLost;
use debug::socket::{self, BindError};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf, absolute};

/// Debug a guest that runs with gdb or lldb, whether it was started with --gdb or not
///
/// Without an address the debugger is started here, connected by a socket that nobody else can reach, with the kernel's
/// vmlinux: the one that is named, or the one that is found by build id or beside the kernel. gdb is told of the kernel's
/// modules as well. The guest serves it until it
/// ends. With an address the guest serves whichever debugger connects there.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The kernel's vmlinux for the debugger that is started; or where the guest listens, as for --gdb
    #[arg(value_name = "VMLINUX|[HOST]:PORT|unix:PATH", value_parser = ValueParser::new(Wanted::parse))]
    wanted: Option<Wanted>,
    /// Start lldb instead of gdb
    #[arg(long, conflicts_with = "leave")]
    lldb: bool,
    /// The debugger's program; else gdb, or gdb-multiarch where there is no gdb
    #[arg(long, value_name = "PATH", conflicts_with = "leave")]
    program: Option<PathBuf>,
    /// Arguments of the debugger's
    #[arg(last = true, value_name = "ARGUMENTS", conflicts_with = "leave")]
    arguments: Vec<OsString>,
    /// Serve it no more: whoever is connected is let go, nothing stays in the guest, and it runs
    #[arg(long, conflicts_with = "wanted")]
    leave: bool,
    /// Serve debuggers of every user of this machine, not only yours and root's
    #[arg(long, requires = "wanted")]
    gdb_any_user: bool,
    /// What the guest does when a debugger has vanished: run on, wait for the next one, or end
    #[arg(long, value_name = "continue|hold|quit", default_value = "continue", value_parser = ValueParser::new(values::lost),
          add = words(&["continue", "hold", "quit"]))]
    gdb_lost: OnLost,
    /// Let a second debugger take the place of the first
    #[arg(long, requires = "wanted")]
    gdb_takeover: bool,
    /// The folder that gdb's `monitor dump` writes below; the guest's current one if none is given
    #[arg(long, value_name = "PATH")]
    dump_dir: Option<PathBuf>,
}

/// What is wanted.
#[derive(Clone, Debug)]
enum Wanted {
    /// A debugger with this file.
    Symbols(PathBuf),
    /// A server.
    At(Endpoint),
}

impl Wanted {
    fn parse(text: &str) -> Result<Wanted, String> {
        let is_path = text.contains('/') || !text.contains(':') || Path::new(text).is_file();
        match is_path && !text.starts_with("unix:") {
            true => Ok(Wanted::Symbols(text.into())),
            false => Endpoint::parse(text).map(Wanted::At),
        }
    }
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let starts = args.lldb || args.program.is_some() || !args.arguments.is_empty();
    let serves = args.gdb_any_user || args.gdb_takeover;
    match &args.wanted {
        _ if args.leave => args.guest.ask(Ok(Request::Leave {})),
        Some(Wanted::At(_)) if starts => {
            log::error!("an address is for a debugger that somebody else starts: leave it out");
            outcome::USAGE
        }
        Some(Wanted::At(address)) => args.guest.tell(serve(args, address.clone())),
        _ if serves => {
            log::error!("--gdb-any-user and --gdb-takeover are for a guest that listens: write an address");
            outcome::USAGE
        }
        Some(Wanted::Symbols(file)) => start::start(args, Some(file)),
        None => start::start(args, None),
    }
}

/// The guest's process is in a folder of its own: paths are told whole. A socket in the file system is made here: the
/// guest's monitor may not make one anywhere.
fn serve(args: &Args, address: Endpoint) -> io::Result<Response> {
    let address = match address {
        Endpoint::Unix(path) => Endpoint::Unix(absolute(path)?),
        address => address,
    };
    let request = Request::Gdb(ServeGdb {
        address: address.to_string(),
        any_user: args.gdb_any_user,
        lost: args.gdb_lost.into(),
        takeover: args.gdb_takeover,
        dump_folder: args.dump_dir.as_ref().map(absolute).transpose()?,
    });
    let Endpoint::Unix(path) = &address else { return args.guest.ask_of(|guest| ask(guest, &request)) };
    let audience = GdbConfig { any_user: args.gdb_any_user, ..GdbConfig::new(address.clone()) }.audience();
    let served = match socket::bind(path, audience) {
        Ok(served) => served,
        // It may be this very guest's, which says so.
        Err(BindError::Served(_)) => return args.guest.ask_of(|guest| ask(guest, &request)),
        Err(error) => {
            return Ok(Response::Error(format!("cannot listen at {}: {error}", path.display())));
        }
    };
    let answer = args.guest.ask_of(|guest| ask_with(guest, &request, Some(served.listener().as_fd()), None));
    if let Ok(Response::Done(_)) = &answer {
        served.leave();
    }
    answer
}

/// A word as gdb and lldb take one in a command.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}
