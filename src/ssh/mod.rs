//! The only place that names russh.
