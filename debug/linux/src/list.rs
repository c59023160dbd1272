//! A kernel's linked lists.
//!
//! Source: Linux, `include/linux/list.h`.

use crate::reader::Reader;
use std::collections::HashSet;

/// Remarks that are made at most.
pub(crate) const MOST_REMARKS: usize = 100;

/// Adds what could not be had, unless there is too much of it.
pub(crate) fn remark(remarks: &mut Vec<String>, remark: String) {
    match remarks.len() {
        0..MOST_REMARKS => remarks.push(remark),
        MOST_REMARKS => remarks.push("and more of that kind".into()),
        _ => {}
    }
}

/// A `struct list_head` that others are linked to, all round: forwards, and where that is broken backwards from the
/// end.
pub(crate) struct Ring {
    head: u64,
    at: u64,
    is_backwards: bool,
    seen: HashSet<u64>,
}

impl Ring {
    /// By the address of the one that is no member.
    pub fn new(head: u64) -> Ring {
        Ring { head, at: head, is_backwards: false, seen: HashSet::from([head]) }
    }

    /// The next one that was not there yet.
    pub fn next(&mut self, reader: &Reader<'_>, remarks: &mut Vec<String>) -> Option<u64> {
        loop {
            // `next` is in front of `prev`.
            let (there, back) = if self.is_backwards { (8, 0) } else { (0, 8) };
            let next = reader.address(self.at.wrapping_add(there));
            let is_linked = |next: u64| reader.address(next.wrapping_add(back)) == Ok(self.at);
            match next {
                Ok(next) if next == self.head => return None,
                Ok(next) if is_linked(next) && self.seen.insert(next) => {
                    self.at = next;
                    return Some(next);
                }
                _ if self.is_backwards => return None,
                _ => {
                    let text = format!("a list is broken behind {:#x}: some of it may be missing", self.at);
                    remark(remarks, text);
                    (self.is_backwards, self.at) = (true, self.head);
                }
            }
        }
    }
}

/// The members of a list by its head, `most` of them at most; and what of it could not be had, a line each.
pub fn linked(head: u64, reader: &Reader<'_>, most: usize) -> (Vec<u64>, Vec<String>) {
    let (mut ring, mut members, mut remarks) = (Ring::new(head), Vec::new(), Vec::new());
    while let Some(member) = ring.next(reader, &mut remarks) {
        if members.len() == most {
            remark(&mut remarks, format!("there are more: {most} are told"));
            break;
        }
        members.push(member);
    }
    (members, remarks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_remarks_are_made() {
        let mut remarks = Vec::new();
        (0..10_000).for_each(|at| remark(&mut remarks, format!("{at} is left out")));
        assert_eq!(remarks.len(), MOST_REMARKS + 1);
        assert_eq!(remarks.last().map(String::as_str), Some("and more of that kind"));
    }
}
