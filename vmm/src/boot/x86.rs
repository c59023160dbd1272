//! Preparing an x86 guest: all kernel formats, one memory map.

mod multiboot;

use super::initrd::Initrds;
use super::kernel::Kernel;
use super::{BootConfig, BootError, Booted, cmdline, write};
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::board::acpi;
use arch::image::elf::Elf;
use arch::image::{Format, ImageError, bzimage};
use arch::room::Room;
use arch::x86::boot_state::{BootState, Protocol};
use arch::x86::layout::{self, MemoryMapEntry};
use arch::x86::zero_page::{self, ZeroPage};
use arch::x86::{bios_data_area, pvh, reset_vector};
use kvm::BootState as State;
use kvm::ram::GuestMemory;

const PAGE: u64 = 4096;
/// Longest command line that Linux keeps on x86 (`COMMAND_LINE_SIZE`), its zero included: what goes beyond it
/// is cut off in silence.
const LINUX_CMDLINE_SIZE: u64 = 2048;
/// PVH and Multiboot have modules where 32 bits reach.
const BELOW_4_GIB: u64 = u32::MAX as u64;

/// Puts everything into `memory`.
///
/// # Errors
/// [`BootError`].
pub fn prepare(memory: &GuestMemory, kernel: &Kernel, config: &BootConfig) -> Result<Booted, BootError> {
    let initrds = Initrds::open(config.initrds)?;
    let map = layout::memory_map(config.memory);
    if config.load_address.is_some() && *kernel.format() != Format::Flat {
        return Err(BootError::LoadAddressNotFlat { format: kernel.format().name() });
    }
    let acpi_tables = acpi::tables(config.vcpus, config.board);
    let mut guest = Loading {
        memory,
        kernel,
        config,
        initrds: &initrds,
        map: &map,
        acpi_tables: &acpi_tables,
        room: Room::default(),
    };
    let (protocol, entry) = guest.kernel()?;
    let state = BootState::new(protocol, entry);
    for (place, bytes) in state.tables() {
        guest.put("the boot tables", place.0, &bytes)?;
    }
    let entry = GuestPhys(entry);
    Ok(Booted { state: State::X86(state), entry, protocol: protocol.name() })
}

struct Loading<'a> {
    memory: &'a GuestMemory,
    kernel: &'a Kernel,
    config: &'a BootConfig<'a>,
    initrds: &'a Initrds,
    map: &'a [MemoryMapEntry],
    acpi_tables: &'a [u8],
    /// What lies in memory already: the kernel first, which says itself where it goes.
    room: Room,
}

