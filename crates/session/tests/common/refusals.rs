//! Attempts that one side must refuse.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, QpState};
use secure_rdma_session::Listener;

use super::World;

/// What became of one attempt: the client's error, and the server's.
pub struct Outcome {
    pub client: Error,
    pub server: Error,
}

/// Connects and expects both sides to fail.
pub async fn refused(world: &World) -> Outcome {
    let failed: Arc<Mutex<Vec<Error>>> = Arc::default();
    let mut config = world.listen_config();
    let seen = Arc::clone(&failed);
    config.on_handshake_failed = Some(Arc::new(move |error, _| seen.lock().unwrap().push(error.clone())));
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let client = world.connect(listener.local_addr().port()).await.unwrap_err();
    super::eventually("the server has judged", || !failed.lock().unwrap().is_empty()).await;
    assert_eq!(listener.stats().failed, 1);
    assert_eq!(listener.stats().established, 0);
    assert!(
        tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err(),
        "a failed handshake ends no iteration"
    );
    assert_eq!(
        world.server_host.made(),
        0,
        "the server makes no queue pair before it has verified the client"
    );
    assert!(
        world.client_host.states().iter().all(|state| *state == QpState::Init),
        "the client is in INIT at most"
    );
    world.gone().await;
    let server = failed.lock().unwrap().remove(0);
    Outcome { client, server }
}

/// The client refuses the server.
pub async fn client_refuses(name: &str, world: &World, code: ErrorCode, alert: &str) {
    let outcome = refused(world).await;
    assert_eq!(outcome.client.code(), code, "{name}: {}", outcome.client);
    assert_eq!(outcome.server.code(), ErrorCode::TlsAlert, "{name}: {}", outcome.server);
    assert!(outcome.server.message().contains(alert), "{name}: {}", outcome.server);
    assert_eq!(world.client_host.made(), 0, "{name}");
}

/// The server refuses the client.
pub async fn server_refuses(name: &str, world: &World, code: ErrorCode, alert: &str) {
    let outcome = refused(world).await;
    assert_eq!(outcome.server.code(), code, "{name}: {}", outcome.server);
    assert_eq!(outcome.client.code(), ErrorCode::TlsAlert, "{name}: {}", outcome.client);
    assert!(outcome.client.message().contains(alert), "{name}: {}", outcome.client);
}
