// Says "ready", sends back what it receives, and switches off at a "q", all by Xen's console.
    .section .start, "ax"
    .globl _start
    .macro xen number
    mov x16, #\number
    hvc #0xea1
    .endm
_start:
    mov x0, #0
    mov x1, #6
    adr x2, ready
    xen 18
receive:
    mov x0, #1
    mov x1, #1
    adr x2, received
    xen 18
    cmp w0, #1
    b.ne receive
    mov x0, #0
    mov x1, #1
    adr x2, received
    xen 18
    adr x2, received
    ldrb w3, [x2]
    cmp w3, #'q'
    b.ne receive
    mov x0, #2
    adr x1, shutdown
    xen 29
1:  wfi
    b 1b
ready:
    .ascii "ready\n"
    .balign 4
received:
    .word 0
shutdown:
    .word 0
    .balign 8
