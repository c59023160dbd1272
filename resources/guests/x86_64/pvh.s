# A kernel with a PVH entry note: checks the start info and ends the run with 1, or with the
# number of the check that failed.
    .section .start, "ax"
    .globl _start
_start:
    .code32
    mov ecx, 3
    cmp dword ptr [ebx], 0x336ec578
    jne done
    mov ecx, 4
    mov edx, [ebx + 24]                         # command line "hello": this is not Linux
    cmp dword ptr [edx], 0x6c6c6568             # "hell"
    jne done
    mov ecx, 5
    cmp dword ptr [ebx + 12], 1                 # one module
    jne done
    mov ecx, 6
    mov edx, [ebx + 16]
    mov edx, [edx]
    cmp dword ptr [edx], 0x30646f6d             # "mod0"
    jne done
    mov ecx, 7
    mov edx, [ebx + 32]
    cmp dword ptr [edx], 0x20445352             # RSDP: "RSD "
    jne done
    mov ecx, 8
    mov eax, cr0
    and eax, 0x80000001
    cmp eax, 1
    jne done
    mov ecx, 1
done:
    mov eax, ecx
    out 0xf4, al
1:  hlt
    jmp 1b
    .code64

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
