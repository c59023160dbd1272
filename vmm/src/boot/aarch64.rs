//! Preparing an aarch64 guest: the kernel where it wants to be, the initrd high above it, and the device tree
//! above both. Kernels take what is behind them for free memory.

use super::initrd::Initrds;
use super::kernel::Kernel;
use super::{BootConfig, BootError, Booted, cmdline, write};
use arch::GuestPhys;
use arch::aarch64::boot_state::BootState;
use arch::aarch64::layout;
use arch::address::PhysRange;
use arch::board::device_tree::DeviceTree;
use arch::image::Format;
use arch::room::Room;
use kvm::ram::GuestMemory;
use kvm::{BootState as State, Platform};

const PAGE: u64 = 4096;
/// booting.rst: the initrd must lie with the kernel in a window of 32 GiB. So does the device tree here.
const WINDOW: u64 = 32 << 30;
/// booting.rst asks for 8; kernels map it by their own pages, which have 64 KiB at most.
const DEVICE_TREE_ALIGNMENT: u64 = 64 << 10;
/// The one protocol that there is.
const PROTOCOL: &str = "Linux's boot protocol";

/// Puts everything into `memory`.
///
/// # Errors
/// [`BootError`].
pub fn prepare(
    memory: &GuestMemory,
    kernel: &Kernel,
    config: &BootConfig,
    platform: &Platform,
) -> Result<Booted, BootError> {
    let initrds = Initrds::open(config.initrds)?;
    initrds.refuse_modules(PROTOCOL, kernel.is_linux())?;
    if config.load_address.is_some() && *kernel.format() != Format::Flat {
        return Err(BootError::LoadAddressNotFlat { format: kernel.format().name() });
    }
    let mut room = Room::default();
    let entry = load(memory, kernel, config, &mut room)?;
    let limit = if kernel.is_linux() { layout::CMDLINE_SIZE } else { layout::DEVICE_TREE_SIZE / 2 };
    cmdline::checked(config.cmdline, limit)?;

    let top = layout::RAM_START.0 + config.memory.min(WINDOW - (1 << 30));
    let behind = room.end().clamp(layout::RAM_START.0, top);
    let behind = PhysRange::new(behind, top - behind);
    let all = PhysRange::new(layout::RAM_START.0, top - layout::RAM_START.0);
    // It is as large wherever the initrd is.
    let size = device_tree(config, platform, Some((0, 0)))?.len() as u64;
    let place = [behind, all].iter().find_map(|range| room.highest(*range, size, DEVICE_TREE_ALIGNMENT));
    let place = place.ok_or_else(|| BootError::DoesNotFit {
        what: "the device tree".into(),
        why: format!("it needs {size} bytes beside the kernel; give more --memory"),
    })?;
    room.take(place, size);
    let for_initrd = match place.checked_sub(behind.start.0) {
        Some(size) => PhysRange::new(behind.start.0, size),
        None => behind,
    };
    let initrd = place_initrd(memory, &initrds, &room, for_initrd, config.memory)?;
    write(memory, "the device tree", place, &device_tree(config, platform, initrd)?)?;
    Ok(Booted {
        state: State::Aarch64(BootState::new(entry, GuestPhys(place))),
        entry: GuestPhys(entry),
        protocol: PROTOCOL,
    })
}

/// Loads the kernel; answers with its entry.
fn load(
    memory: &GuestMemory,
    kernel: &Kernel,
    config: &BootConfig,
    room: &mut Room,
) -> Result<u64, BootError> {
    match kernel.format() {
        Format::Arm64Image(header) => {
            let start = layout::IMAGE_BASE.0 + header.text_offset;
            kernel.check_fits(memory, start, header.image_size)?;
            kernel.copy(memory, 0, kernel.size(), start)?;
            room.take(start, header.image_size);
            Ok(start)
        }
        Format::Elf(elf) => {
            kernel.copy_segments(memory, elf, 0)?;
            for segment in &elf.segments {
                room.take(segment.physical, segment.memory_size);
            }
            Ok(elf.entry)
        }
        Format::Flat => {
            let Some(address) = config.load_address else {
                return Err(BootError::UnknownFormat { path: kernel.path().to_path_buf() });
            };
            kernel.copy(memory, 0, kernel.size(), address)?;
            room.take(address, kernel.size());
            Ok(address)
        }
        Format::BzImage(_)
        | Format::Multiboot(_)
        | Format::Multiboot2(_)
        | Format::Compressed(_)
        | Format::Zboot(_) => Err(BootError::UnknownFormat { path: kernel.path().to_path_buf() }),
    }
}

fn device_tree(
    config: &BootConfig,
    platform: &Platform,
    initrd: Option<(u64, u64)>,
) -> Result<Vec<u8>, BootError> {
    let tree = DeviceTree {
        cmdline: config.cmdline,
        memory: config.memory,
        mpidrs: platform.mpidrs,
        gic: platform.gic,
        has_its: platform.its,
        pmu: platform.pmu,
        initrd,
        board: config.board,
        seed: &config.seed,
    };
    let bytes = tree.bytes().map_err(|error| BootError::DeviceTree(error.to_string()))?;
    if bytes.len() as u64 > layout::DEVICE_TREE_SIZE {
        return Err(BootError::DeviceTree(format!("it has {} bytes, more than 2 MiB", bytes.len())));
    }
    Ok(bytes)
}

/// Puts the initrd as high in `within` as it may be, page-aligned: above the kernel, below the device tree.
fn place_initrd(
    memory: &GuestMemory,
    initrds: &Initrds,
    room: &Room,
    within: PhysRange,
    memory_size: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    if initrds.is_empty() {
        return Ok(None);
    }
    let size = initrds.total();
    let Some(start) = room.highest(within, size, PAGE) else {
        return Err(match memory_size < WINDOW - (1 << 30) {
            true => initrds.too_large(),
            false => initrds.too_large_for(PROTOCOL, within.end().0),
        });
    };
    initrds.copy_all(memory, start)?;
    Ok(Some((start, size)))
}

#[cfg(test)]
mod tests;
