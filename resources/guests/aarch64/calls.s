// Leaves to the monitor many times, by an access to a device and by a hypercall, with a byte on the
// console before, between and behind; five rounds. What hypercalls are measured on.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09000000
    mov w5, #5
round:
    mov w0, #'a'
    strb w0, [x1]
    mov w4, #4000
1:  strb w0, [x1, #7]           // the serial port's scratch register
    subs w4, w4, #1
    b.ne 1b
    mov w0, #'b'
    strb w0, [x1]
    mov x16, #17
    mov w4, #4000
1:  mov x0, #0
    hvc #0xea1
    subs w4, w4, #1
    b.ne 1b
    mov x1, #0x09000000
    mov w0, #'c'
    strb w0, [x1]
    subs w5, w5, #1
    b.ne round
    mov x1, #0x09020000
    mov w0, #0x20
    str w0, [x1]
1:  wfi
    b 1b
