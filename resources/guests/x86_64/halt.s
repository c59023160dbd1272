# Halts with interrupts off.
    .section .start, "ax"
    .globl _start
_start:
    cli
    hlt
    jmp _start
