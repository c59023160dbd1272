# Asks for an ACPI sleep type that there is not, and says that a crash kernel takes over, for ever.
    .section .start, "ax"
    .globl _start
_start:
    mov dx, 0x600
    mov al, 0x24
    out dx, al
    mov dx, 0x505
    mov al, 2
    out dx, al
    jmp _start
