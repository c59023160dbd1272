// Says "ready", sends back what it receives, and switches off at a "q".
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x09000000
    adr x2, ready
1:  ldrb w0, [x2], #1
    cbz w0, receive
    strb w0, [x1]
    b 1b
receive:
    ldrb w0, [x1, #5]
    tbz w0, #0, receive
    ldrb w0, [x1]
    strb w0, [x1]
    cmp w0, #'q'
    b.ne receive
    ldr x0, =0x84000008
    hvc #0
3:  wfi
    b 3b
ready:
    .asciz "ready\n"
    .balign 8
