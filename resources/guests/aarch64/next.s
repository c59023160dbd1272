// A function that is a loop of as many turns as its counter says, for `next` to go over.
    .section .start, "ax"
    .globl _start, body, done
_start:
    mov w2, #1000
    b body
    .type body, %function
body:
    add w0, w0, #1
    subs w2, w2, #1
    b.ne body
    .size body, . - body
    .type done, %function
done:
    b done
    .size done, . - done
