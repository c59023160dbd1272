//! The memory of a core, by its segments.

use super::LEFT_OUT;
use crate::dump::contents::{Image, joined};
use crate::ram::Absence;
use crate::source::Source;
use arch::address::PhysRange;
use std::sync::Arc;

/// Pieces of memory that are told apart from holes.
const MOST_RANGES: usize = 1 << 20;

/// A piece of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Guest-physical address.
    pub(super) start: u64,
    /// Bytes; those behind `in_file` were left out.
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Bytes of it that the file says it has.
    pub(super) in_file: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start + self.size
    }

    /// What is left from `start` on.
    fn from(&self, start: u64) -> Segment {
        let cut = start - self.start;
        Segment {
            start,
            size: self.size - cut,
            offset: self.offset + cut.min(self.in_file),
            in_file: self.in_file.saturating_sub(cut),
        }
    }
}

/// The memory of a core.
#[derive(Debug)]
pub(super) struct ElfImage {
    source: Arc<dyn Source>,
    /// Sorted, without overlaps.
    pub(super) segments: Vec<Segment>,
    is_incomplete: bool,
}

impl ElfImage {
    pub(super) fn new(source: Arc<dyn Source>, mut segments: Vec<Segment>, is_incomplete: bool) -> ElfImage {
        segments.sort_by_key(|segment| (segment.start, u64::MAX - segment.in_file));
        let mut result: Vec<Segment> = Vec::with_capacity(segments.len());
        for segment in segments {
            // What several segments have is the same memory by several virtual addresses.
            let free = result.last().map_or(0, Segment::end);
            if segment.end() > free {
                result.push(segment.from(segment.start.max(free)));
            }
        }
        ElfImage { source, segments: result, is_incomplete }
    }

    fn segment(&self, at: u64) -> Option<&Segment> {
        let index = self.segments.partition_point(|segment| segment.start <= at);
        self.segments.get(index.checked_sub(1)?).filter(|segment| at < segment.end())
    }
}

impl Image for ElfImage {
    fn ranges(&self) -> Vec<PhysRange> {
        joined(self.segments.iter().map(|segment| PhysRange::new(segment.start, segment.size)).collect())
    }

    fn populated(&self) -> Vec<PhysRange> {
        let mut ranges = Vec::new();
        for segment in &self.segments {
            let there = there(&*self.source, segment);
            // Each question about holes may have many answers; all of them together no more than one.
            let pieces = match ranges.len() < MOST_RANGES {
                true => self.source.pieces(segment.offset, there),
                false => vec![(segment.offset, segment.offset + there)],
            };
            ranges.extend(
                pieces.into_iter().map(|(first, end)| {
                    PhysRange::new(segment.start + (first - segment.offset), end - first)
                }),
            );
        }
        joined(ranges)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(segment) = self.segment(at) else { break };
            let rest = segment.from(at);
            let piece = &mut bytes[done..];
            let wanted = usize::try_from(rest.in_file).map_or(piece.len(), |size| size.min(piece.len()));
            let read = self.source.read_at(rest.offset, &mut piece[..wanted]).unwrap_or(0);
            done += read;
            if read == 0 || read < wanted {
                break;
            }
        }
        done
    }

    fn absence(&self, address: u64) -> Option<Absence> {
        let rest = self.segment(address)?.from(address);
        match rest.in_file {
            0 => Some(Absence::LeftOut(LEFT_OUT.into())),
            _ if rest.offset < self.source.size() => {
                let is_there = self.source.read_at(rest.offset, &mut [0]).is_ok_and(|read| read == 1);
                (!is_there).then_some(Absence::Damaged)
            }
            _ if self.is_incomplete => Some(Absence::NotWritten),
            _ => Some(Absence::CutOff),
        }
    }
}

/// How many bytes of a segment the file has.
pub(super) fn there(source: &dyn Source, segment: &Segment) -> u64 {
    source.size().saturating_sub(segment.offset).min(segment.in_file)
}
