# An undefined instruction without an interrupt table.
    .section .start, "ax"
    .globl _start
_start:
    ud2
