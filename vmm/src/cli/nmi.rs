//! `vmm nmi`: a non-maskable interrupt for a guest.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Raise a non-maskable interrupt on each vCPU of a guest
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Nmi {}))
}
