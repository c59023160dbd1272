# Resets the machine in one of several ways: the byte that it reads from the console says which.
    .section .start, "ax"
    .globl _start
_start:
    mov dx, 0x3fd
1:  in al, dx
    test al, 1
    jz 1b
    mov dx, 0x3f8
    in al, dx
    cmp al, 'a'
    je port_92
    cmp al, 'b'
    je port_cf9
    cmp al, 'c'
    je output_port
    cmp al, 'd'
    je self_init
    mov al, 2
    out 0xf4, al
port_92:
    in al, 0x92
    and al, 0xfe
    out 0x92, al
    or al, 1
    out 0x92, al
    jmp wait
port_cf9:
    mov dx, 0xcf9
    mov al, 2
    out dx, al
    mov al, 6
    out dx, al
    jmp wait
output_port:
    mov al, 0xd1
    out 0x64, al
    mov al, 0xde
    out 0x60, al
    jmp wait
self_init:
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0x310], 0
    mov dword ptr [rbx + 0x300], 0x44500        # INIT, asserted, to itself
wait:
    mov ecx, 1000000
1:  pause
    loop 1b
    mov al, 3
    out 0xf4, al
