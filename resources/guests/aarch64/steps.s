// One of each instruction that is hard to step, between labels at_X and after_X: a step from the
// one lands on the other. An interrupt is pending from the first of them on, and is delivered
// at the end only, where interrupts are on. Ends the run with 0x20 when what the instructions saw
// and left is as it should be, else with the number of the check that failed.
    .section .start, "ax"
    .globl _start, failed
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    isb
    // GICv3: group 1 on, the redistributor awake, SGI 3 enabled, and sent to this vCPU.
    mov x1, #0x08000000
    mov w0, #0x12
    str w0, [x1]
    movz x1, #0x080a, lsl #16
    str wzr, [x1, #0x14]
    movz x1, #0x080b, lsl #16
    mov w0, #-1
    str w0, [x1, #0x80]
    mov w0, #8
    str w0, [x1, #0x100]
    mov x0, #1
    msr S3_0_C12_C12_5, x0      // ICC_SRE_EL1
    isb
    mov x0, #0xff
    msr S3_0_C4_C6_0, x0        // ICC_PMR_EL1
    mov x0, #1
    msr S3_0_C12_C12_7, x0      // ICC_IGRPEN1_EL1
    isb
    movz x0, #0x0300, lsl #16
    movk x0, #1
    msr S3_0_C12_C11_5, x0      // ICC_SGI1R_EL1
    isb
    mov x28, #0

    .globl at_open, after_open, at_read, after_read, at_close, after_close
at_open:
    msr daifclr, #2
after_open:
    nop
at_read:
    mrs x0, daif
after_read:
    msr daifset, #2
after_close:
    tst x0, #0x80
    mov w19, #1
    b.ne failed

    // Exclusives: the store succeeds.
    .globl at_exclusive, after_exclusive
    adrp x1, word
    add x1, x1, :lo12:word
    mov w2, #1
at_exclusive:
    ldxr w0, [x1]
    add w0, w0, #1
    stxr w2, w0, [x1]
after_exclusive:
    mov w19, #2
    cbnz w2, failed

    // One whose load faults.
    .globl at_exclusive_fault, behind_exclusive_fault
    movz x1, #0xffff, lsl #48
    adr x27, behind_exclusive_fault
at_exclusive_fault:
    ldxr w0, [x1]
    add w0, w0, #1
    stxr w2, w0, [x1]
behind_exclusive_fault:

    .globl at_wfi, after_wfi
at_wfi:
    wfi
after_wfi:

    // A fault, whose handler goes on behind it.
    .globl at_fault, after_fault, behind_fault
    adr x27, behind_fault
at_fault:
    udf #0
behind_fault:
    // To EL0 and back.
    .globl at_eret, after_eret, at_svc, after_svc
    mov x0, #0x3c0
    msr spsr_el1, x0
    adr x0, after_eret
    msr elr_el1, x0
at_eret:
    eret
after_eret:
    nop
at_svc:
    svc #0
on_lower:
    mrs x0, spsr_el1
    movz x2, #0x20, lsl #16
    movk x2, #0x3c0
    and x0, x0, x2
    mov w19, #3
    cmp x0, #0x3c0
    b.ne failed
    // The interrupt has waited, and comes now.
    mov w19, #4
    cbnz x28, failed
    msr daifclr, #2
    nop
    isb
    msr daifset, #2
    mov w19, #5
    cmp x28, #1
    b.ne failed
    mov w0, #0x20
    b report
failed:
    mov w0, w19
report:
    mov x1, #0x09020000
    str w0, [x1]
1:  wfi
    b 1b

on_fault:
    mrs x0, spsr_el1
    movz x2, #0x20, lsl #16
    movk x2, #0x3c0
    and x0, x0, x2
    mov w19, #6
    cmp x0, #0x3c0
    b.ne failed
    msr elr_el1, x27
    eret
on_interrupt:
    mrs x0, S3_0_C12_C12_0      // ICC_IAR1_EL1
    msr S3_0_C12_C12_1, x0      // ICC_EOIR1_EL1
    add x28, x28, #1
    eret

    .balign 8
word:
    .word 7
    .section .text, "ax"
    .balign 0x800
vectors:
    .skip 0x200
after_fault:
    b on_fault
    .balign 0x80
    b on_interrupt
    .balign 0x80
    .skip 0x100
after_svc:
    b on_lower
    .balign 0x80
    .skip 0x380
    .section .bss
    .balign 16
    .skip 4096
stack_top:
