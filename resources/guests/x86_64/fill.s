# Writes to each page of 200 MiB of memory, from 16 MiB on, says so, and waits. Entered by its PVH note or by
# a 64-bit entry: what is done is the same in 32-bit code. What dumps are measured on.
    .section .start, "ax"
    .globl _start
_start:
    mov edi, 0x1000000
    mov ecx, 200 * 256
    mov eax, 0x5a5a5a5a
1:  stosd
    add edi, 4092
    sub ecx, 1
    jnz 1b
    mov edx, 0x3f8
    mov al, 'b'
    out dx, al
2:  pause
    jmp 2b

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
