//! Values between the driver and `spin:postgres`.
//!
//! Decimals, ranges and intervals are not converted: a column of them arrives as
//! `unsupported`, like any other type without a case, and a parameter is an error that
//! says so. Everything else is as in Spin.

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _, Utc};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::component::bindings::spin::postgres::postgres as wit;
use wit::{DbDataType, DbValue, ParameterValue};

pub(super) fn columns(row: &Row) -> Vec<wit::Column> {
    let columns = row.columns().iter().map(|column| wit::Column {
        name: column.name().to_owned(),
        data_type: conversion(column.type_()).0,
    });
    columns.collect()
}

pub(super) fn row(row: &Row) -> Result<wit::Row> {
    let columns = row.columns().iter().enumerate();
    let values = columns.map(|(at, column)| conversion(column.type_()).1(row, at));
    Ok(values.collect::<Result<_, _>>()?)
}

type Read = fn(&Row, usize) -> Result<DbValue, Error>;

/// A type of PostgreSQL's in Spin's interface, and how its values are read.
fn conversion(of: &Type) -> (DbDataType, Read) {
    macro_rules! case {
        ($case:ident) => {
            case!($case, DbValue::$case)
        };
        ($case:ident, $convert:expr) => {
            (DbDataType::$case, |row, at| get(row, at, $convert))
        };
    }
    match *of {
        Type::BOOL => case!(Boolean),
        Type::INT2 => case!(Int16),
        Type::INT4 => case!(Int32),
        Type::INT8 => case!(Int64),
        Type::FLOAT4 => case!(Floating32),
        Type::FLOAT8 => case!(Floating64),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR => case!(Str),
        Type::BYTEA => case!(Binary),
        Type::DATE => case!(Date, |it| DbValue::Date(date(it))),
        Type::TIME => case!(Time, |it| DbValue::Time(time(it))),
        Type::TIMESTAMP => case!(Datetime, |it| DbValue::Datetime(datetime(it))),
        Type::TIMESTAMPTZ => case!(Datetime, |it: DateTime<Utc>| {
            DbValue::Datetime(datetime(it.naive_utc()))
        }),
        Type::UUID => case!(Uuid, |it: Uuid| DbValue::Uuid(it.to_string())),
        Type::JSONB => case!(Jsonb, |it: serde_json::Value| {
            DbValue::Jsonb(it.to_string().into_bytes())
        }),
        Type::INT4_ARRAY => case!(ArrayInt32),
        Type::INT8_ARRAY => case!(ArrayInt64),
        Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY => case!(ArrayStr),
        _ => (DbDataType::Other(of.name().to_owned()), |row, at| {
            get(row, at, |Raw(bytes)| DbValue::Unsupported(bytes))
        }),
    }
}

fn get<'a, V: FromSql<'a>>(
    row: &'a Row,
    at: usize,
    case: impl FnOnce(V) -> DbValue,
) -> Result<DbValue, Error> {
    Ok(row
        .try_get::<_, Option<V>>(at)?
        .map_or(DbValue::DbNull, case))
}

/// What a value counts as in Spin.
pub(super) fn size(value: &DbValue) -> usize {
    size_of_val(value)
        + match value {
            DbValue::Str(text) | DbValue::Uuid(text) => text.len(),
            DbValue::Binary(bytes) | DbValue::Jsonb(bytes) | DbValue::Unsupported(bytes) => {
                bytes.len()
            }
            DbValue::ArrayInt32(items) => size_of_val(&items[..]),
            DbValue::ArrayInt64(items) => size_of_val(&items[..]),
            DbValue::ArrayStr(items) => {
                let texts = items.iter().flatten().map(String::len);
                size_of_val(&items[..]) + texts.sum::<usize>()
            }
            _ => 0,
        }
}

/// A value of any type, as the server sent it.
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

fn date(it: NaiveDate) -> (i32, u8, u8) {
    (it.year(), small(it.month()), small(it.day()))
}

