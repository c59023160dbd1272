# Says again and again what the time-stamp counter is: the lower half, then the upper one.
.Lclock_start:
    rdtsc
    out 0xf4, eax
    mov eax, edx
    out 0xf4, eax
    jmp .Lclock_start
