# Leaves to the monitor without end, by writes to a serial port's scratch register. What exits are measured on.
    lea rsp, [rip + .Lexits_end + 0x1000]
    mov edx, 0x3ff
    lea rsi, [rip + .Lexits_bare]
.Lexits_again:
    xor edi, edi
    call rsi
    dec ebx
    jmp .Lexits_again
.Lexits_bare:
    mov eax, 17
    out dx, al
    ret
.Lexits_end:
