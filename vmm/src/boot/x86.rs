//! Preparing an x86 guest: all kernel formats, one memory map.

use super::initrd::Initrds;
use super::kernel::Kernel;
use super::{BootConfig, BootError, Booted, cmdline, write};
use crate::kvm::BootState as State;
use crate::memory::GuestMemory;
use arch::GuestPhys;
use arch::image::{Format, bzimage, multiboot};
use arch::x86::boot_state::{BootState, Protocol};
use arch::x86::layout::{self, MemoryMapEntry};
use arch::x86::multiboot_info::{Module, boot_information};
use arch::x86::zero_page::ZeroPage;
use arch::x86::{acpi, pvh, reset_vector};
use linux_loader::loader::load_cmdline;
use vm_memory::GuestAddress;

const PAGE: u64 = 4096;

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
    write(memory, "the ACPI tables", layout::ACPI_TABLES.0, &acpi::tables(config.vcpus, config.pvpanic))?;
    write(memory, "the reset vector", reset_vector::ADDRESS.0, &reset_vector::code())?;

    let guest = Guest { memory, kernel, config, initrds: &initrds, map: &map };
    let (protocol, entry) = match kernel.format() {
        Format::BzImage(header) => guest.bzimage(header)?,
        Format::Elf(elf) => {
            kernel.copy_segments(memory, elf)?;
            let end = elf.segments.iter().map(|s| s.physical + s.memory_size).max().unwrap_or(0);
            if let Some(header) = &elf.multiboot {
                guest.multiboot(header, end, elf.entry)?
            } else if let Some(entry) = elf.pvh_entry {
                guest.pvh(end, entry)?
            } else if elf.is_32_bit {
                return Err(BootError::Image {
                    path: kernel.path().to_path_buf(),
                    source: arch::image::ImageError::Unsupported(
                        "a 32-bit ELF kernel needs a Multiboot header or a PVH note to be entered by".into(),
                    ),
                });
            } else {
                guest.linux64(&[], end, u64::MAX, None, elf.entry)?
            }
        }
        Format::Multiboot(header) => {
            let addresses = header.addresses.expect("detect() takes no other");
            let end = guest.load_multiboot(&addresses)?;
            guest.multiboot(header, end, addresses.entry)?
        }
        Format::Flat => guest.flat()?,
        Format::Arm64Image(_) | Format::Compressed(_) | Format::Zboot(_) => {
            return Err(BootError::UnknownFormat { path: kernel.path().to_path_buf() });
        }
    };
    let state = BootState::new(protocol, entry);
    for (place, bytes) in state.tables() {
        write(memory, "the boot tables", place.0, &bytes)?;
    }
    Ok(Booted { state: State::X86(state), entry: GuestPhys(entry) })
}

struct Guest<'a> {
    memory: &'a GuestMemory,
    kernel: &'a Kernel,
    config: &'a BootConfig<'a>,
    initrds: &'a Initrds,
    map: &'a [MemoryMapEntry],
}

impl Guest<'_> {
    fn cmdline(&self, limit: u64) -> Result<(), BootError> {
        let line = cmdline::check(self.config.cmdline, limit.min(layout::CMDLINE_SIZE))?;
        load_cmdline(self.memory, GuestAddress(layout::CMDLINE.0), &line)
            .map_err(|error| BootError::Cmdline(error.to_string()))
    }

    /// Puts the initrd as high as it may be, page-aligned, above `kernel_end`. Memory beyond
    /// 4 GiB is left alone: it is below the hole that every guest finds it.
    fn initrd(&self, kernel_end: u64, highest: u64) -> Result<Option<(u64, u64)>, BootError> {
        if self.initrds.is_empty() {
            return Ok(None);
        }
        let size = self.initrds.total();
        let top = self.config.memory.min(layout::HOLE_START).min(highest.saturating_add(1));
        let start = top.checked_sub(size).map(|start| start & !(PAGE - 1));
        match start {
            Some(start) if start >= kernel_end => {
                self.initrds.copy_all(self.memory, start)?;
                Ok(Some((start, size)))
            }
            _ => Err(self.initrds.too_large()),
        }
    }

    fn bzimage(&self, header: &bzimage::Header) -> Result<(Protocol, u64), BootError> {
        // The kernel says where it would like to be: there it need not move itself.
        let start = header.pref_address.max(layout::HIGH_MEMORY.0);
        let needed = header.init_size.max(header.kernel_size);
        self.kernel.check_fits(self.memory, start, needed)?;
        self.kernel.copy(self.memory, header.kernel_offset, header.kernel_size, start)?;
        self.linux64(
            &header.setup_header,
            start.saturating_add(needed),
            header.initrd_addr_max,
            Some(header.cmdline_size + 1),
            start + bzimage::ENTRY_64,
        )
    }

    fn linux64(
        &self,
        setup_header: &[u8],
        kernel_end: u64,
        initrd_max: u64,
        cmdline_limit: Option<u64>,
        entry: u64,
    ) -> Result<(Protocol, u64), BootError> {
        self.cmdline(cmdline_limit.unwrap_or(layout::CMDLINE_SIZE))?;
        let zero_page = ZeroPage {
            setup_header,
            cmdline_size: u32::try_from(self.config.cmdline.len()).unwrap_or(u32::MAX),
            initrd: self.initrd(kernel_end, initrd_max)?,
            memory_map: self.map,
        };
        write(self.memory, "the boot parameters", layout::ZERO_PAGE.0, &zero_page.bytes())?;
        Ok((Protocol::Linux64, entry))
    }

    fn pvh(&self, kernel_end: u64, entry: u64) -> Result<(Protocol, u64), BootError> {
        self.cmdline(layout::CMDLINE_SIZE)?;
        let info = pvh::start_info(self.initrd(kernel_end, u64::MAX)?, self.map);
        write(self.memory, "the PVH start info", layout::BOOT_INFO.0, &info)?;
        Ok((Protocol::Pvh, entry))
    }

    /// Loads a Multiboot kernel that is not ELF; answers with the end of its memory.
    fn load_multiboot(&self, addresses: &multiboot::Addresses) -> Result<u64, BootError> {
        let rest = self.kernel.size().saturating_sub(addresses.file_offset);
        let size = addresses.load_size.unwrap_or(rest);
        if size > rest {
            return Err(BootError::Image {
                path: self.kernel.path().to_path_buf(),
                source: arch::image::ImageError::Truncated {
                    what: "the Multiboot image",
                    needed: addresses.file_offset + size,
                    actual: self.kernel.size(),
                },
            });
        }
        let end = addresses.bss_end.max(addresses.load + size);
        self.kernel.check_fits(self.memory, addresses.load, end - addresses.load)?;
        self.kernel.copy(self.memory, addresses.file_offset, size, addresses.load)?;
        Ok(end)
    }

    fn multiboot(
        &self,
        header: &multiboot::Header,
        kernel_end: u64,
        entry: u64,
    ) -> Result<(Protocol, u64), BootError> {
        if header.wants_video {
            log::warn!("the Multiboot kernel asks for a video mode; it has the serial console only");
        }
        self.cmdline(layout::CMDLINE_SIZE)?;
        // Modules go above the kernel, each on a page of its own.
        let mut at = kernel_end.max(layout::HIGH_MEMORY.0).next_multiple_of(PAGE);
        let mut modules = Vec::new();
        for (index, (path, size)) in self.initrds.iter().enumerate() {
            let end = at.checked_add(size).filter(|end| *end <= layout::HOLE_START);
            let (Some(end), Ok(start)) = (end, u32::try_from(at)) else {
                return Err(self.initrds.too_large());
            };
            self.initrds.copy(self.memory, index, at)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            modules.push(Module { start, end: u32::try_from(end).unwrap_or(u32::MAX), name });
            at = end.next_multiple_of(PAGE);
        }
        let info = boot_information(&modules, self.map).ok_or_else(|| BootError::DoesNotFit {
            what: "the list of Multiboot modules".into(),
            why: "there are too many, or their names are too long".into(),
        })?;
        write(self.memory, "the Multiboot information", layout::BOOT_INFO.0, &info)?;
        Ok((Protocol::Multiboot, entry))
    }

    fn flat(&self) -> Result<(Protocol, u64), BootError> {
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
        self.linux64(&[], address.saturating_add(self.kernel.size()), u64::MAX, None, address)
    }
}
