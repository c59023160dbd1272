// Leaves to the monitor without end, by writes to a serial port's scratch register. What exits are measured on.
    mov x1, #0x09000000
.Lexits_again:
    strb w0, [x1, #7]
    subs w4, w4, #1
    b .Lexits_again
