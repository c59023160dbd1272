//! Builds the guest that is embedded in the binary: the greeting.

#[path = "../resources/build_guest.rs"]
mod build_guest;

use build_guest::{Form, build};
use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../resources/build_guest.rs");
    println!("cargo::rerun-if-changed=../resources/guests/hello/common.rs");
    let isa = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let out_dir = env::var("OUT_DIR").expect("cargo sets it");
    let out_dir = Path::new(&out_dir);
    let guests = Path::new("../resources/guests").canonicalize().expect("the guests are there");
    let hello = build(&guests, &format!("hello/{isa}.rs"), &isa, Form::Elf, out_dir);
    println!("cargo::rustc-env=EMBEDDED_GUEST={}", hello.display());
}
