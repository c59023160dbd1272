//! What a kernel's log says of trouble, and the source lines of what it names.

use super::names::Names;
use crate::linux::trouble::{Trouble, is_panic, sign};

/// Lines that are told of, at most: half of them the first ones, as what comes first is why.
const MOST: usize = 8;

/// Which lines of a log tell of trouble: the first ones and the last ones, up to a number.
pub fn troubles(log: &[String]) -> Vec<usize> {
    let looked_for: Vec<Trouble> = Trouble::ALL.iter().map(|(_, trouble)| *trouble).collect();
    let tells = |line: &String| sign(line, &looked_for).is_some() && !line.contains("---[ end ");
    let mut all: Vec<usize> = (0..log.len()).filter(|at| tells(&log[*at])).collect();
    if all.len() > MOST {
        let panic = all.iter().copied().find(|at| is_panic(&log[*at]));
        all.drain(MOST / 2..all.len() - MOST / 2);
        // What everything else is about is told wherever it stands.
        if let Some(at) = panic.filter(|at| !all.contains(at)) {
            all[MOST / 2] = at;
        }
    }
    all
}

/// Bytes of a line that are told, at most: a kernel's own have some hundred.
const LONGEST: usize = 500;

/// As much of a line as is told.
pub fn short(line: &str) -> &str {
    let end = (0..=LONGEST.min(line.len())).rev().find(|end| line.is_char_boundary(*end));
    &line[..end.unwrap_or(0)]
}

/// A place in code as the kernel's log names it: `schedule+0x10/0x20`, of 0x20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named<'a> {
    name: &'a str,
    offset: u64,
    size: u64,
}

/// The first such place of a line, which is in the kernel itself and not in a module.
fn named(line: &str) -> Option<Named<'_>> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    line.split_whitespace().zip(line.split_whitespace().skip(1).chain([""])).find_map(|(word, next)| {
        let word = word.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(':');
        let (name, rest) = word.split_once("+0x")?;
        let (offset, size) = rest.split_once("/0x")?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let is_in_module = next.starts_with('[');
        let is_one = !name.is_empty() && name.chars().all(is_name) && !is_in_module;
        Some(Named { name, offset: hex(offset)?, size: hex(size)? }).filter(|_| is_one)
    })
}

/// Adds to a line where in the source it is that the kernel names in it, as its own `decode_stacktrace.sh` does; leaves
/// one as it is of which nobody knows that.
pub fn decode(line: &mut String, names: &Names) {
    let Some(Named { name, offset, size }) = named(line) else { return };
    let Ok(found) = names.find(name) else { return };
    // Files may have functions of one name; of the kernel's own table nobody knows the sizes well.
    let Some(symbol) = found.iter().find(|symbol| symbol.size.abs_diff(size) < 16) else { return };
    let frames = names.frames(symbol.address.wrapping_add(offset)).unwrap_or_default();
    let place = |frame: &crate::symbols::Frame| Some(format!("{}:{}", frame.file.as_deref()?, frame.line?));
    let places: Vec<String> = frames.iter().filter_map(place).collect();
    if !places.is_empty() {
        *line = format!("{line} ({})", places.join(", in "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_from_its_beginning_and_its_end() {
        let line = |text: &str| text.to_string();
        let calm = [line("[0.1] Linux version 6.12"), line("[0.2] debug: all is well")];
        assert_eq!(troubles(&calm), [] as [usize; 0]);
        let mut log = calm.to_vec();
        log.push(line("[1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000"));
        log.extend((0..20).map(|at| format!("[2.{at}] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!")));
        log.push(line("[3.0] Kernel panic - not syncing: Fatal exception"));
        log.push(line("[3.1] ---[ end Kernel panic - not syncing: Fatal exception ]---"));
        let found = troubles(&log);
        assert_eq!((found.len(), found[0], found[MOST - 1]), (MOST, 2, 23));
        // A panic is told wherever it stands among them.
        log.extend((0..20).map(|at| format!("[4.{at}] watchdog: BUG: soft lockup - CPU#0 stuck for 52s!")));
        let found = troubles(&log);
        assert_eq!((found.len(), found[MOST / 2], found.is_sorted()), (MOST, 23, true));
    }

    #[test]
    fn a_line_is_told_up_to_a_length() {
        assert_eq!(short("all of it"), "all of it");
        let long = format!("{}\u{e9}x", "x".repeat(LONGEST - 1));
        assert_eq!(short(&long), "x".repeat(LONGEST - 1));
        assert_eq!(short(&"x".repeat(9 * LONGEST)).len(), LONGEST);
    }

    #[test]
    fn places_are_read_as_the_kernel_writes_them() {
        let place = |line| named(line).map(|it: Named<'_>| (it.name, it.offset, it.size));
        let one = Some(("schedule", 0x10, 0xab));
        assert_eq!(place("[    1.0]  schedule+0x10/0xab"), one);
        assert_eq!(place("[    1.0]  ? schedule+0x10/0xab"), one);
        assert_eq!(place("[    1.0] RIP: 0010:schedule+0x10/0xab"), one);
        assert_eq!(place("[    1.0] pc : schedule+0x10/0xab"), one);
        assert_eq!(place("[    1.0]  do_it.isra.0+0x1/0x2"), Some(("do_it.isra.0", 1, 2)));
        for other in [
            "schedule+0x10",
            "a+0xzz/0x1",
            "work+0x1/0x2 [module]",
            "+0x1/0x2",
            "",
            "a/b+0x1/0x2",
            "work+0x1/0x2 [module 8a3b]",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
