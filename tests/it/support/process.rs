//! A `lantern` process: started, listened to, stopped by signal, never left behind.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use super::{repository, spawn, wait_for};

/// A running child process. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<String>>,
}

/// How a process ended, and all that it printed.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
}

impl Process {
    /// `lantern ARGS`, with exactly these OTEL_* variables.
    pub(crate) fn lantern(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lantern"));
        command.args(args);
        Self::start(command, env)
    }

    /// Any command, in the repository's root, without the OTEL_* variables of the test's own
    /// environment.
    pub(crate) fn start(mut command: Command, env: &[(&str, &str)]) -> Self {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        let name = format!("{command:?}");
        command
            .envs(env.iter().copied())
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child =
            spawn(&mut command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let output = Arc::default();
        collect(child.stdout.take().expect("stdout is piped"), &output);
        collect(child.stderr.take().expect("stderr is piped"), &output);
        Self {
            name,
            child,
            output,
        }
    }

    /// All that it has printed so far.
    pub(crate) fn output(&self) -> String {
        self.output.lock().expect("no reader panics").clone()
    }

    /// Waits until it has printed `text`; fails at once when it ends before.
    pub(crate) fn wait_until_output(&mut self, text: &str) {
        let output = Arc::clone(&self.output);
        let printed = || output.lock().expect("no reader panics").contains(text);
        self.wait_until(&format!("{text:?}"), printed);
    }

    /// Waits until `ready` holds; fails at once when the process ends before.
    pub(crate) fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) {
        wait_for(what, || {
            if ready() {
                return Some(());
            }
            let ended = self.try_wait();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}): {}",
                self.name,
                self.output()
            );
            None
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a child's id is positive");
        kill_process(pid, signal).expect("the child still runs");
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Ended {
        let what = format!("the end of {}", self.name);
        let status = wait_for(&what, || self.try_wait());
        // The readers end with the pipes; what was printed last is then in the buffer.
        wait_for(&what, || {
            (Arc::strong_count(&self.output) == 1).then_some(())
        });
        Ended {
            code: status.code(),
            output: self.output(),
        }
    }

    /// SIGTERM, then the end.
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} printed:\n{}", self.name, self.output());
        }
    }
}

fn collect(pipe: impl Read + Send + 'static, output: &Arc<Mutex<String>>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            let mut output = output.lock().expect("no reader panics");
            output.push_str(&line);
            output.push('\n');
        }
    });
}
