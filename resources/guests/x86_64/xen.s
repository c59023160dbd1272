# Speaks Xen's hypercall interface with arguments that the cases know: version, console, memory,
# parameters, an event from itself to itself, calls within a call, what is refused, and its end. Calls
# go through the hypercall page; R12 counts what is not as it should be, and the end is a crash then.
    .section .start, "ax"
    .globl _start, send, finish, entries, calls, hello
    .equ page, 0x300000
    .equ shared, 0x301000
    .equ vector, 0x55
    .equ apic, 0xfee00000
_start:
    lea rsp, [rip + stack_top]
    xor r12d, r12d
    # The leaves, the MSR, the page.
    mov eax, 0x40000100
    cpuid
    cmp ebx, 0x566e6558
    jne no_xen
    mov eax, 0x40000102
    cpuid
    mov ecx, ebx
    mov eax, page
    xor edx, edx
    wrmsr

    # xen_version: version, and features.
    xor edi, edi
    mov eax, 17
    call hypercall
    cmp eax, 0x40014
    setne al
    movzx eax, al
    add r12, rax
    mov edi, 6
    lea rsi, [rip + features]
    mov eax, 17
    call hypercall
    # console_io.
    xor edi, edi
    mov esi, 6
    lea rdx, [rip + hello]
    mov eax, 18
    call hypercall
    # memory_op: the shared page, and the map.
    mov edi, 7
    lea rsi, [rip + add]
    mov eax, 12
    call hypercall
    mov edi, 9
    lea rsi, [rip + map]
    mov eax, 12
    call hypercall
    # hvm_op: the upcall's vector, a parameter.
    mov edi, 23
    lea rsi, [rip + upcall]
    mov eax, 34
    call hypercall
    mov edi, 1
    lea rsi, [rip + parameter]
    mov eax, 34
    call hypercall
    # vcpu_op: whether vCPU 0 is up; vCPU 9 is none.
    mov edi, 3
    xor esi, esi
    mov eax, 24
    call hypercall
    mov edi, 3
    mov esi, 9
    mov eax, 24
    call hypercall
    # event_channel_op: a port to itself, and an event through it.
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
    mov eax, apic
    mov dword ptr [rax + 0xf0], 0x1ff
    sti
    mov edi, 7
    lea rsi, [rip + ipi]
    mov eax, 32
    call hypercall
    mov edi, 4
    lea rsi, [rip + ipi + 4]
    mov eax, 32
send:
    call hypercall
    nop
    nop
    cmp dword ptr [rip + events], 1
    setne al
    movzx eax, al
    add r12, rax
    # sched_op: yield, and a wait that an event ends.
    xor edi, edi
    mov eax, 29
    call hypercall
    # multicall, with one in it.
    lea rdi, [rip + calls]
    mov esi, 2
    mov eax, 13
    call hypercall
    cmp qword ptr [rip + calls + 8], 4096
    setne al
    movzx eax, al
    add r12, rax
    # What is refused: a toolstack's call, a number that is none, memory that is none.
    lea rdi, [rip + domctl]
    mov eax, 36
    call hypercall
    mov eax, 60
    call hypercall
    mov edi, 3
    mov rsi, 0x7000000000
    mov eax, 32
    call hypercall
    cmp eax, -14
    setne al
    movzx eax, al
    add r12, rax
    # The end.
    mov edi, 2
    lea rsi, [rip + shutdown]
    test r12, r12
    jz 1f
    mov dword ptr [rip + shutdown], 3
1:  mov eax, 29
finish:
    call hypercall
no_xen:
    mov al, 0x10
    out 0xf4, al
1:  hlt
    jmp 1b

# Calls number EAX through the page: 32 bytes an entry.
hypercall:
    mov r11d, eax
    shl r11d, 5
    add r11d, page
    jmp r11

on_event:
    push rax
    inc dword ptr [rip + events]
    # Nothing is pending any more.
    mov eax, shared
    mov byte ptr [rax], 0
    mov qword ptr [rax + 8], 0
    mov qword ptr [rax + 2048], 0
    mov eax, apic
    mov dword ptr [rax + 0xb0], 0
    pop rax
    iretq

    .balign 8
hello:
    .ascii "hello\n"
    .balign 8
features:
    .long 0, 0
add:
    .short 0x7ff0, 0
    .long 0
    .quad 0, shared >> 12
map:
    .long 4, 0
    .quad entries
upcall:
    .long 0, vector
parameter:
    .short 0x7ff0, 0
    .long 1
    .quad -1
ipi:
    .long 0, 0
calls:
    .quad 17, 0, 7, 0, 0, 0, 0, 0
    .quad 13, 0, calls, 1, 0, 0, 0, 0
domctl:
    .long 3, 0x17, 5, 0
shutdown:
    .long 0
events:
    .long 0
    .balign 8
idt_pointer:
    .short 0x1000 - 1
    .quad idt

    .section .bss
    .balign 16
idt:
    .skip 4096
entries:
    .skip 80
    .balign 16
    .skip 4096
stack_top:
