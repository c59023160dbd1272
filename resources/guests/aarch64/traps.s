// Raises the exceptions that debuggers meddle with, from EL1 and from EL0, and prints on the
// console what its handlers see: a line for each, the same whether a debugger is attached or
// not. Ends the run with 0x20.
    .section .start, "ax"
    .globl _start, work, kernel_part, user_part, own_steps, watched, kernel_target, user_target
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    msr oslar_el1, xzr
    isb
    bl work

kernel_part:
    adr x20, kernel_target
    bl arm
    brk #0
    brk #0x123
    svc #5
    msr daifclr, #8
kernel_target:
    nop
    adr x1, watched
    str w1, [x1]
    nop
    msr daifset, #8
    bl disarm

    adr x20, user_target
    bl arm
    // To EL0, with debug exceptions unmasked.
    msr spsr_el1, xzr
    adr x0, user
    msr elr_el1, x0
    adrp x1, user_stack_top
    add x1, x1, :lo12:user_stack_top
    msr sp_el0, x1
    eret
user:
    bl work
user_part:
    brk #0
    brk #0x321
user_target:
    nop
    adr x1, watched
    str w1, [x1]
    nop
    svc #7
    // Back at EL1, by the handler.
back:
    bl disarm

    // Steps of its own, at EL1 and at EL0.
own_steps:
    mrs x0, mdscr_el1
    mov x1, #0x2001
    orr x0, x0, x1
    msr mdscr_el1, x0
    isb
    movz x0, #0x0020, lsl #16
    movk x0, #0x01c5
    msr spsr_el1, x0
    adr x0, stepped
    msr elr_el1, x0
    eret
stepped:
    nop
    nop
    msr daifset, #8
    movz x0, #0x0020, lsl #16
    msr spsr_el1, x0
    adr x0, user_stepped
    msr elr_el1, x0
    mrs x0, mdscr_el1
    orr x0, x0, #1
    msr mdscr_el1, x0
    isb
    eret
user_stepped:
    nop
    svc #9
end:
    mov w0, #0x20
    mov x1, #0x09020000
    str w0, [x1]
1:  wfi
    b 1b

work:
    nop
    ret

// Arms breakpoint 0 for the instruction at X20 and watchpoint 0 for a word written at `watched`.
arm:
    msr dbgbvr0_el1, x20
    mov x0, #0x1e7
    msr dbgbcr0_el1, x0
    adr x0, watched
    msr dbgwvr0_el1, x0
    mov x0, #0x1f7
    msr dbgwcr0_el1, x0
    mrs x0, mdscr_el1
    mov x1, #0xa000
    orr x0, x0, x1
    msr mdscr_el1, x0
    isb
    ret
disarm:
    msr dbgbcr0_el1, xzr
    msr dbgwcr0_el1, xzr
    mrs x0, mdscr_el1
    mov x1, #0xa000
    bic x0, x0, x1
    msr mdscr_el1, x0
    isb
    ret

    .balign 8
watched:
    .quad 0

// Prints offset of the vector, ESR, ELR, SPSR and FAR (of a watchpoint), and goes on behind
// what traps.
handle:
    mrs x0, esr_el1
    bl hex
    mrs x0, elr_el1
    bl hex
    mrs x0, spsr_el1
    bl hex
    mrs x2, esr_el1
    lsr x2, x2, #26
    and x0, x2, #0x3e
    cmp x0, #0x34
    mrs x0, far_el1
    csel x0, x0, xzr, eq
    bl hex
    mov x1, #0x09000000
    mov w0, #10
    strb w0, [x1]
    mrs x0, elr_el1
    cmp x2, #0x15           // SVC: from EL0 it goes on at EL1
    b.eq called
    and x3, x2, #0x3e
    cmp x3, #0x3c           // BRK: behind it
    b.eq behind
    cmp x3, #0x30           // Breakpoint: once
    b.eq off_breakpoint
    cmp x3, #0x34           // Watchpoint: once
    b.eq off_watchpoint
    cmp x3, #0x32           // Step: once
    b.eq off_step
    b end
called:
    mrs x3, spsr_el1
    tst x3, #15
    b.ne go                 // from EL1: behind it already
    mov x3, #0x3c5
    msr spsr_el1, x3
    b go
behind:
    add x0, x0, #4
    msr elr_el1, x0
    b go
off_breakpoint:
    msr dbgbcr0_el1, xzr
    isb
    b go
off_watchpoint:
    msr dbgwcr0_el1, xzr
    isb
    b go
off_step:
    mrs x0, mdscr_el1
    bic x0, x0, #1
    msr mdscr_el1, x0
    mrs x0, spsr_el1
    bic x0, x0, #0x200000
    msr spsr_el1, x0
    isb
go:
    eret

// Prints the lower half of X0 in hexadecimal.
hex:
    mov w4, #8
    mov x1, #0x09000000
1:  ror w0, w0, #28
    and w3, w0, #15
    cmp w3, #10
    add w5, w3, #48
    add w6, w3, #87
    csel w5, w5, w6, lo
    strb w5, [x1]
    subs w4, w4, #1
    b.ne 1b
    mov w5, #32
    strb w5, [x1]
    ret

    .section .text, "ax"
    .macro vector
    .balign 0x80
    adr x7, .
    and x0, x7, #0x7ff
    bl hex
    b handle
    .endm
    .balign 0x800
vectors:
    .rept 16
    vector
    .endr
    .section .bss
    .balign 16
    .skip 4096
stack_top:
    .skip 4096
user_stack_top:
