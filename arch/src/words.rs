//! Numbers of things, for sentences that people read.

use std::fmt::Display;

/// A number with the noun for what it counts, which is in its plural but for one: "1 range", "2 ranges".
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, one: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {one}{ending}")
}

/// The verb that goes with so many, in two forms: one is, two are.
pub fn verb<N: PartialEq + From<u8>>(count: N, one: &'static str, more: &'static str) -> &'static str {
    if count == N::from(1) { one } else { more }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(0u64, "page"), "0 pages");
        assert_eq!(counted(1u32, "vCPU"), "1 vCPU");
        assert_eq!(counted(2usize, "byte"), "2 bytes");
        assert_eq!([0u32, 1, 2].map(|count| verb(count, "is", "are")), ["are", "is", "are"]);
    }
}
