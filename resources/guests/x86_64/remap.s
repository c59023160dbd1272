# Maps a page at `alias` in turn to two pages of code, calls it each time, and calls the first of
# them by a second name. Ends the run with the sum of what the calls return at the exit device.
    .section .start, "ax"
    .globl _start
    .equ alias, 0x140000000
    .equ other, 0x140001000
_start:
    lea rsp, [rip + stack_top]
    # An entry of the top-level table's first page leads to tables of our own.
    mov rdi, cr3
    and rdi, ~0xfff
    mov rdi, [rdi]
    and rdi, ~0xfff
    lea rax, [rip + directory]
    or rax, 3
    mov [rdi + 8 * 5], rax
    lea rax, [rip + table]
    or rax, 3
    mov [rip + directory], rax
    lea rsi, [rip + table]
    lea r8, [rip + one]
    lea r9, [rip + two]
    or r8, 3
    or r9, 3
    movabs rbp, alias
    xor ebx, ebx
    # To the first page, the second, the first by another name, and the first again.
    mov [rsi], r8
    call enter
    mov [rsi], r9
    call enter
    mov [rsi + 8], r8
    add rbp, 0x1000
    call enter
    sub rbp, 0x1000
    mov [rsi], r8
    call enter
    mov al, bl
    out 0xf4, al
1:  hlt
    jmp 1b
enter:
    mov rax, cr3
    mov cr3, rax
    call rbp
    add ebx, eax
    ret

    .balign 4096
one:
    mov eax, 1
    ret
    .balign 4096
two:
    mov eax, 16
    ret

    .section .bss
    .balign 4096
directory:
    .skip 4096
table:
    .skip 4096
    .skip 4096
stack_top:
