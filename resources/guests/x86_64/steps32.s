# A 32-bit kernel's instructions that are hard to step, between labels at_X and after_X: a step from the one lands
# on the other. It leaves long mode first. Ends the run with 0x20 when no trap flag was seen anywhere, else with
# the number of the check that failed.
    .section .start, "ax"
    .globl _start, failed
_start:
    lea rsp, [rip + stack_top]
    lgdt [rip + gdt_pointer]
    push 0x08
    lea rax, [rip + compatible]
    push rax
    retfq
    .code32
compatible:
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov ecx, 0xc0000080
    rdmsr
    and eax, ~0x101
    wrmsr
    mov ax, 0x10
    mov ss, ax
    mov ds, ax
    mov es, ax
    mov eax, offset after_div
    mov esi, 0
    call set_gate
    mov eax, offset after_into
    mov esi, 4
    call set_gate
    mov eax, offset after_ud
    mov esi, 6
    call set_gate
    mov eax, offset after_absent
    mov esi, 11
    call set_gate
    mov eax, offset after_int
    mov esi, 0x80
    call set_gate
    mov eax, offset after_absent
    mov esi, 0x81
    call set_gate
    mov byte ptr [idt + 0x81 * 8 + 5], 0x0e
    lidt [idt_pointer]

    .globl at_inc, after_inc, at_ud, after_ud, at_div, after_div, at_int, after_int, at_into, after_into
    .globl at_absent, after_absent, at_pushf, after_pushf
    # In 64-bit code 0x48 would be a prefix of what follows.
at_inc:
    dec eax
after_inc:
    nop
at_ud:
    ud2
behind_ud:
    jmp 1f
after_ud:
    test dword ptr [esp + 8], 0x100
    mov bl, 1
    jnz failed
    mov dword ptr [esp], offset behind_ud
    iretd
1:
    xor ecx, ecx
    xor edx, edx
    mov eax, 1
at_div:
    div ecx
behind_div:
    jmp 1f
after_div:
    test dword ptr [esp + 8], 0x100
    mov bl, 2
    jnz failed
    mov dword ptr [esp], offset behind_div
    iretd
1:
at_int:
    int 0x80
    jmp 1f
after_int:
    test dword ptr [esp + 8], 0x100
    mov bl, 3
    jnz failed
    iretd
1:
    mov al, 0x7f
    add al, 1
at_into:
    into
    jmp 1f
after_into:
    test dword ptr [esp + 8], 0x100
    mov bl, 4
    jnz failed
    iretd
1:
at_absent:
    int 0x81
behind_absent:
    jmp 1f
after_absent:
    test dword ptr [esp + 12], 0x100
    mov bl, 5
    jnz failed
    mov dword ptr [esp + 4], offset behind_absent
    add esp, 4
    iretd
1:
at_pushf:
    pushfd
after_pushf:
    pop eax
    test eax, 0x100
    mov bl, 6
    jnz failed
    mov bl, 0x20
failed:
    mov al, bl
    out 0xf4, al
1:  hlt
    jmp 1b

set_gate:
    lea edi, [idt + esi * 8]
    mov [edi], ax
    mov word ptr [edi + 2], 0x08
    mov word ptr [edi + 4], 0x8e00
    shr eax, 16
    mov [edi + 6], ax
    ret

    .balign 8
gdt_pointer:
    .short 0x17
    .quad gdt
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
idt_pointer:
    .short 2047
    .long idt
    .section .bss
    .balign 16
idt:
    .skip 2048
    .skip 4096
stack_top:
