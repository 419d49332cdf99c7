//! What the system tells of processes.

use std::fs;

use super::Failure;

/// What a reader has to know of where figures were taken. What the system does not tell is not there.
#[allow(dead_code)] // of `--bench tunnel`
pub(crate) fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    let (system, version) = (std::env::consts::OS, env!("CARGO_PKG_VERSION"));
    format!("dialback {version} on {system}, kernel {}; {model}, {cores} cores for this process", kernel.trim())
}

/// Bytes of this process in memory.
pub(crate) fn resident() -> Result<u64, Failure> {
    Ok(1024 * number_after(&fs::read_to_string("/proc/self/status")?, "VmRSS:")?)
}

/// Bytes of memory that programs may still take.
#[allow(dead_code)] // of `--bench tunnel`
pub(crate) fn available_memory() -> Result<u64, Failure> {
    Ok(1024 * number_after(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")?)
}

/// How many files a process may have open.
pub(crate) fn open_files() -> Result<usize, Failure> {
    Ok(usize::try_from(number_after(&fs::read_to_string("/proc/self/limits")?, "Max open files")?)?)
}

fn number_after(text: &str, label: &str) -> Result<u64, Failure> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("no `{label}` in /proc"))?.parse()?)
}
