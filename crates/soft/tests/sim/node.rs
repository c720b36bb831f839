//! What a simulated host runs: the engine, or another make.

use std::sync::Arc;
use std::time::Instant;

use secure_rdma_rdma::{
    Access, AsyncEvent, Completion, LKey, Memory, QpAttr, QpState, Qpn, ReceiveRequest, SendRequest,
};
use secure_rdma_soft::engine::{
    Arrival, Counters, Engine, Keys, Path, QueuePairCaps, Retired, Transmit, WindowId,
};

use super::model::Model;

/// An engine, or something else with the same door.
pub enum Node {
    Engine(Box<Engine>),
    Model(Box<Model>),
}

impl Node {
    /// The engine, where it is one.
    pub fn engine(&mut self) -> Option<&mut Engine> {
        match self {
            Self::Engine(engine) => Some(engine),
            Self::Model(_) => None,
        }
    }

    pub fn is_engine(&self) -> bool {
        matches!(self, Self::Engine(_))
    }

    pub fn counters(&self) -> Option<&Counters> {
        match self {
            Self::Engine(engine) => Some(engine.counters()),
            Self::Model(_) => None,
        }
    }

    pub fn register(&mut self, memory: Arc<Memory>, access: Access) -> Keys {
        match self {
            Self::Engine(engine) => engine.register(memory, access).unwrap(),
            Self::Model(model) => model.register(memory, access),
        }
    }

    pub fn deregister(&mut self, lkey: LKey) {
        match self {
            Self::Engine(engine) => engine.deregister(lkey),
            Self::Model(model) => model.deregister(lkey),
        }
    }

    pub fn next_window_key(&mut self, window: WindowId) -> u32 {
        self.engine().unwrap().next_window_key(window).unwrap().expose()
    }

    pub fn create_queue_pair(&mut self, now: Instant, caps: QueuePairCaps) -> Qpn {
        match self {
            Self::Engine(engine) => engine.create_queue_pair(now, caps).unwrap(),
            Self::Model(model) => model.create_queue_pair(caps),
        }
    }

    pub fn destroy_queue_pair(&mut self, now: Instant, qpn: Qpn) {
        match self {
            Self::Engine(engine) => engine.destroy_queue_pair(now, qpn),
            Self::Model(model) => model.destroy_queue_pair(qpn),
        }
    }

    pub fn state(&self, qpn: Qpn) -> Option<QpState> {
        match self {
            Self::Engine(engine) => engine.state(qpn),
            Self::Model(model) => model.state(qpn),
        }
    }

    pub fn modify(&mut self, now: Instant, qpn: Qpn, attr: &QpAttr, path: Option<Path>) -> Option<QpState> {
        match self {
            Self::Engine(engine) => engine.modify(now, qpn, attr, path).ok(),
            Self::Model(model) => model.modify(qpn, attr, path),
        }
    }

    pub fn post_send(&mut self, now: Instant, qpn: Qpn, requests: &[SendRequest]) -> Result<(), String> {
        match self {
            Self::Engine(engine) => {
                engine.post_send(now, qpn, requests).map_err(|error| error.error.to_string())
            }
            Self::Model(model) => {
                model.post_send(now, qpn, requests);
                Ok(())
            }
        }
    }

    pub fn post_receive(&mut self, qpn: Qpn, requests: &[ReceiveRequest]) {
        match self {
            Self::Engine(engine) => engine.post_receive(qpn, requests).unwrap(),
            Self::Model(model) => model.post_receive(qpn, requests),
        }
    }

    /// `id` is the IPv4 ID, which only another make sees.
    pub fn handle_packet(&mut self, now: Instant, arrival: &Arrival, id: u16, bytes: &[u8]) {
        match self {
            Self::Engine(engine) => engine.handle_packet(now, arrival, bytes),
            Self::Model(model) => {
                let ports = (arrival.source.port(), arrival.destination_port);
                model.handle_packet(now, arrival.source.ip(), arrival.destination, id, bytes, ports);
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Engine(engine) => engine.handle_timeout(now),
            Self::Model(model) => model.handle_timeout(now),
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Engine(engine) => engine.poll_timeout(),
            Self::Model(model) => model.poll_timeout(),
        }
    }

    /// The next batch, and the IPv4 ID of its first segment.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        segments: usize,
        into: &mut Vec<u8>,
    ) -> Option<(Transmit, u16)> {
        match self {
            Self::Engine(engine) => engine.poll_transmit(now, segments, into).map(|transmit| (transmit, 0)),
            Self::Model(model) => model.poll_transmit(into),
        }
    }

    pub fn poll_completions(&mut self, into: &mut Vec<Completion>) -> Option<Qpn> {
        match self {
            Self::Engine(engine) => engine.poll_completions(into),
            Self::Model(model) => model.poll_completions(into),
        }
    }

    pub fn poll_event(&mut self) -> Option<(Qpn, AsyncEvent)> {
        self.engine()?.poll_event()
    }

    pub fn take_retired(&mut self, into: &mut Retired) {
        if let Some(engine) = self.engine() {
            engine.take_retired(into);
        }
    }
}
