//! Compiles the programs with clang, and generates Rust's side of the ABI from `c/abi.h`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    // libbpf-sys passes on where it put libbpf's headers.
    let libbpf = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys says where its headers are");
    let kernel_headers = format!("/usr/include/{arch}-linux-gnu");
    println!("cargo:rerun-if-changed=c");
    println!("cargo:rerun-if-env-changed=CLANG");

    for program in ["pod", "forward", "bench"] {
        compile(&Path::new("c").join(format!("{program}.bpf.c")), &out, &libbpf, &kernel_headers);
    }
    bindgen::builder()
        .header("c/abi.h")
        .clang_arg(format!("-I{kernel_headers}"))
        .allowlist_file(".*abi\\.h")
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_eq(true)
        .derive_hash(true)
        .generate_comments(false)
        .generate()
        .expect("bindgen reads c/abi.h (it needs libclang: Debian's libclang1-16)")
        .write_to_file(out.join("abi.rs"))
        .expect("OUT_DIR is writable");
}

fn compile(source: &Path, out: &Path, libbpf: &str, kernel_headers: &str) {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang-16".to_owned());
    let object = out.join(source.file_name().expect("a source has a name")).with_extension("o");
    let status = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-c"])
        .args(["-I", libbpf, "-I", kernel_headers, "-Ic"])
        .arg(source)
        .arg("-o")
        .arg(&object)
        .status()
        .unwrap_or_else(|error| {
            panic!("cannot run {clang}: {error}; install Debian's clang-16, or set CLANG")
        });
    assert!(status.success(), "{clang} refuses {}", source.display());
}
