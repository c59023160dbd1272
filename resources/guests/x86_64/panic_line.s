# Prints the last line of a kernel that has panicked, again and again.
    .section .start, "ax"
    .globl _start
_start:
    lea rsi, [rip + line]
    mov dx, 0x3f8
1:  lodsb
    test al, al
    jz _start
    out dx, al
    jmp 1b
line:
    .asciz "---[ end Kernel panic - not syncing: why ]---\n"
