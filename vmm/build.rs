//! Builds what is embedded in the binary for guests: the greeting, and the first process of a job's guest.

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
    for part in ["common", "session", "setup", "sys"] {
        println!("cargo::rerun-if-changed=guests/init/{part}.rs");
    }
    println!("cargo::rerun-if-changed=src/job/protocol.rs");
    let out_dir = Path::new(&out_dir).join("init");
    std::fs::create_dir_all(&out_dir).expect("the output folder can be written");
    let source = Path::new("guests/init").join(&isa).with_extension("rs");
    let init = build(&source, &isa, Form::Process, &out_dir);
    println!("cargo::rustc-env=JOB_INIT={}", init.display());
}
