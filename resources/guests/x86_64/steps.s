# One of each instruction that is hard to step, between labels at_X and after_X: a step from the
# one lands on the other. An interrupt is pending from the first of them on, and is delivered
# at the end only, where interrupts are on. Ends the run with 0x20 when the flags, the memory and
# the interrupt are as they should be, else with the number of the check that failed.
    .section .start, "ax"
    .globl _start, failed
_start:
    lea rsp, [rip + stack_top]
    mov rsi, cr3
    call share_table
    lea rax, [rip + gdt]
    mov [rip + gdt_pointer + 2], rax
    lgdt [rip + gdt_pointer]
    lea rax, [rip + tss]
    mov [rip + gdt + 0x30 + 2], ax
    shr rax, 16
    mov [rip + gdt + 0x30 + 4], al
    mov [rip + gdt + 0x30 + 7], ah
    lea rax, [rip + stack_top]
    mov [rip + tss + 4], rax
    mov ax, 0x30
    ltr ax
    mov ax, 0x10
    mov ss, ax
    lea rax, [rip + 1f]
    push 0x08
    push rax
    retfq
1:
    lea rdi, [rip + idt]
    lea rax, [rip + after_fault]
    mov esi, 14
    call set_gate
    lea rax, [rip + after_int]
    mov esi, 0x80
    call set_gate
    lea rax, [rip + on_interrupt]
    mov esi, 0x90
    call set_gate
    lea rax, [rip + after_no_syscall]
    mov esi, 6
    call set_gate
    lea rax, [rip + after_absent]
    mov esi, 11
    call set_gate
    lea rax, [rip + after_refused]
    mov esi, 13
    call set_gate
    # Not for user programs.
    mov byte ptr [rip + idt + 13 * 16 + 5], 0x8e
    mov byte ptr [rip + idt + 0x81 * 16 + 5], 0x6e
    lea rax, [rip + done]
    mov [rip + resume], rax
    lidt [rip + idt_pointer]
    # SYSCALL: kernel code 0x08, user code 0x28 (SYSRET adds 16), no flag masked.
    mov ecx, 0xc0000080
    rdmsr
    or eax, 1
    wrmsr
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x001b0008
    wrmsr
    mov ecx, 0xc0000082
    lea rax, [rip + after_syscall]
    mov rdx, rax
    shr rdx, 32
    wrmsr
    mov ecx, 0xc0000084
    xor eax, eax
    xor edx, edx
    wrmsr
    # The local APIC on, and an interrupt to itself, with interrupts off.
    mov edi, 0xfee00000
    mov dword ptr [rdi + 0xf0], 0x1ff
    mov dword ptr [rdi + 0x310], 0
    mov dword ptr [rdi + 0x300], 0x44090

    .globl at_rep, after_rep
    lea rsi, [rip + idt]
    lea rdi, [rip + copy]
    mov ecx, 2
at_rep:
    rep movsb
after_rep:
    test ecx, ecx
    mov bl, 1
    jnz failed

    # PUSHF and POPF: the trap flag is seen nowhere.
    .globl at_pushf, after_pushf, at_popf, after_popf
at_pushf:
    pushfq
after_pushf:
    pop rax
    test eax, 0x100
    mov bl, 2
    jnz failed
    push 0x2
at_popf:
    popfq
after_popf:
    pushfq
    pop rax
    test eax, 0x100
    mov bl, 3
    jnz failed

    # The interrupt is pending: no step may fall into its handler.
    .globl at_sti, after_sti, after_shadow, after_open, after_cli
at_sti:
    sti
after_sti:
    nop
after_shadow:
    nop
after_open:
    cli
after_cli:

    # The processor holds the trap back for one more instruction.
    .globl at_mov_ss, behind_mov_ss
    mov ax, 0x10
at_mov_ss:
    mov ss, ax
    nop
behind_mov_ss:

    # A page fault, whose handler goes on behind it.
    .globl at_fault, after_fault, in_fault, behind_fault
    mov rax, 1 << 40
at_fault:
    mov eax, [rax]
