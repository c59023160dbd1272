# Uses int3 and the trap flag itself, and checks what its handlers see. Ends the run with 0x20
# when all was as without a debugger, else with the number of the check that failed. (INT1 is
# left out: QEMU's emulation takes it for a breakpoint of its own debugger.)
    .section .start, "ax"
    .globl _start, work, before_own, on_breakpoint, own_step, failed, passed
_start:
    lea rsp, [rip + stack_top]
    lea rdi, [rip + idt]
    lea rax, [rip + on_debug]
    mov esi, 1
    call set_gate
    lea rax, [rip + on_breakpoint]
    mov esi, 3
    call set_gate
    lidt [rip + idt_pointer]
    call work

    # int3 is a trap: its handler returns behind it.
    mov bl, 1
before_own:
    lea r15, [rip + behind_int3]
own_int3:
    int3
behind_int3:
    cmp r12, 1
    jne failed

    # A single step of its own: the trap comes behind the instruction after POPF.
own_step:
    mov bl, 3
    lea r15, [rip + behind_step]
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    nop
behind_step:
    cmp r13, 1
    jne failed
    mov bl, 4
    test r14d, 0x4000
    jz failed

    # The trap flag is not left behind.
    mov bl, 5
    pushfq
    pop rax
    test eax, 0x100
    jnz failed
passed:
    mov al, 0x20
    out 0xf4, al
1:  hlt
    jmp 1b
failed:
    mov al, bl
    out 0xf4, al
1:  hlt
    jmp 1b

work:
    nop
    ret

# Puts a gate for the handler in RAX into slot ESI of the table at RDI.
set_gate:
    shl rsi, 4
    add rsi, rdi
    mov [rsi], ax
    mov word ptr [rsi + 2], cs
    mov word ptr [rsi + 4], 0x8e00
    shr rax, 16
    mov [rsi + 6], ax
    shr rax, 16
    mov [rsi + 8], eax
    mov dword ptr [rsi + 12], 0
    ret

# Both check the address they return to against R15.
on_breakpoint:
    inc r12
    cmp [rsp], r15
    jne failed
    iretq
on_debug:
    inc r13
    mov r14, dr6
    cmp [rsp], r15
    jne failed
    and qword ptr [rsp + 16], ~0x100
    iretq

    .balign 8
idt_pointer:
    .short 4095
    .quad idt
    .section .bss
    .balign 16
idt:
    .skip 4096
    .skip 4096
stack_top:
