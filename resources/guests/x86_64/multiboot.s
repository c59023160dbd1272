# A 32-bit Multiboot kernel that is a hand-made ELF32 file, built flat: it checks what it was
# given and ends the run with 1, or with the number of the check that failed.
    .section .start, "ax"
    .globl _start
_start:
    .set base, 0x100000
    .byte 0x7f, 'E', 'L', 'F', 1, 1, 1, 0       # ELFCLASS32, little-endian
    .skip 8
    .short 2, 3                                 # ET_EXEC, EM_386
    .long 1
    .long base + entry - _start                 # e_entry
    .long 52                                    # e_phoff
    .long 0, 0
    .short 52, 32, 1, 0, 0, 0
    .long 1, 0, base, base, end - _start, end - _start + 4096, 7, 4096
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)      # page-align modules, memory information
    .code32
entry:
    mov ecx, 3
    cmp eax, 0x2badb002
    jne done
    mov ecx, 4
    mov edx, [ebx]                              # flags: memory, command line, modules, map
    and edx, 0x4d
    cmp edx, 0x4d
    jne done
    mov ecx, 5
    cmp dword ptr [ebx + 8], (256 - 1) * 1024   # KiB above 1 MiB: started with 256M
    jne done
    mov ecx, 6
    mov edx, [ebx + 16]                         # command line "multiboot.bin hello"
    cmp dword ptr [edx + 14], 0x6c6c6568        # "hell"
    jne done
    mov ecx, 7
    cmp dword ptr [ebx + 20], 2                 # two modules
    jne done
    mov ecx, 8
    mov edx, [ebx + 24]
    mov esi, [edx + 16]                         # the second one's start: page-aligned
    test esi, 0xfff
    jnz done
    mov ecx, 9
    cmp dword ptr [esi], 0x31646f6d             # "mod1"
    jne done
    mov ecx, 10
    mov eax, cr0                                # protected mode, no paging
    and eax, 0x80000001
    cmp eax, 1
    jne done
    mov ecx, 11
    mov eax, [ebx + 44]                         # the memory map has entries of 24 bytes
    xor edx, edx
    mov esi, 24
    div esi
    test edx, edx
    jnz done
    mov ecx, 1
done:
    mov eax, ecx
    out 0xf4, al
1:  hlt
    jmp 1b
    .code64
end:
