//! The sentry image: a freestanding static PIE whose entry point is `guest_kernel::arch::start::_start`.
#![cfg_attr(sentry_image, no_std, no_main)]

#[cfg(sentry_image)]
use guest_kernel as _;

#[cfg(not(sentry_image))]
fn main() {
    println!("the sentry is built with --cfg sentry_image and embedded in runsc");
}
