// What the debugging probes watch, at fixed distances from the start.
.Ldebug_start:
    nop
    nop
    .balign 16
    nop                         // 0x10: a hardware breakpoint
    .balign 16
    brk #0                      // 0x20: a software breakpoint
    .balign 16
    adr x1, .Ldebug_start         // 0x30
    mov w0, #7
    add x1, x1, #0x1000
    str w0, [x1]                // a watchpoint
    mov x1, #0x09020000
    str wzr, [x1]
1:  wfi
    b 1b
