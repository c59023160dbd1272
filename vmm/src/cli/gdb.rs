//! `vmm gdb`: has a guest serve gdb at an address, or no more.

use super::candidates::words;
use super::named_guest::NamedGuest;
use super::values;
use crate::control::client::{ask, ask_with};
use crate::control::protocol::{Request, Response, ServeGdb};
use crate::machine::config::GdbConfig;
use clap::builder::ValueParser;
use debug::gdb::endpoint::Endpoint;
use debug::gdb::server::OnLost;
use debug::socket::{self, BindError};
use std::io;
use std::os::fd::AsFd;
use std::path::{PathBuf, absolute};

/// Serve gdb or lldb for a guest that runs, whether it was started with --gdb or not
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Where it listens, as for --gdb
    #[arg(value_name = "[HOST]:PORT|unix:PATH", value_parser = ValueParser::new(Endpoint::parse), required_unless_present = "leave")]
    address: Option<Endpoint>,
    /// Serve it no more: whoever is connected is let go, nothing stays in the guest, and it runs
    #[arg(long, conflicts_with = "address")]
    leave: bool,
    /// Serve debuggers of every user of this machine, not only yours and root's
    #[arg(long, requires = "address")]
    gdb_any_user: bool,
    /// What the guest does when a debugger has vanished: run on, wait for the next one, or end
    #[arg(long, value_name = "continue|hold|quit", default_value = "continue", value_parser = ValueParser::new(values::lost),
          add = words(&["continue", "hold", "quit"]))]
    gdb_lost: OnLost,
    /// Let a second debugger take the place of the first
    #[arg(long, requires = "address")]
    gdb_takeover: bool,
    /// The folder that gdb's `monitor dump` writes below; the guest's current one if none is given
    #[arg(long, value_name = "PATH", requires = "address")]
    dump_dir: Option<PathBuf>,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    match &args.address {
        Some(address) => args.guest.tell(serve(args, address.clone())),
        None => args.guest.ask(Ok(Request::Leave {})),
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
