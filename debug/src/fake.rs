//! A scripted target for tests.

use crate::target::Memory;
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::paging::TableMemory;
use std::sync::Mutex;

/// RAM from address 0.
#[derive(Debug)]
pub struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// Zeros.
    pub fn new(size: usize) -> Ram {
        Ram(Mutex::new(vec![0; size]))
    }
}

impl TableMemory for Ram {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        Memory::read(self, address, bytes) == bytes.len()
    }
}

impl Memory for Ram {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        let ram = self.0.lock().unwrap();
        let start = usize::try_from(address.0).unwrap().min(ram.len());
        let count = bytes.len().min(ram.len() - start);
        bytes[..count].copy_from_slice(&ram[start..start + count]);
        count
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        let mut ram = self.0.lock().unwrap();
        let start = usize::try_from(address.0).unwrap().min(ram.len());
        let count = bytes.len().min(ram.len() - start);
        ram[start..start + count].copy_from_slice(&bytes[..count]);
        count
    }

    fn ranges(&self) -> Vec<PhysRange> {
        vec![PhysRange::new(0, self.0.lock().unwrap().len() as u64)]
    }
}
