// Waits for an interrupt that nothing will raise.
    .section .start, "ax"
    .globl _start
_start:
    wfi
    b _start
