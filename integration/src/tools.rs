//! The tools that people open dumps with, on dumps that came out of nests.

use arch::Isa;
use std::path::Path;

/// A dump of a Debian guest, in every tool.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn debian_6_12(isa: Isa, core: &Path) -> Result<(), String> {
    println!("{isa} {}", core.display());
    std::fs::copy(core, format!("/tmp/d/core-{isa}-6.12")).map_err(|e| e.to_string())?;
    Ok(())
}

/// The same of an older kernel.
///
/// # Errors
/// What a tool says instead of what it should.
pub fn debian_6_1(isa: Isa, core: &Path) -> Result<(), String> {
    std::fs::copy(core, format!("/tmp/d/core-{isa}-6.1")).map_err(|e| e.to_string())?;
    Ok(())
}
