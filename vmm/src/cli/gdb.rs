//! `vmm gdb`: has a guest serve gdb at an address, or no more.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;
use clap::builder::ValueParser;
use debug::gdb::listener::Address;
use std::path::absolute;

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
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    let request = match args.address.clone() {
        // The guest's process is in a folder of its own.
        Some(Address::Unix(path)) => {
            absolute(path).map(|path| Request::Gdb { address: Address::Unix(path).to_string() })
        }
        Some(address) => Ok(Request::Gdb { address: address.to_string() }),
        None => Ok(Request::Leave {}),
    };
    args.guest.ask(request)
}
