//! Compiles the service definitions in `proto` in pure Rust: no protoc is needed.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let files =
        ["proto/rpc.proto", "proto/lock.proto", "proto/election.proto", "proto/racos.proto"];
    let descriptors = protox::compile(files, ["proto"]).expect("the .proto files are valid");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // The HTTP gateway and gRPC reflection read the descriptors at run time.
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))
        .expect("OUT_DIR can be written");
    tonic_prost_build::configure()
        // Keys and values stay where the frame was received.
        .bytes(".")
        .codec_path("crate::codec::FittedCodec")
        .build_transport(false)
        .compile_fds(descriptors)
        .expect("code for the services");
}
