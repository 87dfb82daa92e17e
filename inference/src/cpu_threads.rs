//! Keeps candle's CPU pool within the cores that this process may use.
//!
//! candle takes one thread per physical core of the machine and spins between operations: under a container's CPU
//! limit or a CPU affinity the surplus threads steal the time of the working ones. It reads
//! `RAYON_NUM_THREADS` and has no other setting; a running process cannot safely change its own environment, so
//! the program starts itself over with the variable set. Only where it is needed, and with the same process id.

use std::num::NonZero;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// What candle (and rayon) read.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Bounds the pool to the available cores, unless the user has named a number. To be called before
/// anything else: where needed it replaces the process by the same program with the same arguments.
pub fn bound() {
    let available = std::thread::available_parallelism().map_or(1, NonZero::get);
    let chosen = [VARIABLE, "CANDLE_NUM_THREADS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if let Some(threads) = surplus(chosen, candle_core::utils::get_num_threads(), available) {
        start_over(threads);
    }
}

/// Makes the calling thread one of a pool for products that it starts from then on: work that begins and ends
/// there needs no hand-over. The pool lasts as long as what is returned.
pub(crate) fn join_pool() -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .num_threads(candle_core::utils::get_num_threads())
        .use_current_thread()
        .build()
}

/// The number of threads to ask for, where candle would take more than there are cores.
fn surplus(chosen: bool, candles: usize, available: usize) -> Option<usize> {
    (!chosen && candles > available).then_some(available)
}

/// Returns only if it cannot be done: then the program is slow, but right.
#[cfg(unix)]
fn start_over(threads: usize) {
    use std::os::unix::process::CommandExt;

    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(&program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command
        .args(arguments)
        .env(VARIABLE, threads.to_string())
        .exec();
    eprintln!(
        "cannot bound the CPU threads to {threads}: {}: {error}",
        program.display()
    );
}

#[cfg(not(unix))]
fn start_over(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_bounded_only_where_there_are_too_many_and_nobody_chose() {
        assert_eq!(surplus(false, 64, 2), Some(2));
        assert_eq!(surplus(false, 2, 2), None);
        assert_eq!(surplus(false, 1, 2), None, "fewer is candle's own choice");
        assert_eq!(surplus(true, 64, 2), None);
    }
}
