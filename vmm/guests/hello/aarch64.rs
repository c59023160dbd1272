//! The embedded guest on aarch64: entered at EL1 with the MMU off, X0 points to the device
//! tree.
#![no_std]
#![no_main]

#[path = "common.rs"]
mod common;

use common::Machine;
use core::arch::{asm, global_asm};
use core::fmt;
use core::ptr::{read_volatile, write_volatile};

global_asm!(
    "
    .section .start, \"ax\"
    .globl _start
_start:
    adrp x1, boot_stack_top
    add x1, x1, :lo12:boot_stack_top
    mov sp, x1
    bl {main}
1:  wfi
    b 1b

    .section .text
    // PSCI CPU_ON enters here with the index in x0.
    .globl secondary_start
secondary_start:
    adrp x1, secondary_stack_top
    add x1, x1, :lo12:secondary_stack_top
    mov sp, x1
    bl {secondary_main}
1:  wfi
    b 1b

    .section .bss
    .balign 16
    .skip 16384
boot_stack_top:
    .skip 4096
secondary_stack_top:
    ",
    main = sym main,
    secondary_main = sym secondary_main,
);

unsafe extern "C" {
    static secondary_start: u8;
}

const SERIAL: u64 = 0x0900_0000;
/// The exit device's word.
const EXIT: u64 = 0x0902_0000;
const PSCI_SYSTEM_OFF: u64 = 0x8400_0008;
const PSCI_CPU_ON: u64 = 0xc400_0003;

struct Virt {
    device_tree: u64,
}

impl fmt::Write for Virt {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the serial port's registers are there on every machine that runs this guest.
            unsafe {
                if byte == b'\n' {
                    write_volatile(SERIAL as *mut u8, b'\r');
                }
                write_volatile(SERIAL as *mut u8, byte);
            }
        }
        Ok(())
    }
}

fn big_endian(address: u64) -> u32 {
    // SAFETY: the address lies in the device tree, in RAM; the MMU is off.
    u32::from_be(unsafe { read_volatile(address as *const u32) })
}

fn bytes_at(address: u64, text: &[u8]) -> bool {
    // SAFETY: as above.
    text.iter()
        .enumerate()
        .all(|(index, byte)| unsafe { read_volatile((address + index as u64) as *const u8) } == *byte)
}

fn psci(function: u64, arguments: [u64; 3]) -> u64 {
    let result;
    // SAFETY: PSCI calls keep all registers but X0 to X3 (PSCI, 5.2.1), which are named.
    unsafe {
        asm!(
            "hvc #0",
            inlateout("x0") function => result,
            inlateout("x1") arguments[0] => _,
            inlateout("x2") arguments[1] => _,
            inlateout("x3") arguments[2] => _,
        );
    }
    result
}

impl Virt {
    /// Walks the flattened tree and calls `visit` for each `reg` property with whether it
    /// belongs to a memory node or to a CPU, and the address of its value. Devicetree
    /// Specification 0.4, section 5.4.
    fn registers(&self, mut visit: impl FnMut(Kind, u64)) {
        let (structure, strings) = (big_endian(self.device_tree + 8), big_endian(self.device_tree + 12));
        let mut at = self.device_tree + u64::from(structure);
        let strings = self.device_tree + u64::from(strings);
        let mut kind = Kind::Other;
        loop {
            let token = big_endian(at);
            at += 4;
            match token {
                1 => {
                    kind = if bytes_at(at, b"memory@") {
                        Kind::Memory
                    } else if bytes_at(at, b"cpu@") {
                        Kind::Cpu
                    } else {
                        Kind::Other
                    };
                    while !bytes_at(at, b"\0") {
                        at += 1;
                    }
                    at = (at + 4) & !3;
                }
                2 => kind = Kind::Other,
                3 => {
                    let (length, name) = (u64::from(big_endian(at)), u64::from(big_endian(at + 4)));
                    if bytes_at(strings + name, b"reg\0") {
                        visit(kind, at + 8);
                    }
                    at = (at + 8 + length + 3) & !3;
                }
                4 => {}
                _ => return,
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Memory,
    Cpu,
    Other,
}

fn wide(address: u64) -> u64 {
    u64::from(big_endian(address)) << 32 | u64::from(big_endian(address + 4))
}

impl Machine for Virt {
    fn write_cpu_name(&mut self) {
        use fmt::Write;
        let midr: u64;
        // SAFETY: EL1 may read its processor's name.
        unsafe { asm!("mrs {}, midr_el1", out(reg) midr) };
        let (implementer, part) = (midr >> 24 & 0xff, midr >> 4 & 0xfff);
        let (variant, revision) = (midr >> 20 & 0xf, midr & 0xf);
        let _ = write!(
            self,
            "aarch64, implementer {implementer:#04x} part {part:#05x} r{variant}p{revision}"
        );
    }

    fn memory(&self) -> u64 {
        let mut total = 0;
        self.registers(|kind, value| {
            if kind == Kind::Memory {
                total += wide(value + 8);
            }
        });
        total
    }

    fn vcpus(&self) -> usize {
        let mut count = 0;
        self.registers(|kind, _| count += usize::from(kind == Kind::Cpu));
        count.max(1)
    }

    fn start(&mut self, index: usize) {
        let (mut at, mut mpidr) = (0, 0);
        self.registers(|kind, value| {
            if kind == Kind::Cpu {
                if at == index {
                    mpidr = wide(value);
                }
                at += 1;
            }
        });
        psci(PSCI_CPU_ON, [mpidr, &raw const secondary_start as u64, index as u64]);
    }

    fn relax(&self) {
        // SAFETY: a hint.
        unsafe { asm!("yield") };
    }

    fn ticks(&self) -> u64 {
        let ticks;
        // SAFETY: every processor has the virtual counter.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks) };
        ticks
    }

    fn patience(&self) -> u64 {
        let frequency: u64;
        // SAFETY: as above.
        unsafe { asm!("mrs {}, cntfrq_el0", out(reg) frequency) };
        2 * frequency
    }

    fn fail(&mut self) -> ! {
        // SAFETY: a write where no device is does nothing.
        unsafe { write_volatile(EXIT as *mut u32, u32::from(common::FAILURE)) };
        self.power_off()
    }

    fn power_off(&mut self) -> ! {
        loop {
            psci(PSCI_SYSTEM_OFF, [0; 3]);
        }
    }
}

extern "C" fn main(device_tree: u64) -> ! {
    common::run(&mut Virt { device_tree })
}

extern "C" fn secondary_main(index: usize) {
    common::count(index);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    Virt { device_tree: 0 }.power_off()
}
