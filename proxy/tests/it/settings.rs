//! Settings from the file, the environment and the command line, as the program reads them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn output(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lantern-proxy"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// A file with these settings, in a directory that goes with it.
fn file(settings: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("proxy.toml");
    std::fs::write(&path, settings).expect("it can be written");
    let path = path.to_str().expect("text").to_owned();
    (directory, path)
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("text")
}

#[test]
fn check_prints_what_the_settings_come_to_and_where_they_are_from() {
    let (_directory, path) = file(
        "upstream = [\"http://gpu0:8001\", \"http://gpu1:8001,weight=2\"]\n\
         read_timeout_seconds = 60\nmax_connections = 100\n",
    );
    let checked = output(
        &["--config", &path, "--check", "--max-connections", "50"],
        &[("LANTERN_PROXY_DRAIN_TIMEOUT_SECONDS", "5")],
    );
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let text = stdout(&checked);
    for line in [
        &format!(
            "upstream = [\"http://gpu0:8001\", \"http://gpu1:8001,weight=2\"]  # {path}:1: upstream"
        ),
        &format!("read_timeout_seconds = 60  # {path}:2: read_timeout_seconds"),
        "max_connections = 50  # --max-connections",
        "drain_timeout_seconds = 5  # LANTERN_PROXY_DRAIN_TIMEOUT_SECONDS",
        "connect_timeout_seconds = 5",
        "# health_path is not set",
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn a_variable_can_name_the_file() {
    let (_directory, path) = file("upstream = \"http://gpu0:8001\"\n");
    let checked = output(&["--check"], &[("LANTERN_PROXY_CONFIG", &path)]);
    assert!(stdout(&checked).contains("http://gpu0:8001"), "{checked:?}");
}

#[test]
fn a_bad_file_ends_the_program_with_64_and_one_line_with_file_line_key_value_and_what_is_allowed() {
    for (settings, named) in [
        (
            "upstream = \"http://a:1\"\nread_timeout_seconds = \"soon\"",
            "proxy.toml:2: read_timeout_seconds='soon' is not supported: use a number of seconds above 0",
        ),
        (
            "upstream = [\n\"http://a:1\",\n\"ftp://a\",\n]",
            "proxy.toml:3: upstream='ftp://a' is not supported: use http://host:port",
        ),
        (
            "upstraem = \"http://a:1\"",
            "proxy.toml:1: upstraem='\"http://a:1\"' is not supported: use one of the keys listen, upstream",
        ),
        (
            "upstream = ",
            "proxy.toml:1='upstream = ' is not supported: use TOML",
        ),
    ] {
        let (_directory, path) = file(settings);
        for check in [&[][..], &["--check"]] {
            let failed = output(&[&["--config", &path][..], check].concat(), &[]);
            assert_eq!(failed.status.code(), Some(64), "{settings}");
            let text = String::from_utf8(failed.stderr).expect("text");
            assert!(text.contains(named), "{named} is missing in {text}");
            assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = Path::new("/nonexistent/proxy.toml");
    let failed = output(&["--config", path.to_str().expect("text")], &[]);
    assert_eq!(failed.status.code(), Some(64));
    let text = String::from_utf8(failed.stderr).expect("text");
    assert!(
        text.contains("--config='/nonexistent/proxy.toml'"),
        "{text}"
    );
}
