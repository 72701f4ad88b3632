//! The sentry image, embedded by the build script: the same bytes for every backend.

#[repr(C, align(4096))]
struct PageAligned<T: ?Sized>(T);

static IMAGE: &PageAligned<[u8]> = &PageAligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sentry")));

/// The ELF file.
pub static SENTRY: &[u8] = &IMAGE.0;

/// SHA-256 of [`SENTRY`] in hexadecimal.
pub const SENTRY_SHA256: &str = env!("SENTRY_SHA256");
