//! The freestanding image; everything it does is in the library.
#![cfg_attr(sentry_image, no_std, no_main)]

#[cfg(not(sentry_image))]
fn main() {}

#[cfg(sentry_image)]
#[unsafe(no_mangle)]
extern "sysv64" fn _start() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

#[cfg(sentry_image)]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
