// Accesses memory where nothing is by instructions that the hardware does not describe to KVM: a load and a store
// that also change their base. Each is an external abort; then it ends the run with 3.
    .section .start, "ax"
    .globl _start
_start:
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    isb
    mov w20, #1
    mov x1, #0x0a000000
    ldr w0, [x1], #4
    mov x1, #0x0a000000
    str w0, [x1, #8]!
    mov x1, #0x09020000
    str w20, [x1]
1:  wfi
    b 1b
on_abort:
    // A data abort from the same level, external (ESR_EL1.EC, DFSC).
    mrs x2, esr_el1
    lsr x3, x2, #26
    cmp x3, #0x25
    b.ne 2f
    and x3, x2, #0x3f
    cmp x3, #0x10
    b.ne 2f
    add w20, w20, #1
2:  mrs x2, elr_el1
    add x2, x2, #4
    msr elr_el1, x2
    eret
    .balign 2048
vectors:
    .rept 4
    b .
    .balign 128
    .endr
    b on_abort
    .balign 128
    .rept 11
    b .
    .balign 128
    .endr
