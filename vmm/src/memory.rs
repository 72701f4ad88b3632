//! Guest memory: the regions of `sentry_abi::layout`, where they lie in this process and which descriptor backs them.
