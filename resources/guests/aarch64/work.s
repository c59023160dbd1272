// Works for a while between an "a" and a "b" on the console: additions, and now and then an
// access to the serial port. Our 16550's scratch register is where the PL011 of QEMU's virt
// machine ignores a byte.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09000000
    mov w0, #'a'
    strb w0, [x1]
    mov w2, #5000
outer:
    mov w3, #200
inner:
    subs w3, w3, #1
    b.ne inner
    strb w0, [x1, #7]
    subs w2, w2, #1
    b.ne outer
    mov w0, #'b'
    strb w0, [x1]
    ldr x0, =0x84000008
    hvc #0
1:  wfi
    b 1b
    .balign 8
