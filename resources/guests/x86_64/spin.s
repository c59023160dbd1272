# Spins for ever without leaving the guest.
    .section .start, "ax"
    .globl _start
_start:
    jmp _start
