// Says that a crash kernel takes over, and writes to memory where nothing is, for ever.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09030000
    mov x2, #0x10000000
    mov w0, #2
1:  strb w0, [x1]
    str w0, [x2]
    b 1b
