//! Container engines that drive the runtime, each from the distribution's package and in a directory of its own. Where one is
//! missing its tests say so and pass; with `CI` set they fail.

mod containerd;
mod docker;
mod podman;
mod support;
