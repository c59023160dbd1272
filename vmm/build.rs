//! Builds the guest that is embedded in the binary: the greeting.

use guest_build::{Form, build};
use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guests/hello/common.rs");
    let isa = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out_dir = env::var("OUT_DIR").expect("cargo sets it");
    let source = Path::new("guests/hello").join(&isa).with_extension("rs");
    let hello = build(&source, &isa, Form::Elf, Path::new(&out_dir));
    println!("cargo::rustc-env=EMBEDDED_GUEST={}", hello.display());
}
