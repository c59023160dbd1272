//! `vmm sysrq`: a key of the kernel's.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;

/// Press a key of the kernel's (SysRq) in a guest of `vmm run`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The key: t shows tasks, w those that are blocked, l what each processor does, c crashes the kernel (Linux
    /// `Documentation/admin-guide/sysrq.rst`)
    key: char,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Sysrq { key: args.key }))
}
