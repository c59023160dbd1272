//! What a guest's breakpoints print for the debugger (`dprintf`), until it is told.
//!
//! A debugger that does not read has the guest go on all the same, so what is kept is bounded: what is
//! too much is left out, and how much that was is told in its place.

use arch::words::{counted, verb};
use std::collections::VecDeque;

/// Bytes that are kept.
const MOST: usize = 256 << 10;
/// What a short piece takes besides its bytes.
const PIECE: usize = 32;

/// Text for a debugger, the oldest first.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<String>,
    /// Bytes in all of them.
    size: usize,
    /// Bytes that were left out since.
    lost: u64,
}

impl Output {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.lost == 0
    }

    /// Adds a piece, if there is room. When something has been left out, nothing is added before that
    /// is told, so that what is told is in order.
    pub fn push(&mut self, text: String) {
        if self.lost > 0 || self.size + text.len() + PIECE > MOST {
            self.lost += text.len() as u64;
            return;
        }
        self.size += text.len() + PIECE;
        self.pieces.push_back(text);
    }

    /// Takes pieces of `most` bytes together, or little more.
    pub fn take(&mut self, most: usize) -> Option<String> {
        let mut text = String::new();
        while text.len() < most {
            let Some(piece) = self.pieces.pop_front() else { break };
            self.size -= piece.len() + PIECE;
            text.push_str(&piece);
        }
        if self.pieces.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            text.push_str(&format!(
                "\n({} of output {} left out, as {} not read in time)\n",
                counted(lost, "byte"),
                verb(lost, "was", "were"),
                verb(lost, "it was", "they were")
            ));
        }
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_the_rest_is_counted() {
        for piece in ["x".to_string(), "y".repeat(5000)] {
            let mut output = Output::default();
            assert!(output.is_empty() && output.take(10).is_none());
            for _ in 0..100_000 {
                output.push(piece.clone());
            }
            assert!(output.size <= MOST);
            let mut told = String::new();
            while let Some(text) = output.take(4096) {
                assert!(text.len() < 4096 + piece.len() + 100);
                told.push_str(&text);
            }
            let kept = told.matches(&piece).count();
            let lost = (100_000 - kept) * piece.len();
            assert!(told.ends_with(&format!(
                "({lost} bytes of output were left out, as they were not read in time)\n"
            )));
            assert!(output.is_empty());
            output.push(piece.clone());
            assert_eq!(output.take(1), Some(piece));
        }
    }
}
