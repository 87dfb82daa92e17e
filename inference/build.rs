//! Compiles the CUDA kernels of `src/ops/cuda/kernels`, where the `cuda` feature asks for them.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    kernels::build()
}

#[cfg(not(feature = "cuda"))]
fn main() {}

#[cfg(feature = "cuda")]
mod kernels {
    use std::path::PathBuf;

    use cudaforge::KernelBuilder;

    const SOURCES: &str = "src/ops/cuda/kernels";

    /// Machine code is made for these, and PTX of the last for what comes after them.
    const ARCHITECTURES: [usize; 4] = [80, 86, 89, 90];

    pub(crate) fn build() -> Result<(), Box<dyn std::error::Error>> {
        println!("cargo:rerun-if-changed={SOURCES}");
        println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
        let out = PathBuf::from(std::env::var("OUT_DIR")?);
        // What CUDA_COMPUTE_CAP says, or the GPU of this machine. As for candle's kernels, which are PTX: the oldest
        // that is to run them.
        let oldest = cudaforge::detect_compute_cap().map_or(ARCHITECTURES[0], |found| found.base());
        let mut builder = KernelBuilder::new()
            .source_dir(SOURCES)
            .watch([SOURCES])
            .compute_cap(oldest)
            .arg("-std=c++17")
            .arg("-O3")
            .arg("-Xcompiler")
            .arg("-fPIC");
        for architecture in ARCHITECTURES.into_iter().filter(|newer| *newer > oldest) {
            builder = builder.arg(&format!(
                "-gencode=arch=compute_{architecture},code=sm_{architecture}"
            ));
        }
        let last = oldest.max(ARCHITECTURES[ARCHITECTURES.len() - 1]);
        builder = builder.arg(&format!("-gencode=arch=compute_{last},code=compute_{last}"));
        builder.build_lib(out.join("liblantern_kernels.a"))?;
        println!("cargo:rustc-link-search={}", out.display());
        println!("cargo:rustc-link-lib=static=lantern_kernels");
        println!("cargo:rustc-link-lib=dylib=cudart");
        println!("cargo:rustc-link-lib=stdc++");
        Ok(())
    }
}
