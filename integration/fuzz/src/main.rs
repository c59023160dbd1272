//! One program for all targets: `FUZZ_TARGET` names the one that is run.
#![no_main]

use integration::fuzz::{FUZZED, Fuzzed};
use std::sync::LazyLock;

static TARGET: LazyLock<&Fuzzed> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = FUZZED.iter().find(|fuzzed| fuzzed.name == name);
    found.unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}; there are {FUZZED:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
