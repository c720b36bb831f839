//! What is bounded: NAKs, notices, packets in flight, memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use secure_rdma_rdma::{PathMtu, ReceiveRequest, SendOperation, WorkId};
use secure_rdma_roce::{
    Aeth, AtomicEth, Bth, Extension, Headers, Opcode, PacketKey, PacketPsn, Reth, Syndrome,
};

use super::pair::{ALL, CAPS, Fate, Options, Pair, Side, bytes_of, pattern, remote};
use crate::engine::QueuePairCaps;

const FIRST: u32 = 0xFF_FFFE;
const SEND: SendOperation = SendOperation::Send { immediate: None };

pub(super) fn syndromes(headers: &[Headers]) -> Vec<(u32, u8)> {
    headers
        .iter()
        .filter_map(|headers| match headers.extension {
            Extension::Aeth(Aeth { syndrome, .. }) | Extension::AtomicAck(Aeth { syndrome, .. }, _) => {
                Some((headers.bth.psn.expose(), syndrome.to_byte()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_flood_of_forged_requests_gets_one_nak_per_gap_and_not_too_many_a_second() {
    let mut options = Options::default();
    options.config.max_nak_rate = 5;
    let mut pair = Pair::with(options);
    let inbox = pair.sides[0].region(64, ALL);
    for psn in 0..100 {
        pair.forge(0, Opcode::SendOnly, psn, Extension::None, b"forged");
    }
    assert_eq!(syndromes(&pair.take(0)), [(FIRST, 0x60)]);
    // Each time that the expected one comes there may be another gap.
    let mut naks = 0;
    for index in 0..20_u32 {
        pair.receive(0, &inbox, 0, 64);
        pair.forge(0, Opcode::SendOnly, FIRST.wrapping_add(index) & 0xFF_FFFF, Extension::None, b"right");
        pair.forge(
            0,
            Opcode::SendOnly,
            FIRST.wrapping_add(index + 5) & 0xFF_FFFF,
            Extension::None,
            b"forged",
        );
        naks += syndromes(&pair.take(0)).iter().filter(|(_, byte)| *byte == 0x60).count();
    }
    assert_eq!(naks, 4, "five in this second");
    assert_eq!(pair.sides[0].engine.counters().limited_seq_err, 16);
    assert_eq!(pair.sides[0].completions.len(), 20, "those that were right are executed");
    pair.now += Duration::from_secs(1);
    pair.forge(0, Opcode::SendOnly, 100, Extension::None, b"forged");
    let newest = FIRST.wrapping_add(19) & 0xFF_FFFF;
    assert_eq!(
        syndromes(&pair.take(0)),
        [(newest, 0x1F), (newest + 1, 0x60)],
        "what came since is told first"
    );
}

#[test]
fn duplicates_of_each_kind_are_answered_and_not_executed() {
    let mut pair = Pair::new();
    let region = pair.sides[0].region(8192, ALL);
    let inbox = pair.sides[0].region(64, ALL);
    region.memory().write(0, &pattern(4096)).unwrap();
    region.memory().write(4096, &5_u64.to_ne_bytes()).unwrap();
    pair.receive(0, &inbox, 0, 64);
    pair.receive(0, &inbox, 0, 64);
    let rkey = PacketKey::new(region.rkey().expose());
    let reth = |offset: u64, dma_length| {
        Extension::Reth(Reth { virtual_address: region.address() + offset, rkey, dma_length })
    };
    let atomic = AtomicEth { virtual_address: region.address() + 4096, rkey, swap_or_add: 10, compare: 77 };
    // PSNs: SEND FFFFFE, WRITE FFFFFF, READ 0 to 2, FETCH_ADD 3.
    let requests = [
        (Opcode::SendOnly, FIRST, Extension::None, &b"once"[..]),
        (Opcode::WriteOnly, FIRST + 1, reth(5000, 4), &b"once"[..]),
        (Opcode::ReadRequest, 0, reth(0, 2500), &[][..]),
        (Opcode::FetchAdd, 3, Extension::Atomic(atomic), &[][..]),
    ];
    for (opcode, psn, extension, payload) in requests {
        pair.forge(0, opcode, psn, extension, payload);
    }
    let answers = pair.take(0);
    assert_eq!(syndromes(&answers), [(0, 0x1F), (2, 0x1F), (3, 0x1F)], "the first two with the READ");
    let result = |headers: &Headers| match headers.extension {
        Extension::AtomicAck(_, atomic) => Some(atomic.original),
        _ => None,
    };
    assert_eq!(answers.last().and_then(result), Some(5));

    region.memory().write(5000, b"else").unwrap();
    let (opcode, psn, extension, payload) = requests[0];
    pair.forge(0, opcode, psn, extension, payload);
    assert_eq!(syndromes(&pair.take(0)), [(3, 0x1F)], "the newest that can be acknowledged");
    let (opcode, psn, extension, payload) = requests[1];
    pair.forge(0, opcode, psn, extension, payload);
    assert_eq!(syndromes(&pair.take(0)), [(3, 0x1F)]);
    assert_eq!(&bytes_of(&region)[5000..5004], b"else", "not written again");
    assert_eq!(pair.sides[0].completions.len(), 1);

    // A READ again, whole and from its second response on.
    let opcodes =
        |answers: Vec<Headers>| answers.iter().map(|headers| headers.bth.opcode).collect::<Vec<_>>();
    use Opcode::{ReadResponseFirst as Begin, ReadResponseLast as End, ReadResponseMiddle as Middle};
    pair.forge(0, Opcode::ReadRequest, 0, reth(0, 2500), &[]);
    assert_eq!(opcodes(pair.take(0)), [Begin, Middle, End]);
    pair.forge(0, Opcode::ReadRequest, 1, reth(1024, 2500 - 1024), &[]);
    assert_eq!(opcodes(pair.take(0)), [Begin, End]);
    pair.forge(0, Opcode::ReadRequest, 1, reth(1024, 100), &[]);
    assert_eq!(opcodes(pair.take(0)), [Opcode::ReadResponseOnly]);
    // Beyond what was asked for, with another key, at another place: not what was executed.
    let other = Reth { virtual_address: region.address(), rkey: PacketKey::new(1), dma_length: 10 };
    for extension in [reth(0, 2501), reth(1, 100), Extension::Reth(other)] {
        pair.forge(0, Opcode::ReadRequest, 0, extension, &[]);
        assert!(pair.take(0).is_empty());
    }
    // The atomic: the stored result.
    let (opcode, psn, extension, payload) = requests[3];
    pair.forge(0, opcode, psn, extension, payload);
    assert_eq!(pair.take(0).first().and_then(result), Some(5));
    assert_eq!(bytes_of(&region)[4096..4104], 15_u64.to_ne_bytes(), "executed once");
    let counters = pair.sides[0].engine.counters();
    assert_eq!((counters.replayed_acks, counters.replayed_reads, counters.replayed_atomics), (2, 3, 1));
    assert_eq!(counters.dropped_duplicate, 3);
}

#[test]
fn later_packets_are_dropped_while_a_peer_waits_for_a_receive() {
    let mut pair = Pair::new();
    let inbox = pair.sides[0].region(64, ALL);
    pair.forge(0, Opcode::SendOnly, FIRST, Extension::None, b"one");
    pair.forge(0, Opcode::SendOnly, FIRST + 1, Extension::None, b"two");
    assert_eq!(syndromes(&pair.take(0)), [(FIRST, 0x2C)]);
    assert_eq!(pair.sides[0].engine.counters().dropped_rnr_wait, 1);
    pair.receive(0, &inbox, 0, 64);
    pair.forge(0, Opcode::SendOnly, FIRST, Extension::None, b"one");
    assert_eq!(syndromes(&pair.take(0)), [(FIRST, 0x1F)]);
}

#[test]
fn a_requester_survives_what_rxe_answers_behind_an_rnr_nak() {
    // rxe sends NAK 0x60 for what comes behind the refused request.
    for swapped in [false, true] {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(64, ALL);
        for _ in 0..3 {
            pair.send(0, SEND, &[(&local, 0, 8)]);
        }
        pair.take(0);
        let aeth = |byte| Extension::Aeth(Aeth { syndrome: Syndrome::from_byte(byte), msn: 0 });
        let answers = if swapped { [0x60, 0x2C] } else { [0x2C, 0x60] };
        for byte in answers {
            pair.forge(0, Opcode::Acknowledge, FIRST, aeth(byte), &[]);
        }
        assert!(pair.take(0).is_empty(), "it waits");
        assert!(pair.wait(Duration::from_micros(640)));
        assert_eq!(pair.take(0).len(), 3);
    }
}

#[test]
fn ce_marks_become_notices_and_notices_slow_down() {
    let mut pair = Pair::new();
    let inbox = pair.sides[0].region(64, ALL);
    for index in 0..10_u32 {
        pair.receive(0, &inbox, 0, 64);
        let psn = PacketPsn::new(FIRST.wrapping_add(index));
        let bytes = pair.packet(
            0,
            Bth::new(Opcode::SendOnly, pair.sides[0].qpn.get(), psn),
            Extension::None,
            b"marked",
        );
        let arrival = crate::engine::Arrival { ecn: 3, ..pair.arrival(0) };
        pair.sides[0].engine.handle_packet(pair.now, &arrival, &bytes);
        pair.now += Duration::from_micros(10);
    }
    assert_eq!(pair.sides[0].engine.counters().rcvd_ecn_marked, 10);
    let notices = pair.take(0);
    assert!(notices.len() == 1 && notices[0].bth.opcode == Opcode::Cnp && notices[0].bth.becn);
    assert_eq!(notices[0].bth.dest_qpn, pair.sides[1].qpn.get());

    // A flood of them leaves a floor.
    let local = pair.sides[0].region(1 << 20, ALL);
    let far = pair.sides[1].region(1 << 20, ALL);
    for _ in 0..1000 {
        pair.forge(0, Opcode::Cnp, 0, Extension::Cnp, &[]);
    }
    assert_eq!(pair.sides[0].engine.counters().rcvd_cnps, 1000);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write, &[(&local, 0, 1 << 20)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses().last().map(|(_, status)| *status), Some(0));
}

/// How many packets are on the way at a time, by direction.
fn watch(pair: &mut Pair) -> Rc<RefCell<HashMap<usize, usize>>> {
    let most = Rc::new(RefCell::new(HashMap::new()));
    let (seen, mut turn) = (Rc::clone(&most), (2, 0));
    pair.filter = Box::new(move |sent| {
        turn = if turn.0 == sent.from { (sent.from, turn.1 + 1) } else { (sent.from, 1) };
        let mut seen = seen.borrow_mut();
        let most = seen.entry(sent.from).or_insert(0);
        *most = (*most).max(turn.1);
        Fate::Pass
    });
    most
}

#[test]
fn no_more_is_in_flight_than_the_window_and_the_receive_buffer_allow() {
    for (receive_buffer, most_packets) in [(None, 128), (Some(425_984), 64), (Some(20_000), 3), (Some(1), 1)]
    {
        for read in [false, true] {
            let mut options = Options { mtu: PathMtu::Bytes4096, receive_buffer, ..Options::default() };
            options.config.receive_buffer = receive_buffer;
            let mut pair = Pair::with(options);
            let local = pair.sides[0].region(2 << 20, ALL);
            let far = pair.sides[1].region(2 << 20, ALL);
            let most = watch(&mut pair);
            let (remote, data) = (remote(&far, 0), usize::from(read));
            let operation = if read {
                SendOperation::Read { remote }
            } else {
                SendOperation::Write { remote, immediate: None }
            };
            pair.send(0, operation, &[(&local, 0, 2 << 20)]);
            pair.run();
            assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
            let most = most.borrow()[&data];
            assert!(
                most <= most_packets && most * 2 >= most_packets,
                "{most} of {most_packets}, read {read}"
            );
            let counters = pair.sides[0].engine.counters();
            assert_eq!((counters.timeouts, counters.retransmitted_pkts), (0, 0), "nobody waits in vain");
        }
    }
}

#[test]
fn what_is_sent_again_does_not_wait_for_the_room_that_it_has() {
    for read in [false, true] {
        let mut options =
            Options { mtu: PathMtu::Bytes4096, receive_buffer: Some(20_000), ..Options::default() };
        options.config.receive_buffer = Some(20_000);
        let mut pair = Pair::with(options);
        let local = pair.sides[0].region(1 << 20, ALL);
        let far = pair.sides[1].region(1 << 20, ALL);
        let (remote, mut seen) = (remote(&far, 0), 0);
        pair.filter = Box::new(move |sent| {
            seen += u32::from(sent.from == usize::from(read));
            if seen == 4 && sent.from == usize::from(read) { Fate::Drop } else { Fate::Pass }
        });
        let operation = match read {
            true => SendOperation::Read { remote },
            false => SendOperation::Write { remote, immediate: None },
        };
        pair.send(0, operation, &[(&local, 0, 20 * 4096)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
        let counters = pair.sides[0].engine.counters();
        assert_eq!((counters.timeouts, counters.retransmitted_pkts > 0), (0, true), "read {read}");
    }
}

#[test]
fn queue_pairs_with_one_peer_share_its_receive_buffer() {
    let mut pair =
        Pair::with(Options { mtu: PathMtu::Bytes4096, receive_buffer: Some(100_000), ..Options::default() });
    let local = pair.sides[0].region(1 << 20, ALL);
    let far = pair.sides[1].region(1 << 20, ALL);
    let more: Vec<_> = (0..50).map(|_| pair.another()).collect();
    let most = watch(&mut pair);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    for qpn in more {
        let request = pair.sides[0].request(write.clone(), &[(&local, 0, 24 * 4096)]);
        pair.sides[0].engine.post_send(pair.now, qpn, &[request]).unwrap();
    }
    pair.run();
    assert_eq!(pair.sides[0].statuses().iter().filter(|(_, status)| *status == 0).count(), 50);
    assert!(most.borrow()[&0] <= 20, "{}", most.borrow()[&0]);
    assert_eq!(pair.sides[0].engine.counters().retransmitted_pkts, 0);
}

#[test]
fn a_shared_receive_queue_serves_all_and_keeps_room_for_completions() {
    let mut pair = Pair::new();
    let queue = pair.sides[1].engine.create_receive_queue(8).unwrap();
    let caps = QueuePairCaps { max_receive: 2, receive_queue: Some(queue), ..CAPS };
    let one = pair.another_with(caps);
    let other = pair.another_with(caps);
    let local = pair.sides[0].region(64, ALL);
    let inbox = pair.sides[1].region(64, ALL);
    let post = |side: &mut Side, count: u64| {
        let receives: Vec<_> = (0..count).map(|id| ReceiveRequest::new(WorkId(id), &inbox, 0, 64)).collect();
        side.engine.post_shared_receive(queue, &receives)
    };
    post(&mut pair.sides[1], 4).unwrap();
    assert_eq!(post(&mut pair.sides[1], 5).unwrap_err().posted, 4);
    for qpn in [one, other, one] {
        let request = pair.sides[0].request(SEND, &[(&local, 0, 8)]);
        pair.sides[0].engine.post_send(pair.now, qpn, &[request]).unwrap();
    }
    pair.run();
    let ids: Vec<_> = pair.sides[1].statuses();
    assert_eq!(ids, [(0, 0), (1, 0), (2, 0)], "in the order of arrival");
    // Without polling a queue pair takes no more than its share.
    for _ in 0..3 {
        let request = pair.sides[0].request(SEND, &[(&local, 0, 8)]);
        pair.sides[0].engine.post_send(pair.now, one, &[request]).unwrap();
    }
    let mut buffer = Vec::new();
    let transmit = pair.sides[0].engine.poll_transmit(pair.now, 64, &mut buffer).unwrap();
    for (segment, bytes) in buffer.chunks(transmit.segment_size).enumerate() {
        let arrival = crate::engine::Arrival { segment: segment as u16, ..pair.arrival(1) };
        pair.sides[1].engine.handle_packet(pair.now, &arrival, bytes);
    }
    assert_eq!(pair.sides[1].engine.counters().rdma_recvs, 5);
    let answers = pair.take(1);
    assert_eq!(syndromes(&answers).last().map(|(_, byte)| *byte), Some(0x2C));
    assert!(matches!(answers[0].extension, Extension::Aeth(Aeth { syndrome: Syndrome::Ack(_), .. })));
}

#[test]
fn an_idle_queue_pair_takes_little_memory() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    for _ in 0..200 {
        pair.send(0, write.clone(), &[(&local, 0, 64)]);
    }
    pair.run();
    assert_eq!(pair.sides[0].completions.len(), 200);
    for side in &pair.sides {
        let bytes = side.engine.queue_pairs[&side.qpn].memory();
        assert!(bytes < 8192, "{bytes}");
    }
}

#[test]
fn the_same_calls_give_the_same_packets() {
    let run = || {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(1 << 16, ALL);
        let far = pair.sides[1].region(1 << 16, ALL);
        let mut seen = 0;
        pair.filter = Box::new(move |_| {
            seen += 1;
            if seen % 7 == 0 { Fate::Drop } else { Fate::Pass }
        });
        let start = pair.now;
        for index in 0..20 {
            let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
            pair.send(0, write, &[(&local, 0, 1000 * index)]);
            pair.send(1, SendOperation::Read { remote: remote(&local, 0) }, &[(&far, 0, 3000)]);
        }
        pair.run();
        pair.log.iter().map(|sent| (sent.from, sent.at - start, sent.opcode, sent.psn)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
