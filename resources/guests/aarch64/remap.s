// Maps a page at `alias` in turn to two pages of code, calls it each time, and calls the first of
// them by a second name. Ends the run with the sum of what the calls return at the exit device.
    .section .start, "ax"
    .globl _start
    .equ alias, 0x140000000
_start:
    adrp x1, stack_top
    mov sp, x1
    // 39 bits by pages of 4 KiB: devices below 1 GiB, RAM at it, and a table of pages at 5 GiB.
    adrp x1, level1
    mov x2, #0x405              // device memory, accessed
    movk x2, #0x40, lsl #48     // never executed
    str x2, [x1]
    mov x2, #0x701              // RAM, inner shareable
    movk x2, #0x4000, lsl #16
    str x2, [x1, #8]
    adrp x2, level2
    orr x2, x2, #3
    str x2, [x1, #40]
    adrp x2, level3
    orr x3, x2, #3
    adrp x4, level2
    str x3, [x4]
    mov x5, #0x00ff             // attribute 0: write-back; 1: device
    msr mair_el1, x5
    ldr x5, =0x100803519        // 39 bits, write-back tables, no upper half, 36-bit addresses
    msr tcr_el1, x5
    msr ttbr0_el1, x1
    isb
    mrs x5, sctlr_el1
    mov x6, #0x1005
    orr x5, x5, x6
    msr sctlr_el1, x5
    isb
    adrp x8, one
    adrp x9, two
    mov x6, #0x703
    orr x8, x8, x6
    orr x9, x9, x6
    ldr x20, =alias
    mov x19, #0
    // To the first page, the second, the first by another name, and the first again.
    str x8, [x2]
    bl enter
    str xzr, [x2]
    bl flush
    str x9, [x2]
    bl enter
    str x8, [x2, #8]
    add x20, x20, #0x1000
    bl enter
    sub x20, x20, #0x1000
    str xzr, [x2]
    bl flush
    str x8, [x2]
    bl enter
    mov x1, #0x09020000
    str w19, [x1]
1:  wfi
    b 1b
enter:
    mov x21, x30
    bl flush
    blr x20
    add x19, x19, x0
    ret x21
flush:
    dsb ish
    tlbi vmalle1
    dsb ish
    ic iallu
    dsb ish
    isb
    ret

    .balign 4096
one:
    mov x0, #1
    ret
    .balign 4096
two:
    mov x0, #16
    ret
    .balign 8

    .section .bss
    .balign 4096
level1:
    .skip 4096
level2:
    .skip 4096
level3:
    .skip 4096
    .skip 4096
stack_top:
