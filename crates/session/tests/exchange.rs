//! Peers that break the rules of the exchange, and paths that do not carry: both sides know why, and nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

#[path = "exchange/bring_up.rs"]
mod bring_up;
#[path = "exchange/giving_up.rs"]
mod giving_up;
#[path = "exchange/tcp.rs"]
mod tcp;
#[path = "exchange/violations.rs"]
mod violations;

use std::sync::{Arc, Mutex};

use common::stub::StubHost;
use common::{World, eventually};
use secure_rdma_rdma::Error;
use secure_rdma_session::Listener;

type Failures = Arc<Mutex<Vec<Error>>>;

/// A listener, and the errors of its failed handshakes.
async fn listen(world: &World) -> (Listener<StubHost>, Failures) {
    let failures = Failures::default();
    let seen = Arc::clone(&failures);
    let mut config = world.listen_config();
    config.on_handshake_failed = Some(Arc::new(move |error, _| seen.lock().unwrap().push(error.clone())));
    (Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap(), failures)
}

async fn failure(failures: &Failures) -> Error {
    eventually("a handshake failed", || !failures.lock().unwrap().is_empty()).await;
    failures.lock().unwrap().remove(0)
}
