//! A capture of every operation: complete, well-formed, and read by tshark as we meant it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{End, SEND, Terms, bring_up, open, remote, request};
use secure_rdma_rdma::{
    Access, Device, MemoryWindow, PathMtu, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};
use secure_rdma_roce::Packet;
use secure_rdma_soft::SoftOptions;

/// A packet of a capture.
#[derive(Debug)]
struct Captured {
    outbound: bool,
    payload: Vec<u8>,
}

/// The packets of a pcapng file, by the format's own document and not by our writer.
fn read(path: &Path) -> Vec<Captured> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let number = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
        let length = number(4) as usize;
        if number(0) == 6 {
            let captured = number(20) as usize;
            let packet = &rest[28..28 + captured];
            let options = 28 + captured.next_multiple_of(4);
            assert_eq!(u16::from_ne_bytes(rest[options..options + 2].try_into().unwrap()), 2, "epb_flags");
            let header = if packet[0] >> 4 == 4 { 20 } else { 40 };
            found.push(Captured {
                outbound: number(options + 4) & 3 == 2,
                payload: packet[header + 8..].to_vec(),
            });
        }
        rest = &rest[length..];
    }
    found
}

/// Every operation, with a message of several packets where there can be one.
fn every_operation(one: &End, other: &End) {
    let (ours, theirs) = (one.region(1 << 16), other.region(1 << 16));
    let read_write = Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND;
    let granted = common::region(&other.device, 1 << 16, read_write);
    let window: Arc<dyn MemoryWindow> = other.device.create_memory_window().unwrap().unwrap();
    let rkey = window.next_key();
    let bind = SendOperation::Bind {
        window: Arc::clone(&window),
        rkey,
        target: Slice::new(&granted, 0, 1 << 16),
        access: Access::REMOTE_WRITE,
    };
    let no_slices = |operation| SendRequest {
        id: WorkId(0),
        operation,
        local: [].into_iter().collect(),
        flags: SendFlags::empty(),
    };
    other.send(no_slices(bind));
    other.done();
    for length in [0, 33, 3000] {
        for immediate in [None, Some(7)] {
            other.receive(1, &theirs, 0, 4096);
            one.send(request(2, SendOperation::Send { immediate }, &ours, 0, length));
            one.done();
            other.done();
            if immediate.is_some() {
                other.receive(1, &theirs, 0, 0);
            }
            let write = SendOperation::Write { remote: remote(&theirs, 64), immediate };
            one.send(request(3, write, &ours, 0, length));
            one.done();
            if immediate.is_some() {
                other.done();
            }
        }
        one.send(request(4, SendOperation::Read { remote: remote(&theirs, 64) }, &ours, 0, length));
        one.done();
    }
    let through = RemoteSlice { address: granted.address(), rkey };
    one.send(request(5, SendOperation::Write { remote: through, immediate: None }, &ours, 0, 3000));
    one.done();
    for length in [10, 3000] {
        let rkey = if length == 10 {
            rkey
        } else {
            let rkey = window.next_key();
            other.send(no_slices(SendOperation::Bind {
                window: Arc::clone(&window),
                rkey,
                target: Slice::new(&granted, 0, 4096),
                access: Access::REMOTE_WRITE,
            }));
            other.done();
            rkey
        };
        other.receive(6, &theirs, 0, 4096);
        one.send(request(7, SendOperation::SendInvalidate { rkey }, &ours, 0, length));
        one.done();
        assert_eq!(other.done().invalidated, Some(rkey));
    }
    one.send(request(8, SendOperation::FetchAdd { remote: remote(&theirs, 8), add: 3 }, &ours, 0, 8));
    let swap = SendOperation::CompareSwap { remote: remote(&theirs, 8), compare: 1, swap: 2 };
    one.send(request(9, swap, &ours, 0, 8));
    one.done();
    one.done();
    // A SEND that meets no receive, and at the end one that is refused.
    one.send(request(10, SEND, &ours, 0, 8));
    while one.device.counters().engine.rcvd_rnr_err == 0 {
        std::thread::yield_now();
    }
    other.receive(11, &theirs, 0, 8);
    one.done();
    other.done();
    let write = SendOperation::Write { remote: RemoteSlice { rkey, ..through }, immediate: None };
    one.send(request(12, write, &ours, 0, 8));
    assert!(!one.told.next().status.is_success());
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("secure-rdma-{name}-{}.pcapng", std::process::id()))
}

