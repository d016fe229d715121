//! The instance's connection to SQLite.
//!
//! It stays open between turns: SQLite writes its log back into the database, with all the syncing that
//! this takes, whenever the last connection closes, and a new one has every statement to prepare again. A
//! call that does not end well takes it out of use.

use std::cell::RefCell;
use std::rc::Rc;
use std::thread::LocalKey;

use super::error::classify;
use crate::spin::sqlite::{Connection, Value};
use crate::store::{StoreError, rows};

thread_local! {
    static SHARED: Shared = const { RefCell::new(None) };
    /// For what may be lost with the machine's power, but with nothing less: its commits do not wait for the disk.
    static CHECKPOINTS: Shared = const { RefCell::new(None) };
}

type Shared = RefCell<Option<Rc<Connection>>>;

/// The connection during one call.
pub(super) struct Call {
    connection: Rc<Connection>,
    shared: &'static LocalKey<Shared>,
    succeeded: bool,
}

impl Call {
    pub(super) async fn begin() -> Result<Self, StoreError> {
        Self::by(&SHARED).await.map(|(call, _)| call)
    }

    /// A call whose writes need not be on the disk when it ends.
    pub(super) async fn begin_checkpoint() -> Result<Self, StoreError> {
        let (mut call, is_new) = Self::by(&CHECKPOINTS).await?;
        if is_new && !call.is_quick().await? {
            SHARED.with_borrow_mut(|shared| {
                call.connection = shared.get_or_insert(call.connection.clone()).clone();
            });
            CHECKPOINTS.set(Some(call.connection.clone()));
        }
        Ok(call)
    }

    /// Makes its commits not wait for the disk. Where the database has no file, each connection has one of its own.
    async fn is_quick(&self) -> Result<bool, StoreError> {
        let mut has_file = false;
        self.query("PRAGMA database_list", Vec::new(), &mut |row| {
            has_file |= matches!(row.get(2), Some(Value::Text(file)) if !file.is_empty());
            Ok(())
        })
        .await?;
        let set = self.execute("PRAGMA synchronous = NORMAL", Vec::new());
        Ok(has_file && set.await.is_ok())
    }

    /// Also whether the connection is new.
    async fn by(shared: &'static LocalKey<Shared>) -> Result<(Self, bool), StoreError> {
        let known = shared.with_borrow(Clone::clone);
        let is_new = known.is_none();
        let connection = match known {
            Some(connection) => connection,
            None => {
                let opened = Rc::new(Connection::open_default().await.map_err(classify)?);
                shared.with_borrow_mut(|shared| shared.get_or_insert(opened).clone())
            }
        };
        let call = Self {
            connection,
            shared,
            succeeded: false,
        };
        Ok((call, is_new))
    }

    /// Ends a call that went well, so that the connection stays in use.
    pub(super) fn end(mut self) {
        self.succeeded = true;
    }

    /// Runs a statement and reads its rows to their end at once: an open row stream holds the lock of the
    /// database.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: Vec<Value>,
        take: &mut dyn FnMut(Vec<Value>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let result = self.connection.execute(statement, parameters).await;
        let (_, rows, outcome) = result.map_err(classify)?.into_inner();
        rows::each(rows, |row| take(row.values)).await?;
        // An error of the execution arrives here, after no rows.
        outcome.await.map_err(classify)
    }

    /// Runs a statement and returns its last row.
    pub(super) async fn row(
        &self,
        statement: &str,
        parameters: Vec<Value>,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let mut last = None;
        self.query(statement, parameters, &mut |row| {
            last = Some(row);
            Ok(())
        })
        .await?;
        Ok(last)
    }

    /// Runs a statement and returns the number of its rows.
    pub(super) async fn execute(
        &self,
        statement: &str,
        parameters: Vec<Value>,
    ) -> Result<usize, StoreError> {
        let mut count = 0;
        self.query(statement, parameters, &mut |_| {
            count += 1;
            Ok(())
        })
        .await?;
        Ok(count)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.succeeded {
            return;
        }
        self.shared.with_borrow_mut(|shared| {
            let is_this = |shared: &Rc<Connection>| Rc::ptr_eq(shared, &self.connection);
            shared.take_if(|shared| is_this(shared));
        });
    }
}
