# What the debugging probes watch, at fixed distances from the start.
.Ldebug_start:
    nop
    nop
    .balign 16
    nop                         # 0x10: a hardware breakpoint
    .balign 16
    int3                        # 0x20: a software breakpoint
    .balign 16
    lea rbx, [rip + .Ldebug_start]   # 0x30
    mov dword ptr [rbx + 0x1000], 7     # a watchpoint
    mov al, 0
    out 0xf4, al
1:  hlt
    jmp 1b
