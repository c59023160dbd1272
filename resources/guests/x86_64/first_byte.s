# A PVH kernel whose first instructions send one byte to the console, then end the run: for
# measuring how long a monitor takes to get there.
    .section .start, "ax"
    .globl _start
_start:
    .code32
    mov edx, 0x3f8
    mov al, '!'
    out dx, al
    mov al, 0
    out 0xf4, al
1:  hlt
    jmp 1b
    .code64

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
