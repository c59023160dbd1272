// Uses memory where nothing is: reads give ones, writes go nowhere. Ends the run with 1 if
// so, 2 if not.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x10000000
    mov w0, #7
    str w0, [x1]
    ldr w0, [x1]
    cmn w0, #1
    mov w0, #1
    mov w2, #2
    csel w0, w0, w2, eq
    mov x1, #0x09020000
    str w0, [x1]
1:  wfi
    b 1b
