// An access to memory without RAM by an instruction that the hardware does not describe.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x10000000
    ldp x2, x3, [x1], #16
1:  wfi
    b 1b
