//! `vmm reset`.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Have a guest begin again, as after power-on
///
/// A debugger that is attached stays, with its breakpoints; a guest of `vmm run` is not reset.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Reset {}))
}
