// Counts interrupts of the virtual timer (every 50 ms) and bytes that the serial port receives with an
// interrupt each. At a "q" it says how many there were, how far the counter has come meanwhile and its
// frequency, in hexadecimal, and switches off.
    .section .start, "ax"
    .globl _start
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    isb
    // GICv3: group 1 on with affinity routing; the redistributor awake, the virtual timer; SPI 0 to this vCPU.
    mov x1, #0x08000000
    mov w0, #0x12
    str w0, [x1]
    mov w0, #1
    str w0, [x1, #0x84]         // GICD_IGROUPR1
    mov w0, #2
    str w0, [x1, #0xc08]        // GICD_ICFGR2: an edge
    mov w0, #1
    str w0, [x1, #0x104]        // GICD_ISENABLER1
    mov x2, #0x6100
    str xzr, [x1, x2]           // GICD_IROUTER32
    movz x1, #0x080a, lsl #16
    str wzr, [x1, #0x14]
    movz x1, #0x080b, lsl #16
    mov w0, #-1
    str w0, [x1, #0x80]
    mov w0, #1
    lsl w0, w0, #27
    str w0, [x1, #0x100]
    mov x0, #1
    msr S3_0_C12_C12_5, x0      // ICC_SRE_EL1
    isb
    mov x0, #0xff
    msr S3_0_C4_C6_0, x0        // ICC_PMR_EL1
    mov x0, #1
    msr S3_0_C12_C12_7, x0      // ICC_IGRPEN1_EL1
    isb
    mov x20, #0                 // ticks
    mov x21, #0                 // bytes
    mov x22, #0                 // over
    mrs x23, cntfrq_el0
    mov x0, #20
    udiv x24, x23, x0           // counts of 50 ms
    mrs x25, cntvct_el0
    add x0, x25, x24
    msr cntv_cval_el0, x0
    mov x0, #1
    msr cntv_ctl_el0, x0
    mov x19, #0x09000000
    mov w0, #1
    strb w0, [x19, #1]
    mov w0, #8
    strb w0, [x19, #4]
    adr x1, ready
    bl print
1:  msr daifclr, #2
    wfi
    msr daifset, #2
    cbz x22, 1b
    mrs x0, cntvct_el0
    sub x25, x0, x25
    adr x1, text_timer
    mov x2, x20
    bl say
    adr x1, text_bytes
    mov x2, x21
    bl say
    adr x1, text_cycles
    mov x2, x25
    bl say
    adr x1, text_frequency
    mov x2, x23
    bl say
    movz x0, #0x8400, lsl #16   // PSCI SYSTEM_OFF
    movk x0, #8
    hvc #0
2:  wfi
    b 2b

on_interrupt:
    mrs x10, S3_0_C12_C12_0     // ICC_IAR1_EL1
    cmp x10, #27
    b.eq 3f
    cmp x10, #32
    b.ne 5f
4:  ldrb w11, [x19, #5]
    tbz w11, #0, 5f
    ldrb w11, [x19]
    add x21, x21, #1
    cmp w11, #'q'
    b.ne 4b
    mov x22, #1
    b 4b
3:  add x20, x20, #1
    mrs x11, cntv_cval_el0
    add x11, x11, x24
    msr cntv_cval_el0, x11
5:  msr S3_0_C12_C12_1, x10     // ICC_EOIR1_EL1
    eret

// Prints the text at X1 and then X2 in hexadecimal.
say:
    mov x9, x30
    bl print
    mov w3, #16
6:  ror x2, x2, #60
    and w0, w2, #15
    add w0, w0, #'0'
    cmp w0, #'9'
    b.ls 7f
    add w0, w0, #39
7:  strb w0, [x19]
    subs w3, w3, #1
    b.ne 6b
    ret x9
print:
    ldrb w0, [x1], #1
    cbz w0, 8f
    strb w0, [x19]
    b print
8:  ret

ready:
    .asciz "ready\n"
text_timer:
    .asciz "timer="
text_bytes:
    .asciz " bytes="
text_cycles:
    .asciz " cycles="
text_frequency:
    .asciz " frequency="
    .balign 2048
vectors:
    .rept 5
    b .
    .balign 128
    .endr
    b on_interrupt
    .balign 128
    .rept 10
    b .
    .balign 128
    .endr
    .section .bss
    .balign 16
    .skip 4096
stack_top:
