// Has events delivered by the private interrupt that it has chosen, through a GICv3: one that it sends to
// itself, and its timer's, for which it waits, and polls. Ends with a crash if one does not come. The
// interrupt is a level, and may come again before it is lowered, which ends a wait as well.
    .section .start, "ax"
    .globl _start
    .equ distributor, 0x08000000
    .equ redistributor, 0x080a0000
    .equ private, redistributor + 0x10000
    .equ shared, 0x40301000
    .macro xen number
    mov x16, #\number
    hvc #0xea1
    .endm
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    adr x1, vectors
    msr vbar_el1, x1
    // Affinity routing and group 1; private interrupt 31 in group 1, on.
    ldr x1, =distributor
    mov w2, #0x12
    str w2, [x1]
    ldr x1, =redistributor
    ldr w2, [x1, #0x14]
    and w2, w2, #~2
    str w2, [x1, #0x14]
    ldr x1, =private
    mov w2, #-1
    str w2, [x1, #0x80]
    mov w2, #0x80000000
    str w2, [x1, #0x100]
    mov x2, #7
    msr icc_sre_el1, x2
    isb
    mov x2, #0xff
    msr icc_pmr_el1, x2
    mov x2, #1
    msr icc_igrpen1_el1, x2
    isb
    msr daifclr, #2
    // The shared page, the interrupt, a port to itself, an event.
    mov x0, #7
    adr x1, add_page
    xen 12
    mov x0, #0
    adr x1, callback
    xen 34
    mov x0, #7
    adr x1, ipi
    xen 32
    mov x0, #4
    adr x1, ipi + 4
    xen 32
    nop
    nop
    ldr w9, count
    cmp w9, #1
    b.ne bad
    // Its timer ends a wait; it is looked at before the interrupt is taken.
    msr daifset, #2
    mov x0, #1
    adr x1, virq
    xen 32
    bl set_timer
    mov w9, #5
3:  subs w9, w9, #1
    b.mi bad
    mov x0, #1
    xen 29
    ldr x1, =shared
    ldr x0, [x1, #48]
    cbz x0, 3b
    msr daifclr, #2
    nop
    ldr w9, count
    cmp w9, #2
    b.ne bad
    // Masked, its timer ends a poll.
    ldr x1, =shared
    mov w0, #4
    strb w0, [x1, #560]
    bl set_timer
2:  mov x0, #3
    adr x1, poll
    xen 29
    cbnz x0, bad
    ldr x1, =shared
    ldr x0, [x1, #48]
    tbz x0, #2, 2b
    b 1f
bad:
    // The end.
    mov w9, #3
    adr x1, shutdown
    str w9, [x1]
1:  mov x0, #2
    adr x1, shutdown
    xen 29
1:  wfi
    b 1b

// In 50 ms.
set_timer:
    mov x0, #10
    adr x1, time
    xen 34
    ldr x0, time
    ldr x1, =50000000
    add x0, x0, x1
    adr x2, time
    str x0, [x2]
    mov x0, #8
    mov x1, #0
    xen 24
    ret

on_interrupt:
    stp x0, x1, [sp, #-16]!
    mrs x0, icc_iar1_el1
    msr icc_eoir1_el1, x0
    cmp x0, #31
    b.ne 1f
    // Counted if there is an event.
    ldr x1, =shared
    ldr x0, [x1, #48]
    cbz x0, 1f
    adr x1, count
    ldr w0, [x1]
    add w0, w0, #1
    str w0, [x1]
    // Nothing is pending any more.
    ldr x1, =shared
    str xzr, [x1]
    str xzr, [x1, #8]
    str xzr, [x1, #48]
1:  ldp x0, x1, [sp], #16
    eret

    .balign 2048
vectors:
    .skip 0x280
    b on_interrupt
    .balign 2048
    .ltorg
add_page:
    .hword 0x7ff0, 0
    .word 0
    .quad 0, shared >> 12
callback:
    .hword 0x7ff0, 0
    .word 0
    .quad 2 << 56 | 31
ipi:
    .word 0, 0
virq:
    .word 0, 0, 0
    .balign 8
poll:
    .quad virq + 8, 1, 0
time:
    .quad 0, 0
shutdown:
    .word 0
count:
    .word 0
    .balign 8

    .section .bss
    .balign 16
    .skip 4096
stack_top:
