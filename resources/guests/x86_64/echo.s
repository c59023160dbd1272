# Says "ready", sends back what it receives, and switches off at a "q".
    .section .start, "ax"
    .globl _start
_start:
    lea rsi, [rip + ready]
1:  lodsb
    test al, al
    jz receive
    mov dx, 0x3f8
    out dx, al
    jmp 1b
receive:
    mov dx, 0x3fd
2:  in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    out dx, al
    cmp al, 'q'
    jne receive
    mov dx, 0x600
    mov al, 0x34
    out dx, al
3:  hlt
    jmp 3b
ready:
    .asciz "ready\n"
