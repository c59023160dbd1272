// The guest's own BRK at EL1, with a vector. Ends with 1.
    adr x0, .Lbrk_vectors
    msr vbar_el1, x0
    isb
.Lbrk_here:
    brk #0x123
    mov w0, #2
    b .Lbrk_exit
    .balign 2048
.Lbrk_vectors:
    .skip 0x200                 // current EL with SPx, synchronous
    mrs x0, esr_el1
    mov w1, #0x0123
    movk w1, #0xf200, lsl #16   // EC 0x3c, IL, comment 0x123
    cmp w0, w1
    b.ne 1f
    mrs x0, elr_el1
    adr x1, .Lbrk_here
    cmp x0, x1
    b.ne 1f
    mov w0, #1
    b .Lbrk_exit
1:  mov w0, #3
.Lbrk_exit:
    mov x1, #0x09020000
    str w0, [x1]
2:  wfi
    b 2b
