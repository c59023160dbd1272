# cmpxchg16b in ring 0, as Linux's allocator uses it. Ends with 1.
    lea rdi, [rip + .Lcmpxchg16b_cell]
    mov rax, 1
    mov rdx, 2
    mov rbx, 3
    mov rcx, 4
    lock cmpxchg16b [rdi]
    jnz 1f
    cmp qword ptr [rdi + 8], 4
    jne 1f
    mov al, 1
    out 0xf4, al
1:  mov al, 2
    out 0xf4, al
2:  hlt
    jmp 2b
    .balign 16
.Lcmpxchg16b_cell: .quad 1, 2
