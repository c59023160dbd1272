// To EL0 by eret and back by svc. Ends with 1.
    adr x0, .Luser_mode_vectors
    msr vbar_el1, x0
    adr x0, .Luser_mode_user
    msr elr_el1, x0
    mov x0, #0x3c0              // EL0, everything masked
    msr spsr_el1, x0
    isb
    eret
.Luser_mode_user:
    mov x5, #0x1234
    svc #7
1:  b 1b
    .balign 2048
.Luser_mode_vectors:
    .skip 0x400                 // lower EL, AArch64, synchronous
    mrs x0, esr_el1
    mov w1, #0x0007
    movk w1, #0x5600, lsl #16   // EC 0x15, IL, immediate 7
    cmp w0, w1
    mov w0, #1
    mov w1, #2
    csel w0, w0, w1, eq
    mov x1, #0x09020000
    str w0, [x1]
2:  wfi
    b 2b
