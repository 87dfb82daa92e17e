//! How much of the host's memory can still be had.

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes that can be had without taking them from others, within what this process's container may have;
/// `None` where the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory).ok()?;
    let container = system.cgroup_limits().map(|limits| limits.free_memory);
    let available = system.available_memory();
    let available = container.map_or(available, |free| free.min(available));
    (available > 0).then_some(available)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_runs_so_some_memory_is_there() {
        assert!(available_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