behind_fault:
    jmp 1f
after_fault:
    mov rax, [rsp + 24]
in_fault:
    test eax, 0x100
    mov bl, 4
    jnz failed
    lea rax, [rip + behind_fault]
    mov [rsp + 8], rax
    add rsp, 8
    iretq
1:
    .globl at_int, after_int, behind_int
at_int:
    int 0x80
behind_int:
    # To ring 3 and back.
    .globl at_iret, after_iret, at_syscall, after_syscall, at_sysret, after_sysret
    push 0x23
    lea rax, [rip + user_stack_top]
    push rax
    push 0x2
    push 0x2b
    lea rax, [rip + after_iret]
    push rax
at_iret:
    iretq
after_int:
    mov rax, [rsp + 16]
    test eax, 0x100
    mov bl, 5
    jnz failed
    mov rax, [rsp + 8]
    test al, 3
    jz 1f
    jmp [rip + resume]
1:  iretq
after_iret:
    nop
at_syscall:
    syscall
    jmp after_sysret
after_syscall:
    mov bl, 6
    test r11d, 0x100
    jnz failed
    lea rcx, [rip + after_sysret]
    mov r11d, 2
at_sysret:
    sysretq
after_sysret:
    nop
    # A gate that user programs may not use.
    .globl at_refused, after_refused, behind_refused
at_refused:
    int 0x0d
behind_refused:
    int 0x80
after_refused:
    mov rax, [rsp + 24]
    test eax, 0x100
    mov bl, 8
    jnz failed
    lea rax, [rip + behind_refused]
    mov [rsp + 8], rax
    add rsp, 8
    iretq

done:
    # In ring 0 again; interrupts are off.
    lea rsp, [rip + stack_top]
    # A gate that is not there.
    .globl at_absent, after_absent, behind_absent
at_absent:
    int 0x81
behind_absent:
    jmp 1f
after_absent:
    mov rax, [rsp + 24]
    test eax, 0x100
    mov bl, 9
    jnz failed
    lea rax, [rip + behind_absent]
    mov [rsp + 8], rax
    add rsp, 8
    iretq
1:
    # To 32-bit code in ring 3, and back.
    .globl at_sysretl, after_sysretl, at_int_32
    lea rax, [rip + back_from_32]
    mov [rip + resume], rax
    lea ecx, [rip + after_sysretl]
    mov r11d, 2
at_sysretl:
    .byte 0x0f, 0x07
    .code32
after_sysretl:
    nop
at_int_32:
    int 0x80
    .code64
back_from_32:
    lea rsp, [rip + stack_top]
    # SYSCALL while there is none.
    .globl at_no_syscall, after_no_syscall, behind_no_syscall
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~1
    wrmsr
at_no_syscall:
    syscall
behind_no_syscall:
    jmp 1f
after_no_syscall:
    mov rax, [rsp + 16]
    test eax, 0x100
    mov bl, 10
    jnz failed
    lea rax, [rip + behind_no_syscall]
    mov [rsp], rax
    iretq
1:
    .globl at_hlt, after_hlt
at_hlt:
    hlt
after_hlt:
    # A halt that was stepped over is over. The interrupt comes now.
    sti
    nop
    nop
    cli
    mov bl, 7
    cmp dword ptr [rip + interrupts], 1
    jne failed
    mov al, 0x20
    out 0xf4, al
1:  hlt
    jmp 1b
failed:
    mov al, bl
    out 0xf4, al
1:  hlt
    jmp 1b

on_interrupt:
    inc dword ptr [rip + interrupts]
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq

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

    .balign 8
gdt_pointer:
    .short 0x3f
    .quad 0
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0x0000890000000067
    .quad 0
idt_pointer:
    .short 4095
    .quad idt
interrupts:
    .long 0
    .balign 8
resume:
    .quad 0
    .balign 16
tss:
    .skip 0x68
copy:
    .skip 16
    .section .bss
    .balign 16
idt:
    .skip 4096
    .skip 4096
stack_top:
    .skip 4096
user_stack_top:
