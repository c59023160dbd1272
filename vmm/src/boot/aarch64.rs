//! Preparing an aarch64 guest: the device tree at the start of RAM, the kernel behind it.

use super::initrd::Initrds;
use super::kernel::Kernel;
use super::{BootConfig, BootError, Booted, cmdline, write};
use crate::kvm::BootState as State;
use crate::memory::GuestMemory;
use arch::GuestPhys;
use arch::aarch64::boot_state::BootState;
use arch::aarch64::device_tree::{DeviceTree, GicVersion};
use arch::aarch64::layout;
use arch::image::Format;

const PAGE: u64 = 4096;
/// booting.rst: the initrd must lie with the kernel in a window of 32 GiB.
const INITRD_WINDOW: u64 = 32 << 30;

/// What only the host's KVM can tell.
#[derive(Clone, Copy, Debug)]
pub struct Platform<'a> {
    /// Which interrupt controller there is.
    pub gic: GicVersion,
    /// `MPIDR_EL1` of each vCPU.
    pub mpidrs: &'a [u64],
}

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
    let device_tree = layout::RAM_START;
    let behind_device_tree = layout::RAM_START.0 + layout::DEVICE_TREE_SIZE;
    if config.load_address.is_some() && *kernel.format() != Format::Flat {
        return Err(BootError::LoadAddressNotFlat { format: kernel.format().name() });
    }
    let (entry, end) = match kernel.format() {
        Format::Arm64Image(header) => {
            let start = behind_device_tree + header.text_offset;
            kernel.check_fits(memory, start, header.image_size)?;
            kernel.copy(memory, 0, kernel.size(), start)?;
            (start, start + header.image_size)
        }
        Format::Elf(elf) => {
            kernel.copy_segments(memory, elf)?;
            let lowest = elf.segments.iter().map(|s| s.physical).min().unwrap_or(0);
            if lowest < behind_device_tree {
                return Err(BootError::DoesNotFit {
                    what: format!("kernel {}", kernel.path().display()),
                    why: format!(
                        "it is linked to {lowest:#x}; memory from {behind_device_tree:#x} on is free (the device tree is below)"
                    ),
                });
            }
            (elf.entry, elf.segments.iter().map(|s| s.physical + s.memory_size).max().unwrap_or(lowest))
        }
        Format::Flat => {
            let Some(address) = config.load_address else {
                return Err(BootError::UnknownFormat { path: kernel.path().to_path_buf() });
            };
            if address < behind_device_tree {
                return Err(BootError::DoesNotFit {
                    what: "the flat binary".into(),
                    why: format!(
                        "--load-address {address:#x} is below {behind_device_tree:#x}, the end of the device tree"
                    ),
                });
            }
            kernel.copy(memory, 0, kernel.size(), address)?;
            (address, address.saturating_add(kernel.size()))
        }
        Format::BzImage(_) | Format::Multiboot(_) | Format::Compressed(_) | Format::Zboot(_) => {
            return Err(BootError::UnknownFormat { path: kernel.path().to_path_buf() });
        }
    };

    let initrd = place_initrd(memory, &initrds, config.memory, end)?;
    cmdline::check(config.cmdline, layout::CMDLINE_SIZE)?;
    let tree = DeviceTree {
        cmdline: config.cmdline,
        memory: config.memory,
        mpidrs: platform.mpidrs,
        gic: platform.gic,
        initrd,
        exit_device: config.exit_device,
        pvpanic: config.pvpanic,
        seed: &config.seed,
    };
    let bytes = tree.bytes().map_err(|error| BootError::DeviceTree(error.to_string()))?;
    if bytes.len() as u64 > layout::DEVICE_TREE_SIZE {
        return Err(BootError::DeviceTree(format!("it has {} bytes, more than 2 MiB", bytes.len())));
    }
    write(memory, "the device tree", device_tree.0, &bytes)?;
    Ok(Booted { state: State::Aarch64(BootState::new(entry, device_tree)), entry: GuestPhys(entry) })
}

/// Puts the initrd as high as it may be, page-aligned, above the kernel.
fn place_initrd(
    memory: &GuestMemory,
    initrds: &Initrds,
    memory_size: u64,
    kernel_end: u64,
) -> Result<Option<(u64, u64)>, BootError> {
    if initrds.is_empty() {
        return Ok(None);
    }
    let size = initrds.total();
    let top = layout::RAM_START.0 + memory_size.min(INITRD_WINDOW - (1 << 30));
    match top.checked_sub(size).map(|start| start & !(PAGE - 1)) {
        Some(start) if start >= kernel_end => {
            initrds.copy_all(memory, start)?;
            Ok(Some((start, size)))
        }
        _ => Err(initrds.too_large()),
    }
}
