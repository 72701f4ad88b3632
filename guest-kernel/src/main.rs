#![cfg_attr(sentry_image, no_std, no_main)]
#[cfg(not(sentry_image))]
fn main() {}
