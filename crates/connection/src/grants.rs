//! What each side of one connection has granted to the other, and how far it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use secure_rdma_rdma::{Access, Error, ErrorCode, MemoryWindow, RKey, Result, SendOperation, Slice};
use secure_rdma_session::Control;

use crate::channel::Channel;
use crate::framing::violation;
use crate::grant_messages::{Grant, GrantMessage, MOST_NAME};
use crate::outstanding::LocalId;
use crate::remote::RemoteRegion;
use crate::transmit::Transmit;

/// Grants of either direction that live at a time, at the most.
pub(crate) const MOST: usize = 1024;

/// How many ticks the peer has to confirm that it has let go of a grant: 2 s.
pub(crate) const REVOKE_TICKS: u32 = 8;

/// The grants of one connection.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// What this side has published, by id.
    published: BTreeMap<u32, Published>,
    last_id: u32,
    /// Names of what the peer has let go of and whose registration is being ended, by id.
    closing: BTreeMap<u32, String>,
    /// What the peer has published, by id, until it has our REVOKED.
    held: BTreeMap<u32, Held>,
    last_held: u32,
    /// How many of those the peer wants back and something in flight still uses.
    draining: usize,
    /// What the control channel has not taken yet.
    outbox: VecDeque<GrantMessage>,
}

/// Something that this side has published.
#[derive(Debug)]
struct Published {
    name: String,
    access: Access,
    opened: Opened,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its window is being bound; nobody has been told. Already `unwanted`, perhaps.
    Binding { work: LocalId, unwanted: bool },
    /// The peer has been told.
    Announced,
    /// The peer is to let go of it.
    Revoking { ticks: u32 },
    /// The peer has let go of it: its window is being invalidated.
    Invalidating(LocalId),
}

/// What opens a range to the peer. It ends when this is dropped, which may take a system call.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Dropped before its region. `None` where the registration is in a domain of the connection's own.
    pub(crate) window: Option<Arc<dyn MemoryWindow>>,
    pub(crate) range: Slice,
    pub(crate) rkey: RKey,
}

/// Something that the peer has published.
#[derive(Debug)]
struct Held {
    region: RemoteRegion,
    letting_go: LettingGo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LettingGo {
    No,
    /// Work that uses it is still in flight.
    Draining,
    /// REVOKED waits in the outbox.
    Confirmed,
}

/// How far something published is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicationState {
    /// The device is being told; the peer will be.
    Announcing,
    /// The peer has been told, as far as the network has carried it.
    Announced,
    /// It is being taken back: the peer may still use it.
    Ending,
    /// The peer cannot use it any more.
    Ended,
}

impl Grants {
    /// Refuses a name that nothing can be published under now, and one grant too many.
    pub(crate) fn check_new(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if let Some(known) = self.published.values().find(|known| known.name == name) {
            let why = match known.stage {
                Stage::Binding { unwanted: false, .. } | Stage::Announced => "unpublish it first",
                _ => WAIT,
            };
            return Err(known_name(name, why));
        }
        if self.closing.values().any(|known| known == name) {
            return Err(known_name(name, WAIT));
        }
        if self.published.len() + self.closing.len() >= MOST || self.last_id == u32::MAX {
            let what = format!(
                "{} regions are published on this connection, as many as can be: unpublish one",
                self.published.len() + self.closing.len()
            );
            return Err(Error::new(ErrorCode::RegionLimit, what));
        }
        Ok(())
    }

    /// Enters what [`Grants::check_new`] has let in: its window is bound, then the peer is told.
    pub(crate) fn publish(
        &mut self,
        name: String,
        access: Access,
        opened: Opened,
        transmit: &mut Transmit,
    ) -> u32 {
        self.last_id += 1;
        let id = self.last_id;
        let stage = match &opened.window {
            Some(window) => {
                let (window, target) = (Arc::clone(window), opened.range.clone());
                let bind = SendOperation::Bind { window, rkey: opened.rkey, target, access };
                Stage::Binding { work: transmit.enqueue_local(bind), unwanted: false }
            }
            None => Stage::Announced,
        };
        let published = Published { name, access, opened, stage };
        if stage == Stage::Announced {
            self.outbox.push_back(published.announcement(id));
        }
        self.published.insert(id, published);
        id
    }

