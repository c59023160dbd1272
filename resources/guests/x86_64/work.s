# Works for a while between an "a" and a "b" on the console: additions, and now and then an
# access to the serial port's scratch register. Entered by its PVH note or by a 64-bit entry.
    .section .start, "ax"
    .globl _start
_start:
    mov edx, 0x3f8
    mov al, 'a'
    out dx, al
    mov edx, 0x3ff
    mov ebx, 5000
outer:
    mov ecx, 200
inner:
    sub ecx, 1
    jnz inner
    out dx, al
    sub ebx, 1
    jnz outer
    mov edx, 0x3f8
    mov al, 'b'
    out dx, al
    mov al, 0
    out 0xf4, al
1:  hlt
    jmp 1b

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