impl Loading<'_> {
    /// Loads the kernel and hands it what its protocol does.
    fn kernel(&mut self) -> Result<(Protocol, u64), BootError> {
        match self.kernel.format() {
            Format::BzImage(header) => self.bzimage(header),
            Format::Elf(elf) => self.elf(elf),
            Format::Multiboot(header) => self.multiboot(header, None),
            Format::Multiboot2(header) => self.multiboot2(header, None),
            Format::Flat => self.flat(),
            Format::Arm64Image(_) | Format::Compressed(_) | Format::Zboot(_) => {
                Err(BootError::UnknownFormat { path: self.kernel.path().to_path_buf() })
            }
        }
    }

    /// Writes what has a place of its own, unless the kernel lies there.
    fn put(&mut self, what: &str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
        let size = bytes.len() as u64;
        if let Some(taken) = self.room.clash(address, size) {
            return Err(BootError::DoesNotFit {
                what: what.into(),
                why: format!(
                    "it goes to {address:#x}, where the kernel lies ({} to {}); link the kernel to {} or above",
                    taken.start,
                    taken.end(),
                    layout::HIGH_MEMORY
                ),
            });
        }
        write(self.memory, what, address, bytes)?;
        self.room.take(address, size);
        Ok(())
    }

    /// Writes what every guest has: the firmware's data, tables and code.
    fn firmware(&mut self) -> Result<(), BootError> {
        for (place, bytes) in bios_data_area::areas(self.config.board) {
            self.put("the BIOS data area", place.0, &bytes)?;
        }
        self.put("the ACPI tables", layout::ACPI_TABLES.0, self.acpi_tables)?;
        match reset_vector::code(self.config.board) {
            Some(code) => self.put("the reset vector", reset_vector::ADDRESS.0, &code),
            None => Ok(()),
        }
    }

    /// Writes the command line to where PVH and Linux's protocol have it. `limit` is what the kernel has room
    /// for, its zero included.
    fn cmdline(&mut self, limit: Option<u64>) -> Result<(), BootError> {
        let kept = if self.kernel.is_linux() { LINUX_CMDLINE_SIZE } else { layout::CMDLINE_SIZE };
        let line = cmdline::checked(self.config.cmdline, limit.unwrap_or(kept).min(layout::CMDLINE_SIZE))?;
        self.put("the command line", layout::CMDLINE.0, &line)
    }

    /// Puts the initrd as high below the hole as it may be, page-aligned, where every guest finds it; above
    /// 4 GiB where it does not fit there and the kernel takes it from there. `highest` is the last address
    /// that it may have.
    fn initrd(&mut self, highest: u64, protocol: Protocol) -> Result<Option<(u64, u64)>, BootError> {
        if self.initrds.is_empty() {
            return Ok(None);
        }
        self.initrds.refuse_modules(protocol.name(), self.kernel.is_linux())?;
        let size = self.initrds.total();
        let below = |end: u64| {
            let end = end.min(layout::HOLE_START).min(highest.saturating_add(1));
            PhysRange::new(layout::HIGH_MEMORY.0, end.saturating_sub(layout::HIGH_MEMORY.0))
        };
        let above = PhysRange::new(layout::HOLE_END, self.config.memory.saturating_sub(layout::HOLE_START));
        let goes_above = highest >= above.end().0;
        let place = self
            .room
            .highest(below(self.config.memory), size, PAGE)
            .or_else(|| goes_above.then(|| self.room.highest(above, size, PAGE)).flatten());
        let Some(start) = place else {
            let would_fit = self.room.highest(below(u64::MAX), size, PAGE).is_some();
            return Err(match goes_above || would_fit {
                true => self.initrds.too_large(),
                false => self.initrds.too_large_for(protocol.name(), below(u64::MAX).end().0),
            });
        };
        self.initrds.copy_all(self.memory, start)?;
        self.room.take(start, size);
        Ok(Some((start, size)))
    }

    fn bzimage(&mut self, header: &bzimage::Header) -> Result<(Protocol, u64), BootError> {
        let start = header.load_address(layout::HIGH_MEMORY.0).ok_or_else(|| BootError::DoesNotFit {
            what: format!("kernel {}", self.kernel.path().display()),
            why: format!(
                "it is not relocatable and belongs at {:#x}, below {}, where the boot tables are",
                header.pref_address,
                layout::HIGH_MEMORY
            ),
        })?;
        let needed = header.init_size.max(header.kernel_size);
        self.kernel.check_fits(self.memory, start, needed)?;
        self.kernel.copy(self.memory, header.kernel_offset, header.kernel_size, start)?;
        self.room.take(start, needed);
        self.linux64(Linux64 {
            setup_header: &header.setup_header,
            initrd_max: header.initrd_addr_max,
            cmdline_limit: Some(header.cmdline_size + 1),
            entry: start + bzimage::ENTRY_64,
        })
    }

    fn elf(&mut self, elf: &Elf) -> Result<(Protocol, u64), BootError> {
        if let Some(header) = &elf.multiboot2 {
            return self.multiboot2(header, Some(elf));
        }
        if let Some(header) = &elf.multiboot {
            return self.multiboot(header, Some(elf));
        }
        if elf.is_32_bit && elf.pvh_entry.is_none() {
            return Err(self.unsupported(
                "a 32-bit ELF kernel needs a Multiboot header or a PVH note to be entered by".into(),
            ));
        }
        self.load_segments(elf, 0)?;
        // Linux is told more by its own protocol: a seed for its random numbers, and an initrd anywhere.
        let is_linux64 = !elf.is_32_bit && self.kernel.is_linux();
        match elf.pvh_entry.filter(|_| !is_linux64) {
            Some(entry) => self.pvh(entry),
            None => self.linux64(Linux64 {
                setup_header: &[],
                initrd_max: u64::MAX,
                cmdline_limit: None,
                entry: elf.entry,
            }),
        }
    }

    /// Loads an ELF kernel, `distance` bytes from where it is linked to.
    fn load_segments(&mut self, elf: &Elf, distance: u64) -> Result<(), BootError> {
        self.kernel.copy_segments(self.memory, elf, distance)?;
        for segment in &elf.segments {
            self.room.take(segment.physical.wrapping_add(distance), segment.memory_size);
        }
        Ok(())
    }

    fn linux64(&mut self, linux: Linux64) -> Result<(Protocol, u64), BootError> {
        self.firmware()?;
        self.cmdline(linux.cmdline_limit)?;
        self.put("the seed", layout::SETUP_DATA.0, &zero_page::setup_data(self.config.rng_seed()))?;
        let zero_page = ZeroPage {
            setup_header: linux.setup_header,
            cmdline_size: u32::try_from(self.config.cmdline.len()).unwrap_or(u32::MAX),
            initrd: self.initrd(linux.initrd_max, Protocol::Linux64)?,
            memory_map: self.map,
        };
        self.put("the boot parameters", layout::ZERO_PAGE.0, &zero_page.bytes())?;
        Ok((Protocol::Linux64, linux.entry))
    }

    fn pvh(&mut self, entry: u64) -> Result<(Protocol, u64), BootError> {
        self.firmware()?;
        self.cmdline(None)?;
        let modules = match self.kernel.is_linux() {
            // Linux takes the first module for its initrd, and no other.
            true => {
                let initrd = self.initrd(BELOW_4_GIB, Protocol::Pvh)?;
                initrd.map(|(start, size)| pvh::Module { start, size, string: None }).into_iter().collect()
            }
            false => self.modules(Protocol::Pvh.name())?.into_iter().map(pvh_module).collect::<Vec<_>>(),
        };
        let info = pvh::start_info(&modules, self.map);
        if info.len() as u64 > layout::ZERO_PAGE.0 - layout::BOOT_INFO.0 {
            return Err(BootError::DoesNotFit {
                what: "the list of PVH modules".into(),
                why: "there are too many, or their strings are too long".into(),
            });
        }
        self.put("the PVH start info", layout::BOOT_INFO.0, &info)?;
        Ok((Protocol::Pvh, entry))
    }

    fn flat(&mut self) -> Result<(Protocol, u64), BootError> {
        let Some(address) = self.config.load_address else {
            return Err(BootError::UnknownFormat { path: self.kernel.path().to_path_buf() });
        };
        if address < layout::HIGH_MEMORY.0 {
            return Err(BootError::DoesNotFit {
                what: "the flat binary".into(),
                why: format!(
                    "--load-address {address:#x} is below {}, where the boot tables are",
                    layout::HIGH_MEMORY
                ),
            });
        }
        self.kernel.copy(self.memory, 0, self.kernel.size(), address)?;
        self.room.take(address, self.kernel.size());
        self.linux64(Linux64 { setup_header: &[], initrd_max: u64::MAX, cmdline_limit: None, entry: address })
    }

    fn unsupported(&self, why: String) -> BootError {
        BootError::Image { path: self.kernel.path().to_path_buf(), source: ImageError::Unsupported(why) }
    }
}

/// What Linux's 64-bit protocol needs to know of a kernel.
struct Linux64<'a> {
    /// Of a bzImage; else empty.
    setup_header: &'a [u8],
    /// The last address that the initrd may have.
    initrd_max: u64,
    /// Room that the kernel says it has for the command line, its zero included.
    cmdline_limit: Option<u64>,
    entry: u64,
}

fn pvh_module(module: arch::x86::multiboot_info::Module) -> pvh::Module {
    let size = u64::from(module.end) - u64::from(module.start);
    pvh::Module { start: module.start.into(), size, string: Some(module.string) }
}

#[cfg(test)]
mod tests;
