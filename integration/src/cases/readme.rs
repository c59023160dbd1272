//! The README's example of the monitor as a library.

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

/// Is that program.
///
/// # Errors
/// Its error.
pub fn boot() -> Result<(), Error> {
    example::run()
}

/// It boots the guest that is part of the library, and says how that has ended.
pub fn boots_a_guest(c: &mut Context) -> Check {
    let mut process = c.start_program(Path::new("/proc/self/exe"), Wiring::Pipes, BOOT, &[])?;
    let ran = process
        .expect("Hello from a guest of vmm!", c.limit(10))
        .and_then(|()| process.expect("the guest switched itself off", c.limit(10)))
        .and_then(|()| process.wait(c.limit(10)));
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
    }
}
