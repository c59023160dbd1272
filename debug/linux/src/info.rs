//! The kernel's own description of its data, which it keeps in a page of memory for dump tools.
//!
//! Source: Linux, `Documentation/admin-guide/kdump/vmcoreinfo.rst`.

use super::error::LogError;
use super::text::IMAGE_ALIGNMENT;
use arch::plain::is_plain;
use std::collections::HashMap;

/// The kernel's description of its data: lines of `key=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmCoreInfo {
    text: String,
    values: HashMap<String, String>,
}

/// Bytes that it may have: a page of the largest size.
pub(super) const MOST_TEXT: usize = 64 << 10;
/// What it begins with.
pub(super) const BEGIN: &[u8] = b"OSRELEASE=";

/// What is known of the kernels in a target's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// The description of the one that runs, if one has described itself and it is clear which it is.
    pub info: Option<VmCoreInfo>,
    /// What there is to be said of it and of others, a line each.
    pub remarks: Vec<String>,
}

impl VmCoreInfo {
    /// Parses a page; `None` for one that only begins like it, or is larger than any.
    pub fn parse(page: &[u8]) -> Option<VmCoreInfo> {
        let end = page.iter().position(|byte| *byte == 0).unwrap_or(page.len());
        (end <= MOST_TEXT).then_some(())?;
        // Kernels write nothing that would do something to a terminal.
        let is_plain = |text: &&str| text.chars().all(|c| is_plain(c) || c == '\n');
        let text = std::str::from_utf8(&page[..end]).ok().filter(is_plain)?;
        let values: HashMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        let is_whole = values.contains_key("OSRELEASE") && values.contains_key("PAGESIZE");
        is_whole.then_some(VmCoreInfo { text: text.into(), values })
    }

    /// All of it, as the kernel wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The kernel's release, as `uname -r` has it.
    pub fn release(&self) -> &str {
        self.values.get("OSRELEASE").map_or("?", String::as_str)
    }

    /// What tells it from every other build, in hexadecimal: from 5.9 on; `None` where it has none (a kernel that was
    /// linked without says zeros), or what stands there is no such thing.
    pub fn build_id(&self) -> Option<&str> {
        /// Digits: BUILD_ID_SIZE_MAX of Linux's include/linux/buildid.h, in bytes 20.
        const DIGITS: usize = 40;
        let text = self.values.get("BUILD-ID").map(String::as_str)?;
        let is_one = text.len() == DIGITS && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        (is_one && text.bytes().any(|digit| digit != b'0')).then_some(text)
    }

    /// How far the kernel has moved from where it was linked, bytes.
    pub fn slide(&self) -> Option<u64> {
        u64::from_str_radix(self.values.get("KERNELOFFSET")?, 16).ok()
    }

    /// Whether an x86-64 kernel links its per-CPU variables at 0, so that they stay where they
    /// are when the kernel moves: all before 6.15 do.
    pub fn has_per_cpu_at_zero(&self) -> bool {
        let mut numbers = self.release().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (6, 15),
            _ => false,
        }
    }

    /// A number that stands there as it is (`NUMBER(name)=`), in hexadecimal if that is written.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.values.get(&format!("NUMBER({name})"))?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok().or_else(|| value.parse::<i64>().ok().map(i64::cast_unsigned)),
        }
    }

    /// Where an aarch64 kernel's image begins: its text is at most an image's alignment behind that.
    pub fn image_start(&self) -> Option<u64> {
        Some(self.address("_stext")? & !(IMAGE_ALIGNMENT - 1))
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> Option<u64> {
        self.values.get("PAGESIZE")?.parse().ok()
    }

    /// The guest-virtual address of a symbol.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbol(name).ok()
    }

    pub(super) fn symbol(&self, name: &str) -> Result<u64, LogError> {
        let value = self.values.get(&format!("SYMBOL({name})"));
        value
            .and_then(|value| u64::from_str_radix(value, 16).ok())
            .ok_or_else(|| LogError::Lacks(name.into()))
    }

    pub(super) fn size(&self, name: &str) -> Result<u64, LogError> {
        let value = self.values.get(&format!("SIZE({name})"));
        value.and_then(|value| value.parse().ok()).ok_or_else(|| LogError::Lacks(name.into()))
    }

    pub(crate) fn offset(&self, name: &str) -> Result<u64, LogError> {
        let value = self.values.get(&format!("OFFSET({name})"));
        value.and_then(|value| value.parse().ok()).ok_or_else(|| LogError::Lacks(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_one_or_none() {
        let of = |id: &str| {
            let page = format!("OSRELEASE=6.12.0\nPAGESIZE=4096\nBUILD-ID={id}\n");
            VmCoreInfo::parse(page.as_bytes()).unwrap().build_id().map(str::to_owned)
        };
        let real = "6af9f7bf27b71c4ef3ee0ac7a1a4a4d4d1c5c9e0";
        assert_eq!(of(real).as_deref(), Some(real));
        for none in ["", &"0".repeat(40), &"f".repeat(4000), &"é".repeat(20), &"g".repeat(40)] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
