# Uses ports and memory where nothing is: reads give ones, writes go nowhere. Ends the run
# with 1 if so, 2 if not.
    .section .start, "ax"
    .globl _start
_start:
    mov dx, 0x5678
    mov eax, 0x1234
    out dx, eax
    in eax, dx
    cmp eax, 0xffffffff
    jne bad
    mov ebx, 0xd0000000
    mov dword ptr [rbx], 7
    mov eax, [rbx]
    cmp eax, 0xffffffff
    jne bad
    mov al, 1
    out 0xf4, al
bad:
    mov al, 2
    out 0xf4, al
1:  hlt
    jmp 1b
