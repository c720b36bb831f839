//! Publishing regions to the peer, and what the peer publishes: regions and grants meet the channel here.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;

use secure_rdma_rdma::{Access, Error, ErrorCode, Result, Slice};

use crate::channel::{After, Channel, Life, State, over};
use crate::control_messages::ControlMessage;
use crate::grant_messages::GrantMessage;
use crate::grants::{Opened, PublicationState, check_name};
use crate::outstanding::LocalId;
use crate::pool::Resources;
use crate::regions::RegionSlice;
use crate::registrations::Opens;
use crate::remote::RemoteRegion;

/// All that can be granted.
const REMOTE: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE).union(Access::REMOTE_ATOMIC);

impl Channel {
    fn resources(&self) -> Result<Arc<Resources>> {
        let state = self.lock();
        let open = !matches!(state.life, Life::Over(_));
        match state.reservation.as_ref().filter(|_| open) {
            Some(reservation) => Ok(Arc::clone(reservation.resources())),
            None => Err(over(&state.life)),
        }
    }

    /// Opens a range to the peer. **Blocks** while pages are pinned.
    pub(crate) fn publish(&self, name: &str, slice: &RegionSlice, access: Access) -> Result<u32> {
        check_name(name)?;
        if access.is_empty() || !REMOTE.contains(access) {
            let what = "a region is published for reading, writing or atomics, or several of them, and for nothing else";
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        if slice.is_empty() {
            let what = format!("nothing of 0 bytes can be published as {name:?}: give at least 1");
            return Err(Error::new(ErrorCode::RegionBounds, what));
        }
        {
            let state = self.lock();
            may_publish(&state.life)?;
            state.grants.check_new(name)?;
        }
        let opened = open(self.resources()?.as_ref(), slice, access)?;
        // What is not used after all is closed again without the lock.
        let mut opened = Some(opened);
        self.with(|state, after| {
            may_publish(&state.life)?;
            state.grants.check_new(name)?;
            let Some(opened) = opened.take() else { return Err(Error::internal("opened twice")) };
            let id = state.grants.publish(name.to_owned(), access, opened, &mut state.transmit);
            self.pump(state, after);
            self.tell_grants(state, after);
            Ok(id)
        })
    }

    pub(crate) fn publication(&self, id: u32) -> PublicationState {
        let state = self.lock();
        match state.life {
            // The queue pair is in ERR: nothing of the peer is carried out on it any more.
            Life::Over(_) => PublicationState::Ended,
            _ => state.grants.publication(id),
        }
    }

    /// Whether the peer is being told of it; an error when it never will be any more.
    pub(crate) fn is_announced(&self, id: u32) -> Result<Option<()>> {
        match self.publication(id) {
            PublicationState::Announcing => Ok(None),
            PublicationState::Announced => Ok(Some(())),
            PublicationState::Ending | PublicationState::Ended => match &self.lock().life {
                life @ Life::Over(_) => Err(over(life)),
                _ => Err(Error::new(
                    ErrorCode::RegionRevoked,
                    "it was unpublished before the peer was told of it",
                )),
            },
        }
    }

    pub(crate) fn unpublish(&self, name: &str) -> Result<u32> {
        self.with(|state, after| {
            if let life @ Life::Over(_) = &state.life {
                return Err(over(life));
            }
            let id = state.grants.unpublish(name)?;
            self.tell_grants(state, after);
            Ok(id)
        })
    }

    pub(crate) fn find_remote(&self, name: &str) -> Result<Option<RemoteRegion>> {
        check_name(name)?;
        let state = self.lock();
        match &state.life {
            life @ Life::Over(_) => Err(over(life)),
            _ => Ok(state.grants.find(name)),
        }
    }

    /// The peer has told something: of its grants, of ours, or what of ours has arrived.
    pub(crate) fn told(&self, message: &[u8]) -> Result<()> {
        match ControlMessage::decode(message)? {
            ControlMessage::Grant(message) => self.told_of_grant(message),
            ControlMessage::Received(count) => {
                self.with(|state, _| state.transmit.posting_mut().outstanding_mut().peer_received(count))
            }
        }
    }

    fn told_of_grant(&self, message: GrantMessage) -> Result<()> {
        let myself = Weak::clone(&self.myself);
        self.with(|state, after| {
            if matches!(state.life, Life::Over(_) | Life::PeerClosing { .. }) {
                return Ok(());
            }
            let (grants, transmit) = (&mut state.grants, &mut state.transmit);
            match message {
                GrantMessage::Grant(grant) => grants.granted(grant, &myself)?,
                GrantMessage::Revoke(id) => {
                    grants.revoke(id, transmit)?;
                    grants.confirm(transmit);
                }
                GrantMessage::Revoked(id) => grants.revoked(id, transmit, &mut after.closing)?,
            }
            self.pump(state, after);
            self.tell_grants(state, after);
            self.news(state, after);
            self.tell_when_drained(state, after);
            Ok(())
        })
    }

    /// Ends registrations whose grants the peer has let go of. They are unpublished only then: a peer that has said so
    /// and goes on writing must not find the memory when its owner has it back. **Blocks** while pages are unpinned.
    pub(crate) fn close_grants(&self, closing: Vec<(u32, Opened)>) {
        let ids: Vec<_> = closing.iter().map(|(id, _)| *id).collect();
        drop(closing);
        self.with(|state, after| {
            state.grants.closed(&ids);
            self.news(state, after);
        });
    }

    /// The control channel takes more.
    pub(crate) fn may_tell(&self) {
        self.with(|state, after| self.tell_grants(state, after));
    }

    /// A bind or an invalidation is done.
    pub(crate) fn local_done(&self, state: &mut State, after: &mut After, done: LocalId) {
        if state.grants.local_done(done, &mut state.transmit, &mut after.ended) {
            self.news(state, after);
        }
    }

    /// Tells the peer what waits to be told, also that nothing in flight uses any more what it wants back.
    pub(crate) fn tell_grants(&self, state: &mut State, after: &mut After) {
        state.grants.confirm(&state.transmit);
        let Some(control) = state.control.clone().filter(|_| state.grants.has_untold()) else { return };
        // Under the lock, since the order counts: it only queues, and wakes a task.
        if let Err(error) = state.grants.tell(&control) {
            self.fail(state, after, error);
        }
    }

    /// Counts the time of peers that are to let go of a grant.
    pub(crate) fn tick_grants(&self, state: &mut State, after: &mut After) {
        if matches!(state.life, Life::Open | Life::Ended | Life::Closing { told: false })
            && let Err(error) = state.grants.tick()
        {
            self.fail(state, after, error);
        }
    }

    /// Waits until `ready` finds something, and is asked anew with each news.
    pub(crate) async fn found<T>(&self, ready: impl Fn() -> Result<Option<T>>) -> Result<T> {
        poll_fn(|cx| {
            // Register first: what comes in between wakes.
            Self::wake_on_news(&mut self.lock(), cx.waker());
            match ready() {
                Ok(Some(found)) => Poll::Ready(Ok(found)),
                Ok(None) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await
    }
}

/// Makes what opens a range to the peer of one queue pair.
fn open(resources: &Resources, slice: &RegionSlice, access: Access) -> Result<Opened> {
    let (region, offset, length) = (slice.region(), slice.offset(), slice.len());
    let (regions, device) = (&resources.regions, &resources.device);
    let domain_alone = || regions.register_part(region, offset, length, access);
    match regions.opens() {
        Opens::Windows => {
            let whole = offset == 0 && length == region.len();
            let below = if whole || device.windows_keep_ranges() {
                regions.register(region)?
            } else {
                regions.register_part(region, offset, length, Access::empty())?
            };
            let Some(window) = device.create_memory_window()? else {
                return Err(Error::internal("a device that had memory windows has none"));
            };
            let rkey = window.next_key();
            Ok(Opened { window: Some(window), range: Slice::new(&below, offset, length), rkey })
        }
        Opens::OwnDomain => {
            let below = domain_alone()?;
            Ok(Opened { window: None, rkey: below.rkey(), range: Slice::new(&below, offset, length) })
        }
        Opens::Nothing => Err(Error::new(
            ErrorCode::DeviceUnsupported,
            format!(
                "{} has neither memory windows nor protection domains to spare: nothing can be granted to one peer alone \
                 there",
                device.name()
            ),
        )),
    }
}

fn may_publish(life: &Life) -> Result<()> {
    match life {
        Life::Open | Life::Ended => Ok(()),
        Life::Closing { .. } => {
            Err(Error::new(ErrorCode::Ended, "nothing can be published after close() of this connection"))
        }
        life => Err(over(life)),
    }
}
