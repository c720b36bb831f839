//! What a connection does with regions: publishes them, seeks the peer's, and posts lists of operations.

use napi::bindgen_prelude::{ClassInstance, Either, Either4, Null};
use napi_derive::napi;
use secure_rdma_connection::Received;
use secure_rdma_rdma::{Access, Result};

use crate::commands::Commands;
use crate::connection::{NativeConnection, id_value};
use crate::environment::value;
use crate::error::NativeError;
use crate::process::{Process, refuse_fork};
use crate::region::NativeRegion;
use crate::remote::{NativeRemote, Seeking};
use crate::report::number;
use crate::work::{Slot, Work, put_later};

/// What came of an operation that is done, where that is more than its having been carried out.
#[napi(object, object_from_js = false)]
pub struct NativeOutcome {
    /// The operation's.
    pub id: f64,
    /// Of an atomic what the 8 bytes held before.
    pub value: Option<u64>,
    /// Why it failed alone.
    pub error: Option<NativeError>,
}

/// What is done, in one look.
#[napi(object, object_from_js = false)]
pub struct NativeOutcomes {
    /// Every id up to this one is over.
    pub done: f64,
    /// Of those.
    pub outcomes: Vec<NativeOutcome>,
}

#[napi]
impl NativeConnection {
    /// Begins to register a region with the connection's device. `id` rings when it is.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn register(&self, id: u32, region: &NativeRegion) -> Either<Work, NativeError> {
        value(self.begin_to_register(id, region))
    }

    /// Begins to publish a range. `id` rings when the peer is being told.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn publish(
        &self,
        id: u32,
        name: String,
        region: &NativeRegion,
        offset: f64,
        length: f64,
        access: u32,
    ) -> Either<Work, NativeError> {
        value(self.begin_to_publish(id, name, (region, offset, length), access))
    }

    /// Begins to take back what is published. `id` rings when the peer cannot use it any more.
    #[napi(catch_unwind)]
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "as it comes from JavaScript")]
    pub fn unpublish(&self, id: u32, name: String) -> Either<Work, NativeError> {
        value(self.begin_to_unpublish(id, &name))
    }

    /// Begins to wait for what the peer publishes. `id` rings when it is there.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn seek(&self, id: u32, name: String) -> Either<Seeking, NativeError> {
        value(self.begin_to_seek(id, name))
    }

    /// Posts a list, see [`Commands`]; gives its first id. The others follow.
    #[napi(catch_unwind)]
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "as they come from JavaScript")]
    pub fn post(
        &self,
        words: &[u64],
        count: u32,
        messages: &[u8],
        regions: Vec<ClassInstance<'_, NativeRegion>>,
        remotes: Vec<ClassInstance<'_, NativeRemote>>,
    ) -> Either<f64, NativeError> {
        id_value(self.post_commands(words, count, messages, &regions, &remotes))
    }

    /// What is done, and what came of it.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn outcomes(&self) -> NativeOutcomes {
        let (done, outcomes) = self.connection().outcomes();
        let outcomes = outcomes
            .into_iter()
            .map(|(id, outcome)| match outcome {
                Ok(value) => NativeOutcome { id: number(id), value: Some(value), error: None },
                Err(error) => NativeOutcome { id: number(id), value: None, error: Some(error.into()) },
            })
            .collect();
        NativeOutcomes { done: number(done), outcomes }
    }

    /// Nobody waits for these any more: gives how many were taken back before anything of them was posted.
    #[napi(catch_unwind)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ids that `post` gave")]
    pub fn give_up(&self, first: f64, last: f64) -> u32 {
        let mut withdrawn = 0;
        // The last first: what is behind must not be posted meanwhile.
        for id in (first as u64..=last as u64).rev() {
            if self.connection().withdraw(id) {
                withdrawn += 1;
            } else {
                self.connection().disregard(id);
            }
        }
        withdrawn
    }

    /// The next immediate; `false` when there is none yet; `null` when no more will come; an error when the connection
    /// failed.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn receive_immediate(&self) -> Either4<u32, bool, Null, NativeError> {
        if let Err(error) = refuse_fork() {
            return Either4::D(error.into());
        }
        match self.connection().receive_immediate() {
            Received::Message(immediate) => Either4::A(immediate),
            Received::Pending => Either4::B(false),
            Received::End => Either4::C(Null),
            Received::Closed(error) => Either4::D(error.into()),
        }
    }
}

impl NativeConnection {
    fn begin_to_register(&self, id: u32, region: &NativeRegion) -> Result<Work> {
        let (process, slot) = (Process::get()?, Slot::new(self.house().bell(id)));
        let (connection, region) = (self.connection().clone(), region.region()?.clone());
        let told = slot.clone();
        process.runtime.spawn_blocking(move || told.put(connection.register(&region)));
        Ok(Work::of(slot))
    }

    fn begin_to_publish(
        &self,
        id: u32,
        name: String,
        (region, offset, length): (&NativeRegion, f64, f64),
        access: u32,
    ) -> Result<Work> {
        let (process, slot) = (Process::get()?, Slot::new(self.house().bell(id)));
        let (connection, slice) = (self.connection().clone(), region.slice(offset, length)?);
        let (told, access) = (slot.clone(), Access::from_bits_retain(access));
        process.runtime.spawn_blocking(move || match connection.publish(&name, &slice, access) {
            Ok(publication) => {
                let announced = async move { connection.wait_announced(publication).await };
                // It runs to its end: the end of the connection is one.
                drop(put_later(process, &told, announced));
            }
            Err(error) => told.put(Err(error)),
        });
        Ok(Work::of(slot))
    }

    fn begin_to_unpublish(&self, id: u32, name: &str) -> Result<Work> {
        let (process, slot) = (Process::get()?, Slot::new(self.house().bell(id)));
        let connection = self.connection().clone();
        let publication = connection.unpublish(name)?;
        let ended = async move {
            connection.wait_unpublished(publication).await;
            Ok(())
        };
        drop(put_later(process, &slot, ended));
        Ok(Work::of(slot))
    }

    fn begin_to_seek(&self, id: u32, name: String) -> Result<Seeking> {
        let (process, slot) = (Process::get()?, Slot::new(self.house().bell(id)));
        let connection = self.connection().clone();
        let task = put_later(process, &slot, async move { connection.remote(&name).await });
        Ok(Seeking::of(slot, task))
    }

    fn post_commands(
        &self,
        words: &[u64],
        count: u32,
        messages: &[u8],
        regions: &[ClassInstance<'_, NativeRegion>],
        remotes: &[ClassInstance<'_, NativeRemote>],
    ) -> Result<u64> {
        refuse_fork()?;
        let words = words.get(..count as usize).unwrap_or(words);
        let commands = Commands::read(words, messages, regions, remotes)?;
        Ok(self.connection().post(&commands.operations()?)?.start)
    }
}
