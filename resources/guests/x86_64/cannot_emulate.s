# An access to memory without RAM by an instruction that KVM does not emulate.
    .section .start, "ax"
    .globl _start
_start:
    mov rax, cr4
    or rax, 0x200           # OSFXSR
    mov cr4, rax
    mov ebx, 0xd0000000
    aesenc xmm0, [rbx]
1:  hlt
    jmp 1b
