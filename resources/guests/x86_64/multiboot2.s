# A 32-bit Multiboot 2 kernel that prints the tags it was given and ends the run with 1, or with the number
# of the check that failed. Linked, it is an ELF64 file; flat, the same bytes begin with the header of an
# ELF32 file.
    .section .start, "ax"
file:
    .set base, 0x100000
    .byte 0x7f, 'E', 'L', 'F', 1, 1, 1, 0       # ELFCLASS32, little-endian
    .skip 8
    .short 2, 3                                 # ET_EXEC, EM_386
    .long 1
    .long base + _start - file                  # e_entry
    .long 52                                    # e_phoff
    .long 0, 0
    .short 52, 32, 1, 0, 0, 0
    .long 1, 0, base, base, end - file, end - file, 7, 4096
    .balign 8
    .set length, 48
    .long 0xe85250d6, 0, length, 0x100000000 - 0xe85250d6 - length
    .short 1, 0                                 # information that it cannot do without
    .long 24
    .long 1, 3, 6, 15
    .short 0, 0                                 # the end
    .long 8

    .code32
    .globl _start
_start:
    mov ecx, 3
    cmp eax, 0x36d76289
    jne done
    mov ecx, 4
    test ebx, 7
    jnz done
    mov ecx, 5
    mov eax, cr0                                # protected mode, no paging
    and eax, 0x80000001
    cmp eax, 1
    jne done
    mov ecx, 6
    mov esp, offset stack
    pushfd
    pop eax
    test eax, 0x20200                           # neither interrupts nor virtual 8086 mode
    jnz done
    mov ecx, 7
    cmp dword ptr [ebx + 4], 0                  # reserved
    jne done
    xor ebp, ebp                                # types seen
    lea esi, [ebx + 8]
next:
    mov eax, [esi]
    test eax, eax
    jz ended
    bts ebp, eax
    call tag
    mov eax, [esi + 4]
    lea esi, [esi + eax + 7]
    and esi, -8
    jmp next
ended:
    mov ecx, 8
    cmp dword ptr [esi + 4], 8
    jne done
    mov ecx, 9
    add esi, 8
    sub esi, ebx
    cmp esi, [ebx]                              # the total size
    jne done
    mov ecx, 10
    and ebp, 0xc05e
    cmp ebp, 0xc05e                             # 1 to 4, 6, 14, 15
    jne done
    mov ecx, 1
done:
    mov eax, ecx
    out 0xf4, al
1:  hlt
    jmp 1b

# Prints the tag at ESI: "tag N", and what it has of strings.
tag:
    mov edi, offset tag_word
    call print
    mov eax, [esi]
    xor edx, edx
    mov ecx, 10
    div ecx
    test eax, eax
    jz 1f
    add al, '0'
    call put
1:  lea eax, [edx + '0']
    call put
    lea edi, [esi + 8]
    cmp dword ptr [esi], 1
    je string
    lea edi, [esi + 16]
    cmp dword ptr [esi], 3
    je string
    cmp dword ptr [esi], 9
    je sections
line:
    mov al, 10
    jmp put
string:
    push edi
    mov edi, offset colon
    call print
    pop edi
    call print
    jmp line

# "symbols", if there is a table of strings in memory: it begins with an empty one.
sections:
    mov ecx, [esi + 8]
    lea edi, [esi + 20]
1:  cmp dword ptr [edi + 4], 3                  # SHT_STRTAB
    jne 2f
    mov eax, [edi + 16]                         # sh_addr
    test eax, eax
    jz 2f
    cmp byte ptr [eax], 0
    jne 2f
    cmp byte ptr [eax + 1], 0
    je 2f
    mov edi, offset symbols_word
    jmp string
2:  add edi, [esi + 12]
    loop 1b
    jmp line

print:
    mov al, [edi]
    test al, al
    jz 1f
    call put
    inc edi
    jmp print
1:  ret

put:
    push edx
    mov dx, 0x3f8
    out dx, al
    pop edx
    ret

tag_word:
    .asciz "tag "
colon:
    .asciz ": "
symbols_word:
    .asciz "symbols"
    .balign 16
    .skip 256
stack:
    .code64
end:
