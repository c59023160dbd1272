// Prints the last line of a kernel that has panicked, again and again.
    .section .start, "ax"
    .globl _start
_start:
    mov x2, #0x09000000
1:  adr x1, line
2:  ldrb w0, [x1], #1
    cbz w0, 1b
    strb w0, [x2]
    b 2b
line:
    .asciz "---[ end Kernel panic - not syncing: why ]---\n"