    /// How far it is.
    pub(crate) fn publication(&self, id: u32) -> PublicationState {
        match self.published.get(&id).map(|published| published.stage) {
            Some(Stage::Binding { unwanted: false, .. }) => PublicationState::Announcing,
            Some(Stage::Announced) => PublicationState::Announced,
            Some(_) => PublicationState::Ending,
            None if self.closing.contains_key(&id) => PublicationState::Ending,
            None => PublicationState::Ended,
        }
    }

    /// The registrations of these have ended, and with them their keys.
    pub(crate) fn closed(&mut self, ids: &[u32]) {
        self.closing.retain(|id, _| !ids.contains(id));
    }

    /// Begins to take back what is published under this name.
    pub(crate) fn unpublish(&mut self, name: &str) -> Result<u32> {
        if let Some((id, _)) = self.closing.iter().find(|(_, known)| *known == name) {
            return Ok(*id);
        }
        let named = self.published.iter_mut().find(|(_, published)| published.name == name);
        let Some((id, published)) = named else {
            let what = format!("nothing is published as {name:?} on this connection");
            return Err(Error::new(ErrorCode::RegionName, what));
        };
        match &mut published.stage {
            Stage::Binding { unwanted, .. } => *unwanted = true,
            stage @ Stage::Announced => {
                *stage = Stage::Revoking { ticks: 0 };
                self.outbox.push_back(GrantMessage::Revoke(*id));
            }
            Stage::Revoking { .. } | Stage::Invalidating(_) => {}
        }
        Ok(*id)
    }

    /// Local work is done. What it has ended is added to `ended`. Answers whether anyone will want to know.
    pub(crate) fn local_done(
        &mut self,
        done: LocalId,
        transmit: &mut Transmit,
        ended: &mut Vec<Opened>,
    ) -> bool {
        let of_it = |published: &&mut Published| match published.stage {
            Stage::Binding { work, .. } | Stage::Invalidating(work) => work == done,
            _ => false,
        };
        let Some((id, published)) = self.published.iter_mut().find(|(_, published)| of_it(published)) else {
            return false;
        };
        let id = *id;
        match published.stage {
            Stage::Binding { unwanted: true, .. } => published.invalidate(transmit),
            Stage::Binding { .. } => {
                published.stage = Stage::Announced;
                self.outbox.push_back(published.announcement(id));
            }
            _ => ended.extend(self.published.remove(&id).map(|published| published.opened)),
        }
        true
    }

    /// The peer grants something.
    pub(crate) fn granted(&mut self, grant: Grant, channel: &Weak<Channel>) -> Result<()> {
        if grant.id <= self.last_held {
            return Err(violation("a grant whose number is not above the last"));
        }
        if self.held.values().any(|held| held.region.name() == grant.name) {
            return Err(violation("two grants of one name"));
        }
        if self.held.len() >= MOST {
            return Err(violation(format!("more than {MOST} grants")));
        }
        self.last_held = grant.id;
        let Grant { id, access, address, length, rkey, name } = grant;
        let region = RemoteRegion::new(Weak::clone(channel), (id, name), access, (address, length), rkey);
        self.held.insert(id, Held { region, letting_go: LettingGo::No });
        Ok(())
    }

    /// The peer wants a grant back: nothing is posted with it any more.
    pub(crate) fn revoke(&mut self, id: u32, transmit: &mut Transmit) -> Result<()> {
        let held = self.held.get_mut(&id).filter(|held| held.letting_go == LettingGo::No);
        let Some(held) = held else { return Err(violation("a REVOKE of what it has not granted")) };
        held.region.revoke();
        held.letting_go = LettingGo::Draining;
        self.draining += 1;
        transmit.settle_grant(id, &held.region.revoked());
        Ok(())
    }

    /// Confirms what nothing in flight uses any more.
    pub(crate) fn confirm(&mut self, transmit: &Transmit) {
        if self.draining == 0 {
            return;
        }
        for (id, held) in &mut self.held {
            if held.letting_go == LettingGo::Draining && !transmit.names_grant(*id) {
                held.letting_go = LettingGo::Confirmed;
                self.draining -= 1;
                self.outbox.push_back(GrantMessage::Revoked(*id));
            }
        }
    }

