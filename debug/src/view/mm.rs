//! How much memory the processes of the guest's Linux kernel have.

use super::View;
use crate::linux::mm::{Memory, MmLayout, cpu_offsets};
use crate::linux::reader::{NotThere, Reader};
use crate::linux::{Symbols, VmCoreInfo};
use std::collections::{BTreeSet, HashMap};

/// Numbers of processors' own that are read at most: behind that they are left out of what processes have in RAM, as a
/// guest may have more processes and processors than there is time for.
const MOST_READS: usize = 1 << 20;

impl View<'_> {
    /// The memory of processes, by where each one's `struct mm_struct` is: of 0 there is none, and what cannot be read is
    /// left out.
    ///
    /// # Errors
    /// In words, what the kernel lacks for that, or that nothing could be read. Also when it is broken off.
    pub fn kernel_memory(
        &self,
        info: &VmCoreInfo,
        of: impl Iterator<Item = u64>,
    ) -> Result<HashMap<u64, Memory>, String> {
        let symbols = self.kernel_symbols(info)?;
        let layout = MmLayout::new(&*self.kernel_types(info)?)?;
        let all: BTreeSet<u64> = of.filter(|mm| *mm != 0).collect();
        self.by_kernel(info, |read| {
            let reader = Reader::new(read);
            let offsets = self.cpu_offsets(&symbols, &reader);
            let (mut found, mut left, mut error) = (HashMap::new(), MOST_READS, None);
            for mm in &all {
                let reads = layout.reads(offsets.len());
                let offsets = if reads <= left { &offsets[..] } else { &[] };
                left = left.saturating_sub(reads);
                // Where processors' own numbers cannot be read, without them.
                match layout.memory(*mm, offsets, &reader).or_else(|_| layout.memory(*mm, &[], &reader)) {
                    Ok(memory) => drop(found.insert(*mm, memory)),
                    Err(why) => error = Some(why),
                }
            }
            // Who sees none of them may not see what the kernel sees.
            error.filter(|_| found.is_empty()).map_or(Ok(found), Err)
        })
    }

    /// How far each processor's own data is from where it is linked; nothing where that is not known.
    fn cpu_offsets(&self, symbols: &Symbols, reader: &Reader<'_>) -> Vec<u64> {
        let offsets = || {
            let count = match symbols.address("nr_cpu_ids") {
                Some(at) => reader.number(at, 4)?,
                // A kernel for a fixed number has no variable.
                None => self.machine.vcpus().into(),
            };
            symbols.address("__per_cpu_offset").map_or(Ok(Vec::new()), |at| cpu_offsets(at, count, reader))
        };
        offsets().unwrap_or_else(|_: NotThere| Vec::new())
    }
}
