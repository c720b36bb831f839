//! The handle of a queue pair.

use std::sync::{Arc, Mutex};

use secure_rdma_rdma::{
    Error, ErrorCode, PostError, QpAttr, QpState, Qpn, QueuePair, QueuePairConfig, ReceiveRequest, Result,
    SendRequest, transition,
};

use crate::body::Body;
use crate::core::{Owner, lock};
use crate::modify;
use crate::private::PrivateDomain;

/// A queue pair. Dropping it hands the body to the service thread, which destroys it: that may happen inside a
/// handler's callback.
pub(crate) struct VerbsQueuePair {
    body: Arc<Body>,
    owner: Arc<Owner>,
    /// One transition at a time. Posting does not take it.
    moving: Mutex<()>,
}

/// Makes a queue pair in RESET.
pub(crate) fn create(
    owner: &Arc<Owner>,
    private: Option<&Arc<PrivateDomain>>,
    config: &QueuePairConfig,
) -> Result<Arc<dyn QueuePair>> {
    owner.check()?;
    let body = Arc::new(Body::make(owner, private, config)?);
    owner.insert(Arc::clone(&body));
    let pair = Arc::new(VerbsQueuePair { body, owner: Arc::clone(owner), moving: Mutex::new(()) });
    if pair.body.arm() != 0 {
        let message = format!("{} does not arm a completion queue", owner.name);
        return Err(Error::new(ErrorCode::Resource, message));
    }
    Ok(pair)
}

impl VerbsQueuePair {
    fn check(&self) -> std::result::Result<(), PostError> {
        self.owner.opener.check().map_err(|error| PostError { posted: 0, error })
    }
}

impl QueuePair for VerbsQueuePair {
    fn qpn(&self) -> Qpn {
        self.body.qpn()
    }

    fn state(&self) -> QpState {
        self.body.state()
    }

    fn modify(&self, attr: &QpAttr) -> Result<()> {
        self.owner.check()?;
        let _one_at_a_time = lock(&self.moving);
        let from = self.body.state();
        let to = transition::check_attr(from, attr)?;
        modify::raw(&self.owner, &self.body, attr, attr.mask())
            .map_err(|errno| modify::refused(from, to, attr, errno))?;
        if let Some(port) = attr.port {
            self.body.set_port(port);
        }
        self.body.moved(from, to);
        Ok(())
    }

    fn post_send(&self, requests: &[SendRequest]) -> std::result::Result<(), PostError> {
        self.check()?;
        self.body.post_send(&self.owner, requests)
    }

    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        self.check()?;
        self.body.post_receive(&self.owner, requests)
    }
}

impl Drop for VerbsQueuePair {
    fn drop(&mut self) {
        // In a forked child there is no service thread, and the queue pair is the parent's.
        if self.owner.opener.is_current() {
            self.body.mark_dropped();
            self.owner.bury(Arc::clone(&self.body));
        }
    }
}
