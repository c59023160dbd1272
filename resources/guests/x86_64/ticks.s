# Counts interrupts of the local APIC's periodic timer (50 ms) and of the PIT (10 ms), and bytes that the serial
# port receives with an interrupt each. At a "q" it says how many there were, and how far the time-stamp
# counter and the ACPI timer have come meanwhile, in hexadecimal, and switches off.
    .section .start, "ax"
    .globl _start
_start:
    lea rsp, [rip + stack_top]
    lea rdi, [rip + idt]
    lea rax, [rip + on_pit]
    mov esi, 0x20
    call set_gate
    lea rax, [rip + on_serial]
    mov esi, 0x24
    call set_gate
    lea rax, [rip + on_timer]
    mov esi, 0x40
    call set_gate
    lea rax, [rip + on_spurious]
    mov esi, 0xff
    call set_gate
    lidt [rip + idt_pointer]
    # Both PICs from vector 0x20 on; lines 0 and 4.
    mov al, 0x11
    out 0x20, al
    out 0xa0, al
    mov al, 0x20
    out 0x21, al
    mov al, 0x28
    out 0xa1, al
    mov al, 4
    out 0x21, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0x21, al
    out 0xa1, al
    mov al, 0xee
    out 0x21, al
    mov al, 0xff
    out 0xa1, al
    # The local APIC: on, the PIC behind it, the timer by 1 GHz.
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff
    mov dword ptr [rbx + 0x350], 0x700
    mov dword ptr [rbx + 0x3e0], 0xb
    mov dword ptr [rbx + 0x320], 0x20040
    mov dword ptr [rbx + 0x380], 50000000
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov r12, rax
    mov dx, 0x608
    in eax, dx
    mov r14d, eax
    # The PIT's channel 0, mode 2.
    mov al, 0x34
    out 0x43, al
    mov al, 0x9c
    out 0x40, al
    mov al, 0x2e
    out 0x40, al
    # The serial port: an interrupt for each byte.
    mov dx, 0x3f9
    mov al, 1
    out dx, al
    mov dx, 0x3fc
    mov al, 8
    out dx, al
    lea rsi, [rip + ready]
    call print
    xor r13d, r13d
1:  sti
    hlt
    cli
    test r13d, r13d
    jz 1b
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, r12
    mov r12, rax
    mov dx, 0x608
    in eax, dx
    sub eax, r14d
    mov r14d, eax
    lea rsi, [rip + text_timer]
    mov rax, [rip + timer]
    call say
    lea rsi, [rip + text_pit]
    mov rax, [rip + pit]
    call say
    lea rsi, [rip + text_bytes]
    mov rax, [rip + bytes]
    call say
    lea rsi, [rip + text_cycles]
    mov rax, r12
    call say
    lea rsi, [rip + text_acpi]
    mov eax, r14d
    call say
    mov dx, 0x600
    mov al, 0x34
    out dx, al
1:  hlt
    jmp 1b

on_timer:
    inc qword ptr [rip + timer]
    mov dword ptr [rbx + 0xb0], 0
    iretq
on_pit:
    inc qword ptr [rip + pit]
    push rax
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq
on_serial:
    push rax
    push rdx
    mov al, 0x20
    out 0x20, al
2:  mov dx, 0x3fd
    in al, dx
    test al, 1
    jz 3f
    mov dx, 0x3f8
    in al, dx
    inc qword ptr [rip + bytes]
    cmp al, 'q'
    jne 2b
    mov r13d, 1
    jmp 2b
3:  pop rdx
    pop rax
on_spurious:
    iretq

# Prints the text at RSI and then RAX in hexadecimal.
say:
    push rax
    call print
    pop rax
    mov ecx, 16
4:  rol rax, 4
    push rax
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe 5f
    add al, 39
5:  mov dx, 0x3f8
    out dx, al
    pop rax
    dec ecx
    jnz 4b
    ret
print:
    mov dx, 0x3f8
6:  lodsb
    test al, al
    jz 7f
    out dx, al
    jmp 6b
7:  ret

set_gate:
    shl rsi, 4
    add rsi, rdi
    mov [rsi], ax
    mov cx, cs
    mov [rsi + 2], cx
    mov word ptr [rsi + 4], 0x8e00
    shr rax, 16
    mov [rsi + 6], ax
    shr rax, 16
    mov [rsi + 8], eax
    mov dword ptr [rsi + 12], 0
    ret

ready:
    .asciz "ready\n"
text_timer:
    .asciz "timer="
text_pit:
    .asciz " pit="
text_bytes:
    .asciz " bytes="
text_cycles:
    .asciz " cycles="
text_acpi:
    .asciz " acpi="
    .balign 8
idt_pointer:
    .short 4095
    .quad idt
    .section .bss
    .balign 16
timer:
    .skip 8
pit:
    .skip 8
bytes:
    .skip 8
    .balign 16
idt:
    .skip 4096
    .skip 4096
stack_top:
