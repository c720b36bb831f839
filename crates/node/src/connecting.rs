//! A connection that is coming up.

use std::sync::{Arc, Mutex, Weak};

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_connection::{Connection, connect};
use secure_rdma_rdma::Result;
use secure_rdma_session::Task;

use crate::authorize::{NativeQuestion, Questions};
use crate::bell::lock;
use crate::connection::NativeConnection;
use crate::environment::{House, Tenant, value};
use crate::error::NativeError;
use crate::options::NativeConnect;
use crate::process::Process;

/// A connection that is coming up. Dropping it unmakes it.
#[napi]
pub struct Connecting {
    house: Arc<House>,
    id: u32,
    attempt: Arc<Attempt>,
    questions: Questions,
}

struct Attempt {
    task: Task,
    outcome: Arc<Mutex<Option<Result<Connection>>>>,
}

impl Tenant for Attempt {
    fn evict(&self) {
        self.task.abort();
        drop(lock(&self.outcome).take());
    }

    fn is_gone(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connecting {
    pub(crate) fn begin(house: &Arc<House>, id: u32, options: NativeConnect) -> Result<Self> {
        let process = Process::get()?;
        let bell = house.bell(id);
        let questions = Questions::new(bell.clone());
        let (session, device, options) = options.into_parts(&questions)?;
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        let task = process.runtime.spawn(async move {
            let result = connect(&process.registry, session, device, options).await;
            *lock(&told) = Some(result);
            bell.ring();
        });
        let attempt = Arc::new(Attempt { task, outcome });
        let tenant: Weak<Attempt> = Arc::downgrade(&attempt);
        house.enter(tenant);
        Ok(Self { house: Arc::clone(house), id, attempt, questions })
    }
}

#[napi]
impl Connecting {
    /// Peers that wait to be let in.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take_questions(&self) -> Vec<NativeQuestion> {
        self.questions.take()
    }

    /// Lets a peer in, or says why not.
    #[napi(catch_unwind)]
    pub fn answer(&self, ticket: u32, refusal: Option<String>) {
        self.questions.answer(ticket, refusal);
    }

    /// The connection, or why there is none; `null` while it is not known yet. From now on the id rings for the
    /// connection's news.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<NativeConnection, NativeError>> {
        let connection = lock(&self.attempt.outcome).take()?;
        Some(value(connection.map(|connection| NativeConnection::new(connection, &self.house, self.id))))
    }

    /// Gives up; whatever was made is unmade.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.attempt.evict();
    }
}
