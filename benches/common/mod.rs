//! What the benchmarks share: the service that is called, the work, and how results are told. Each takes what it needs, so
//! none uses all of it.
#![allow(dead_code)]

pub(crate) mod report;
pub(crate) mod service;
pub(crate) mod system;
pub(crate) mod work;

/// Why a benchmark ends early.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
