# Counts in a register for ever; entered by its PVH note or by a 64-bit entry, it is the same
# code in 32-bit and in 64-bit mode. What debugging is measured on.
    .section .start, "ax"
    .globl _start, again
_start:
    xor eax, eax
again:
    add eax, 1
    jmp again

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
