//! Builds the test guests of both architectures, and a table of them.

use guest_build::{Form, build};
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../resources/guests");
    let out_dir = env::var("OUT_DIR").expect("cargo sets it");
    let guests = Path::new("../resources/guests").canonicalize().expect("the guests are there");
    let mut table = String::from("pub static GUESTS: &[TestGuest] = &[\n");
    for isa in ["x86_64", "aarch64"] {
        let mut sources: Vec<_> = fs::read_dir(guests.join(isa))
            .expect("the guests are there")
            .map(|entry| entry.expect("the folder can be read").file_name().into_string().expect("ASCII"))
            .collect();
        sources.sort();
        for source in sources {
            let name = source.trim_end_matches(".s");
            for (form, folder) in [(Form::Elf, "elf"), (Form::Flat, "flat")] {
                let folder_path = Path::new(&out_dir).join(folder);
                fs::create_dir_all(&folder_path).expect("the output folder can be written");
                let path = build(&guests.join(isa).join(&source), isa, form, &folder_path);
                writeln!(
                    table,
                    "    TestGuest {{ isa: {isa:?}, name: {name:?}, flat: {}, bytes: include_bytes!({path:?}) }},",
                    form == Form::Flat
                )
                .expect("a string takes it");
            }
        }
    }
    table.push_str("];\n");
    fs::write(Path::new(&out_dir).join("guests.rs"), table).expect("the table can be written");
}
