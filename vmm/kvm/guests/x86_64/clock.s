# Says again and again what the time-stamp counter is: the lower half, then the upper one.
    .section .start, "ax"
    .globl _start
_start:
    rdtsc
    out 0xf4, eax
    mov eax, edx
    out 0xf4, eax
    jmp _start
