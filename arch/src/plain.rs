//! Text that a guest, a dump or a file has, as it may reach a terminal, a log, JSON, JUnit or TAP.
//!
//! The one place where such text is escaped: a control character could do something to a terminal, and a format
//! character could reorder what stands beside it, or hide something in it; noncharacters are refused by readers of XML. Each
//! of them becomes U+FFFD. What a format needs beside that (quotes in JSON, `&` in XML) is done by whoever writes it.
//!
//! Source: The Unicode Standard 16.0, table 4-4, general categories Cc, Cf, Zl and Zp (`DerivedGeneralCategory.txt`), and
//! section 23.7, "Noncharacters"; for why, Unicode Technical Report 36, section 2.9, and XML 1.0, production 2 (`Char`).

use std::ops::RangeInclusive;

/// Separators of lines and paragraphs, and format characters: those that write the other way round, those of no width, and
/// tags.
const FORMAT: [RangeInclusive<char>; 19] = [
    '\u{ad}'..='\u{ad}',
    '\u{600}'..='\u{605}',
    '\u{61c}'..='\u{61c}',
    '\u{6dd}'..='\u{6dd}',
    '\u{70f}'..='\u{70f}',
    '\u{890}'..='\u{891}',
    '\u{8e2}'..='\u{8e2}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff9}'..='\u{fffb}',
    '\u{110bd}'..='\u{110bd}',
    '\u{110cd}'..='\u{110cd}',
    '\u{13430}'..='\u{1343f}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0001}'..='\u{e007f}',
];

/// Whether a character may be shown as it is: ends of lines and tabs may not.
pub fn is_plain(character: char) -> bool {
    let is_format = || FORMAT.iter().any(|range| range.contains(&character));
    !character.is_control() && (character.is_ascii() || !is_format() && !is_noncharacter(character))
}

/// The last two of each plane, and 32 more.
fn is_noncharacter(character: char) -> bool {
    u32::from(character) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&character)
}

/// A text in one line: names, releases, what stands in a table.
pub fn plain(text: &str) -> String {
    escaped(text, |_| false)
}

/// Text that may have ends of lines and tabs: a log, what a program has printed.
pub fn plain_lines(text: &str) -> String {
    escaped(text, |character| matches!(character, '\n' | '\t'))
}

fn escaped(text: &str, is_kept: fn(char) -> bool) -> String {
    let shown = |c: char| if is_plain(c) || is_kept(c) { c } else { char::REPLACEMENT_CHARACTER };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_something_to_a_terminal_or_to_what_stands_beside_it_is_replaced() {
        for (text, expected) in [
            ("6.12.0-amd64 (gcc) #1 é ü 内 🦀", "6.12.0-amd64 (gcc) #1 é ü 内 🦀"),
            ("\u{1b}[2J", "\u{fffd}[2J"),
            ("a\rb\u{8}c\u{7f}d\0", "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
            // CSI and OSC in one character each, and NEL.
            ("\u{9b}2J\u{9d}0;x\u{9c}\u{85}", "\u{fffd}2J\u{fffd}0;x\u{fffd}\u{fffd}"),
            ("\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{2066}\u{2067}\u{2068}\u{2069}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{200e}\u{200f}\u{61c}", "\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{2028}\u{2029}", "\u{fffd}\u{fffd}"),
            ("\u{ad}\u{180e}\u{fff9}\u{e0041}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{fffe}\u{ffff}\u{fdd0}\u{1fffe}\u{10ffff}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("", ""),
        ] {
            assert_eq!(plain(text), expected);
            assert_eq!(plain_lines(text), expected);
        }
        assert_eq!(plain("a\tb\nc"), "a\u{fffd}b\u{fffd}c");
        assert_eq!(plain_lines("a\tb\nc\r"), "a\tb\nc\u{fffd}");
    }

    #[test]
    fn nothing_that_it_lets_through_is_a_control_or_a_separator_of_lines() {
        let harmless = ('\0'..=char::MAX).filter(|c| is_plain(*c));
        assert!(harmless.clone().all(|c| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')));
        assert!(FORMAT.windows(2).all(|pair| pair[0].end() < pair[1].start()), "not in order");
        assert!(is_plain(char::REPLACEMENT_CHARACTER) && is_plain(' '));
    }
}
