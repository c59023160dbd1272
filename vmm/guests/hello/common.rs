//! What the embedded guest does on every architecture: greet, name its CPU and its memory,
//! let every vCPU count, and power off.

use core::fmt::{self, Write};
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

/// vCPUs that the guest has room for.
pub const MAX_VCPUS: usize = 128;
/// What the guest writes to the exit device when a vCPU did not count.
pub const FAILURE: u8 = 2;
/// How far each vCPU counts.
const COUNT: u64 = 1000;

/// What the architecture's part has found out and can do.
pub trait Machine: Write {
    /// Prints the processor's name.
    fn write_cpu_name(&mut self);
    /// Bytes of memory.
    fn memory(&self) -> u64;
    /// Number of vCPUs, the first one included.
    fn vcpus(&self) -> usize;
    /// Starts vCPU `index`, which then calls [`count`] with its index and halts.
    fn start(&mut self, index: usize);
    /// Lets a little time go by while another vCPU works.
    fn relax(&self);
    /// A clock's ticks.
    fn ticks(&self) -> u64;
    /// How many ticks another vCPU may take: about two seconds.
    fn patience(&self) -> u64;
    /// Switches the machine off.
    fn power_off(&mut self) -> !;
    /// Ends the run with [`FAILURE`] at the exit device.
    fn fail(&mut self) -> !;
}

// Each vCPU has a cell of its own: without caches and with the MMU off, an aarch64 vCPU may
// not use atomic read-modify-write instructions.
// SAFETY: nothing else has this name, by which a debugger's user finds it.
#[unsafe(no_mangle)]
static mut COUNTS: [u64; MAX_VCPUS] = [0; MAX_VCPUS];

/// Counts vCPU `index` to the end, one store at a time.
// SAFETY: as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count(index: usize) {
    // SAFETY: `index` is below `MAX_VCPUS` for every vCPU that `run` starts, and the bound is
    // checked all the same.
    let cell = unsafe { addr_of_mut!(COUNTS[index]) };
    for value in 1..=COUNT {
        // SAFETY: only this vCPU writes its cell.
        unsafe { write_volatile(cell, value) };
    }
}

fn counted(index: usize) -> u64 {
    // SAFETY: a volatile read of a cell that another vCPU may be writing, in one access.
    unsafe { read_volatile(addr_of!(COUNTS[index])) }
}

struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// The program.
pub fn run(machine: &mut impl Machine) -> ! {
    let _ = write!(machine, "Hello from a guest of vmm!\nCPU: ");
    machine.write_cpu_name();
    let _ = write!(machine, "\nMemory: {}\n", Size(machine.memory()));
    let vcpus = machine.vcpus().min(MAX_VCPUS);
    count(0);
    for index in 1..vcpus {
        machine.start(index);
        let start = machine.ticks();
        while counted(index) < COUNT && machine.ticks().wrapping_sub(start) < machine.patience() {
            machine.relax();
        }
        if counted(index) < COUNT {
            let _ = write!(machine, "vCPU {index} did not start\n");
        }
    }
    let total: u64 = (0..vcpus).map(counted).sum();
    let plural = if vcpus == 1 { "" } else { "s" };
    let _ = write!(machine, "{vcpus} vCPU{plural} counted to {total}\n");
    if total < vcpus as u64 * COUNT {
        machine.fail();
    }
    let _ = write!(machine, "Powering off.\n");
    machine.power_off()
}
