# A 32-bit Multiboot kernel that is a hand-made ELF32 file, built flat, as people who begin with a kernel
# of their own have it: it counts in EAX in 32-bit mode, goes to 64-bit mode, and counts in RAX there.
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
    .long 0x1badb002, 0, -0x1badb002
    .code32
    .balign 256
entry:                                          # 0x100100
    mov eax, 77
    add eax, 1
    mov dword ptr [0x201000], 0x202003          # page tables: 1 GiB by pages of 2 MiB
    mov dword ptr [0x202000], 0x203003
    mov edi, 0x203000
    mov edx, 0x83
1:  mov [edi], edx
    add edi, 8
    add edx, 0x200000
    cmp edi, 0x204000
    jne 1b
    mov edx, 0x201000
    mov cr3, edx
    mov edx, 0x20                               # CR4.PAE
    mov cr4, edx
    mov ecx, 0xc0000080                         # EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov edx, 0x80000001                         # CR0.PG, PE
    mov cr0, edx
    .byte 0x0f, 0x01, 0x15                      # lgdt [pointer]
    .long base + pointer - _start
    .byte 0xea                                  # jmp 8:long
    .long base + wide - _start
    .short 8
    .balign 16
gdt:
    .quad 0, 0x00209a0000000000
pointer:
    .short 15
    .long base + gdt - _start
    .code64
    .balign 256
wide:                                           # 0x100200
    mov rax, 0x1122334455667788
2:  add rax, 1
    jmp 2b
end:
