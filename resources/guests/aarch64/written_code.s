// Says "ready", reads four bytes of code by Xen's console to where there is other code, sends them back, and runs
// them; the run ends with 0x10 at the exit device.
    .section .start, "ax"
    .globl _start, place
    .macro xen number
    mov x16, #\number
    hvc #0xea1
    .endm
_start:
    mov x0, #0
    mov x1, #6
    adr x2, ready
    xen 18
1:  mov x0, #1
    mov x1, #4
    adr x2, place
    xen 18
    cmp w0, #4
    b.ne 1b
    mov x0, #0
    mov x1, #4
    adr x2, place
    xen 18
    ic iallu
    dsb sy
    isb
    bl place
    mov x1, #0x09020000
    mov w0, #0x10
    str w0, [x1]
1:  wfi
    b 1b
ready:
    .ascii "ready\n"
    .balign 16
place:
    mov x0, x0
    ret
    .balign 8
