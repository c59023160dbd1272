//! `vmm cont`.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Let a guest go on that vmm stop has stopped
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Cont {}))
}
