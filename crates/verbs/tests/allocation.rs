//! Posting does not allocate, nor does delivering a completion: counted on a real `rdma_rxe`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use common::*;
use secure_rdma_rdma::{
    Addressing, AsyncEvent, Completion, QueuePairHandler, ReceiveRequest, SendRequest, WorkId,
};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[derive(Default)]
struct Count(AtomicUsize);

impl QueuePairHandler for Count {
    fn completed(&self, batch: &[Completion]) {
        assert!(batch.iter().all(|one| one.status.is_success()), "{batch:?}");
        self.0.fetch_add(batch.len(), Ordering::SeqCst);
    }

    fn happened(&self, _event: AsyncEvent) {}
}

#[test]
#[ignore = "needs an rxe device"]
fn posting_and_completing_allocate_nothing() {
    const LIST: usize = 16;
    let _alone = alone();
    let count = Arc::new(Count::default());
    let ends = V4.map(|address| {
        let weak: Weak<Count> = Arc::downgrade(&count);
        End::with_handler(address, Sizes::default(), Arc::default(), weak)
    });
    bring_up(&ends, Addressing::Verbs);
    let [us, them] = &ends;
    let sends: Vec<SendRequest> = (0..LIST as u64).map(|id| us.request(id, SEND, 0, 512)).collect();
    let receives: Vec<_> =
        (0..LIST as u64).map(|id| ReceiveRequest::new(WorkId(id), &them.region, 0, 512)).collect();
    let round = |number: usize| {
        them.pair.post_receive(&receives).unwrap();
        us.pair.post_send(&sends).unwrap();
        let start = Instant::now();
        while count.0.load(Ordering::SeqCst) < 2 * LIST * number {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    // The first rounds make the buffers.
    (1..=3).for_each(round);
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0, "positive control");
    // Once in a while the service thread looks whether the device is still listed, which allocates: not in each of these.
    let made = [4, 12, 20, 28, 36, 44, 52, 60, 68, 76].map(|first| {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (first..first + 8).for_each(round);
        ALLOCATIONS.load(Ordering::SeqCst) - before
    });
    assert!(made.contains(&0), "{made:?} in 8 rounds each");
}
