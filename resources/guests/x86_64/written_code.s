# Says "ready", reads four bytes of code by Xen's console to where there is other code, sends them back, and runs
# them; the run ends with 0x10 at the exit device.
    .section .start, "ax"
    .globl _start, place
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
1:  mov edi, 1
    mov esi, 4
    lea rdx, [rip + place]
    xen 18
    cmp eax, 4
    jne 1b
    xor edi, edi
    mov esi, 4
    lea rdx, [rip + place]
    xen 18
    lea rax, [rip + place]
    call rax
    mov al, 0x10
    out 0xf4, al
1:  hlt
    jmp 1b
ready:
    .ascii "ready\n"
    .balign 16
place:
    .fill 16, 1, 0xfc           # cld

    .section .bss
    .balign 16
    .skip 4096
stack_top:
