//! `authorize(peer)`: a question that goes to JavaScript, and the answer that comes back.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use napi_derive::napi;
use secure_rdma_session::{Authorize, Peer};

use crate::bell::{Bell, lock};
use crate::peer::NativePeer;

/// A peer that waits to be let in.
#[napi(object, object_from_js = false)]
pub struct NativeQuestion {
    /// Names the question in `answer`.
    pub ticket: u32,
    /// Who it is.
    pub peer: NativePeer,
}

/// The questions of one `connect` or one server. Clones are the same.
#[derive(Clone)]
pub(crate) struct Questions {
    bell: Bell,
    open: Arc<Mutex<Open>>,
}

#[derive(Default)]
struct Open {
    last: u32,
    waiting: HashMap<u32, Question>,
}

struct Question {
    /// Taken when JavaScript has been asked.
    peer: Option<Arc<Peer>>,
    answer: Option<Result<(), String>>,
    waker: Option<Waker>,
}

impl Questions {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { bell, open: Arc::default() }
    }

    /// As `session` wants it.
    pub(crate) fn authorize(&self) -> Authorize {
        let questions = self.clone();
        Arc::new(move |peer| questions.ask(peer))
    }

    fn ask(&self, peer: Arc<Peer>) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        let ticket = {
            let mut open = lock(&self.open);
            open.last = open.last.wrapping_add(1);
            let ticket = open.last;
            open.waiting.insert(ticket, Question { peer: Some(peer), answer: None, waker: None });
            ticket
        };
        self.bell.ring();
        let asked = Asked { open: Arc::clone(&self.open), ticket };
        Box::pin(poll_fn(move |cx| {
            let mut open = lock(&asked.open);
            let Some(question) = open.waiting.get_mut(&asked.ticket) else {
                return Poll::Ready(Err("the question was withdrawn".to_owned()));
            };
            if let Some(answer) = question.answer.take() {
                return Poll::Ready(answer);
            }
            question.waker = Some(cx.waker().clone());
            Poll::Pending
        }))
    }

    /// What JavaScript has not been asked yet.
    pub(crate) fn take(&self) -> Vec<NativeQuestion> {
        let mut open = lock(&self.open);
        let fresh = open.waiting.iter_mut().filter_map(|(ticket, question)| {
            let peer = question.peer.take()?;
            Some(NativeQuestion { ticket: *ticket, peer: NativePeer::from(&*peer) })
        });
        fresh.collect()
    }

    /// `refusal` is why the peer is not let in. An answer to a question that is no more is ignored.
    pub(crate) fn answer(&self, ticket: u32, refusal: Option<String>) {
        let waker = {
            let mut open = lock(&self.open);
            let Some(question) = open.waiting.get_mut(&ticket) else { return };
            question.answer = Some(refusal.map_or(Ok(()), Err));
            question.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A question that is waited for: dropped with the handshake that asked.
struct Asked {
    open: Arc<Mutex<Open>>,
    ticket: u32,
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.open).waiting.remove(&self.ticket);
    }
}
