//! Tells the end-to-end tests what this machine lacks, so that what cannot run is counted as ignored
//! and not as passed.

use std::process::{Command, Stdio};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PATH");
    for (missing, program, arguments) in [
        ("no_go", "go", ["version"].as_slice()),
        // What tests/python/setup.sh needs.
        (
            "no_python",
            "python3",
            &[
                "-c",
                "import ensurepip, sys; sys.exit(sys.version_info < (3, 10))",
            ],
        ),
    ] {
        println!("cargo::rustc-check-cfg=cfg({missing})");
        let found = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !found {
            println!("cargo::rustc-cfg={missing}");
        }
    }
}
