# Makes calls to KVM, and ends the run with 0x20 if each is refused as one that there is not.
    .section .start, "ax"
    .globl _start
_start:
    mov eax, 5
    xor ebx, ebx
    mov ecx, 1
    vmmcall
    mov r8, rax
    mov eax, 12
    mov ebx, 0x1000
    mov ecx, 2
    mov edx, 0x10
    vmmcall
    mov r9, rax
    mov al, 0x20
    cmp r8, -1000
    jne 1f
    cmp r9, -1000
    je 2f
1:  mov al, 1
2:  out 0xf4, al
3:  hlt
    jmp 3b
