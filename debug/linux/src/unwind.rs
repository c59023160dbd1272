//! The frames of a kernel's stack: from where a processor is, or from where a task has been put to sleep, to where the
//! stack begins.
//!
//! How to get from one frame to the next is with each source: [`orc`] for x86, [`frame_pointer`] for aarch64, and for x86
//! where nothing else is known; and where these say nothing, or not enough, a file's call frame information ([`cfi`]).

pub mod cfi;
pub mod frame_pointer;
pub mod orc;

use crate::reader::NotThere;

/// One function that was called and has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub pc: u64,
    /// The stack pointer there.
    pub sp: u64,
    /// Nothing was called there: a processor is there, or was interrupted there. Else what it goes on behind is the
    /// call ([`Self::code`]).
    pub is_exact: bool,
    /// It was found by the frame pointer where the kernel's unwind tables have nothing, or leads from such a frame: a
    /// function without one leads past its caller, or nowhere.
    pub is_guessed: bool,
}

impl Frame {
    /// The byte that names and lines are those of: what has called is in front of where it goes on.
    pub fn code(&self) -> u64 {
        self.pc.wrapping_sub(u64::from(!self.is_exact))
    }
}

/// Where a stack ends, seen from its last frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StackEnd {
    /// Where the kernel began.
    Bottom,
    /// In user space, at this address.
    User(u64),
    /// Nothing is known of what is behind this; in words, why.
    Lost(String),
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The innermost first.
    pub frames: Vec<Frame>,
    /// What is behind the last of them.
    pub end: StackEnd,
}

/// Where a stack is looked at from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The program counter.
    pub pc: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer: RBP, X29.
    pub fp: u64,
    /// The link register, X30, of a processor that is there.
    pub link: Option<u64>,
    /// General registers of a processor that is there, by their numbers as x86's encodings have them.
    pub general: Option<[u64; 16]>,
    /// A processor is there, or was interrupted there.
    pub is_exact: bool,
    /// As a frame's.
    pub is_guessed: bool,
}

/// What comes behind a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Frame(Start),
    End(StackEnd),
}

/// Frames that are followed at most: a kernel's stacks have 16 KiB, and each takes two words.
const MOST: usize = 512;

/// Follows frames.
pub(crate) fn follow(start: Start, mut next: impl FnMut(&Start) -> Result<Next, NotThere>) -> Stack {
    let mut frames: Vec<Frame> = Vec::new();
    let mut at = start;
    let mut is_guessed = false;
    let end = loop {
        let Start { pc, sp, is_exact, .. } = at;
        is_guessed |= at.is_guessed;
        // A frame that was there already leads round and round.
        if frames.iter().any(|frame| frame.sp == sp && frame.pc == pc) {
            break StackEnd::Lost("the stack leads back to a frame that was there already".into());
        }
        frames.push(Frame { pc, sp, is_exact, is_guessed });
        if frames.len() == MOST {
            break StackEnd::Lost(format!("it has more than {MOST} frames"));
        }
        match next(&at) {
            Ok(Next::Frame(frame)) => at = frame,
            Ok(Next::End(end)) => break end,
            Err(error) => break StackEnd::Lost(error.to_string()),
        }
    };
    Stack { frames, end }
}

#[cfg(test)]
mod tests;
