# Speaks Xen's hypercall interface from 32-bit code: arguments in EBX, ECX, EDX, ESI and EDI, words of
# four bytes. A PVH kernel, which is entered so.
    .section .start, "ax"
    .globl _start
    .equ page, 0x300000
_start:
    .code32
    mov esp, 0x380000
    mov eax, 0x40000102
    cpuid
    mov ecx, ebx
    mov eax, page
    xor edx, edx
    wrmsr
    # xen_version, console_io.
    xor ebx, ebx
    mov eax, page + 17 * 32
    call eax
    xor ebx, ebx
    mov ecx, 3
    mov edx, offset text
    mov eax, page + 18 * 32
    call eax
    # set_timer_op: 64 bits in two registers.
    mov ebx, 0x89abcdef
    mov ecx, 0x7fff0000
    mov eax, page + 15 * 32
    call eax
    # memory_op: structures of 32-bit words.
    mov ebx, 7
    mov ecx, offset add_page
    mov eax, page + 12 * 32
    call eax
    # argo_op: all five.
    mov ebx, 1
    mov ecx, offset ring
    mov edx, 0x1000
    mov esi, 2
    mov edi, 1
    mov eax, page + 39 * 32
    call eax
    mov ebx, 2
    mov ecx, offset shutdown
    mov eax, page + 29 * 32
    call eax
    mov al, 0x10
    out 0xf4, al
1:  hlt
    jmp 1b
    .balign 4
text:
    .ascii "32\n"
    .balign 4
add_page:
    .short 0x7ff0, 0
    .long 0, 0, 0x301
ring:
    .long 5
    .short 1, 0
    .long 4096
shutdown:
    .long 0
    .code64

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
