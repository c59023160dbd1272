//! Builds bare-metal guests of either architecture with nothing but rustc and the linker that comes with it: what
//! the build scripts of the packages call that carry guests.
//!
//! The targets `x86_64-unknown-none` and `aarch64-unknown-none-softfloat` have to be installed.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a guest's program goes and what form it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An ELF file.
    Elf,
    /// The bytes as they lie in memory.
    Flat,
    /// An ELF file that Linux runs as a process.
    Process,
}

/// Compiles `source`, a bare-metal Rust program or an assembly file (`.s`), for `isa`
/// (`x86_64` or `aarch64`) into `out_dir` and returns the path of the result. Cargo is told to run the build script
/// again when one of its files has changed.
///
/// # Panics
/// It cannot be built; the message says what to do.
pub fn build(source: &Path, isa: &str, form: Form, out_dir: &Path) -> PathBuf {
    let target = match isa {
        "x86_64" => "x86_64-unknown-none",
        "aarch64" => "aarch64-unknown-none-softfloat",
        other => panic!("there are no guests for {other}"),
    };
    let path = source.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let ours = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stem = path.file_stem().expect("a guest's source has a name").to_string_lossy();
    let output = out_dir.join(format!("{stem}-{isa}"));
    let script = ours.join(format!("{isa}.ld"));
    let is_assembly = path.extension().is_some_and(|extension| extension == "s");
    let root = if is_assembly { ours.join("assembly.rs") } else { path.clone() };
    for input in [&path, &root, &script] {
        println!("cargo::rerun-if-changed={}", input.display());
    }

    println!("cargo::rerun-if-env-changed=DOCS_RS");
    if std::env::var_os("DOCS_RS").is_some() {
        // docs.rs has no target without an operating system, and nobody runs what it makes.
        std::fs::write(&output, []).expect("the output folder can be written");
        return output;
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let mut command = Command::new(rustc);
    command
        .env("GUEST_SOURCE", &path)
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=guest", "--target", target])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Crelocation-model=static", "-Clinker=rust-lld"])
        .args([
            "-Clink-arg=-zmax-page-size=4096",
            // Names are what a debugger's user asks for.
            match form {
                _ if is_assembly => "-Cstrip=none",
                Form::Elf => "-Cstrip=debuginfo",
                Form::Flat | Form::Process => "-Cstrip=symbols",
            },
            "-Cdebug-assertions=no",
            "-Coverflow-checks=no",
        ])
        .arg("-o")
        .args([&output, &root]);
    match form {
        // x86's bare targets are for kernels, whose addresses are at the other end.
        Form::Process => command.arg("-Ccode-model=small"),
        Form::Elf | Form::Flat => command.arg(format!("-Clink-arg=-T{}", script.display())),
    };
    if form == Form::Flat {
        command.arg("-Clink-arg=--oformat=binary").arg("-Cstrip=none");
    }
    let status = command.status().expect("rustc can be run");
    assert!(
        status.success(),
        "cannot build the guest {} for {isa}; is the target {target} installed? (rustup target add {target})",
        source.display()
    );
    output
}
