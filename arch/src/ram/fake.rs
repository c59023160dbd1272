//! RAM without a guest, for tests and fuzzing of what reads it.

use super::Memory;
use crate::GuestPhys;
use crate::address::PhysRange;
use crate::paging::TableMemory;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// RAM from address 0.
#[derive(Debug)]
pub struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// Zeros.
    pub fn new(size: usize) -> Ram {
        Ram(Mutex::new(vec![0; size]))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableMemory for Ram {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        Memory::read(self, address, bytes) == bytes.len()
    }
}

impl Memory for Ram {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let ram = self.bytes();
        let start = usize::try_from(address.0).unwrap_or(usize::MAX).min(ram.len());
        let count = bytes.len().min(ram.len() - start);
        bytes[..count].copy_from_slice(&ram[start..start + count]);
        count
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        let mut ram = self.bytes();
        let start = usize::try_from(address.0).unwrap_or(usize::MAX).min(ram.len());
        let count = bytes.len().min(ram.len() - start);
        ram[start..start + count].copy_from_slice(&bytes[..count]);
        count
    }

    fn ranges(&self) -> Vec<PhysRange> {
        vec![PhysRange::new(0, self.bytes().len() as u64)]
    }
}
