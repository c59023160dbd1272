//! `vmm release`: has a guest let its debugger go.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Let the debugger go that is attached to a guest, so that another one may attach
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Release {}))
}