fn time(it: NaiveTime) -> (u8, u8, u8, u32) {
    let (hour, minute, second) = (it.hour(), it.minute(), it.second());
    (small(hour), small(minute), small(second), it.nanosecond())
}

fn datetime(it: NaiveDateTime) -> (i32, u8, u8, u8, u8, u8, u32) {
    let (year, month, day) = date(it.date());
    let (hour, minute, second, nanosecond) = time(it.time());
    (year, month, day, hour, minute, second, nanosecond)
}

/// Of the numbers of a calendar and a clock, 60 at most.
fn small(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A parameter, owned, as the driver's `*_raw` functions take it.
pub(super) type Parameter = Box<dyn ToSql + Send + Sync>;

pub(super) fn parameters(values: Vec<ParameterValue>) -> Result<Vec<Parameter>> {
    values.into_iter().map(parameter).collect()
}

fn parameter(value: ParameterValue) -> Result<Parameter> {
    let to_date = |(year, month, day): (i32, u8, u8)| {
        NaiveDate::from_ymd_opt(year, month.into(), day.into())
            .with_context(|| format!("no such date: {year}-{month}-{day}"))
    };
    let to_time = |(hour, minute, second, nanosecond): (u8, u8, u8, u32)| {
        NaiveTime::from_hms_nano_opt(hour.into(), minute.into(), second.into(), nanosecond)
            .with_context(|| format!("no such time: {hour}:{minute}:{second}"))
    };
    Ok(match value {
        ParameterValue::Boolean(it) => Box::new(it),
        ParameterValue::Int8(it) => Box::new(it),
        ParameterValue::Int16(it) => Box::new(it),
        ParameterValue::Int32(it) => Box::new(it),
        ParameterValue::Int64(it) => Box::new(it),
        ParameterValue::Floating32(it) => Box::new(it),
        ParameterValue::Floating64(it) => Box::new(it),
        ParameterValue::Str(it) => Box::new(it),
        ParameterValue::Binary(it) => Box::new(it),
        ParameterValue::Date(it) => Box::new(to_date(it)?),
        ParameterValue::Time(it) => Box::new(to_time(it)?),
        ParameterValue::Datetime((year, month, day, hour, minute, second, nanosecond)) => {
            let time = to_time((hour, minute, second, nanosecond))?;
            Box::new(to_date((year, month, day))?.and_time(time))
        }
        ParameterValue::Timestamp(it) => Box::new(
            DateTime::from_timestamp(it, 0).with_context(|| format!("no such timestamp: {it}"))?,
        ),
        ParameterValue::Uuid(it) => {
            Box::new(Uuid::parse_str(&it).with_context(|| format!("no UUID: {it}"))?)
        }
        ParameterValue::Jsonb(it) => Box::new(
            serde_json::from_slice::<serde_json::Value>(&it)
                .context("a jsonb parameter is no JSON")?,
        ),
        ParameterValue::ArrayInt32(it) => Box::new(it),
        ParameterValue::ArrayInt64(it) => Box::new(it),
        ParameterValue::ArrayStr(it) => Box::new(it),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_as_much_as_in_spin() {
        let itself = size_of::<DbValue>();
        let text = || "text".to_owned();
        for (value, more) in [
            (DbValue::DbNull, 0),
            (DbValue::Int64(1), 0),
            (DbValue::Str(text()), 4),
            (DbValue::Uuid(text()), 4),
            (DbValue::Binary(vec![0; 5]), 5),
            (DbValue::Jsonb(vec![0; 6]), 6),
            (DbValue::Unsupported(vec![0; 7]), 7),
            (DbValue::ArrayInt32(vec![None, Some(1)]), 16),
            (DbValue::ArrayInt64(vec![None, Some(1)]), 32),
            (
                DbValue::ArrayStr(vec![None, Some(text())]),
                2 * size_of::<Option<String>>() + 4,
            ),
        ] {
            assert_eq!(size(&value), itself + more, "{value:?}");
        }
    }
}
