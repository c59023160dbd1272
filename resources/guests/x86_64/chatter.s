# Prints 6,000 characters, and ends with a code.
    .section .start, "ax"
    .globl _start
_start:
    mov ecx, 6000
    mov dx, 0x3f8
    mov al, 'x'
1:  out dx, al
    dec ecx
    jnz 1b
    mov al, 0x20
    out 0xf4, al
2:  hlt
    jmp 2b
