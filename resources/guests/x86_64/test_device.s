# Uses QEMU's pc-testdev and ends the run with 1, or with the number of the check that failed; reads the ACPI
# timer twice, which is to go on.
    .section .start, "ax"
    .globl _start
_start:
    mov ecx, 3
    mov eax, 0x12345678
    out 0xe0, eax
    in al, 0xe2
    cmp al, 0x34
    jne done
    mov ecx, 4
    mov al, 0x9a
    out 0xe9, al
    in eax, 0xe0
    cmp eax, 0x12349a78
    jne done
    mov ecx, 5
    mov ebx, 0xff000000
    mov rax, 0x1122334455667788
    mov [rbx + 0xfff8], rax
    cmp byte ptr [rbx + 0xfffa], 0x66
    jne done
    mov ecx, 6
    mov dword ptr [0x300000], 0x5a5a5a5a
    mov eax, 0x300000
    out 0xe4, eax                               # what it holds stays
    cmp dword ptr [0x300000], 0x5a5a5a5a
    jne done
    # Line 5 by the first PIC, which is polled: its request register.
    mov ecx, 7
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov dx, 0x2005
    mov al, 1
    out dx, al
    mov al, 0x0a
    out 0x20, al
    in al, 0x20
    test al, 0x20
    jz done
    mov ecx, 8
    mov al, 0
    out dx, al
    mov ecx, 9
    mov dx, 0x608
    in eax, dx
    mov ebx, eax
    mov esi, 100000
1:  in eax, dx
    cmp eax, ebx
    jne 2f
    dec esi
    jnz 1b
    jmp done
2:  mov ecx, 1
done:
    mov eax, ecx
    out 0xf4, al
1:  hlt
    jmp 1b
