//! Kernels that are entered by Multiboot, 1 and 2: they are ELF or say themselves how they are loaded, may be
//! moved (2 only), and find everything by one pointer.

use super::{Loading, PAGE};
use crate::boot::{BootError, write};
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::board::acpi;
use arch::image::elf::{Elf, Sections};
use arch::image::multiboot::{self, Addresses};
use arch::image::multiboot2::{self, Relocatable};
use arch::image::{ImageError, elf::UnloadedSection};
use arch::x86::boot_state::Protocol;
use arch::x86::layout;
use arch::x86::multiboot_info::{self, Module};
use arch::x86::multiboot2_info::{self, PROVIDED};

const INFORMATION_ALIGNMENT: u64 = 8;

impl Loading<'_> {
    pub(super) fn multiboot(
        &mut self,
        header: &multiboot::Header,
        elf: Option<&Elf>,
    ) -> Result<(Protocol, u64), BootError> {
        warn_of_video(header.wants_video);
        let entry = match (&header.addresses, elf) {
            // "The boot loader should use them instead of the fields in the actual executable header".
            (Some(addresses), _) => {
                self.load_addresses(addresses)?;
                addresses.entry
            }
            (None, Some(elf)) => {
                self.load_segments(elf, 0)?;
                elf.entry
            }
            (None, None) => return Err(BootError::UnknownFormat { path: self.kernel.path().to_path_buf() }),
        };
        let (entry, sections, modules) = self.surroundings(entry, elf)?;
        let line = self.line();
        let information = multiboot_info::Information {
            cmdline: &line,
            modules: &modules,
            memory_map: self.map,
            sections: sections.as_ref(),
        };
        let at_any = information.bytes(0).ok_or_else(no_room)?;
        let base = self.place_information(at_any.len() as u64)?;
        let bytes = u32::try_from(base).ok().and_then(|base| information.bytes(base)).ok_or_else(no_room)?;
        write(self.memory, "the Multiboot information", base, &bytes)?;
        Ok((Protocol::Multiboot { information: GuestPhys(base) }, entry))
    }

    pub(super) fn multiboot2(
        &mut self,
        header: &multiboot2::Header,
        elf: Option<&Elf>,
    ) -> Result<(Protocol, u64), BootError> {
        warn_of_video(header.wants_video);
        let missing: Vec<&u32> = header.requests.iter().filter(|kind| !PROVIDED.contains(kind)).collect();
        if !missing.is_empty() {
            log::info!(
                "the Multiboot 2 kernel asks for information that there is none of: types {missing:?}"
            );
        }
        let (base, distance) = match (&header.addresses, elf) {
            (Some(addresses), _) => {
                self.load_addresses(addresses)?;
                (addresses.load, 0)
            }
            (None, Some(elf)) => {
                let (base, distance) = self.where_it_goes(elf, header.relocatable.as_ref())?;
                self.load_segments(elf, distance)?;
                (base, distance)
            }
            (None, None) => return Err(BootError::UnknownFormat { path: self.kernel.path().to_path_buf() }),
        };
        // Both are where the kernel is linked to, and move along with it.
        let linked = header.entry.map_or_else(|| elf.map_or(0, |elf| elf.entry), u64::from);
        let entry = linked.wrapping_add(distance);
        let (entry, sections, modules) = self.surroundings(entry, elf)?;
        let line = self.line();
        let rsdp = acpi::rsdp(self.acpi_tables);
        let bytes = multiboot2_info::Information {
            cmdline: &line,
            modules: &modules,
            memory_map: self.map,
            sections: sections.as_ref(),
            rsdp: &rsdp,
            load_base: header.relocatable.and(u32::try_from(base).ok()),
        }
        .bytes();
        let base = self.place_information(bytes.len() as u64)?;
        write(self.memory, "the Multiboot information", base, &bytes)?;
        Ok((Protocol::Multiboot2 { information: GuestPhys(base) }, entry))
    }

    /// What lies around a kernel that has been loaded: firmware, its sections, modules. The entry is checked.
    fn surroundings(
        &mut self,
        entry: u64,
        elf: Option<&Elf>,
    ) -> Result<(u64, Option<Sections>, Vec<Module>), BootError> {
        if entry > u64::from(u32::MAX) || self.room.clash(entry, 1).is_none() {
            return Err(self.unsupported(format!(
                "the entry point {entry:#x} is not in the kernel, or beyond the 4 GiB that Multiboot enters at"
            )));
        }
        self.firmware()?;
        // What is handed to the kernel is not to lie on the stack that it starts with.
        self.room.take(layout::BOOT_STACK.0 & !(PAGE - 1), PAGE);
        let sections = elf.and_then(|elf| elf.sections.as_ref()).map(|sections| self.sections(sections));
        let sections = sections.transpose()?;
        Ok((entry, sections, self.modules("Multiboot")?))
    }

    /// The command line, whose first word is the kernel's file: kernels skip it.
    fn line(&self) -> String {
        let name = self.kernel.path().file_name().unwrap_or_default().to_string_lossy();
        self.config.behind_name(&name, self.config.cmdline)
    }

    /// The memory behind the kernel that 32 bits reach.
    fn behind(&self) -> PhysRange {
        let start = self.room.end().max(layout::HIGH_MEMORY.0);
        let end = self.config.memory.min(layout::HOLE_START);
        PhysRange::new(start.min(end), end.saturating_sub(start))
    }

    /// Puts each `--initrd` above the kernel, on a page of its own.
    pub(super) fn modules(&mut self, protocol: &str) -> Result<Vec<Module>, BootError> {
        let mut modules = Vec::new();
        for (index, file) in self.initrds.iter().enumerate() {
            let place = self.room.lowest(self.behind(), file.size, PAGE);
            let range = place.and_then(|start| {
                Some((start, u32::try_from(start).ok()?, u32::try_from(start.checked_add(file.size)?).ok()?))
            });
            let Some((at, start, end)) = range else {
                return Err(match self.config.memory < layout::HOLE_START {
                    true => self.initrds.too_large(),
                    false => self.initrds.too_large_for(protocol, layout::HOLE_START),
                });
            };
            self.initrds.copy(self.memory, index, at)?;
            self.room.take(at, file.size);
            let string = self.config.behind_name(&file.name(), file.string.as_deref().unwrap_or_default());
            modules.push(Module { start, end, string });
        }
        Ok(modules)
    }

    /// Loads the sections that are part of no segment, so that a kernel finds its own symbols; those without
    /// room keep the address 0.
    fn sections(&mut self, sections: &Sections) -> Result<Sections, BootError> {
        let mut found = sections.clone();
        for &UnloadedSection { index, file_offset, size, alignment } in &sections.unloaded {
            let Some(at) = self.room.lowest(self.behind(), size, alignment) else {
                log::info!("there is no room for section {index} of the kernel's file ({size} bytes)");
                continue;
            };
            self.kernel.copy(self.memory, file_offset, size, at)?;
            self.room.take(at, size);
            found.set_address(index, at);
        }
        Ok(found)
    }

    /// Where the information goes: into low memory, as kernels expect it, or else behind everything.
    fn place_information(&self, size: u64) -> Result<u64, BootError> {
        self.room
            .highest(layout::MULTIBOOT_INFO, size, INFORMATION_ALIGNMENT)
            .or_else(|| self.room.lowest(self.behind(), size, PAGE))
            .ok_or_else(no_room)
    }

    /// Where an ELF kernel's first byte goes, and how far that is from where it is linked to.
    fn where_it_goes(&self, elf: &Elf, relocatable: Option<&Relocatable>) -> Result<(u64, u64), BootError> {
        let linked = elf.segments.iter().map(|segment| segment.physical).min().unwrap_or(0);
        let Some(to) = relocatable else { return Ok((linked, 0)) };
        let end = elf.segments.iter().map(|s| s.physical.saturating_add(s.memory_size)).max().unwrap_or(0);
        let size = end - linked;
        let top = self.config.memory.min(layout::HOLE_START).min(u64::from(to.highest) + 1);
        let bottom = u64::from(to.lowest).max(layout::HIGH_MEMORY.0);
        let within = PhysRange::new(bottom.min(top), top.saturating_sub(bottom));
        let (alignment, room) = (u64::from(to.alignment), &self.room);
        let stays = within.contains(GuestPhys(linked), size) && linked.is_multiple_of(alignment);
        let place = match (to.prefers_highest, stays) {
            (true, _) => room.highest(within, size, alignment),
            (false, true) => Some(linked),
            (false, false) => room.lowest(within, size, alignment),
        };
        let place = place.ok_or_else(|| BootError::DoesNotFit {
            what: format!("kernel {}", self.kernel.path().display()),
            why: format!(
                "it needs {size} bytes between {:#x} and {:#x}, where its Multiboot 2 header has it; give more --memory",
                to.lowest, to.highest
            ),
        })?;
        Ok((place, place.wrapping_sub(linked)))
    }

    /// Loads a kernel by the addresses of its header.
    fn load_addresses(&mut self, addresses: &Addresses) -> Result<(), BootError> {
        let rest = self.kernel.size().saturating_sub(addresses.file_offset);
        let size = addresses.load_size.unwrap_or(rest);
        if size > rest {
            return Err(BootError::Image {
                path: self.kernel.path().to_path_buf(),
                source: ImageError::Truncated {
                    what: "the Multiboot image",
                    needed: addresses.file_offset + size,
                    actual: self.kernel.size(),
                },
            });
        }
        let end = addresses.bss_end.max(addresses.load + size);
        self.kernel.check_fits(self.memory, addresses.load, end - addresses.load)?;
        self.kernel.copy(self.memory, addresses.file_offset, size, addresses.load)?;
        self.room.take(addresses.load, end - addresses.load);
        Ok(())
    }
}

fn warn_of_video(wanted: bool) {
    if wanted {
        log::warn!("the Multiboot kernel asks for a video mode; it has the serial console only");
    }
}

fn no_room() -> BootError {
    BootError::DoesNotFit {
        what: "the Multiboot information".into(),
        why: "the command line, the strings of modules and the kernel's sections are too much; give more --memory"
            .into(),
    }
}
