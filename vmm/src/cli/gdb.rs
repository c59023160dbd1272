//! `vmm gdb`: has a guest serve gdb at an address, or no more.

use super::candidates::words;
use super::named_guest::NamedGuest;
use super::values;
use crate::control::protocol::{Request, ServeGdb};
use clap::builder::ValueParser;
use debug::gdb::listener::Address;
use debug::gdb::server::OnLost;
use std::io;
use std::path::{PathBuf, absolute};

/// Serve gdb or lldb for a guest that runs, whether it was started with --gdb or not
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// Where it listens, as for --gdb
    #[arg(value_name = "[HOST]:PORT|unix:PATH", value_parser = ValueParser::new(Address::parse), required_unless_present = "leave")]
    address: Option<Address>,
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
    args.guest.ask(match &args.address {
        Some(address) => serve(args, address.clone()),
        None => Ok(Request::Leave {}),
    })
}

/// The guest's process is in a folder of its own: paths are told whole.
fn serve(args: &Args, address: Address) -> io::Result<Request> {
    let address = match address {
        Address::Unix(path) => Address::Unix(absolute(path)?),
        address => address,
    };
    Ok(Request::Gdb(ServeGdb {
        address: address.to_string(),
        any_user: args.gdb_any_user,
        lost: args.gdb_lost.into(),
        takeover: args.gdb_takeover,
        dump_folder: args.dump_dir.as_ref().map(absolute).transpose()?,
    }))
}
