//! Generates the wire's messages and service from `proto/durward.proto`, without a `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/durward.proto");
    let files = protox::compile(["durward.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".durward.v1.ToNode.part")
        .compile_fds(files)?;
    Ok(())
}
