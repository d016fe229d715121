//! The rows of either database, as values of one kind.

use uuid::Uuid;

use super::StoreError;
use crate::spin::pg::DbValue;
#[cfg(feature = "sqlite")]
use crate::spin::sqlite::Value;

/// A value of a row.
#[derive(Debug)]
pub(super) enum Cell {
    Null,
    Integer(i64),
    Text(String),
    Other,
}

impl From<DbValue> for Cell {
    fn from(value: DbValue) -> Self {
        match value {
            DbValue::DbNull => Self::Null,
            DbValue::Boolean(it) => Self::Integer(it.into()),
            DbValue::Int64(it) => Self::Integer(it),
            DbValue::Str(it) | DbValue::Uuid(it) => Self::Text(it),
            _ => Self::Other,
        }
    }
}

#[cfg(feature = "sqlite")]
impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Integer(it) => Self::Integer(it),
            Value::Text(it) => Self::Text(it),
            _ => Self::Other,
        }
    }
}

/// A value of an array in JSON, which SQLite's procedures return.
#[cfg(feature = "sqlite")]
impl From<serde_json::Value> for Cell {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::String(it) => Self::Text(it),
            other => other.as_i64().map_or(Self::Other, Self::Integer),
        }
    }
}

/// A row, whose values are taken one after the other. One that is of another kind, or lacking, is an error of ours.
#[derive(Debug)]
pub(super) struct Row(std::vec::IntoIter<Cell>);

impl Row {
    pub(super) fn new(values: Vec<impl Into<Cell>>) -> Self {
        let cells: Vec<Cell> = values.into_iter().map(Into::into).collect();
        Self(cells.into_iter())
    }

    /// The array of one value in JSON.
    #[cfg(feature = "sqlite")]
    pub(super) fn from_json(text: &str) -> Result<Self, StoreError> {
        let values = serde_json::from_str::<Vec<serde_json::Value>>(text);
        let values = values.map_err(|_| StoreError::unexpected_row())?;
        Ok(Self::new(values))
    }

    /// Leaves out a value that nobody needs.
    pub(super) fn skip(&mut self) {
        self.0.next();
    }

    pub(super) fn text(&mut self) -> Result<Option<String>, StoreError> {
        match self.0.next() {
            None | Some(Cell::Null) => Ok(None),
            Some(Cell::Text(it)) => Ok(Some(it)),
            Some(_) => Err(StoreError::unexpected_row()),
        }
    }

    pub(super) fn integer(&mut self) -> Result<Option<i64>, StoreError> {
        match self.0.next() {
            None | Some(Cell::Null) => Ok(None),
            Some(Cell::Integer(it)) => Ok(Some(it)),
            Some(_) => Err(StoreError::unexpected_row()),
        }
    }

    /// A count that is not negative; 0 where there is none.
    pub(super) fn count(&mut self) -> Result<u64, StoreError> {
        let count = self.integer()?.unwrap_or_default();
        u64::try_from(count).map_err(|_| StoreError::unexpected_row())
    }

    /// A number of bytes or of things in memory.
    pub(super) fn size(&mut self) -> Result<usize, StoreError> {
        usize::try_from(self.count()?).map_err(|_| StoreError::unexpected_row())
    }

    pub(super) fn flag(&mut self) -> Result<bool, StoreError> {
        Ok(self.integer()?.unwrap_or_default() != 0)
    }

    pub(super) fn id(&mut self) -> Result<Option<Uuid>, StoreError> {
        match self.text()? {
            None => Ok(None),
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| StoreError::unexpected_row()),
        }
    }
}

/// What must be there.
pub(super) fn required<T>(value: Option<T>) -> Result<T, StoreError> {
    value.ok_or_else(StoreError::unexpected_row)
}
