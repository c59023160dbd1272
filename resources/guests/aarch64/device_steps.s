// Accesses to devices in a row, without a branch from first to last: the serial port, and memory where nothing
// is. Then it ends the run with 1.
    .section .start, "ax"
    .globl _start, first, last
_start:
first:
    mov x1, #0x09000000
    mov w0, #'a'
    strb w0, [x1]
    strb w0, [x1]
    strb w0, [x1]
    ldrb w2, [x1, #5]
    ldrb w2, [x1, #5]
    mov x1, #0x0a000000
    str w0, [x1]
    str x0, [x1, #8]
    ldr w2, [x1]
    ldr x2, [x1, #8]
    nop
last:
    mov w0, #1
    mov x1, #0x09020000
    str w0, [x1]
1:  wfi
    b 1b
