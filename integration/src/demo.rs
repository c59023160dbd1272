//! The demonstration: a Debian kernel boots under `vmm`, a person types into its shell.
//! Everything that appears on the terminal is printed as it comes.

use crate::context::{Check, Context, check};
use crate::process::{Process, Wiring};
use std::io::Write;
use std::time::Duration;

/// What is typed, and what shows that it was done.
const TYPED: [(&str, &str); 4] = [
    ("uname -a\r", "GNU/Linux"),
    ("nproc\r", "2"),
    ("free -m\r", "Mem:"),
    ("echo $((6*7)) is the answer\r", "42 is"),
];

/// Runs the demonstration where KVM is.
///
/// # Errors
/// When the guest does not answer as it should.
pub fn run(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let options = "--cpus 2 --memory 512M --cmdline quiet~vmm.run=shell";
    say(&format!(
        "$ vmm --kernel {} --initrd {} {}",
        kernel.display(),
        initrd.display(),
        options.replace("quiet~vmm.run=shell", "'quiet vmm.run=shell'")
    ));
    let arguments = format!("--kernel {{}} --initrd {{}} {options}");
    let mut vmm = c.start(Wiring::Terminal, &arguments, &[&kernel, &initrd])?;
    let mut shown = 0;
    let mut talk = || -> Check {
        expect(&mut vmm, "# ", limit, &mut shown)?;
        for (line, answer) in TYPED {
            vmm.send(line)?;
            expect(&mut vmm, "\n", limit, &mut shown)?;
            expect(&mut vmm, answer, limit, &mut shown)?;
            expect(&mut vmm, "# ", limit, &mut shown)?;
        }
        vmm.send("poweroff -f\r")
    };
    let talked = talk();
    let code = if talked.is_ok() { vmm.wait(limit) } else { Ok(-1) };
    show(&vmm, &mut shown);
    c.keep("vmm", &vmm);
    talked?;
    let code = code?;
    say(&format!("\n$ echo $?\n{code}"));
    check(code == 0, || format!("vmm ended with {code}"))
}

/// Waits for a text, and prints what has come until then.
fn expect(vmm: &mut Process, text: &str, limit: Duration, shown: &mut usize) -> Check {
    let result = vmm.expect(text, limit);
    show(vmm, shown);
    result
}

fn show(vmm: &Process, shown: &mut usize) {
    let bytes = vmm.output.bytes();
    let (text, size) = for_eyes(&bytes[*shown..]);
    let mut out = std::io::stdout().lock();
    // A closed output is the reader's choice.
    out.write_all(&text).and_then(|()| out.flush()).ok();
    *shown += size;
}

/// What busybox's shell asks its terminal at each prompt: where the cursor is (ECMA-48, DSR). A terminal that is only
/// shown what was said would answer it to whoever reads from it next.
const QUERY: &[u8] = b"\x1b[6n";

/// What is for a person of a terminal's output, and how much of that is dealt with: not a query that is only begun.
pub fn for_eyes(output: &[u8]) -> (Vec<u8>, usize) {
    let begun = (1..QUERY.len()).rev().find(|count| output.ends_with(&QUERY[..*count])).unwrap_or(0);
    let mut rest = &output[..output.len() - begun];
    let (mut text, size) = (Vec::new(), rest.len());
    while let Some(at) = rest.windows(QUERY.len()).position(|bytes| bytes == QUERY) {
        text.extend(&rest[..at]);
        rest = &rest[at + QUERY.len()..];
    }
    text.extend(rest);
    (text, size)
}

fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_the_terminal_are_not_shown() {
        for (output, text, size) in [
            (&b"/ # \x1b[6n"[..], &b"/ # "[..], 8),
            (b"/ # \x1b[6nuname\r\n\x1b[6n\x1b[1mx", b"/ # uname\r\n\x1b[1mx", 24),
            (b"/ # \x1b[6", b"/ # ", 4),
            (b"/ # \x1b", b"/ # ", 4),
            (b"\x1b[J", b"\x1b[J", 3),
            (b"", b"", 0),
        ] {
            assert_eq!(for_eyes(output), (text.to_vec(), size));
        }
    }
}
