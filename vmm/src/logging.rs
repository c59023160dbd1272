//! The monitor's own words: on standard error or in a file, marked, never on the console.

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The level for a number of `-v` less a number of `-q`.
pub fn level(verbose: u8, quiet: bool) -> LevelFilter {
    match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    }
}

/// Starts logging. `RUST_LOG` overrides the level, per target if need be.
///
/// # Errors
/// When the file cannot be created.
pub fn start(level: LevelFilter, path: Option<&Path>) -> std::io::Result<()> {
    let mut builder = Builder::new();
    builder.filter_level(level);
    // gdbstub tells of each packet that it does not know, which clients send to find out.
    if level < LevelFilter::Debug {
        builder.filter_module("gdbstub", level.min(LevelFilter::Warn));
    }
    builder.parse_default_env();
    match path {
        None => {
            builder.format(|out, record| match record.level() {
                Level::Info => writeln!(out, "vmm: {}", record.args()),
                level => writeln!(out, "vmm: {}: {}", level.as_str().to_lowercase(), record.args()),
            });
        }
        Some(path) => {
            builder.target(Target::Pipe(Box::new(File::create(path)?)));
            let start = std::time::Instant::now();
            builder.format(move |out, record| {
                let elapsed = start.elapsed();
                let level = record.level().as_str().to_lowercase();
                writeln!(
                    out,
                    "{:>10.6} {level}: {}: {}",
                    elapsed.as_secs_f64(),
                    record.target(),
                    record.args()
                )
            });
        }
    }
    builder.init();
    Ok(())
}
