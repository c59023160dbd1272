// Writes to each page of 200 MiB of memory, from 16 MiB behind its start on, says so, and waits. What dumps
// are measured on.
    .section .start, "ax"
    .globl _start
_start:
    mov x1, #0x41000000
    mov w2, #200 * 256
1:  str w2, [x1]
    add x1, x1, #4096
    subs w2, w2, #1
    b.ne 1b
    mov x1, #0x09000000
    mov w0, #'b'
    strb w0, [x1]
2:  yield
    b 2b
