//! Builds the guests that a host's KVM is tried with.

#[path = "../../resources/build_guest.rs"]
mod build_guest;

use build_guest::{Form, build};
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../resources/build_guest.rs");
    let isa = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out_dir = env::var("OUT_DIR").expect("cargo sets it");
    let out_dir = Path::new(&out_dir);
    let guests = Path::new("../../resources/guests").canonicalize().expect("the guests are there");
    let folder = guests.join("probes").join(&isa);
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut table = String::from("const PROBE_GUESTS: &[(&str, &[u8])] = &[\n");
    let mut sources: Vec<_> = fs::read_dir(&folder)
        .expect("the probes are there")
        .map(|entry| entry.expect("the folder can be read").file_name().into_string().expect("ASCII"))
        .collect();
    sources.sort();
    for source in sources {
        let path = build(&guests, &format!("probes/{isa}/{source}"), &isa, Form::Flat, out_dir);
        let name = source.trim_end_matches(".s");
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string takes it");
    }
    table.push_str("];\n");
    fs::write(out_dir.join("probe_guests.rs"), table).expect("the table can be written");
}
