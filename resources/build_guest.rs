//! Builds the guests in `resources/guests` with nothing but rustc and the linker that comes
//! with it. Included by the build scripts of the crates that carry guests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a guest's program goes and what form it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An ELF file.
    #[allow(dead_code, reason = "not every build script has them")]
    Elf,
    /// The bytes as they lie in memory.
    #[allow(dead_code, reason = "likewise")]
    Flat,
}

/// Compiles `source`, a bare-metal Rust program or an assembly file (`.s`), for `isa`
/// (`x86_64` or `aarch64`) into `out_dir` and returns the path of the result.
pub fn build(guests: &Path, source: &str, isa: &str, form: Form, out_dir: &Path) -> PathBuf {
    let target = match isa {
        "x86_64" => "x86_64-unknown-none",
        "aarch64" => "aarch64-unknown-none-softfloat",
        other => panic!("there are no guests for {other}"),
    };
    let path = guests.join(source);
    let stem = path.file_stem().expect("a guest's source has a name").to_string_lossy();
    let output = out_dir.join(format!("{stem}-{isa}"));
    let script = guests.join(format!("{isa}.ld"));
    let is_assembly = path.extension().is_some_and(|extension| extension == "s");
    let root = if is_assembly { guests.join("assembly.rs") } else { path.clone() };
    for input in [&path, &root, &script] {
        println!("cargo::rerun-if-changed={}", input.display());
    }

    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .env("GUEST_SOURCE", &path)
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=guest", "--target", target])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Crelocation-model=static", "-Clinker=rust-lld"])
        .args([
            "-Clink-arg=-zmax-page-size=4096",
            // Labels of assembly guests are what a debugger's user names.
            if is_assembly { "-Cstrip=none" } else { "-Cstrip=symbols" },
            "-Cdebug-assertions=no",
            "-Coverflow-checks=no",
        ])
        .arg(format!("-Clink-arg=-T{}", script.display()))
        .arg("-o")
        .args([&output, &root]);
    if form == Form::Flat {
        command.arg("-Clink-arg=--oformat=binary").arg("-Cstrip=none");
    }
    let status = command.status().expect("rustc can be run");
    assert!(
        status.success(),
        "cannot build the guest {source} for {isa}; is the target {target} installed? (rustup target add {target})"
    );
    output
}
