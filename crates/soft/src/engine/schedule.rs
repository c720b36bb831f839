//! Whose turn it is: to send, to be looked at, to be told of.

use std::collections::VecDeque;
use std::time::Instant;

use secure_rdma_rdma::Qpn;

/// In which lines a queue pair stands, so that it stands in none twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// To send an acknowledgement.
    pub(super) urgent: bool,
    /// To send requests or READ responses.
    pub(super) ready: bool,
    /// To wait for room in a receive buffer.
    pub(super) waiting: bool,
    /// To have its completions polled.
    pub(super) news: bool,
    /// For the end of an acknowledgement's stay.
    pub(super) held: bool,
}

impl Standing {
    /// Its turn to send has come.
    pub(super) fn leave(&mut self, urgent: bool) {
        if urgent {
            self.urgent = false;
        } else {
            self.ready = false;
        }
    }
}

/// The lines of queue pairs that have something to do. An idle one stands in none and costs nothing.
///
/// Numbers of queue pairs that were destroyed meanwhile may stand in them; they are skipped.
#[derive(Default)]
pub(super) struct Schedule {
    urgent: VecDeque<Qpn>,
    ready: VecDeque<Qpn>,
    news: VecDeque<Qpn>,
    /// Acknowledgements that stay behind, and until when: all stay equally long.
    held: VecDeque<(Instant, Qpn)>,
}

impl Schedule {
    /// Acknowledgements go before everything else: a peer waits for them.
    pub(super) fn urgent(&mut self, qpn: Qpn, standing: &mut Standing) {
        if !std::mem::replace(&mut standing.urgent, true) {
            self.urgent.push_back(qpn);
        }
    }

    /// Everybody else takes turns, one batch each.
    pub(super) fn ready(&mut self, qpn: Qpn, standing: &mut Standing) {
        if !std::mem::replace(&mut standing.ready, true) {
            self.ready.push_back(qpn);
        }
    }

    pub(super) fn news(&mut self, qpn: Qpn, standing: &mut Standing) {
        if !std::mem::replace(&mut standing.news, true) {
            self.news.push_back(qpn);
        }
    }

    pub(super) fn hold(&mut self, qpn: Qpn, until: Instant, standing: &mut Standing) {
        if !std::mem::replace(&mut standing.held, true) {
            self.held.push_back((until, qpn));
        }
    }

    /// When the first of the acknowledgements has stayed behind for long enough.
    pub(super) fn next_held(&self) -> Option<Instant> {
        self.held.front().map(|(until, _)| *until)
    }

    /// Whose acknowledgement has.
    pub(super) fn pop_held(&mut self, now: Instant) -> Option<Qpn> {
        if self.held.front().is_none_or(|(until, _)| *until > now) {
            return None;
        }
        self.held.pop_front().map(|(_, qpn)| qpn)
    }

    /// Whether nobody has anything to send.
    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.ready.is_empty()
    }

    /// Whether others wait for their turn to send.
    pub(super) fn is_crowded(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whose turn it is to send, and whether for an acknowledgement.
    pub(super) fn next_sender(&mut self) -> Option<(Qpn, bool)> {
        match self.urgent.pop_front() {
            Some(qpn) => Some((qpn, true)),
            None => self.ready.pop_front().map(|qpn| (qpn, false)),
        }
    }

    /// Whether anybody has completions.
    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    pub(super) fn next_news(&mut self) -> Option<Qpn> {
        self.news.pop_front()
    }
}
