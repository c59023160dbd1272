//! Builds the guests that a host's KVM is tried with.

use guest_build::{Form, build};
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let isa = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out_dir = env::var("OUT_DIR").expect("cargo sets it");
    let out_dir = Path::new(&out_dir);
    let folder = Path::new("guests").join(&isa);
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut table = String::from("const PROBE_GUESTS: &[(&str, &[u8])] = &[\n");
    let mut sources: Vec<_> = fs::read_dir(&folder)
        .expect("the probes are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    sources.sort();
    for source in sources {
        let path = build(&source, &isa, Form::Flat, out_dir);
        let name = source.file_stem().expect("a guest's source has a name");
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string takes it");
    }
    table.push_str("];\n");
    fs::write(out_dir.join("probe_guests.rs"), table).expect("the table can be written");
}
