# Counts in memory, a call at a time, and ends the run with 0x20 at the exit device. What the
# debugger's cases put breakpoints and watchpoints on.
    .section .start, "ax"
    .globl _start, again, work, done
_start:
    lea rsp, [rip + stack_top]
    xor ebx, ebx
again:
    mov rdi, rbx
    call work
    inc rbx
    cmp rbx, 100000
    jb again
done:
    mov al, 0x20
    out 0xf4, al
1:  hlt
    jmp 1b
work:
    mov [rip + counter], rdi
    mov rax, [rip + counter]
    ret

    .section .bss
    .globl counter
    .balign 16
counter:
    .skip 16
    .skip 4096
stack_top:
