//! The root of a guest that is one assembly file: `GUEST_SOURCE` names it.
#![no_std]
#![no_main]

core::arch::global_asm!(include_str!(env!("GUEST_SOURCE")));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
