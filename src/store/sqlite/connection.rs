//! The instance's connection to SQLite.
//!
//! It stays open between turns: SQLite writes its log back into the database, with all the syncing that
//! this takes, whenever the last connection closes, and a new one has every statement to prepare again. A
//! call that does not end well takes it out of use.

use std::cell::RefCell;
use std::rc::Rc;

use super::error::classify;
use crate::spin::sqlite::{Connection, Value};
use crate::store::{StoreError, rows};

thread_local! {
    static SHARED: RefCell<Option<Rc<Connection>>> = const { RefCell::new(None) };
}

/// The connection during one call.
pub(super) struct Call {
    connection: Rc<Connection>,
    succeeded: bool,
}

impl Call {
    pub(super) async fn begin() -> Result<Self, StoreError> {
        let shared = SHARED.with_borrow(Clone::clone);
        let connection = match shared {
            Some(connection) => connection,
            None => {
                let opened = Rc::new(Connection::open_default().await.map_err(classify)?);
                SHARED.with_borrow_mut(|shared| shared.get_or_insert(opened).clone())
            }
        };
        Ok(Self {
            connection,
            succeeded: false,
        })
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
        mut take: impl FnMut(Vec<Value>) -> Result<(), StoreError>,
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
        self.query(statement, parameters, |row| {
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
        self.query(statement, parameters, |_| {
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
        SHARED.with_borrow_mut(|shared| {
            let is_this = |shared: &Rc<Connection>| Rc::ptr_eq(shared, &self.connection);
            shared.take_if(|shared| is_this(shared));
        });
    }
}
