// Counts in a register for ever. What debugging is measured on.
    .section .start, "ax"
    .globl _start, again
_start:
    mov x0, #0
again:
    add x0, x0, #1
    b again
