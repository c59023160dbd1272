// Prints 6,000 characters, and ends with a code.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09000000
    ldr w2, =6000
    mov w0, #'x'
1:  strb w0, [x1]
    subs w2, w2, #1
    b.ne 1b
    mov x1, #0x09020000
    mov w0, #0x20
    str w0, [x1]
2:  wfi
    b 2b
    .ltorg
