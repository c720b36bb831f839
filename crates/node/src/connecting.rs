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
    outcome: Arc<Mutex<Outcome>>,
}

/// What has come of an attempt.
enum Outcome {
    /// Nothing yet, or JavaScript has it.
    None,
    Known(Result<Connection>),
    /// Nobody wants it any more. The task may be past the point where it can be aborted.
    Unwanted,
}

impl Outcome {
    /// Takes `result` in, or gives it back where nobody wants it: its end must not happen under the lock.
    fn know(&mut self, result: Result<Connection>) -> Option<Result<Connection>> {
        if matches!(self, Self::Unwanted) {
            return Some(result);
        }
        *self = Self::Known(result);
        None
    }

    fn take(&mut self) -> Option<Result<Connection>> {
        match std::mem::replace(self, Self::None) {
            Self::Known(result) => Some(result),
            Self::None => None,
            Self::Unwanted => {
                *self = Self::Unwanted;
                None
            }
        }
    }

    /// What is to be dropped behind the lock.
    fn give_up(&mut self) -> Self {
        std::mem::replace(self, Self::Unwanted)
    }
}

impl Tenant for Attempt {
    fn evict(&self) {
        self.task.abort();
        let unwanted = lock(&self.outcome).give_up();
        drop(unwanted);
    }

    fn is_gone(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.evict();
    }
}

impl Connecting {
    pub(crate) fn begin(house: &Arc<House>, id: u32, options: NativeConnect) -> Result<Self> {
        let process = Process::get()?;
        let bell = house.bell(id);
        let questions = Questions::new(bell.clone());
        let (session, device, options) = options.into_parts(&questions)?;
        let outcome = Arc::new(Mutex::new(Outcome::None));
        let told = Arc::clone(&outcome);
        let task = process.runtime.spawn(async move {
            let result = connect(&process.registry, session, device, options).await;
            let unwanted = lock(&told).know(result);
            drop(unwanted);
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

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::{Error, ErrorCode};

    use super::*;

    fn result() -> Result<Connection> {
        Err(Error::new(ErrorCode::Closed, "an outcome"))
    }

    #[test]
    fn what_comes_behind_a_cancel_is_given_back_and_not_kept() {
        let mut outcome = Outcome::None;
        assert!(outcome.know(result()).is_none() && outcome.take().is_some() && outcome.take().is_none());
        assert!(matches!(outcome.give_up(), Outcome::None));
        assert!(outcome.know(result()).is_some() && outcome.take().is_none());
        assert!(outcome.know(result()).is_some(), "for good");
    }
}
