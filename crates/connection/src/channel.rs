//! One connected queue pair and all that happens on it: the state behind a [`crate::Connection`].
//!
//! Three threads meet here: the application's (send, receive, close), the device's service thread (completions), and
//! the control channel's (ticks, what the peer tells, its close). One lock keeps them apart; nobody is called while it is
//! held but the queue pair itself, since posting never blocks and moving it to ERR waits for nobody, and the control
//! channel's `tell`, which only queues.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use secure_rdma_rdma::{Error, ErrorCode, PathMtu, QueuePair, QueuePairHandler, Result};
use secure_rdma_session::{Control, Terms};

use crate::connection::{Closed, Received};
use crate::credit::Credits;
use crate::grants::{Grants, Opened};
use crate::options::ConnectionOptions;
use crate::outgoing::{Body, Outgoing};
use crate::pool::{Reservation, Slot, Waiting};
use crate::posting::{Outlet, Posting};
use crate::receive::Receive;
use crate::stats::ConnectionStats;
use crate::transmit::Transmit;
use crate::watch::Watch;

/// Called whenever there may be news.
pub(crate) type Observer = Arc<dyn Fn() + Send + Sync>;

/// The state behind a connection.
pub(crate) struct Channel {
    pub(crate) options: ConnectionOptions,
    terms: Terms,
    pub(crate) myself: Weak<Channel>,
    state: Mutex<State>,
}

pub(crate) struct State {
    /// Gone when the connection is over and everything posted has been flushed.
    pub(crate) queue_pair: Option<Arc<dyn QueuePair>>,
    /// Goes with the queue pair, so that a connection that is over holds nothing of the device, however long its
    /// handles live.
    pub(crate) reservation: Option<Arc<Reservation>>,
    pub(crate) transmit: Transmit,
    pub(crate) receive: Receive,
    pub(crate) credits: Credits,
    pub(crate) grants: Grants,
    pub(crate) life: Life,
    pub(crate) watch: Watch,
    pub(crate) proof: Proof,
    /// The peer closed before this side knew that the connection is up.
    pub(crate) peer_closed_early: bool,
    /// There from the moment the connection is up.
    pub(crate) control: Option<Arc<Control>>,
    pub(crate) path_mtu: PathMtu,
    /// Where packets go, for messages about the path.
    pub(crate) path: String,
    observer: Option<Observer>,
    wakers: Vec<Waker>,
    /// Keeps the channel alive until the drain marker comes back.
    pub(crate) drains: Option<Arc<Channel>>,
}

/// How far a connection has come.
#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// The bring-up is under way.
    Opening,
    /// Messages flow.
    Open,
    /// `end` was called: nothing more is sent, messages still come.
    Ended,
    /// `close` was called: draining; then the peer's answer is awaited.
    Closing {
        /// CLOSE has been sent: everything of ours has arrived.
        told: bool,
    },
    /// The peer has closed, and what had arrived by then is being taken from the completion queue.
    PeerClosing {
        /// We had closed as well: everything of ours has arrived, and the peer may have had nothing to say.
        told: bool,
    },
    /// Over.
    Over(Closed),
}

/// The proof of path of this connection.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    pub(crate) sent: bool,
    pub(crate) received: bool,
}

/// What is to be done once the lock is open again.
#[derive(Default)]
pub(crate) struct After {
    pub(crate) slots: Vec<Slot>,
    wakers: Vec<Waker>,
    observer: Option<Observer>,
    pub(crate) control: Option<(Arc<Control>, ControlCall)>,
    /// The queue pair has begun to flush: somebody must see to it that this ends.
    pub(crate) flushing: Option<(Arc<Control>, Weak<Channel>)>,
    /// What was open to the peer and is no more. Dropped before its queue pair, and without the lock: it takes system
    /// calls.
    pub(crate) ended: Vec<Opened>,
    /// What the peer has let go of and is open until it is dropped, which is not done under the lock either.
    pub(crate) closing: Vec<(u32, Opened)>,
    retired: Vec<Outgoing<'static>>,
    /// Dropped without the lock: the end of a queue pair or of the channel must not happen inside itself.
    pub(crate) queue_pairs: Vec<Arc<dyn QueuePair>>,
    pub(crate) reservations: Vec<Arc<Reservation>>,
    channels: Vec<Arc<Channel>>,
}

impl After {
    fn finish(self) {
        let Self {
            slots,
            wakers,
            observer,
            control,
            flushing,
            ended,
            closing: _,
            retired,
            queue_pairs,
            reservations,
            channels,
        } = self;
        if let Some(reservation) = reservations.first() {
            reservation.resources().send.give(slots);
        }
        if let Some((control, channel)) = flushing {
            control.each_tick(move || channel.upgrade().is_some_and(|channel| channel.flush_tick()));
        }
        if let Some((control, call)) = control {
            match call {
                ControlCall::Close => control.begin_close(),
                ControlCall::Destroy(error) => control.destroy(error),
            }
        }
        for waker in wakers {
            waker.wake();
        }
        if let Some(observer) = observer {
            observer();
        }
        drop((retired, ended));
        drop(queue_pairs);
        drop(reservations);
        drop(channels);
    }
}

pub(crate) enum ControlCall {
    Close,
    Destroy(Option<Error>),
}

impl Channel {
    /// Makes the channel, and its queue pair by `make`, which is given the handler.
    pub(crate) fn new(
        options: ConnectionOptions,
        reservation: Reservation,
        (max_send, max_sge): (u32, u32),
        make: impl FnOnce(Weak<dyn QueuePairHandler>) -> Result<Arc<dyn QueuePair>>,
    ) -> Result<Arc<Self>> {
        let terms = Terms {
            max_message_size: options.max_message_size,
            segment_size: reservation.buffer_size(),
            credits: reservation.credits(),
        };
        let credits = Credits::new(terms.credits);
        let receive = Receive::new(options.max_message_size, options.receive_buffer_size);
        let watch = Watch::new(&options);
        let channel = Arc::new_cyclic(|myself: &Weak<Self>| Self {
            options,
            terms,
            myself: myself.clone(),
            state: Mutex::new(State {
                queue_pair: None,
                reservation: Some(Arc::new(reservation)),
                transmit: Transmit::new(Posting::new(max_send, max_sge, terms.credits)),
                receive,
                credits,
                grants: Grants::default(),
                life: Life::Opening,
                watch,
                proof: Proof::default(),
                peer_closed_early: false,
                control: None,
                path_mtu: PathMtu::Bytes256,
                path: String::new(),
                observer: None,
                wakers: Vec::new(),
                drains: None,
            }),
        });
        let handler: Weak<dyn QueuePairHandler> = channel.myself.clone();
        let queue_pair = make(handler)?;
        channel.lock().queue_pair = Some(queue_pair);
        Ok(channel)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn queue_pair(&self) -> Option<Arc<dyn QueuePair>> {
        self.lock().queue_pair.clone()
    }

    /// What this side offers.
    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// Runs `change` under the lock, then does what it left to do.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State, &mut After) -> T) -> T {
        let mut after = After::default();
        let mut state = self.lock();
        let result = change(&mut state, &mut after);
        if !after.slots.is_empty() {
            after.reservations.extend(state.reservation.clone());
        }
        after.retired = std::mem::take(&mut state.transmit.retired);
        drop(state);
        let closing = std::mem::take(&mut after.closing);
        after.finish();
        if !closing.is_empty() {
            self.close_grants(closing);
        }
        result
    }

    /// Lets go of the queue pair, of what it had of the device, and of the count that kept the channel alive for it.
    pub(crate) fn release(state: &mut State, after: &mut After) {
        after.ended.append(&mut state.grants.clear());
        after.queue_pairs.extend(state.queue_pair.take());
        after.reservations.extend(state.reservation.take());
        after.channels.extend(state.drains.take());
    }

    /// Posts what can be posted; a failure to post ends the connection.
    pub(crate) fn pump(&self, state: &mut State, after: &mut After) {
        let Some((queue_pair, reservation)) = state.queue_pair.clone().zip(state.reservation.clone()) else {
            return;
        };
        if !matches!(state.life, Life::Open | Life::Ended | Life::Closing { told: false }) {
            return;
        }
        let waiting = || -> Weak<dyn Waiting> { self.myself.clone() };
        let pool = &reservation.resources().send;
        let mut outlet = Outlet { credits: &mut state.credits, pool, waiting: &waiting };
        if let Err(error) = state.transmit.pump(queue_pair.as_ref(), &mut outlet) {
            self.fail(state, after, error);
        }
    }

    /// Gives out `bodies`, which have been checked, and posts of them what can be posted; a failure to post ends the
    /// connection. Answers their ids.
    pub(crate) fn give_out<'a>(
        &self,
        state: &mut State,
        after: &mut After,
        bodies: impl IntoIterator<Item = Body<'a>>,
    ) -> Result<Range<u64>> {
        let Some((queue_pair, reservation)) = state.queue_pair.clone().zip(state.reservation.clone()) else {
            return Err(over(&state.life));
        };
        let waiting = || -> Weak<dyn Waiting> { self.myself.clone() };
        let pool = &reservation.resources().send;
        let mut outlet = Outlet { credits: &mut state.credits, pool, waiting: &waiting };
        let (ids, posted) = state.transmit.post(bodies, queue_pair.as_ref(), &mut outlet);
        if let Err(error) = posted {
            self.fail(state, after, error);
        }
        Ok(ids)
    }

    /// Takes the peer's terms over.
    pub(crate) fn adopt(
        &self,
        segment: u32,
        max_message: u64,
        credits: u16,
        path_mtu: PathMtu,
    ) -> Result<()> {
        self.with(|state, _| {
            let segment = segment.min(self.terms.segment_size) as usize;
            if segment < path_mtu.bytes() {
                return Err(Error::new(
                    ErrorCode::Offer,
                    format!(
                        "the peer's receive buffers hold {segment} bytes, less than one packet of the path MTU {path_mtu}: \
                         raise pool.bufferSize on the peer"
                    ),
                ));
            }
            state.transmit.adopt(segment, max_message);
            state.receive.adopt(path_mtu);
            state.path_mtu = path_mtu;
            state.credits.receive(credits)
        })
    }

    pub(crate) fn prove_path(&self) -> Result<()> {
        self.with(|state, _| {
            let open = !matches!(state.life, Life::Over(_));
            let parts = state.queue_pair.clone().zip(state.reservation.clone());
            let Some((queue_pair, reservation)) = parts.filter(|_| open) else {
                return Err(over(&state.life));
            };
            let pattern = &reservation.resources().proof;
            state.transmit.posting_mut().prove(
                queue_pair.as_ref(),
                &mut state.credits,
                pattern,
                state.path_mtu,
            )
        })
    }

    pub(crate) fn take_message(&self) -> Received {
        self.take(Receive::take)
    }

    pub(crate) fn take_immediate(&self) -> Received<u32> {
        self.take(Receive::take_immediate)
    }

    fn take<T>(&self, take: impl FnOnce(&mut Receive, &mut Credits) -> Option<T>) -> Received<T> {
        self.with(|state, after| {
            if let Some(taken) = take(&mut state.receive, &mut state.credits) {
                if state.credits.should_return() {
                    self.pump(state, after);
                }
                return Received::Message(taken);
            }
            match &state.life {
                _ if state.receive.ended() => Received::End,
                Life::Over(Closed { error: Some(error), .. }) => Received::Closed(error.clone()),
                Life::Over(_) => Received::End,
                _ => Received::Pending,
            }
        })
    }

    pub(crate) fn end(&self) -> Result<u64> {
        self.with(|state, after| match &state.life {
            Life::Open => {
                let id = state.transmit.enqueue_end();
                state.life = Life::Ended;
                self.pump(state, after);
                Ok(id)
            }
            // The same end: its id tells when the peer's device has been told.
            Life::Ended | Life::Closing { .. } => Ok(state.transmit.end_id()),
            life => Err(over(life)),
        })
    }

    pub(crate) fn news(&self, state: &mut State, after: &mut After) {
        after.wakers.append(&mut state.wakers);
        after.observer.clone_from(&state.observer);
    }

    pub(crate) fn observe(&self, observer: Observer) {
        self.lock().observer = Some(Arc::clone(&observer));
        // What happened before is news too.
        observer();
        drop(observer);
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let state = self.lock();
        ConnectionStats::of(&state.transmit, &state.receive, &state.credits, &state.grants)
    }

    /// Registers a waker for the next news.
    pub(crate) fn wake_on_news(state: &mut State, waker: &Waker) {
        if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
    }
}

/// The error of a call on a connection that is not open.
pub(crate) fn over(life: &Life) -> Error {
    match life {
        Life::Over(Closed { error: Some(error), .. }) => error.clone(),
        _ => Error::new(ErrorCode::Closed, "the connection is closed"),
    }
}

impl Waiting for Channel {
    fn slot_free(&self) {
        self.with(|state, after| {
            state.transmit.posting_mut().buffer_came();
            self.pump(state, after);
        });
    }
}
