# For another monitor's two vCPUs, which enter it in 64-bit mode with their number in RSI: each counts in a word of its
# own and now and then meets a breakpoint instruction of its own, which its handler counts, and says so on the serial
# port.
    .section .start, "ax"
    .globl _start, round, store, own, handler, words
_start:
    lea rdi, [rip + words]
    shl rsi, 12                             # 4 KiB for each: rounds, own traps, table, stack
    add rdi, rsi
    lea rsp, [rdi + 4096]
    # An interrupt gate for vector 3 (Intel SDM vol. 3, 7.14.1).
    lea rax, [rip + handler]
    lea rbx, [rdi + 64 + 3 * 16]
    mov [rbx], ax
    mov [rbx + 2], cs
    mov word ptr [rbx + 4], 0x8e00
    shr rax, 16
    mov [rbx + 6], ax
    shr rax, 16
    mov [rbx + 8], rax
    lea rbx, [rdi + 64]
    push rbx
    sub rsp, 2
    mov word ptr [rsp], 4 * 16 - 1
    lidt [rsp]
    lea rsp, [rdi + 4096]
    xor eax, eax
    mov edx, 0x3f8
round:
    inc rax
store:
    mov [rdi], rax
    test eax, 0xfff
    jnz round
own:
    int3
    mov al, '.'
    out dx, al
    mov rax, [rdi]
    jmp round
handler:
    inc qword ptr [rdi + 8]
    iretq

    .bss
    .balign 4096
words:
    .skip 2 * 4096
