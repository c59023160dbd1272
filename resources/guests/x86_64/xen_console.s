# Says "ready", sends back what it receives, and switches off at a "q", all by Xen's console.
    .section .start, "ax"
    .globl _start
    .equ page, 0x300000
    .macro xen number
    mov eax, page + 32 * \number
    call rax
    .endm
_start:
    lea rsp, [rip + stack_top]
    mov eax, 0x40000102
    cpuid
    mov ecx, ebx
    mov eax, page
    xor edx, edx
    wrmsr
    mov esi, 6
    lea rdx, [rip + ready]
    xor edi, edi
    xen 18
receive:
    mov edi, 1
    mov esi, 1
    lea rdx, [rip + received]
    xen 18
    cmp eax, 1
    jne receive
    xor edi, edi
    mov esi, 1
    lea rdx, [rip + received]
    xen 18
    cmp byte ptr [rip + received], 'q'
    jne receive
    mov edi, 2
    lea rsi, [rip + shutdown]
    xen 29
1:  hlt
    jmp 1b
ready:
    .ascii "ready\n"
received:
    .byte 0
    .balign 4
shutdown:
    .long 0

    .section .bss
    .balign 16
    .skip 4096
stack_top:
