# Has events delivered by a vector for all vCPUs, which needs no local APIC and no end of interrupt: sent
# to itself, unmasked, of its timer, and to a second vCPU that halts in real mode. Ends with a crash if
# one does not come.
    .section .start, "ax"
    .globl _start
    .equ page, 0x300000
    .equ shared, 0x301000
    .equ vector, 0x33
    .equ apic, 0xfee00000
    # The second vCPU's code, its struct vcpu_info, and what it counts.
    .equ second, 0x40000
    .equ second_info, 0x41000
    .equ second_count, 0x42000
    .macro xen number
    mov eax, page + 32 * \number
    call rax
    .endm
_start:
    lea rsp, [rip + stack_top]
    mov eax, 0x40000102
    cpuid
    mov ecx, ebx
    mov eax, page
    xor edx, edx
    wrmsr
    lea rdi, [rip + idt]
    lea rax, [rip + on_event]
    mov [rdi + vector * 16], ax
    mov word ptr [rdi + vector * 16 + 2], cs
    mov word ptr [rdi + vector * 16 + 4], 0x8e00
    shr rax, 16
    mov [rdi + vector * 16 + 6], ax
    shr rax, 16
    mov [rdi + vector * 16 + 8], eax
    lidt [rip + idt_pointer]
    # The shared page, the vector, a port to itself.
    mov edi, 7
    lea rsi, [rip + add]
    xen 12
    xor edi, edi
    lea rsi, [rip + callback]
    xen 34
    test eax, eax
    jnz bad
    sti
    mov edi, 7
    lea rsi, [rip + ipi]
    xen 32
    # An event from itself.
    mov edi, 4
    lea rsi, [rip + ipi + 4]
    xen 32
    nop
    cmp dword ptr [rip + events], 1
    jne bad
    # The host keeps the time in its struct vcpu_info: version, and multiplier.
    mov ebx, shared
    cmp dword ptr [rbx + 32], 0
    je bad
    cmp dword ptr [rbx + 56], 0
    je bad
    # One that comes while it is masked, and then is not any more.
    mov byte ptr [rbx + 2560], 2
    mov edi, 4
    lea rsi, [rip + ipi + 4]
    xen 32
    nop
    cmp dword ptr [rip + events], 1
    jne bad
    mov edi, 9
    lea rsi, [rip + ipi + 4]
    xen 32
    nop
    cmp dword ptr [rip + events], 2
    jne bad
    # Its timer, which is set again with each event, so that the wait ends.
    mov edi, 1
    lea rsi, [rip + virq]
    xen 32
    mov byte ptr [rip + is_ticking], 1
    call set_timer
    mov ebx, [rip + events]
    mov edi, 1
    xor esi, esi
    xen 29
    nop
    cmp ebx, [rip + events]
    je bad
    mov byte ptr [rip + is_ticking], 0
    # Masked, its timer ends a poll.
    mov ebx, shared
    mov byte ptr [rbx + 2560], 4
    call set_timer
2:  mov edi, 3
    lea rsi, [rip + poll]
    xen 29
    test eax, eax
    jnz bad
    test byte ptr [rbx + 2048], 4
    jz 2b
    # The second vCPU: its struct vcpu_info, its code, its interrupt vector, its start.
    mov edi, 10
    mov esi, 1
    lea rdx, [rip + place]
    xen 24
    mov edi, second
    lea rsi, [rip + second_code]
    mov ecx, 64
    rep movsb
    mov edi, vector * 4
    mov dword ptr [rdi], (second >> 4) << 16 | 8
    mov edi, apic
    mov dword ptr [rdi + 0xf0], 0x1ff
    mov dword ptr [rdi + 0x310], 1 << 24
    mov dword ptr [rdi + 0x300], 0x4500
    mov dword ptr [rdi + 0x310], 1 << 24
    mov dword ptr [rdi + 0x300], 0x4600 | second >> 12
    # Everything is pending when a struct vcpu_info is new.
    mov edi, second_count
3:  pause
    cmp byte ptr [rdi], 1
    jb 3b
    mov edi, 7
    lea rsi, [rip + second_ipi]
    xen 32
    mov edi, 4
    lea rsi, [rip + second_ipi + 4]
    xen 32
    mov edi, second_count
4:  pause
    cmp byte ptr [rdi], 2
    jb 4b
    jmp good
bad:
    mov dword ptr [rip + shutdown], 3
good:
    mov edi, 2
    lea rsi, [rip + shutdown]
    xen 29
1:  hlt
    jmp 1b

# In 50 ms.
set_timer:
    mov edi, 10
    lea rsi, [rip + time]
    xen 34
    mov rdi, [rip + time]
    add rdi, 50000000
    xen 15
    ret

on_event:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    inc dword ptr [rip + events]
    # Nothing is pending any more.
    mov eax, shared
    mov byte ptr [rax], 0
    mov qword ptr [rax + 8], 0
    mov qword ptr [rax + 2048], 0
    cmp byte ptr [rip + is_ticking], 0
    je 1f
    call set_timer
1:  pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    iretq

    .code16
second_code:
    sti
1:  hlt
    jmp 1b
    .balign 8
    # At 8: its handler.
    push ds
    push cs
    pop ds
    .byte 0xc6, 0x06, 0x00, 0x10, 0x00                # mov byte ptr [0x1000], 0
    .byte 0x66, 0xc7, 0x06, 0x08, 0x10, 0, 0, 0, 0    # mov dword ptr [0x1008], 0
    .byte 0x66, 0xc7, 0x06, 0x0c, 0x10, 0, 0, 0, 0    # mov dword ptr [0x100c], 0
    .byte 0xfe, 0x06, 0x00, 0x20                      # inc byte ptr [0x2000]
    pop ds
    iret
second_code_end:
    .code64

    .balign 8
add:
    .short 0x7ff0, 0
    .long 0
    .quad 0, shared >> 12
callback:
    .short 0x7ff0, 0
    .long 0
    .quad 2 << 56 | vector
ipi:
    .long 0, 0
second_ipi:
    .long 1, 0
virq:
    .long 0, 0, 0
    .balign 8
poll:
    .quad virq + 8, 1, 0
place:
    .quad second_info >> 12
    .long 0, 0
time:
    .quad 0
shutdown:
    .long 0
events:
    .long 0
is_ticking:
    .long 0
    .balign 8
idt_pointer:
    .short 0x1000 - 1
    .quad idt

    .section .bss
    .balign 16
idt:
    .skip 4096
    .balign 16
    .skip 4096
stack_top:
