//! Asynchronous events: to whom each of them matters.

use std::sync::Arc;

use rdma_sys::{ibv_event_type as kind, ibv_srq};
use secure_rdma_rdma::AsyncEvent;

use crate::body::Body;
use crate::core::Core;
use crate::errno;
use crate::library::{RawAsyncEvent, RawEventElement};
use crate::service::{guarded, tell};

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
        let subject = subject(&event);
        // Looked up before the event is acknowledged, and told after: a handler may drop the queue pair, whose end
        // waits for the acknowledgement.
        let (bodies, told) = concerned(core, &subject);
        // SAFETY: the event was taken just above, and nothing of it is read any more.
        unsafe { (verbs.ibv_ack_async_event)(&raw mut event) };
        gone |= subject == Subject::Device;
        if matches!(told, AsyncEvent::QueuePairFatal | AsyncEvent::CompletionQueueError) {
            bodies.iter().for_each(|body| body.failed());
        }
        tell(&bodies, |handler| handler.happened(told));
    }
    gone
}

/// The device is gone: everyone is told, once.
pub(crate) fn lost(core: &Core) {
    if core.gone().set() {
        let bodies = core.bodies();
        bodies.iter().for_each(|body| body.failed());
        tell(&bodies, |handler| handler.happened(AsyncEvent::DeviceGone));
        core.gone().take_notices().into_iter().for_each(guarded);
    }
}

/// What an event is about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// A completion queue, by token.
    CompletionQueue(u64),
    /// A queue pair, by token.
    QueuePair(u64),
    SharedQueue(*const ibv_srq),
    Port(i32, AsyncEvent),
    Device,
    /// The peer's first packet, a drained queue, changes of tables: nothing that a connection acts on.
    Nothing,
}

/// Reads an event that is not acknowledged yet: what it points to is alive.
fn subject(event: &RawAsyncEvent) -> Subject {
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
            let context = unsafe { (*queue).cq_context };
            Subject::CompletionQueue(context.addr() as u64)
        }
        QP_FATAL | QP_REQ_ERR | QP_ACCESS_ERR => {
            // SAFETY: the event is about a queue pair.
            let pair = unsafe { event.element.qp };
            // SAFETY: the queue pair lives until the event is acknowledged.
            let context = unsafe { (*pair).qp_context };
            Subject::QueuePair(context.addr() as u64)
        }
        // SAFETY: the event is about a shared receive queue.
        SRQ_ERR => Subject::SharedQueue(unsafe { event.element.srq }),
        // SAFETY: the event is about a port, and says its number.
        PORT_ACTIVE => Subject::Port(unsafe { event.element.port_num }, AsyncEvent::PortUp),
        // SAFETY: the event is about a port, and says its number.
        PORT_ERR => Subject::Port(unsafe { event.element.port_num }, AsyncEvent::PortDown),
        DEVICE_FATAL => Subject::Device,
        _ => Subject::Nothing,
    }
}

/// The queue pairs that a subject concerns, and what they are told.
fn concerned(core: &Core, subject: &Subject) -> (Vec<Arc<Body>>, AsyncEvent) {
    let one = |token| core.body(token).into_iter().collect();
    let all = |which: &dyn Fn(&Body) -> bool| {
        let mut bodies = core.bodies();
        bodies.retain(|body| which(body));
        bodies
    };
    match *subject {
        Subject::CompletionQueue(token) => (one(token), AsyncEvent::CompletionQueueError),
        Subject::QueuePair(token) => (one(token), AsyncEvent::QueuePairFatal),
        Subject::SharedQueue(queue) => (all(&|body| body.receives_from(queue)), AsyncEvent::QueuePairFatal),
        Subject::Port(port, event) => (all(&|body| i32::from(body.port()) == port), event),
        Subject::Device | Subject::Nothing => (Vec::new(), AsyncEvent::DeviceGone),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::c_void;
    use std::ptr;

    use rdma_sys::{ibv_cq, ibv_qp};

    use super::*;

    fn event(event_type: i32, element: RawEventElement) -> RawAsyncEvent {
        RawAsyncEvent { element, event_type }
    }

    #[test]
    fn events_find_their_subject() {
        let token = ptr::without_provenance_mut::<c_void>(77);
        // SAFETY: the structure holds numbers and pointers, for which zero is a value.
        let mut pair: ibv_qp = unsafe { std::mem::zeroed() };
        pair.qp_context = token;
        // SAFETY: the structure holds numbers and pointers, for which zero is a value.
        let mut queue: ibv_cq = unsafe { std::mem::zeroed() };
        queue.cq_context = token;
        for number in [1, 2, 3] {
            let read = subject(&event(number, RawEventElement { qp: &raw mut pair }));
            assert_eq!(read, Subject::QueuePair(77), "IBV_EVENT_QP_FATAL, _REQ_ERR, _ACCESS_ERR");
        }
        assert_eq!(subject(&event(0, RawEventElement { cq: &raw mut queue })), Subject::CompletionQueue(77));
        let srq = ptr::without_provenance_mut(5);
        assert_eq!(subject(&event(14, RawEventElement { srq })), Subject::SharedQueue(srq));
        let port = |number| subject(&event(number, RawEventElement { port_num: 2 }));
        assert_eq!(port(9), Subject::Port(2, AsyncEvent::PortUp));
        assert_eq!(port(10), Subject::Port(2, AsyncEvent::PortDown));
        assert_eq!(port(8), Subject::Device);
    }

    #[test]
    fn events_that_nobody_acts_on_or_knows_are_passed_over() {
        for number in [4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 18, 19, 20, 1000, -1] {
            let read = subject(&event(number, RawEventElement { qp: ptr::null_mut() }));
            assert_eq!(read, Subject::Nothing, "{number}");
        }
    }
}
