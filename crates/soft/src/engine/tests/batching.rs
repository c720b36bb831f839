//! How long messages are cut into batches, and when an acknowledgement of them is asked for.

use secure_rdma_rdma::{PathMtu, SendOperation};

use super::pair::{ALL, Fate, Options, Pair, bytes_of, pattern, remote};

const LENGTH: usize = 1 << 20;

/// The batches of WRITEs of 1 MiB each, and how many acknowledgements came back.
fn batches(options: &Options, messages: usize) -> (Vec<usize>, usize) {
    let mut pair = Pair::with(options);
    let (ours, theirs) = (pair.sides[0].region(LENGTH, ALL), pair.sides[1].region(LENGTH, ALL));
    ours.memory().write(0, &pattern(LENGTH)).unwrap();
    for _ in 0..messages {
        let write = SendOperation::Write { remote: remote(&theirs, 0), immediate: None };
        pair.send(0, write, &[(&ours, 0, LENGTH)]);
    }
    pair.run();
    assert!(pair.sides[0].statuses().iter().all(|(_, status)| *status == 0));
    assert_eq!(pair.sides[0].statuses().len(), messages);
    assert_eq!(bytes_of(&theirs), pattern(LENGTH));
    let acknowledgements = pair.log.iter().filter(|sent| sent.from == 1).count();
    (pair.batches.iter().copied().filter(|packets| *packets > 1).collect(), acknowledgements)
}

/// 256 packets: two since the first is longer than the second, then as many as 64 KiB hold.
fn whole(messages: usize) -> Vec<usize> {
    [&[2][..], &[15; 16], &[14]].concat().repeat(messages)
}

#[test]
fn a_window_that_opens_a_little_is_not_followed() {
    let options = Options { mtu: PathMtu::Bytes4096, receive_buffer: Some(8 << 20), ..Options::default() };
    for max_window in [128, 64, 40] {
        let mut options = options.clone();
        options.config.max_window = max_window;
        assert_eq!(batches(&options, 3).0, whole(3), "a window of {max_window}");
    }
    let small = Options { receive_buffer: Some(425_984), ..options };
    assert_eq!(batches(&small, 3).0, whole(3), "a small receive buffer at the peer");
}

#[test]
fn a_window_of_less_than_two_batches_is_not_waited_for_whole() {
    let mut options =
        Options { mtu: PathMtu::Bytes4096, receive_buffer: Some(8 << 20), ..Options::default() };
    options.config.max_window = 10;
    let (batches, _) = batches(&options, 1);
    assert_eq!(batches.iter().sum::<usize>(), 256, "none alone");
    assert!(batches.iter().all(|packets| *packets <= 10));
}

#[test]
fn towards_a_peer_that_tells_of_no_receive_buffer_the_window_is_used_up() {
    let options = Options { mtu: PathMtu::Bytes4096, ..Options::default() };
    let mut pair = Pair::with(&options);
    let (ours, theirs) = (pair.sides[0].region(LENGTH, ALL), pair.sides[1].region(LENGTH, ALL));
    pair.filter = Box::new(|sent| if sent.from == 1 { Fate::Drop } else { Fate::Pass });
    let write = SendOperation::Write { remote: remote(&theirs, 0), immediate: None };
    pair.send(0, write, &[(&ours, 0, LENGTH)]);
    pair.exchange();
    assert_eq!(pair.log.iter().filter(|sent| sent.from == 0).count(), 64, "the whole window");
}
