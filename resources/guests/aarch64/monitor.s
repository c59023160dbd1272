// For another monitor's two vCPUs, which enter it at EL1 with their number in X0: each counts in a word of its own and
// now and then meets a breakpoint instruction of its own, which its handler counts, and says so on the serial port.
    .section .start, "ax"
    .globl _start, round, store, own, handler, words
_start:
    adrp x2, vectors
    add x2, x2, :lo12:vectors
    msr vbar_el1, x2
    isb
    adrp x1, words
    add x1, x1, :lo12:words
    add x1, x1, x0, lsl #12                 // 4 KiB for each: rounds, own traps
    mov x3, #0x09000000                     // the serial port
    mov x0, #0
round:
    add x0, x0, #1
store:
    str x0, [x1]
    tst x0, #0xfff
    b.ne round
own:
    brk #7
    mov w4, #'.'
    strb w4, [x3]
    b round
handler:
    ldr x5, [x1, #8]
    add x5, x5, #1
    str x5, [x1, #8]
    mrs x5, elr_el1
    add x5, x5, #4
    msr elr_el1, x5
    eret

    .text
    .balign 2048
vectors:                                    // Arm ARM (DDI 0487), D1.4.1
    .org vectors + 0x200                    // synchronous, from the current level with its own stack
    b handler
    .org vectors + 0x800

    .bss
    .balign 4096
words:
    .skip 2 * 4096
