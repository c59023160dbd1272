//! The README's example of the monitor as a library, and the one of a program that debugs a guest.

use crate::context::{Check, Context, check};
use crate::process::Wiring;
use std::path::Path;
use vmm::error::Error;

/// What `case` is called with to be that program.
pub const BOOT: &str = "--boot";

mod example {
    #![allow(missing_docs, reason = "a program has no documentation")]
    include!("../../../vmm/examples/boot.rs");

    pub fn run() -> Result<(), vmm::error::Error> {
        main()
    }
}

/// And that one.
pub const DEBUG: &str = "--debug";

mod debugging {
    #![allow(missing_docs, reason = "a program has no documentation")]
    include!("../../../vmm/examples/debug.rs");

    pub fn run() -> Result<(), Box<dyn std::error::Error>> {
        main()
    }
}

/// Is the program that debugs a guest.
///
/// # Errors
/// Its error.
pub fn debug() -> Result<(), Box<dyn std::error::Error>> {
    debugging::run()
}

/// Is the README's program.
///
/// # Errors
/// Its error.
pub fn boot() -> Result<(), Error> {
    example::run()
}

/// It boots the guest that is part of the library, and says how that has ended.
pub fn boots_a_guest(c: &mut Context) -> Check {
    runs(c, BOOT, &["Hello from a guest of vmm!", "the guest switched itself off"])
}

/// It debugs the same guest: what the documentation of the library shows.
pub fn debugs_a_guest(c: &mut Context) -> Check {
    runs(
        c,
        DEBUG,
        &["Hello from a guest of vmm!", "It has counted to 1000.", "the guest switched itself off"],
    )
}

fn runs(c: &mut Context, which: &str, says: &[&str]) -> Check {
    let mut process = c.start_program(Path::new("/proc/self/exe"), Wiring::Pipes, which, &[])?;
    let said = says.iter().try_for_each(|words| process.expect(words, c.limit(10)));
    let ran = said.and_then(|()| process.wait(c.limit(10)));
    c.keep("example", &process);
    let code = ran?;
    check(code == 0, || format!("it ended with {code}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_readme_shows_is_what_runs() {
        let example = include_str!("../../../vmm/examples/boot.rs");
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&format!("```rust\n{example}```\n")), "README.md shows another program");
        let example = include_str!("../../../vmm/examples/debug.rs");
        let page = include_str!("../../../docs/debugging.md");
        assert!(page.contains(&format!("```rust\n{example}```\n")), "debugging.md shows another program");
    }
}
