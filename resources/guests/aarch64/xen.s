// Speaks Xen's hypercall interface with arguments that the cases know: version, console, memory,
// parameters, event channels, calls within a call, what is refused, and its end. Between them are
// SMCCC calls, which are not Xen's. X19 counts what is not as it should be, and the end is a crash
// then.
    .section .start, "ax"
    .globl _start, send, finish, entries, calls, hello
    .equ shared, 0x40301000
    .macro xen number
    mov x16, #\number
    hvc #0xea1
    .endm
    .macro expect register, value
    mov x9, \value
    cmp \register, x9
    cset x9, ne
    add x19, x19, x9
    .endm
_start:
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1
    mov x19, #0
    // xen_version: version, and features.
    mov x0, #0
    xen 17
    movz x9, #0x14
    movk x9, #4, lsl #16
    cmp x0, x9
    cset x9, ne
    add x19, x19, x9
    mov x0, #6
    adr x1, features
    xen 17
    // PSCI_VERSION is KVM's, whatever the immediate; a function that is nobody's is not supported.
    mov x0, #0x84000000
    hvc #0
    cmp x0, #0
    cset x9, le
    add x19, x19, x9
    mov x0, #0x1234
    mov x1, #5
    hvc #0
    expect x0, #-1
    expect x1, #0
    // console_io.
    mov x0, #0
    mov x1, #6
    adr x2, hello
    xen 18
    // memory_op: the shared page, and the map.
    mov x0, #7
    adr x1, add_page
    xen 12
    mov x0, #9
    adr x1, map
    xen 12
    // hvm_op: a parameter.
    mov x0, #1
    adr x1, parameter
    xen 34
    // vcpu_op: whether vCPU 0 is up; vCPU 9 is none.
    mov x0, #3
    mov x1, #0
    xen 24
    expect x0, #1
    mov x0, #3
    mov x1, #9
    xen 24
    // event_channel_op: a port to itself, and an event through it.
    mov x0, #7
    adr x1, ipi
    xen 32
    mov x0, #4
    adr x1, ipi + 4
    mov x16, #32
send:
    hvc #0xea1
    ldr x9, =shared
    ldrb w10, [x9]
    expect x10, #1
    // sched_op: yield.
    mov x0, #0
    xen 29
    // multicall, with one in it: the list is in X0.
    adr x0, calls
    mov x1, #2
    xen 13
    ldr x10, calls + 8
    expect x10, #4096
    // What is refused: a toolstack's call, a number that is none, memory that is none.
    adr x0, domctl
    xen 36
    xen 60
    mov x0, #3
    mov x1, #0x7000000000
    xen 32
    expect x0, #-14
    // The end.
    mov x0, #2
    adr x1, shutdown
    cbz x19, 1f
    mov w9, #3
    str w9, [x1]
1:  mov x16, #29
finish:
    hvc #0xea1
    mov x1, #0x09020000
    mov w0, #0x10
    str w0, [x1]
1:  wfi
    b 1b

    .balign 8
hello:
    .ascii "hello\n"
    .balign 8
features:
    .word 0, 0
add_page:
    .hword 0x7ff0, 0
    .word 0
    .quad 0, shared >> 12
map:
    .word 4, 0
    .quad entries
parameter:
    .hword 0x7ff0, 0
    .word 1
    .quad -1
ipi:
    .word 0, 0
    .balign 8
calls:
    .quad 17, 0, 7, 0, 0, 0, 0, 0
    .quad 13, 0, calls, 1, 0, 0, 0, 0
domctl:
    .word 3, 0x17, 5, 0
shutdown:
    .word 0
    .balign 8

    .section .bss
    .balign 16
entries:
    .skip 80
    .balign 16
    .skip 4096
stack_top:
