//! Values between the driver and `spin:postgres`.
//!
//! Decimals, ranges and intervals are not converted: a column of them arrives as
//! `unsupported`, like any other type without a case, and a parameter is an error that
//! says so. Everything else is as in Spin.

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _, Utc};
use tokio_postgres::Row;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;

use crate::component::bindings::spin::postgres::postgres as wit;
use wit::{DbDataType, DbValue, ParameterValue};

pub(super) fn columns(row: &Row) -> Vec<wit::Column> {
    let columns = row.columns().iter();
    columns
        .map(|column| wit::Column {
            name: column.name().to_owned(),
            data_type: data_type(column.type_()),
        })
        .collect()
}

fn data_type(of: &Type) -> DbDataType {
    match *of {
        Type::BOOL => DbDataType::Boolean,
        Type::INT2 => DbDataType::Int16,
        Type::INT4 => DbDataType::Int32,
        Type::INT8 => DbDataType::Int64,
        Type::FLOAT4 => DbDataType::Floating32,
        Type::FLOAT8 => DbDataType::Floating64,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => DbDataType::Str,
        Type::BYTEA => DbDataType::Binary,
        Type::DATE => DbDataType::Date,
        Type::TIME => DbDataType::Time,
        Type::TIMESTAMP | Type::TIMESTAMPTZ => DbDataType::Datetime,
        Type::UUID => DbDataType::Uuid,
        Type::JSONB => DbDataType::Jsonb,
        Type::INT4_ARRAY => DbDataType::ArrayInt32,
        Type::INT8_ARRAY => DbDataType::ArrayInt64,
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY => DbDataType::ArrayStr,
        _ => DbDataType::Other(of.name().to_owned()),
    }
}

pub(super) fn row(row: &Row) -> Result<wit::Row> {
    (0..row.len()).map(|index| value(row, index)).collect()
}

fn value(row: &Row, index: usize) -> Result<DbValue> {
    let column = row.columns().get(index).context("no such column")?;
    let get = Get { row, index };
    match *column.type_() {
        Type::BOOL => get.one(DbValue::Boolean),
        Type::INT2 => get.one(DbValue::Int16),
        Type::INT4 => get.one(DbValue::Int32),
        Type::INT8 => get.one(DbValue::Int64),
        Type::FLOAT4 => get.one(DbValue::Floating32),
        Type::FLOAT8 => get.one(DbValue::Floating64),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => get.one(DbValue::Str),
        Type::BYTEA => get.one(DbValue::Binary),
        Type::DATE => get.one(|it: NaiveDate| DbValue::Date(date(it))),
        Type::TIME => get.one(|it: NaiveTime| DbValue::Time(time(it))),
        Type::TIMESTAMP => get.one(|it: NaiveDateTime| DbValue::Datetime(datetime(it))),
        Type::TIMESTAMPTZ => {
            get.one(|it: DateTime<Utc>| DbValue::Datetime(datetime(it.naive_utc())))
        }
        Type::UUID => get.one(|it: Uuid| DbValue::Uuid(it.to_string())),
        Type::JSONB => get.one(|it: serde_json::Value| DbValue::Jsonb(it.to_string().into_bytes())),
        Type::INT4_ARRAY => get.one(DbValue::ArrayInt32),
        Type::INT8_ARRAY => get.one(DbValue::ArrayInt64),
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY => get.one(DbValue::ArrayStr),
        _ => get.one(|Raw(bytes)| DbValue::Unsupported(bytes)),
    }
}

/// A column of a row.
struct Get<'a> {
    row: &'a Row,
    index: usize,
}

impl<'a> Get<'a> {
    fn one<V: FromSql<'a>>(&self, case: impl FnOnce(V) -> DbValue) -> Result<DbValue> {
        let value: Option<V> = self.row.try_get(self.index)?;
        Ok(value.map_or(DbValue::DbNull, case))
    }
}

/// A value of any type, as it came.
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(
        _: &Type,
        bytes: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(bytes.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

// The calendar's numbers are small: a month fits into a byte.
#[allow(clippy::cast_possible_truncation, reason = "at most 60")]
fn small(number: u32) -> u8 {
    number as u8
}

fn date(it: NaiveDate) -> (i32, u8, u8) {
    (it.year(), small(it.month()), small(it.day()))
}

fn time(it: NaiveTime) -> (u8, u8, u8, u32) {
    (
        small(it.hour()),
        small(it.minute()),
        small(it.second()),
        it.nanosecond(),
    )
}

fn datetime(it: NaiveDateTime) -> (i32, u8, u8, u8, u8, u8, u32) {
    let ((year, month, day), (hour, minute, second, nanosecond)) =
        (date(it.date()), time(it.time()));
    (year, month, day, hour, minute, second, nanosecond)
}

/// A parameter, owned, as the driver's `*_raw` functions take it.
pub(super) type Parameter = Box<dyn ToSql + Send + Sync>;

pub(super) fn parameters(values: &[ParameterValue]) -> Result<Vec<Parameter>> {
    values.iter().map(parameter).collect()
}

fn parameter(value: &ParameterValue) -> Result<Parameter> {
    let to_date = |(year, month, day): (i32, u8, u8)| {
        NaiveDate::from_ymd_opt(year, month.into(), day.into())
            .with_context(|| format!("no such date: {year}-{month}-{day}"))
    };
    let to_time = |(hour, minute, second, nanosecond): (u8, u8, u8, u32)| {
        NaiveTime::from_hms_nano_opt(hour.into(), minute.into(), second.into(), nanosecond)
            .with_context(|| format!("no such time: {hour}:{minute}:{second}"))
    };
    Ok(match value {
        ParameterValue::Boolean(it) => Box::new(*it),
        ParameterValue::Int8(it) => Box::new(*it),
        ParameterValue::Int16(it) => Box::new(*it),
        ParameterValue::Int32(it) => Box::new(*it),
        ParameterValue::Int64(it) => Box::new(*it),
        ParameterValue::Floating32(it) => Box::new(*it),
        ParameterValue::Floating64(it) => Box::new(*it),
        ParameterValue::Str(it) => Box::new(it.clone()),
        ParameterValue::Binary(it) => Box::new(it.clone()),
        ParameterValue::Date(it) => Box::new(to_date(*it)?),
        ParameterValue::Time(it) => Box::new(to_time(*it)?),
        ParameterValue::Datetime((year, month, day, hour, minute, second, nanosecond)) => {
            Box::new(to_date((*year, *month, *day))?.and_time(to_time((
                *hour,
                *minute,
                *second,
                *nanosecond,
            ))?))
        }
        ParameterValue::Timestamp(it) => Box::new(
            DateTime::<Utc>::from_timestamp(*it, 0)
                .with_context(|| format!("no such timestamp: {it}"))?,
        ),
        ParameterValue::Uuid(it) => {
            Box::new(Uuid::parse_str(it).with_context(|| format!("no UUID: {it}"))?)
        }
        ParameterValue::Jsonb(it) => Box::new(
            serde_json::from_slice::<serde_json::Value>(it)
                .context("a jsonb parameter is no JSON")?,
        ),
        ParameterValue::ArrayInt32(it) => Box::new(it.clone()),
        ParameterValue::ArrayInt64(it) => Box::new(it.clone()),
        ParameterValue::ArrayStr(it) => Box::new(it.clone()),
        ParameterValue::DbNull => Box::new(Null),
        ParameterValue::Decimal(_)
        | ParameterValue::ArrayDecimal(_)
        | ParameterValue::RangeInt32(_)
        | ParameterValue::RangeInt64(_)
        | ParameterValue::RangeDecimal(_)
        | ParameterValue::Interval(_) => {
            bail!("this host has no decimal, range or interval parameters; Spin has")
        }
    })
}

/// NULL for a parameter of any type.
#[derive(Debug)]
struct Null;

impl ToSql for Null {
    fn to_sql(
        &self,
        _: &Type,
        _: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        Ok(IsNull::Yes)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}
