//! The handle of a queue pair.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use secure_rdma_rdma::{
    AddressVector, Error, ErrorCode, PostError, QpAttr, QpState, Qpn, QueuePair, QueuePairConfig,
    ReceiveQueue, ReceiveRequest, Result, SendRequest,
};

use crate::core::Owner;
use crate::engine::QueuePairCaps;
use crate::receive_queue::SoftReceiveQueue;
use crate::route;

/// A queue pair. Dropping it takes it out of the engine at once, also inside a handler's call.
pub(crate) struct SoftQueuePair {
    owner: Arc<Owner>,
    qpn: Qpn,
    /// Keeps the shared receive queue alive.
    _receive_queue: Option<Arc<dyn ReceiveQueue>>,
}

impl SoftQueuePair {
    /// Makes a queue pair in RESET.
    pub(crate) fn create(owner: &Arc<Owner>, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        owner.check()?;
        let limits = &owner.limits;
        for (what, value, most) in [
            ("send work requests", config.max_send, limits.max_work_requests),
            ("receive work requests", config.max_receive, limits.max_work_requests),
            ("slices per work request", config.max_sge, limits.max_sge),
        ] {
            if value > most {
                let message =
                    format!("a queue pair with {value} {what}: {} takes at most {most}", owner.name);
                return Err(Error::new(ErrorCode::Resource, message));
            }
        }
        let shared = config.receive_queue.as_deref();
        let caps = QueuePairCaps {
            max_send: config.max_send,
            max_receive: config.max_receive,
            max_sge: config.max_sge,
            receive_queue: shared.map(|queue| SoftReceiveQueue::id_of(queue, owner)).transpose()?,
        };
        let qpn = owner.with(|state| {
            let qpn = state.engine.create_queue_pair(Instant::now(), caps)?;
            state.handlers.insert(qpn, config.handler);
            Ok::<_, Error>(qpn)
        })?;
        Ok(Arc::new(Self { owner: Arc::clone(owner), qpn, _receive_queue: config.receive_queue }))
    }

    fn check(&self) -> std::result::Result<(), PostError> {
        self.owner.check().map_err(|error| PostError { posted: 0, error })
    }

    /// What INIT→RTR, and SQD→SQD, can say beside what the transition table checks.
    fn check_values(&self, attr: &QpAttr) -> Result<()> {
        let limits = &self.owner.limits;
        let refuse = |what: &str| {
            Err(Error::new(ErrorCode::Modify, format!("{} refuses the transition: {what}", self.owner.name)))
        };
        let wrong_port = |port: u8| port != crate::devices::PORT;
        if attr.port.is_some_and(wrong_port) {
            return refuse("it has port 1 only");
        }
        if attr.pkey_index.is_some_and(|index| index != 0) {
            return refuse("its P_Key table has index 0 only");
        }
        if attr.max_rd_atomic.is_some_and(|depth| depth > limits.max_initiator_depth)
            || attr.max_dest_rd_atomic.is_some_and(|depth| depth > limits.max_responder_resources)
        {
            return refuse("initiator depth or responder resources are above its limits");
        }
        let above = |value: Option<u8>, most: u8| value.is_some_and(|value| value > most);
        if above(attr.timeout, 31) || above(attr.min_rnr_timer, 31) {
            return refuse("a timer's code is above 31");
        }
        if above(attr.retry_count, 7) || above(attr.rnr_retry, 7) {
            return refuse("a retry count is above 7");
        }
        match &attr.address {
            Some(AddressVector { port, .. }) if wrong_port(*port) => refuse("it has port 1 only"),
            Some(AddressVector { global: None, .. }) => refuse("RoCE needs a GRH in the address vector"),
            Some(AddressVector { global: Some(route), .. }) if route.hop_limit == 0 => {
                refuse("the hop limit is 0")
            }
            _ => Ok(()),
        }
    }
}

impl QueuePair for SoftQueuePair {
    fn qpn(&self) -> Qpn {
        self.qpn
    }

    fn state(&self) -> QpState {
        if self.owner.is_gone() {
            return QpState::Err;
        }
        let state = self.owner.state().engine.state(self.qpn);
        self.owner.settle_graves();
        state.unwrap_or(QpState::Err)
    }

    fn modify(&self, attr: &QpAttr) -> Result<()> {
        self.owner.check()?;
        // By name first: which attributes the transition takes is the better answer than what is wrong with their values.
        let from = self.state();
        let to = secure_rdma_rdma::transition::check_attr(from, attr)?;
        self.check_values(attr)?;
        let path = attr.address.as_ref().map(|vector| route::path(&self.owner, vector)).transpose()?;
        if to == QpState::Err {
            // What has come has come before.
            self.owner.absorb();
        }
        self.owner.with(|state| state.engine.modify(Instant::now(), self.qpn, attr, path))?;
        if to == QpState::Err {
            self.owner.announce();
        } else if from == QpState::Sqd {
            self.owner.flush(Instant::now());
        }
        Ok(())
    }

    fn post_send(&self, requests: &[SendRequest]) -> std::result::Result<(), PostError> {
        self.check()?;
        let mut state = self.owner.state();
        let now = Instant::now();
        let posted = state.engine.post_send(now, self.qpn, requests);
        self.owner.posts.fetch_add(1, Ordering::Relaxed);
        let done = state.engine.has_news();
        drop(state);
        self.owner.settle_graves();
        self.owner.flush(now);
        if done {
            self.owner.announce();
        }
        posted
    }

    fn flush(&self) {
        if self.owner.check().is_ok() {
            self.owner.flush(Instant::now());
        }
    }

    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        self.check()?;
        let mut state = self.owner.state();
        let posted = state.engine.post_receive(self.qpn, requests);
        let flushed = state.engine.has_news();
        drop(state);
        self.owner.settle_graves();
        if flushed {
            self.owner.announce();
        }
        posted
    }
}

impl Drop for SoftQueuePair {
    fn drop(&mut self) {
        let handler = self.owner.with(|state| {
            state.engine.destroy_queue_pair(Instant::now(), self.qpn);
            state.handlers.remove(&self.qpn)
        });
        drop(handler);
    }
}
