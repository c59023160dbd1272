# Raises the exceptions that debuggers meddle with, from ring 0 and from ring 3, and prints on the
# console what its handlers see: a line for each, the same whether a debugger is attached or
# not. Ends the run with 0x20. (INT1 is left out: QEMU's emulation takes it for a breakpoint of
# its own debugger.)
    .section .start, "ax"
    .globl _start, work, kernel_part, user_part, own_steps, end, watched, kernel_target, user_target
_start:
    lea rsp, [rip + stack_top]
    # Everything that is mapped may be used from ring 3.
    mov rsi, cr3
    call share_table
    lea rax, [rip + gdt]
    mov [rip + gdt_pointer + 2], rax
    lgdt [rip + gdt_pointer]
    lea rax, [rip + tss]
    mov [rip + gdt + 0x28 + 2], ax
    shr rax, 16
    mov [rip + gdt + 0x28 + 4], al
    mov [rip + gdt + 0x28 + 7], ah
    lea rax, [rip + stack_top]
    mov [rip + tss + 4], rax
    mov ax, 0x28
    ltr ax
    mov ax, 0x10
    mov ss, ax
    lea rax, [rip + 1f]
    push 0x08
    push rax
    retfq
1:
    lea rdi, [rip + idt]
    lea rax, [rip + on_debug]
    mov esi, 1
    call set_gate
    lea rax, [rip + on_breakpoint]
    mov esi, 3
    call set_gate
    lea rax, [rip + on_call]
    mov esi, 0x80
    call set_gate
    lidt [rip + idt_pointer]
    mov ebp, 1                  # the round: 1 in ring 0, 2 in ring 3
    call work

kernel_part:
    lea r15, [rip + kernel_target]
    call arm
    int3
kernel_target:
    nop
    mov dword ptr [rip + watched], 1
    nop
    call disarm

    # To ring 3.
    mov ebp, 2
    push 0x1b
    lea rax, [rip + user_stack_top]
    push rax
    push 2
    push 0x23
    lea rax, [rip + user]
    push rax
    lea r15, [rip + user_target]
    call arm
    iretq
user:
    call work
user_part:
    int3
user_target:
    nop
    mov dword ptr [rip + watched], 2
    nop
    int 0x80
    # Back in ring 0, by `on_call`.
back:
    call disarm

    # Steps of its own, in ring 0 and in ring 3.
own_steps:
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    nop
    nop
    push 0x1b
    lea rax, [rip + user_stack_top]
    push rax
    push 0x102
    push 0x23
    lea rax, [rip + user_steps]
    push rax
    iretq
user_steps:
    nop
    int 0x80
end:
    mov al, 0x20
    out 0xf4, al
1:  hlt
    jmp 1b

work:
    nop
    ret

# Arms DR0 for the instruction at R15 and DR1 for four bytes written at `watched`.
arm:
    mov dr0, r15
    lea rax, [rip + watched]
    mov dr1, rax
    mov eax, 0x00d0060a
    mov dr7, rax
    ret
disarm:
    mov eax, 0x400
    mov dr7, rax
    ret

# Sets the user bit in the tables from the one at RSI on, two levels of 512 and 4 entries.
share_table:
    and rsi, ~0xfff
    or qword ptr [rsi], 4
    mov rsi, [rsi]
    and rsi, ~0xfff
    mov ecx, 4
1:  or qword ptr [rsi], 4
    mov rdi, [rsi]
    test dil, 0x80
    jnz 3f
    test dil, 1
    jz 3f
    and rdi, ~0xfff
    mov edx, 512
2:  or qword ptr [rdi], 4
    add rdi, 8
    dec edx
    jnz 2b
3:  add rsi, 8
    dec ecx
    jnz 1b
    mov rax, cr3
    mov cr3, rax
    ret

# Puts a gate that ring 3 may use for the handler in RAX into slot ESI of the table at RDI.
set_gate:
    shl rsi, 4
    add rsi, rdi
    mov [rsi], ax
    mov word ptr [rsi + 2], 0x08
    mov word ptr [rsi + 4], 0xee00
    shr rax, 16
    mov [rsi + 6], ax
    shr rax, 16
    mov [rsi + 8], eax
    mov dword ptr [rsi + 12], 0
    ret

on_breakpoint:
    mov r8d, 3
    call tell
    iretq
on_debug:
    mov r8d, 1
    # RF, so that an instruction with a breakpoint is executed: the processor sets it, QEMU's
    # emulation does not.
    or qword ptr [rsp + 16], 0x10000
    call tell
    # It steps one instruction at a time, twice in ring 0.
    inc r14d
    test qword ptr [rsp + 16], 0x100
    jz 1f
    test r14d, 1
    jnz 1f
    and qword ptr [rsp + 16], ~0x100
1:  iretq
on_call:
    mov r8d, 0x80
    call tell
    # The first call goes on in ring 0, the second one as well, behind it.
    mov rax, [rsp]
    add rsp, 40
    lea rcx, [rip + back]
    cmp ebp, 2
    jne 1f
    mov ebp, 3
    jmp rcx
1:  jmp rax

# Prints the vector in R8, the saved frame and DR6, which it clears.
tell:
    push rax
    push rcx
    push rdx
    mov rax, r8
    call hex
    mov rax, [rsp + 32]         # RIP
    call hex
    mov rax, [rsp + 40]         # CS
    call hex
    mov rax, [rsp + 48]         # RFLAGS without RF
    and eax, ~0x10000
    call hex
    mov rax, [rsp + 56]         # RSP
    call hex
    mov rax, [rsp + 64]         # SS
    call hex
    mov rax, dr6
    call hex
    mov eax, 0xffff0ff0
    mov dr6, rax
    mov al, 10
    mov edx, 0x3f8
    out dx, al
    pop rdx
    pop rcx
    pop rax
    ret

# Prints the lower half of RAX in hexadecimal.
hex:
    mov r9d, eax
    mov ecx, 8
    mov edx, 0x3f8
1:  rol r9d, 4
    mov eax, r9d
    and eax, 15
    cmp eax, 10
    jb 2f
    add eax, 39
2:  add eax, 48
    out dx, al
    dec ecx
    jnz 1b
    mov al, 32
    out dx, al
    ret

    .balign 8
gdt_pointer:
    .short 0x37
    .quad 0
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0x0000890000000067
    .quad 0
idt_pointer:
    .short 4095
    .quad idt
    .balign 16
tss:
    .skip 0x68
watched:
    .quad 0
    .section .bss
    .balign 16
idt:
    .skip 4096
    .skip 4096
stack_top:
    .skip 4096
user_stack_top:
