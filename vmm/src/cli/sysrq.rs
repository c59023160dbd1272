//! `vmm sysrq`: a key of the kernel's.

use super::named_guest::NamedGuest;
use crate::control::protocol::Request;
use clap::builder::ValueParser;

/// Press a key of the kernel's (SysRq) in a guest of `vmm run`
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The key: t shows tasks, w those that are blocked, l what each processor does, c crashes the kernel (Linux
    /// `Documentation/admin-guide/sysrq.rst`)
    #[arg(value_parser = ValueParser::new(key))]
    key: char,
}

fn key(text: &str) -> Result<char, String> {
    let mut keys = text.chars();
    match (keys.next(), keys.next()) {
        (Some(key), None) if key.is_ascii_graphic() => Ok(key),
        _ => Err("write one key, a letter or a digit, as in: vmm sysrq NAME t".into()),
    }
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    args.guest.ask(Ok(Request::Sysrq { key: args.key }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one() {
        assert_eq!(key("t"), Ok('t'));
        for wrong in ["", "hh", "\u{1b}", "é"] {
            assert!(key(wrong).unwrap_err().starts_with("write one key"), "{wrong}");
        }
    }
}
