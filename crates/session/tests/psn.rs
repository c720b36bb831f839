//! Starting PSNs: one source, every bit, each direction its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::World;
use secure_rdma_rdma::{Entropy, Error, ErrorCode, Phase, QpState, Result};
use secure_rdma_session::{ListenConfig, Listener, connect};

/// Gives 3 bytes that count up.
struct Counting(AtomicU32);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let value = self.0.fetch_add(1, Ordering::SeqCst).to_be_bytes();
        bytes.copy_from_slice(&value[1..]);
        Ok(())
    }
}

struct Dry;

impl Entropy for Dry {
    fn fill(&self, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorCode::Entropy, "no random bytes"))
    }
}

#[tokio::test]
async fn a_replaced_source_decides_the_psns_of_both_queue_pairs() {
    let world = World::new();
    let mut server = world.listen_config();
    server.options.entropy = Arc::new(Counting(AtomicU32::new(0x00FF_FFFE)));
    let listener = Listener::bind(server, Arc::clone(&world.server_host)).await.unwrap();
    let entropy = Arc::new(Counting(AtomicU32::new(0x00AB_CDEF)));
    for round in 0..3 {
        let mut client = world.connect_config(listener.local_addr().port());
        client.options.entropy = Arc::<Counting>::clone(&entropy);
        let _client = connect(client, Arc::clone(&world.client_host)).await.unwrap();
        let _server = listener.accept().await.unwrap();
        let (c, s) = (0x00AB_CDEF + round, (0x00FF_FFFE + round) & 0x00FF_FFFF);
        let psn = |psn: Option<secure_rdma_rdma::Psn>| psn.unwrap().expose();
        assert_eq!(psn(world.client_host.moved(QpState::Rts).sq_psn), c);
        assert_eq!(psn(world.server_host.moved(QpState::Rtr).rq_psn), c);
        assert_eq!(psn(world.server_host.moved(QpState::Rts).sq_psn), s);
        assert_eq!(psn(world.client_host.moved(QpState::Rtr).rq_psn), s);
    }
}

#[tokio::test]
async fn without_random_bytes_there_is_no_connection() {
    let world = World::new();
    let listener = world.listen().await;
    let mut config = world.connect_config(listener.local_addr().port());
    config.options.entropy = Arc::new(Dry);
    let error = connect(config, Arc::clone(&world.client_host)).await.unwrap_err();
    assert_eq!((error.code(), error.phase()), (ErrorCode::Entropy, Some(Phase::Device)));
    world.gone().await;
}

/// Pearson's statistic for `counts` that should be equal.
fn chi_square(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
}

#[tokio::test]
async fn a_thousand_exchanges_give_uniform_and_independent_psns() {
    let mut world = World::new();
    world.options.expose_secrets = true;
    // Certificates cost most: the exchange is what is counted.
    world.server_tls.request_cert = false;
    let config = ListenConfig { ..world.listen_config() };
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let mut pairs = Vec::with_capacity(1000);
    for _ in 0..1000 {
        let client = world.connect(listener.local_addr().port()).await.unwrap();
        let server = listener.accept().await.unwrap();
        let (c, s) = (client.report.secrets.unwrap(), server.report.secrets.unwrap());
        assert!(c.own_psn == s.peer_psn && c.peer_psn == s.own_psn);
        pairs.push((c.own_psn.expose(), s.own_psn.expose()));
    }
    let all: Vec<u32> = pairs.iter().flat_map(|(c, s)| [*c, *s]).collect();
    // Every bit takes both values about equally often: 2000 fair coins leave 1000 ± 150 with probability 2e-11; 24 bits.
    for bit in 0..24 {
        let ones = all.iter().filter(|psn| *psn >> bit & 1 == 1).count();
        assert!((850..=1150).contains(&ones), "bit {bit}: {ones} of 2000");
    }
    // 16 bins, 15 degrees of freedom: above 75 with probability 6e-10; by the high bits and by the low ones.
    for shift in [20, 0] {
        let mut counts = [0; 16];
        all.iter().for_each(|psn| counts[(psn >> shift & 0xF) as usize] += 1);
        assert!(chi_square(&counts) < 75.0, "{counts:?}");
    }
    // The two directions of one connection: 4 × 4 cells, and by parity.
    let mut cells = [0; 16];
    let mut parities = [0; 4];
    for (c, s) in &pairs {
        cells[((c >> 22) * 4 + (s >> 22)) as usize] += 1;
        parities[((c & 1) * 2 + (s & 1)) as usize] += 1;
    }
    assert!(chi_square(&cells) < 75.0, "{cells:?}");
    // 3 degrees of freedom: above 46 with probability 6e-10.
    assert!(chi_square(&parities) < 46.0, "{parities:?}");
    assert!(pairs.iter().all(|(c, s)| c != s) || pairs.iter().filter(|(c, s)| c == s).count() < 3);
}
