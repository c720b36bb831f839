//! Two engines back to back in memory: what the transport itself costs, without sockets. `cargo bench -p
//! secure-rdma-soft --bench engine -- [--quick] [PART OF A NAME …]`.
//!
//! One thread does both sides, so that a packet's whole cost is the sum of the columns. Rates are by processor time, so
//! that other work on the machine does not count; the columns are by the clock, and only their ratios mean something on
//! a busy one.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, AddressVector, Completion, Memory, OsEntropy, PathMtu, Psn, QpAttr, QpState, Qpn, Region,
    Registration, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};
use secure_rdma_soft::engine::{Arrival, Config, Engine, Path, QueuePairCaps, Retired};

struct Registered;
impl Registration for Registered {}

struct Side {
    engine: Engine,
    qpns: Vec<Qpn>,
    address: SocketAddr,
    region: Arc<Region>,
    buffer: Vec<u8>,
    completions: Vec<Completion>,
    retired: Retired,
}

const REGION: usize = 4 << 20;
const CAPS: QueuePairCaps = QueuePairCaps { max_send: 256, max_receive: 16, max_sge: 4, receive_queue: None };

fn side(number: u8, queue_pairs: usize) -> Side {
    let mut engine = Engine::new(Config::default(), Arc::new(OsEntropy)).unwrap();
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let memory = Arc::new(Memory::allocate(REGION).unwrap());
    memory.write(0, &vec![number; REGION]).unwrap();
    let keys = engine.register(Arc::clone(&memory), access).unwrap();
    let region = Arc::new(Region::new(Box::new(Registered), memory, keys.address, keys.lkey, keys.rkey));
    let qpns = (0..queue_pairs).map(|_| engine.create_queue_pair(Instant::now(), CAPS).unwrap()).collect();
    let address = format!("10.0.0.{}:4791", number + 1).parse().unwrap();
    let (buffer, completions, retired) = (Vec::new(), Vec::new(), Retired::default());
    Side { engine, qpns, address, region, buffer, completions, retired }
}

fn bring_up(side: &mut Side, peer: &Side, mtu: PathMtu) {
    let now = Instant::now();
    for (qpn, dest) in side.qpns.iter().zip(&peer.qpns) {
        let init = QpAttr {
            access: Some(Access::REMOTE_WRITE | Access::REMOTE_READ),
            pkey_index: Some(0),
            port: Some(1),
            ..QpAttr::to(QpState::Init)
        };
        side.engine.modify(now, *qpn, &init, None).unwrap();
        let rtr = QpAttr {
            address: Some(AddressVector::default()),
            path_mtu: Some(mtu),
            dest_qpn: Some(*dest),
            rq_psn: Psn::new(0xFF_0000),
            max_dest_rd_atomic: Some(16),
            min_rnr_timer: Some(12),
            ..QpAttr::to(QpState::Rtr)
        };
        let path = Path {
            local: side.address.ip(),
            peer: peer.address,
            source_port: 0xC000,
            expected_source_port: Some(0xC000),
            receive_buffer: Some(4 << 20),
            sequential_ids: true,
            hop_limit: 64,
            traffic_class: 0,
        };
        side.engine.modify(now, *qpn, &rtr, Some(path)).unwrap();
        let rts = QpAttr {
            timeout: Some(17),
            retry_count: Some(7),
            rnr_retry: Some(7),
            sq_psn: Psn::new(0xFF_0000),
            max_rd_atomic: Some(16),
            ..QpAttr::to(QpState::Rts)
        };
        side.engine.modify(now, *qpn, &rts, None).unwrap();
    }
}

#[derive(Default)]
struct Times {
    post: Duration,
    transmit: [Duration; 2],
    handle: [Duration; 2],
    packets: [u64; 2],
}

/// Delivers all that `from` has to send. Tells whether there was anything.
fn deliver(from: &mut Side, to: &mut Side, index: usize, times: &mut Times) -> bool {
    let mut any = false;
    loop {
        let start = Instant::now();
        from.buffer.clear();
        let transmit = from.engine.poll_transmit(start, 64, &mut from.buffer);
        let now = Instant::now();
        times.transmit[index] += now - start;
        let Some(transmit) = transmit else { return any };
        any = true;
        for (segment, bytes) in from.buffer.chunks(transmit.segment_size).enumerate() {
            times.packets[index] += 1;
            let arrival = Arrival {
                source: SocketAddr::new(transmit.source, transmit.source_port),
                destination: transmit.destination.ip(),
                destination_port: transmit.destination.port(),
                ecn: 2,
                segment: u16::try_from(segment).unwrap(),
            };
            to.engine.handle_packet(now, &arrival, bytes);
        }
        times.handle[1 - index] += now.elapsed();
    }
}

