//! Guest-virtual memory: reads and writes through a vCPU's page tables, a page at a time,
//! with planted instructions hidden.

use crate::breakpoint::Table;
use crate::ram::Memory;
use arch::paging::{Fault, Permissions, Regime};
use arch::{GuestPhys, GuestVirt};

/// How addresses that a debugger names are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Guest-virtual, as a vCPU translates now.
    Virtual(Regime),
    /// Guest-physical.
    Physical,
}

impl Translation {
    /// Whether the page of an address that is mapped can be executed, by the kernel or by user mode.
    pub fn is_executable(&self, memory: &dyn Memory, address: GuestVirt) -> bool {
        match self {
            Translation::Virtual(regime) => regime.translate(memory, address).is_ok_and(|mapping| {
                let Permissions { execute, user_execute, .. } = mapping.permissions;
                execute || user_execute
            }),
            Translation::Physical => true,
        }
    }

    /// Where an address is, and how many bytes from there are in one piece.
    ///
    /// # Errors
    /// [`Fault`] where a vCPU's tables lead nowhere.
    pub fn locate(&self, memory: &dyn Memory, address: GuestVirt) -> Result<(GuestPhys, u64), Fault> {
        match self {
            Translation::Virtual(regime) => {
                let mapping = regime.translate(memory, address)?;
                Ok((mapping.address, mapping.bytes_left()))
            }
            Translation::Physical => Ok((GuestPhys(address.0), u64::MAX - address.0)),
        }
    }
}

/// Reads from `address` on until the buffer is full or something is not there; how many bytes
/// are good.
pub fn read(
    memory: &dyn Memory,
    space: &Translation,
    table: Option<&Table>,
    address: GuestVirt,
    buffer: &mut [u8],
) -> usize {
    pieces(memory, space, address, buffer.len(), |place, range| {
        let bytes = &mut buffer[range];
        let count = memory.read(place, bytes);
        if let Some(table) = table {
            table.unmask(place, &mut bytes[..count]);
        }
        count
    })
}

/// Why the byte at an address cannot be read, in words; `None` if it can.
pub fn why_not(memory: &dyn Memory, space: &Translation, address: GuestVirt) -> Option<String> {
    let absent = |place| memory.absence(place);
    match space.locate(memory, address) {
        Ok((place, _)) => {
            let is_there = memory.read(place, &mut [0]) == 1;
            let why = || {
                absent(place)
                    .map_or_else(|| format!("there is no memory at {place:#x}"), |why| why.to_string())
            };
            (!is_there).then(why)
        }
        Err(fault) => Some(match &fault {
            Fault::NoTable { name, at, .. } => absent(*at).map_or_else(
                || fault.to_string(),
                |why| format!("the table for {name} would be at {at:#x}: {why}"),
            ),
            _ => fault.to_string(),
        }),
    }
}

/// Writes likewise, whatever the page's permissions are; how many bytes were written. A
/// planted instruction stays, and what is written over it becomes its original.
pub fn write(
    memory: &dyn Memory,
    space: &Translation,
    table: Option<&mut Table>,
    address: GuestVirt,
    bytes: &[u8],
) -> usize {
    let mut table = table;
    pieces(memory, space, address, bytes.len(), |place, range| {
        let mut bytes = bytes[range].to_vec();
        if let Some(table) = table.as_deref_mut() {
            table.write_over(place, &mut bytes);
        }
        memory.write(place, &bytes)
    })
}

/// Splits a range of addresses into pieces of one page each and calls `visit` with the place
/// and the range of the buffer, until it does nothing of what it was asked for: memory may come in pieces of its own.
fn pieces(
    memory: &dyn Memory,
    space: &Translation,
    address: GuestVirt,
    length: usize,
    mut visit: impl FnMut(GuestPhys, std::ops::Range<usize>) -> usize,
) -> usize {
    let mut done = 0;
    while done < length {
        let Some(at) = address.checked_add(done as u64) else { break };
        let Ok((place, left)) = space.locate(memory, at) else { break };
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(length - done);
        if count == 0 {
            break;
        }
        let good = visit(place, done..done + count);
        done += good;
        if good == 0 {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Ram;
    use arch::paging::x86::Paging;

    /// 4-level tables with two pages at 0x40_0000, the second one not next to the first, and
    /// nothing behind them.
    fn guest() -> (Ram, Translation) {
        let ram = Ram::new(0x1_0000);
        for (at, value) in
            [(0x1000, 0x2007u64), (0x2000, 0x3007), (0x3010, 0x4007), (0x4000, 0x8007), (0x4008, 0xb007)]
        {
            ram.write(GuestPhys(at), &value.to_le_bytes());
        }
        ram.write(GuestPhys(0x8ffe), b"ab");
        ram.write(GuestPhys(0xb000), b"cd");
        (ram, Translation::Virtual(Regime::X86(Paging::new(1 << 31, 0x1000, 1 << 5, 1 << 10))))
    }

    #[test]
    fn reads_go_across_pages_and_end_where_nothing_is() {
        let (ram, space) = guest();
        let mut buffer = [0; 4];
        assert_eq!(read(&ram, &space, None, GuestVirt(0x40_0ffe), &mut buffer), 4);
        assert_eq!(&buffer, b"abcd");
        assert_eq!(read(&ram, &space, None, GuestVirt(0x40_1ffe), &mut buffer), 2);
        assert_eq!(read(&ram, &space, None, GuestVirt(0x50_0000), &mut buffer), 0);
        assert_eq!(read(&ram, &space, None, GuestVirt(u64::MAX), &mut buffer), 0);
        assert_eq!(read(&ram, &Translation::Physical, None, GuestVirt(0xb000), &mut buffer), 4);
        assert_eq!(read(&ram, &Translation::Physical, None, GuestVirt(0xfffe), &mut buffer), 2);
        assert_eq!(read(&ram, &Translation::Physical, None, GuestVirt(u64::MAX), &mut buffer), 0);
    }

    #[test]
    fn writes_likewise() {
        let (ram, space) = guest();
        assert_eq!(write(&ram, &space, None, GuestVirt(0x40_0fff), b"xyz"), 3);
        let mut buffer = [0; 4];
        read(&ram, &space, None, GuestVirt(0x40_0ffe), &mut buffer);
        assert_eq!(&buffer, b"axyz");
        assert_eq!(write(&ram, &space, None, GuestVirt(0x40_1fff), b"xyz"), 1);
    }
}
