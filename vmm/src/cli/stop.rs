//! `vmm stop`.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Have a guest stand still, until vmm cont
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Stop {}))
}
