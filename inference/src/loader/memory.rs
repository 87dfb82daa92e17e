//! How much of the host's memory can still be had.

use sysinfo::{CGroupLimits, MemoryRefreshKind, RefreshKind, System};

/// Bytes that can be had without taking them from others, within what this process's container may have;
/// `None` where the system does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory).ok()?;
    let container = system.cgroup_limits().map(|limits| left(&limits));
    let available = system.available_memory();
    let available = container.map_or(available, |left| left.min(available));
    (available > 0).then_some(available)
}

/// What a container may still have. Not its `free_memory`: files that were read, such as the weights, are not
/// free there, though the system drops them when memory is asked for.
fn left(limits: &CGroupLimits) -> u64 {
    limits.total_memory.saturating_sub(limits.rss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_read_leave_a_container_its_memory() {
        let limits = CGroupLimits {
            total_memory: 8 << 30,
            free_memory: 1 << 30, // 3 GiB of weights, and the 4 GiB of files that they were read from
            free_swap: 0,
            rss: 3 << 30,
        };
        assert_eq!(left(&limits), 5 << 30);
    }

    #[test]
    fn this_process_runs_so_some_memory_is_there() {
        assert!(available_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