/// Captures every operation; gives the file of the first device and what is in it.
fn capture(name: &str, address: &str) -> (PathBuf, Vec<Captured>, u16, u16) {
    let path = temporary(name);
    let terms = Terms { address: address.parse().unwrap(), path_mtu: PathMtu::Bytes1024, ..Terms::default() };
    let one = open(SoftOptions { capture: Some(path.clone()), ..SoftOptions::default() });
    let (one, other) = (End::new(&one, &terms), End::new(&open(SoftOptions::default()), &terms));
    bring_up(&one, &other, &terms);
    every_operation(&one, &other);
    let counters = one.device.counters().sockets;
    let packets = read(&path);
    let outbound = packets.iter().filter(|packet| packet.outbound).count() as u64;
    assert_eq!(outbound, counters.sent_packets);
    assert_eq!(packets.len() as u64 - outbound, counters.received_packets);
    (path, packets, one.device.port(), other.device.port())
}

#[test]
fn a_capture_holds_every_packet() {
    let (path, packets, ..) = capture("every-packet", "127.0.0.1");
    std::fs::remove_file(path).unwrap();
    let opcodes: std::collections::BTreeSet<u8> = packets
        .iter()
        .map(|packet| Packet::new_checked(&packet.payload).unwrap().bth().opcode.code())
        .collect();
    // All of an RC queue pair, but for those of which there is none: no reserved one, no FLUSH, no ATOMIC WRITE.
    let all: Vec<u8> = (0..=0x14).chain([0x16, 0x17]).collect();
    assert_eq!(opcodes.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn a_device_captures_to_one_file() {
    let (first, second) = (temporary("first"), temporary("second"));
    let device = open(SoftOptions::default());
    device.capture(&first).unwrap();
    device.capture(&first).unwrap();
    assert!(device.capture(&second).is_err() && !second.exists());
    let other = open(SoftOptions::default());
    assert!(other.capture(Path::new("/nowhere/at/all")).is_err());
    other.capture(&second).unwrap();
    for path in [first, second] {
        assert!(read(&path).is_empty());
        std::fs::remove_file(path).unwrap();
    }
}

/// Whether tshark is there. Where it must be, its absence is a failure.
fn has_tshark() -> bool {
    let found = Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success());
    let required = std::env::var("SECURE_RDMA_REQUIRE_TSHARK").is_ok_and(|value| value == "1");
    assert!(
        found || !required,
        "tshark is not installed, and SECURE_RDMA_REQUIRE_TSHARK=1 says that it must be"
    );
    if !found {
        eprintln!("SKIPPED: tshark is not installed (apt-get install tshark)");
    }
    found
}

/// The fields of each packet as tshark reads them.
fn dissect(path: &Path, ports: [u16; 2]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path);
    for port in ports {
        command.args(["-d", &format!("udp.port=={port},infiniband")]);
    }
    // What users send is not to be guessed at.
    for guess in ["rpcordma", "iser", "smb_direct", "nvme-rdma", "lnet"] {
        command.args(["--disable-protocol", guess]);
    }
    command.args(["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-T", "fields"]);
    let fields = [
        "infiniband.bth.opcode",
        "infiniband.bth.psn",
        "infiniband.bth.destqp",
        "infiniband.bth.padcnt",
        "_ws.malformed",
        "ip.checksum.status",
        "udp.checksum.status",
        "infiniband.invariant.crc",
    ];
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn number(text: &str) -> u32 {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

#[test]
fn tshark_reads_a_capture_as_we_do() {
    if !has_tshark() {
        return;
    }
    for (name, address) in [("tshark-4", "127.0.0.1"), ("tshark-6", "::1")] {
        let (path, packets, ..) = capture(name, address);
        // Over IPv6 a device may have another port: all ports of the capture are RoCEv2's.
        let ports = udp_ports(&path);
        let lines = dissect(&path, ports);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(lines.len(), packets.len());
        for (line, packet) in lines.iter().zip(&packets) {
            let bth = Packet::new_checked(&packet.payload).unwrap().bth();
            assert_eq!(line[4], "", "malformed: {line:?}");
            assert!(matches!(line[5].as_str(), "" | "1") && line[6] == "1", "checksums are good: {line:?}");
            let read: Vec<u32> = line[..4].iter().map(|field| number(field)).collect();
            let ours =
                [u32::from(bth.opcode.code()), bth.psn.expose(), bth.dest_qpn, u32::from(bth.pad_count)];
            assert_eq!(read, ours, "{line:?}");
            let icrc = packet.payload.last_chunk::<4>().unwrap();
            assert_eq!(number(&line[7]), u32::from_be_bytes(*icrc));
        }
    }
}

/// The destination ports of the two directions, from the UDP headers of the file.
fn udp_ports(path: &Path) -> [u16; 2] {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(path)
        .args(["-T", "fields", "-e", "udp.dstport"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ports: std::collections::BTreeSet<u16> = text.lines().map(|line| line.parse().unwrap()).collect();
    let ports: Vec<u16> = ports.into_iter().collect();
    ports.try_into().unwrap()
}
