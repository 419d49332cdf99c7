//! What the system tells of processes.

use std::fs;

use super::Failure;

/// Bytes of this process in memory.
pub(crate) fn resident() -> Result<u64, Failure> {
    Ok(1024 * number_after(&fs::read_to_string("/proc/self/status")?, "VmRSS:")?)
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
