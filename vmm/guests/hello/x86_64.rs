//! The embedded guest on x86_64: entered by the 64-bit Linux boot protocol, RSI points to
//! the boot parameters.
#![allow(bad_asm_style, reason = "LLVM has no Intel syntax for a far jump with a 32-bit offset")]
#![no_std]
#![no_main]

#[path = "common.rs"]
mod common;

use common::Machine;
use core::arch::{asm, global_asm};
use core::fmt;
use core::ptr::{copy_nonoverlapping, read_unaligned, write_volatile};

// The first vCPU arrives in 64-bit mode. The others start in real mode at the page that the
// start-up interrupt names; they walk to 64-bit mode with the first one's page tables.
global_asm!(
    "
    .section .start, \"ax\"
    .globl _start
_start:
    lea rsp, [rip + boot_stack_top]
    mov rdi, rsi
    call {main}

    .section .text
    .globl trampoline, trampoline_end
    .set at_gdt_pointer, {PAGE} + trampoline_gdt_pointer - trampoline
    .set at_32, {PAGE} + trampoline_32 - trampoline
    .set at_64, {PAGE} + trampoline_64 - trampoline
    .set at_cr3, {PAGE} + trampoline_cr3 - trampoline
    .set at_index, {PAGE} + trampoline_index - trampoline
    .code16
trampoline:
    cli
    xor ax, ax
    mov ds, ax
    lgdt [at_gdt_pointer]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .att_syntax prefix
    ljmpl $0x18, $at_32
    .intel_syntax noprefix
    .code32
trampoline_32:
    mov ax, 0x10
    mov ds, ax
    mov ss, ax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, [at_cr3]
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .att_syntax prefix
    ljmpl $0x8, $at_64
    .intel_syntax noprefix
    .code64
trampoline_64:
    lea rsp, [ap_stack_top]
    mov rdi, [at_index]
    mov rax, offset {ap_main}
    call rax
1:  hlt
    jmp 1b
    .balign 8
trampoline_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
trampoline_gdt_pointer:
    .short 31
    .long {PAGE} + trampoline_gdt - trampoline
    .balign 8
    .globl trampoline_cr3, trampoline_index
trampoline_cr3: .quad 0
trampoline_index: .quad 0
trampoline_end:

    .section .bss
    .balign 16
    .skip 16384
boot_stack_top:
    .skip 4096
ap_stack_top:
    ",
    main = sym main,
    ap_main = sym ap_main,
    PAGE = const TRAMPOLINE_PAGE,
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static trampoline_cr3: u8;
    static trampoline_index: u8;
}

/// Where the start-up code of the other vCPUs goes: free memory below 64 KiB.
const TRAMPOLINE_PAGE: u64 = 0x1000;
const LOCAL_APIC: u64 = 0xfee0_0000;
const COM1: u16 = 0x3f8;
const ACPI_SLEEP_CONTROL: u16 = 0x600;

struct Pc {
    boot_parameters: u64,
}

fn outb(port: u16, value: u8) {
    // SAFETY: the guest owns the machine; writes to its ports touch no memory of this program.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn read<T: Copy>(address: u64) -> T {
    // SAFETY: every address comes from the firmware's tables, which lie in RAM that is mapped
    // to itself and holds plain numbers.
    unsafe { read_unaligned(address as *const T) }
}

impl fmt::Write for Pc {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                outb(COM1, b'\r');
            }
            outb(COM1, byte);
        }
        Ok(())
    }
}

impl Pc {
    /// Calls `visit` with the address of each local APIC entry of the MADT.
    fn local_apics(&self, mut visit: impl FnMut(u64)) {
        let rsdp: u64 = read(self.boot_parameters + 0x70);
        if rsdp == 0 {
            return;
        }
        let xsdt: u64 = read(rsdp + 24);
        let length: u32 = read(xsdt + 4);
        for entry in (36..u64::from(length)).step_by(8) {
            let table: u64 = read(xsdt + entry);
            if &read::<[u8; 4]>(table) != b"APIC" {
                continue;
            }
            let end = table + u64::from(read::<u32>(table + 4));
            let mut structure = table + 44;
            while structure < end {
                if read::<u8>(structure) == 0 {
                    visit(structure);
                }
                structure += u64::from(read::<u8>(structure + 1)).max(2);
            }
        }
    }

    fn interrupt_command(&self, apic_id: u32, command: u32) {
        // SAFETY: the local APIC's page is mapped to itself, and only this vCPU uses its own.
        unsafe {
            write_volatile((LOCAL_APIC + 0x310) as *mut u32, apic_id << 24);
            write_volatile((LOCAL_APIC + 0x300) as *mut u32, command);
        }
    }
}

