// Resets the machine by PSCI SYSTEM_RESET.
    .section .start, "ax"
    .globl _start
_start:
    ldr x0, =0x84000009
    hvc #0
1:  wfi
    b 1b
    .balign 8
