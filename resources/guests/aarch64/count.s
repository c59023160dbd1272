// Counts in memory, a call at a time, and ends the run with 0x20 at the exit device. What the
// debugger's cases put breakpoints and watchpoints on.
    .section .start, "ax"
    .globl _start, again, work, done
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    mov x19, #0
    movz x20, #0x86a0
    movk x20, #1, lsl #16
again:
    mov x0, x19
    bl work
    add x19, x19, #1
    cmp x19, x20
    b.lo again
done:
    mov x1, #0x09020000
    mov w0, #0x20
    str w0, [x1]
1:  wfi
    b 1b
work:
    adrp x1, counter
    add x1, x1, :lo12:counter
    str x0, [x1]
    ldr x2, [x1]
    ret

    .section .bss
    .globl counter
    .balign 16
counter:
    .skip 16
    .skip 4096
stack_top:
