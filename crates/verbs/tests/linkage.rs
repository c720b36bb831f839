//! Nothing of ours may link to libibverbs or librdmacm: a program must start where they are not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use secure_rdma_rdma::{Devices, ErrorCode};
use secure_rdma_verbs::Verbs;

fn needed(binary: &Path) -> Vec<String> {
    let output =
        Command::new("readelf").arg("-d").arg(binary).output().expect("readelf (binutils) is needed");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries = text.lines().filter(|line| line.contains("(NEEDED)"));
    libraries.filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned())).collect()
}

fn undefined_symbols(binary: &Path) -> Vec<String> {
    let output = Command::new("readelf").args(["--wide", "--dyn-syms"]).arg(binary).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let undefined = text.lines().filter(|line| line.contains(" UND "));
    undefined.filter_map(|line| line.split_whitespace().nth(7).map(str::to_owned)).collect()
}

/// This test binary has the whole crate in it, since it lists and opens through the public face.
#[test]
fn a_binary_with_the_crate_in_it_needs_neither_library() {
    let _ = Verbs.list();
    assert!(Verbs.open("no-such-device").is_err());
    let binary = std::env::current_exe().unwrap();
    let needed = needed(&binary);
    assert!(needed.iter().any(|name| name.starts_with("libc.so")), "positive control: {needed:?}");
    let rdma: Vec<_> =
        needed.iter().filter(|name| name.contains("ibverbs") || name.contains("rdmacm")).collect();
    assert!(rdma.is_empty(), "{rdma:?}");
    let symbols = undefined_symbols(&binary);
    assert!(symbols.iter().any(|name| name.starts_with("poll")), "positive control");
    let rdma: Vec<_> =
        symbols.iter().filter(|name| name.starts_with("ibv_") || name.starts_with("rdma_")).collect();
    assert!(rdma.is_empty(), "{rdma:?}");
}

/// In a child whose dynamic linker finds an empty file in the library's place.
#[test]
fn without_the_library_there_are_no_devices_and_opening_says_what_to_install() {
    if std::env::var_os("SECURE_RDMA_NO_LIBRARY_CHILD").is_some() {
        assert!(Verbs.list().unwrap().is_empty());
        let error = Verbs.open("rxe0").unwrap_err();
        assert_eq!(error.code(), ErrorCode::Library);
        assert!(error.message().contains("libibverbs1"), "{error}");
        return;
    }
    let empty = std::env::temp_dir().join(format!("secure-rdma-linkage-{}", std::process::id()));
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::write(empty.join("libibverbs.so.1"), []).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_the_library_there_are_no_devices_and_opening_says_what_to_install"])
        .env("LD_LIBRARY_PATH", &empty)
        .env("SECURE_RDMA_NO_LIBRARY_CHILD", "1")
        .output()
        .unwrap();
    std::fs::remove_dir_all(&empty).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
