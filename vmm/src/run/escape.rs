//! Finds the monitor's own keys in what a person types on the console.

/// A key of the monitor's own, which a person has typed on the console behind Ctrl-A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// End the guest.
    Quit,
    /// Show the keys.
    Help,
    /// Press a key of the kernel's (SysRq): the one typed next.
    Kernels(u8),
}

/// The text that [`Key::Help`] shows.
pub const HELP: &str = "\
Ctrl-A x       end the guest and vmm
Ctrl-A b KEY   press a key of the kernel's (SysRq), for example w or l (in a guest of vmm run)
Ctrl-A h       this help
Ctrl-A Ctrl-A  send Ctrl-A to the guest";

const CTRL_A: u8 = 1;

/// Finds escape sequences in input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escape {
    after_ctrl_a: bool,
    after_b: bool,
}

impl Escape {
    /// Takes what was typed; answers with what goes to the guest, and the monitor's keys.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, Vec<Key>) {
        let (mut guest, mut keys) = (Vec::new(), Vec::new());
        for &byte in input {
            if std::mem::take(&mut self.after_b) {
                keys.push(Key::Kernels(byte));
                continue;
            }
            match (std::mem::take(&mut self.after_ctrl_a), byte) {
                (false, CTRL_A) => self.after_ctrl_a = true,
                (false, _) => guest.push(byte),
                (true, b'b') => self.after_b = true,
                (true, b'x') => keys.push(Key::Quit),
                (true, b'h' | b'?') => keys.push(Key::Help),
                (true, CTRL_A | b'a') => guest.push(CTRL_A),
                (true, _) => keys.push(Key::Help),
            }
        }
        (guest, keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_keys_are_found_across_reads() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\r"), (b"ls\r".to_vec(), vec![]));
        assert_eq!(escape.filter(b"a\x01"), (b"a".to_vec(), vec![]));
        assert_eq!(escape.filter(b"xb"), (b"b".to_vec(), vec![Key::Quit]));
        assert_eq!(escape.filter(b"\x01\x01\x01a\x01h"), (b"\x01\x01".to_vec(), vec![Key::Help]));
        assert_eq!(escape.filter(b"\x01b"), (vec![], vec![]));
        assert_eq!(escape.filter(b"wx"), (b"x".to_vec(), vec![Key::Kernels(b'w')]));
        assert_eq!(escape.filter(b"\x01q"), (vec![], vec![Key::Help]));
    }
}