    /// The peer has let go of a grant. What is to be dropped for its key to die is added to `closing`;
    /// [`Grants::closed`] is to be told then.
    pub(crate) fn revoked(
        &mut self,
        id: u32,
        transmit: &mut Transmit,
        closing: &mut Vec<(u32, Opened)>,
    ) -> Result<()> {
        let revoking = |published: &&mut Published| matches!(published.stage, Stage::Revoking { .. });
        match self.published.get_mut(&id).filter(revoking) {
            None => return Err(violation("a REVOKED that it was not asked for")),
            Some(published) if published.opened.window.is_some() => published.invalidate(transmit),
            Some(_) => {
                if let Some(Published { name, opened, .. }) = self.published.remove(&id) {
                    self.closing.insert(id, name);
                    closing.push((id, opened));
                }
            }
        }
        Ok(())
    }

    /// Counts the time that the peer takes to let go of grants.
    pub(crate) fn tick(&mut self) -> Result<()> {
        for published in self.published.values_mut() {
            if let Stage::Revoking { ticks } = &mut published.stage {
                *ticks += 1;
                if *ticks > REVOKE_TICKS {
                    let what = format!(
                        "the peer has not let go of {:?} within 2 s of unpublish, so the connection is ended: its process is \
                         stopped, or a long operation with it is still under way there",
                        published.name
                    );
                    return Err(Error::new(ErrorCode::PeerViolation, what));
                }
            }
        }
        Ok(())
    }

    /// What the peer has published under this name.
    pub(crate) fn find(&self, name: &str) -> Option<RemoteRegion> {
        let named = |held: &&Held| held.letting_go == LettingGo::No && held.region.name() == name;
        self.held.values().find(named).map(|held| held.region.clone())
    }

    /// Whether the peer has not been told everything.
    pub(crate) fn has_untold(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Tells what waits, as far as the control channel takes it; it says when it takes more.
    pub(crate) fn tell(&mut self, control: &Control) -> Result<()> {
        while let Some(message) = self.outbox.front() {
            match control.tell(&message.encode()) {
                Ok(()) => {
                    self.next_told();
                }
                Err(error) if error.code() == ErrorCode::SendBufferFull => return Ok(()),
                // The connection ends, and every grant with it.
                Err(error) if error.code() == ErrorCode::Closed => {
                    self.outbox.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the next message out, which is as good as told.
    pub(crate) fn next_told(&mut self) -> Option<GrantMessage> {
        let message = self.outbox.pop_front()?;
        // Only now: a peer that grants and revokes and reads nothing is bounded by what is held.
        if let GrantMessage::Revoked(id) = message {
            self.held.remove(&id);
        }
        Some(message)
    }

    /// The queue pair goes, and with it all that was opened on it.
    pub(crate) fn clear(&mut self) -> Vec<Opened> {
        self.outbox.clear();
        self.held.clear();
        self.closing.clear();
        self.draining = 0;
        std::mem::take(&mut self.published).into_values().map(|published| published.opened).collect()
    }

    /// Grants of this side and of the peer that live.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.published.len() + self.closing.len(), self.held.len())
    }
}

impl Published {
    fn announcement(&self, id: u32) -> GrantMessage {
        let range = &self.opened.range;
        GrantMessage::Grant(Grant {
            id,
            access: self.access,
            address: range.region.address() + range.offset as u64,
            length: range.length as u64,
            rkey: self.opened.rkey,
            name: self.name.clone(),
        })
    }

    fn invalidate(&mut self, transmit: &mut Transmit) {
        let rkey = self.opened.rkey;
        self.stage = Stage::Invalidating(transmit.enqueue_local(SendOperation::Invalidate { rkey }));
    }
}

/// When a name is free again that something has which is being unpublished.
const WAIT: &str = "wait until it is unpublished";

fn known_name(name: &str, why: &str) -> Error {
    let what = format!("{name:?} is published on this connection already: {why}");
    Error::new(ErrorCode::RegionName, what)
}

/// Refuses a name that none can have.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if (1..=MOST_NAME).contains(&name.len()) {
        return Ok(());
    }
    let what = format!("a name of {} bytes: it takes 1 to {MOST_NAME} bytes of UTF-8", name.len());
    Err(Error::new(ErrorCode::RegionName, what))
}
