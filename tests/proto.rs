//! The Rust code checked in under `proto/gen` is what the `.proto` files say.

use std::{env, fs, path::Path};

use prost::Message;

/// Nobody needs `protoc` or a build script to use this crate: the generated code is checked in, and this test keeps it
/// current. After a change to a `.proto` file run `UPDATE_PROTO=1 cargo test --test proto`.
#[test]
fn generated_code_is_current() {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let fresh = tempfile::tempdir().unwrap();
    let descriptors =
        protox::compile(["echo.proto", "fluentd.proto", "greeter.proto", "test_echo.proto"], [&proto]).unwrap();
    tonic_prost_build::configure().out_dir(fresh.path()).compile_fds(descriptors).unwrap();
    // The gateway serves this one, and describes it to whoever asks.
    let hub = protox::compile(["hub.proto"], [&proto]).unwrap();
    fs::write(fresh.path().join("dialback.v1.bin"), hub.encode_to_vec()).unwrap();
    tonic_prost_build::configure().out_dir(fresh.path()).compile_fds(hub).unwrap();
    // An example describes this one.
    let greeter = protox::compile(["greeter.proto"], [&proto]).unwrap();
    fs::write(fresh.path().join("dialback.greeter.v1.bin"), greeter.encode_to_vec()).unwrap();
    // What goes through a tunnel is not copied on its way out of a frame.
    let tunnel = protox::compile(["grpctunnel.proto"], [&proto]).unwrap();
    let config = tonic_prost_build::configure().bytes(".").btree_map(".").build_transport(false);
    config.out_dir(fresh.path()).compile_fds(tunnel).unwrap();

    let checked_in = proto.join("gen");
    if env::var_os("UPDATE_PROTO").is_some() {
        fs::create_dir_all(&checked_in).unwrap();
        for stale in names_in(&checked_in) {
            fs::remove_file(checked_in.join(stale)).unwrap();
        }
        for name in names_in(fresh.path()) {
            fs::copy(fresh.path().join(&name), checked_in.join(&name)).unwrap();
        }
    }

    const REMEDY: &str = "run `UPDATE_PROTO=1 cargo test --test proto` and commit proto/gen";
    assert_eq!(names_in(&checked_in), names_in(fresh.path()), "other files than the .proto files call for: {REMEDY}");
    for name in names_in(fresh.path()) {
        let expected = fs::read(fresh.path().join(&name)).unwrap();
        let found = fs::read(checked_in.join(&name)).unwrap();
        assert!(found == expected, "proto/gen/{name} is not what the .proto files say: {REMEDY}");
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("cannot list {}: {e}", dir.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
