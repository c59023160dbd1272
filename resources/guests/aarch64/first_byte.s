// Sends one byte to the console with its first instructions, then switches off: for
// measuring how long a monitor takes to get there. Our 16550 and the PL011 of QEMU's virt
// machine have their data registers at the same place.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09000000
    mov w0, #'!'
    strb w0, [x1]
    ldr x0, =0x84000008
    hvc #0
1:  wfi
    b 1b
    .balign 8
