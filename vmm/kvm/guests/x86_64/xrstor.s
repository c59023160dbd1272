# xsave and xrstor in ring 0, as Linux switches tasks with them. Ends with 1.
    mov eax, 1
    cpuid
    bt ecx, 26                  # without XSAVE there is nothing to be done
    jnc 1f
    mov rax, cr4
    or eax, 0x40600             # OSXSAVE, OSFXSR, OSXMMEXCPT
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 3                  # x87 and SSE state
    xsetbv
    lea rdi, [rip + .Lxrstor_area]
    mov eax, 3
    xor edx, edx
    xsave [rdi]
    xrstor [rdi]
1:  mov al, 1
    out 0xf4, al
2:  hlt
    jmp 2b
    .balign 64
.Lxrstor_area: .skip 1024