impl Machine for Pc {
    fn write_cpu_name(&mut self) {
        use fmt::Write;
        let mut name = [0u8; 48];
        if cpuid(0x8000_0000).eax >= 0x8000_0004 {
            for leaf in 0..3u32 {
                let answer = cpuid(0x8000_0002 + leaf);
                for (index, word) in [answer.eax, answer.ebx, answer.ecx, answer.edx].into_iter().enumerate() {
                    let at = leaf as usize * 16 + index * 4;
                    name[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let text = core::str::from_utf8(&name[..end]).unwrap_or("?").trim();
        let _ = self.write_str(if text.is_empty() { "x86_64" } else { text });
    }

    fn memory(&self) -> u64 {
        let entries: u8 = read(self.boot_parameters + 0x1e8);
        let mut top = 0;
        for index in 0..u64::from(entries) {
            let entry = self.boot_parameters + 0x2d0 + index * 20;
            let (start, size, kind): (u64, u64, u32) = (read(entry), read(entry + 8), read(entry + 16));
            // The legacy region below 1 MiB is memory, too, but not free.
            if kind == 1 && start >= 0x10_0000 {
                top += size + if start == 0x10_0000 { start } else { 0 };
            }
        }
        top
    }

    fn vcpus(&self) -> usize {
        let mut count = 0;
        self.local_apics(|_| count += 1);
        count.max(1)
    }

    fn start(&mut self, index: usize) {
        let mut apic_id = 0;
        let mut at = 0;
        self.local_apics(|structure| {
            if at == index {
                apic_id = u32::from(read::<u8>(structure + 3));
            }
            at += 1;
        });
        // SAFETY: the page is free RAM that nothing else uses, the other vCPU is not running yet,
        // and the symbols are the bounds of what is copied.
        unsafe {
            let start = &raw const trampoline;
            let length = (&raw const trampoline_end) as usize - start as usize;
            copy_nonoverlapping(start, TRAMPOLINE_PAGE as *mut u8, length);
            let place = |field: *const u8| (TRAMPOLINE_PAGE + (field as u64 - start as u64)) as *mut u64;
            let cr3: u64;
            asm!("mov {}, cr3", out(reg) cr3);
            write_volatile(place(&raw const trampoline_cr3), cr3);
            write_volatile(place(&raw const trampoline_index), index as u64);
        }
        // Only an enabled local APIC sends interrupts (Intel SDM vol. 3, "Spurious-Interrupt
        // Vector Register"). On KVM it is this write that makes the last vCPU reachable.
        // SAFETY: as for the interrupt command register.
        unsafe { write_volatile((LOCAL_APIC + 0xf0) as *mut u32, 0x1ff) };
        // Intel SDM vol. 3, "Typical BSP Initialization Sequence": INIT, then the start-up
        // interrupt twice, for a processor that was not ready for the first.
        self.interrupt_command(apic_id, 0x4500); // INIT, assert
        for _ in 0..2 {
            for _ in 0..10_000 {
                self.relax();
            }
            self.interrupt_command(apic_id, 0x4600 | (TRAMPOLINE_PAGE >> 12) as u32);
        }
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }

    fn ticks(&self) -> u64 {
        // SAFETY: every processor with 64-bit mode has RDTSC.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    fn patience(&self) -> u64 {
        // The frequency is not known; it is between one and five GHz.
        5_000_000_000
    }

    fn fail(&mut self) -> ! {
        outb(EXIT, common::FAILURE);
        self.power_off()
    }

    fn power_off(&mut self) -> ! {
        loop {
            outb(ACPI_SLEEP_CONTROL, 5 << 2 | 1 << 5);
            // SAFETY: the machine is off, or this vCPU has nothing more to do.
            unsafe { asm!("cli; hlt") };
        }
    }
}

/// The exit device's port.
const EXIT: u16 = 0xf4;

extern "C" fn main(boot_parameters: u64) -> ! {
    common::run(&mut Pc { boot_parameters })
}

extern "C" fn ap_main(index: usize) {
    common::count(index);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    Pc { boot_parameters: 0 }.power_off()
}

/// A leaf of the processor's CPUID.
#[allow(unused_unsafe, reason = "the intrinsic is safe in newer compilers, and unsafe in the oldest one")]
fn cpuid(leaf: u32) -> core::arch::x86_64::CpuidResult {
    // SAFETY: every x86-64 processor has the instruction, and it changes nothing but its results.
    unsafe { core::arch::x86_64::__cpuid(leaf) }
}
