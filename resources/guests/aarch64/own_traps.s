// Uses BRK and software step itself, and checks what its handler sees. Ends the run with 0x20
// when all was as without a debugger, else with the number of the check that failed.
    .section .start, "ax"
    .globl _start, work, before_own, own_synchronous, own_step, failed, passed
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    isb
    bl work

    // brk #0 and brk #7: the handler sees its own address and immediate.
    mov w19, #1
    adr x20, own_brk
before_own:
    movz x21, #0xf200, lsl #16
own_brk:
    brk #0
    cmp x22, #1
    b.ne failed
    mov w19, #2
    adr x20, second_brk
    movk x21, #7
second_brk:
    brk #7
    cmp x22, #2
    b.ne failed

    // svc #3 for comparison: the handler returns behind it, so it must not be advanced.
    mov w19, #3
    adr x20, behind_svc
    movz x21, #0x5600, lsl #16
    movk x21, #3
    svc #3
behind_svc:
    cmp x22, #3
    b.ne failed

    // A step of its own, at EL1: one instruction behind the exception return.
own_step:
    mov w19, #4
    msr oslar_el1, xzr
    isb
    mrs x0, mdscr_el1
    mov x1, #0x2001
    orr x0, x0, x1
    msr mdscr_el1, x0
    isb
    adr x20, behind_step
    movz x21, #0xce00, lsl #16
    movk x21, #0x22
    // EL1h, everything but debug exceptions masked, one step.
    movz x0, #0x0020, lsl #16
    movk x0, #0x01c5
    msr spsr_el1, x0
    adr x0, stepped
    msr elr_el1, x0
    eret
stepped:
    nop
behind_step:
    cmp x22, #4
    b.ne failed
passed:
    mov w0, #0x20
    b report
failed:
    mov w0, w19
report:
    mov x1, #0x09020000
    str w0, [x1]
1:  wfi
    b 1b

work:
    nop
    ret

    .section .text, "ax"
    .balign 0x800
vectors:
    .skip 0x200
    // Current level with SP_EL1.
own_synchronous:
    add x22, x22, #1
    mrs x0, elr_el1
    cmp x0, x20
    b.ne bad
    mrs x0, esr_el1
    // A step says with ISV and EX what it stepped over; that does not matter here.
    lsr x2, x0, #26
    cmp x2, #0x33
    b.eq stepped_own
    cmp x0, x21
    b.ne bad
    // Behind a BRK; behind an SVC already.
    cmp x2, #0x3c
    b.ne back
    mrs x0, elr_el1
    add x0, x0, #4
    msr elr_el1, x0
    b back
stepped_own:
    mrs x0, mdscr_el1
    and x0, x0, #~1
    msr mdscr_el1, x0
    mrs x0, spsr_el1
    and x0, x0, #~0x200000
    msr spsr_el1, x0
back:
    eret
    .balign 0x80
    .skip 0x580
bad:
    b failed
    .section .bss
    .balign 16
    .skip 4096
stack_top:
