//! OCI bundles: config.json read, checked field by field, and translated into what the sandbox is told.
pub mod bundle;
pub mod fields;
pub mod mounts;
pub mod names;
pub mod process;
pub mod template;
pub mod translate;
