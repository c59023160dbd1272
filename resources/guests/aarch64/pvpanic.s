// Says by the device for panics that it has panicked; without one it ends with a code.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09030000
    ldrb w0, [x1]
    cmp w0, #3
    b.ne 1f
    mov w0, #1
    strb w0, [x1]
1:  mov x1, #0x09020000
    mov w0, #0x10
    str w0, [x1]
2:  wfi
    b 2b
