//! Asynchronous events: to whom each of them matters.

use std::sync::Arc;

use rdma_sys::ibv_event_type as kind;
use secure_rdma_rdma::AsyncEvent;

use crate::body::Body;
use crate::core::Core;
use crate::errno;
use crate::library::{RawAsyncEvent, RawEventElement};
use crate::service::tell;

/// Takes and dispatches every event that waits. Tells whether the device is gone.
pub(crate) fn dispatch(core: &Core) -> bool {
    let verbs = core.verbs();
    let mut gone = false;
    while !core.is_gone() {
        let mut event =
            RawAsyncEvent { element: RawEventElement { qp: std::ptr::null_mut() }, event_type: 0 };
        // SAFETY: the context is open, and `event` is a valid place.
        let answer = unsafe { (verbs.ibv_get_async_event)(core.domain.context().raw(), &raw mut event) };
        if answer != 0 {
            return gone || errno::last() == libc::EIO;
        }
        let concerned = concerned(core, &event);
        // Acknowledged before anyone is told: the handler may drop the queue pair, and its end waits for this.
        // SAFETY: the event was taken just above, and nothing of it is read any more.
        unsafe { (verbs.ibv_ack_async_event)(&raw mut event) };
        match concerned {
            Concerned::Nobody => {}
            Concerned::Device => gone = true,
            Concerned::QueuePairs(bodies, event) => {
                if matches!(event, AsyncEvent::QueuePairFatal | AsyncEvent::CompletionQueueError) {
                    bodies.iter().for_each(|body| body.failed());
                }
                tell(&bodies, |handler| handler.happened(event));
            }
        }
    }
    gone
}

/// The device is gone: everyone is told, once.
pub(crate) fn lost(core: &Core) {
    if core.mark_gone() {
        let bodies = core.bodies();
        bodies.iter().for_each(|body| body.failed());
        tell(&bodies, |handler| handler.happened(AsyncEvent::DeviceGone));
    }
}

enum Concerned {
    Nobody,
    Device,
    QueuePairs(Vec<Arc<Body>>, AsyncEvent),
}

fn concerned(core: &Core, event: &RawAsyncEvent) -> Concerned {
    const CQ_ERR: i32 = kind::IBV_EVENT_CQ_ERR as i32;
    const QP_FATAL: i32 = kind::IBV_EVENT_QP_FATAL as i32;
    const QP_REQ_ERR: i32 = kind::IBV_EVENT_QP_REQ_ERR as i32;
    const QP_ACCESS_ERR: i32 = kind::IBV_EVENT_QP_ACCESS_ERR as i32;
    const SRQ_ERR: i32 = kind::IBV_EVENT_SRQ_ERR as i32;
    const PORT_ACTIVE: i32 = kind::IBV_EVENT_PORT_ACTIVE as i32;
    const PORT_ERR: i32 = kind::IBV_EVENT_PORT_ERR as i32;
    const DEVICE_FATAL: i32 = kind::IBV_EVENT_DEVICE_FATAL as i32;

    match event.event_type {
        CQ_ERR => {
            // SAFETY: the event is about a completion queue.
            let queue = unsafe { event.element.cq };
            // SAFETY: the queue lives until the event is acknowledged.
            let token = unsafe { (*queue).cq_context }.addr();
            Concerned::QueuePairs(
                core.body(token as u64).into_iter().collect(),
                AsyncEvent::CompletionQueueError,
            )
        }
        QP_FATAL | QP_REQ_ERR | QP_ACCESS_ERR => {
            // SAFETY: the event is about a queue pair.
            let pair = unsafe { event.element.qp };
            // SAFETY: the queue pair lives until the event is acknowledged.
            let token = unsafe { (*pair).qp_context }.addr();
            Concerned::QueuePairs(core.body(token as u64).into_iter().collect(), AsyncEvent::QueuePairFatal)
        }
        SRQ_ERR => {
            // SAFETY: the event is about a shared receive queue.
            let queue = unsafe { event.element.srq };
            let mut bodies = core.bodies();
            bodies.retain(|body| body.receives_from(queue));
            Concerned::QueuePairs(bodies, AsyncEvent::QueuePairFatal)
        }
        PORT_ACTIVE | PORT_ERR => {
            // SAFETY: the event is about a port, and says its number.
            let port = unsafe { event.element.port_num };
            let mut bodies = core.bodies();
            bodies.retain(|body| i32::from(body.port()) == port);
            let up = event.event_type == PORT_ACTIVE;
            Concerned::QueuePairs(bodies, if up { AsyncEvent::PortUp } else { AsyncEvent::PortDown })
        }
        DEVICE_FATAL => Concerned::Device,
        // The peer's first packet, a drained queue, changes of tables: nothing that a connection acts on.
        _ => Concerned::Nobody,
    }
}
