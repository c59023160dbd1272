//! `vmm dump`: has a guest write a core of itself.

use super::named_guest::NamedGuest;
use super::values;
use crate::control::protocol::Request;
use clap::builder::ValueParser;
use std::path::{PathBuf, absolute};

/// Write a core of a guest that runs
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: NamedGuest,
    /// The file; .gz and .zst compress
    #[arg(value_parser = ValueParser::new(values::dump_path))]
    path: PathBuf,
}

/// Does it; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    // The guest's process is in a folder of its own.
    args.guest.ask(absolute(&args.path).map(|path| Request::Dump { path }))
}