/// Processor time of this thread (proc_pid_schedstat(5)).
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn run(
    name: &str,
    mtu: PathMtu,
    length: usize,
    in_flight: usize,
    queue_pairs: usize,
    messages: usize,
    read: bool,
) {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
        return;
    }
    let (mut a, mut b) = (side(0, queue_pairs), side(1, queue_pairs));
    bring_up(&mut a, &b, mtu);
    bring_up(&mut b, &a, mtu);
    let remote = RemoteSlice { address: b.region.address(), rkey: b.region.rkey() };
    let operation =
        if read { SendOperation::Read { remote } } else { SendOperation::Write { remote, immediate: None } };
    let request = SendRequest {
        id: WorkId(1),
        operation,
        local: smallvec::smallvec![Slice::new(&a.region, 0, length)],
        flags: SendFlags::empty(),
    };
    let list = vec![request; in_flight];
    let mut times = Times::default();
    let (mut posted, mut done) = (0, 0);
    let start = processor_time();
    let mut room = vec![in_flight; queue_pairs];
    while done < messages {
        for (index, room) in room.iter_mut().enumerate() {
            let free = (*room).min(messages - posted);
            if free > 0 {
                let at = Instant::now();
                a.engine.post_send(at, a.qpns[index], &list[..free]).unwrap();
                times.post += at.elapsed();
                posted += free;
                *room -= free;
            }
        }
        // Once each way, so that acknowledgements are put together as they are over a socket.
        deliver(&mut a, &mut b, 0, &mut times);
        deliver(&mut b, &mut a, 1, &mut times);
        a.completions.clear();
        while let Some(qpn) = a.engine.poll_completions(&mut a.completions) {
            let index = a.qpns.iter().position(|other| *other == qpn).unwrap();
            room[index] += a.completions.len();
            done += a.completions.len();
            assert!(a.completions.iter().all(|completion| completion.status.is_success()));
            a.completions.clear();
        }
        a.engine.take_retired(&mut a.retired);
        a.retired.clear();
    }
    let whole = processor_time() - start;
    let data = usize::from(read);
    let packets = times.packets[data] as f64;
    let per_packet = |time: Duration| time.as_nanos() as f64 / packets;
    println!(
        "{name:28} {:6.2} GB/s {:6.2} M msg/s {:5.0} ns | per data packet, ns: post {:5.0} transmit {:5.0} handle {:5.0} answer {:5.0} answered {:5.0} | acks {:.3}",
        (messages * length) as f64 / whole.as_secs_f64() / 1e9,
        messages as f64 / whole.as_secs_f64() / 1e6,
        per_packet(whole),
        per_packet(times.post),
        per_packet(times.transmit[data]),
        per_packet(times.handle[1 - data]),
        per_packet(times.transmit[1 - data]),
        per_packet(times.handle[data]),
        times.packets[1 - data] as f64 / packets,
    );
    assert_eq!(a.engine.counters().retransmitted_pkts, 0, "nothing is lost in memory");
}

fn main() {
    let scale = if std::env::args().any(|argument| argument == "--quick") { 10 } else { 1 };
    run("WRITE 1 MiB, PMTU 4096", PathMtu::Bytes4096, 1 << 20, 8, 1, 8000 / scale, false);
    run("READ 1 MiB, PMTU 4096", PathMtu::Bytes4096, 1 << 20, 8, 1, 8000 / scale, true);
    run("WRITE 1 MiB, PMTU 1024", PathMtu::Bytes1024, 1 << 20, 8, 1, 2000 / scale, false);
    run("WRITE 64 B, 128 in flight", PathMtu::Bytes4096, 64, 128, 1, 8_000_000 / scale, false);
    run("WRITE 64 B, 1000 QPs, 8 each", PathMtu::Bytes4096, 64, 8, 1000, 4_000_000 / scale, false);
}
