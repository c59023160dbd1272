# A function that is a loop of as many turns as its counter says, for `next` to go over. Entered
# by its PVH note or by a 64-bit entry, it is the same code in 32-bit and in 64-bit mode.
    .section .start, "ax"
    .globl _start, body, done
_start:
    mov ecx, 1000
    jmp body
    .type body, @function
body:
    add eax, 1
    sub ecx, 1
    jnz body
    .size body, . - body
    .type done, @function
done:
    jmp done
    .size done, . - done

    .section .note.Xen, "a", @note
    .long 4, 4, 18
    .asciz "Xen"
    .long _start
