# The guest's own int3 in ring 0, with a handler. Ends with 1.
    lea rax, [rip + .Lint3_handler]
    lea rdi, [rip + .Lint3_idt + 3 * 16]
    mov word ptr [rdi], ax
    mov word ptr [rdi + 2], 0x10        # the boot code segment
    mov word ptr [rdi + 4], 0x8e00      # present interrupt gate
    shr rax, 16
    mov word ptr [rdi + 6], ax
    lea rax, [rip + .Lint3_idt]
    mov [rip + .Lint3_pointer + 2], rax
    lidt [rip + .Lint3_pointer]
    int3
.Lint3_after:
    mov al, 2
    out 0xf4, al
.Lint3_handler:
    lea rax, [rip + .Lint3_after]
    cmp [rsp], rax
    jne 1f
    mov al, 1
    out 0xf4, al
1:  mov al, 3
    out 0xf4, al
2:  hlt
    jmp 2b
.Lint3_pointer:
    .short 4 * 16 - 1
    .quad 0
    .balign 16
.Lint3_idt: .skip 4 * 16
