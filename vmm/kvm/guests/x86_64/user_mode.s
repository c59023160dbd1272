# To ring 3 by iretq and back by an interrupt gate. Ends with 1.
    mov rax, cr3                        # everything may be used from ring 3
    or qword ptr [rax], 4
    mov rbx, [rax]
    and rbx, -4096
    or qword ptr [rbx], 4
    mov rbx, [rbx]
    and rbx, -4096
    or qword ptr [rbx], 4
    mov cr3, rax
    lea rax, [rip + .Luser_mode_gdt]
    mov [rip + .Luser_mode_gdt_pointer + 2], rax
    lea rax, [rip + .Luser_mode_tss]
    mov word ptr [rip + .Luser_mode_gdt_tss + 2], ax
    mov rbx, rax
    shr rbx, 16
    mov byte ptr [rip + .Luser_mode_gdt_tss + 4], bl
    lea rbx, [rip + .Luser_mode_ring0_stack]
    mov [rax + 4], rbx                  # RSP0
    lgdt [rip + .Luser_mode_gdt_pointer]
    mov ax, 0x28
    ltr ax
    lea rax, [rip + .Luser_mode_handler]
    lea rdi, [rip + .Luser_mode_idt + 0x30 * 16]
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], 0x10
    mov word ptr [rdi + 4], 0xee00      # present interrupt gate for ring 3
    shr rax, 16
    mov word ptr [rdi + 6], ax
    lea rax, [rip + .Luser_mode_idt]
    mov [rip + .Luser_mode_idt_pointer + 2], rax
    lidt [rip + .Luser_mode_idt_pointer]
    push 0x1b                           # SS
    lea rax, [rip + .Luser_mode_ring3_stack]
    push rax
    push 2
    push 0x23                           # CS
    lea rax, [rip + .Luser_mode_user]
    push rax
    iretq
.Luser_mode_user:
    mov eax, 0x1234
    int 0x30
.Luser_mode_handler:
    cmp eax, 0x1234
    jne 1f
    cmp qword ptr [rsp + 8], 0x23
    jne 1f
    mov al, 1
    out 0xf4, al
1:  mov al, 2
    out 0xf4, al
2:  hlt
    jmp 2b
    .balign 16
.Luser_mode_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff            # 0x10: ring 0 code
    .quad 0x00cff3000000ffff            # 0x18: ring 3 data
    .quad 0x00affb000000ffff            # 0x20: ring 3 code
.Luser_mode_gdt_tss:
    .quad 0x0000890000000067, 0         # 0x28: task state
.Luser_mode_gdt_pointer:
    .short 7 * 8 - 1
    .quad 0
.Luser_mode_idt_pointer:
    .short 0x31 * 16 - 1
    .quad 0
    .balign 16
.Luser_mode_tss: .skip 104
    .balign 16
.Luser_mode_idt: .skip 0x31 * 16
    .skip 512
.Luser_mode_ring0_stack:
    .skip 512
.Luser_mode_ring3_stack:
