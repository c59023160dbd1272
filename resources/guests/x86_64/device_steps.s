# Accesses to devices in a row, without a branch from first to last: ports, strings of them, and memory where
# nothing is. Then it ends the run with 1.
    .section .start, "ax"
    .globl _start, first, last
_start:
first:
    mov dx, 0x3f8
    mov al, 'a'
    out dx, al
    out dx, al
    out dx, al
    mov dx, 0x3fd
    in al, dx
    in al, dx
    mov dx, 0x3f8
    lea rsi, [rip + text]
    mov ecx, 3
    rep outsb
    lea rdi, [rip + read]
    mov edx, 0x5678
    mov ecx, 2
    rep insd
    mov ebx, 0xd0000000
    mov dword ptr [rbx], 7
    mov dword ptr [rbx], 8
    mov eax, [rbx]
    mov eax, [rbx + 4]
    # 16 bytes come in two parts.
    mov qword ptr [rbx + 8], 9
    nop
last:
    mov al, 1
    out 0xf4, al
1:  hlt
    jmp 1b
text:
    .ascii "bcd"
    .section .bss
    .balign 8
read:
    .skip 8
