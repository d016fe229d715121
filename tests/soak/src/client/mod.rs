//! One turn as its user: posts the prompt, loses the connection as planned, comes back until it is told the outcome,
//! with other devices beside it; stops, asks again, deletes. Returns what was seen.
//!
//! [`caller`] is one device, [`demands`] what is asked for besides replies, [`intruder`] another owner beside it.

mod caller;
mod demands;
mod intruder;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::sleep;

use self::caller::{Ask, Caller};
use self::demands::{delete, insist};
pub(crate) use self::demands::{pages, sweep};
use crate::device::Device;
use crate::evidence::Kind::{Lost, Mixed, Untrue};
use crate::evidence::{End, Outcome, Seen};
use crate::plan::{Deletion, Demand, Turn};
use crate::world::{World, app_id};

/// Longer than all faults that can befall a turn take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before somebody asks again who was not served.
const PAUSE: Duration = Duration::from_millis(50);
/// Where the visits of a second device begin in the plan.
const SECOND: usize = 100;

/// Runs one turn.
pub(crate) async fn run(world: &Arc<World>, turn: Turn) -> Result<Seen> {
    turn.faults().for_each(|fault| world.count(fault));
    if let Some(planned) = turn.fault {
        world.schedule(planned);
    }
    let (known, mut turn_id) = watch::channel(None);
    let mut caller = Caller::new(world, turn, &known, 0);
    let mut seen = Seen {
        turn,
        turn_id: None,
        connections: Vec::new(),
        has: Device::default(),
        outcome: Outcome::Once,
        stopped: None,
        is_deleted: false,
        agains: 0,
        is_uncertain: false,
        wrong: Vec::new(),
    };
    if turn.persists {
        persist(&mut caller, &mut turn_id, &mut seen).await?;
    } else {
        let visit = turn.visit(0);
        caller.visit(visit, Ask::Post).await?;
    }
    seen.turn_id = turn_id.borrow().clone();
    seen.connections = caller.connections;
    seen.has = caller.device;
    seen.wrong.extend(caller.wrong);
    Ok(seen)
}

/// Goes on until it is told the outcome, and then does what is planned.
async fn persist(
    caller: &mut Caller<'_>,
    turn_id: &mut watch::Receiver<Option<String>>,
    seen: &mut Seen,
) -> Result<()> {
    let (world, turn) = (caller.world, caller.turn);
    let known = caller.known;
    let is_over = watch::Sender::new(false);
    let demand = async {
        let Some((demand, after)) = turn.demand else {
            return Ok(None);
        };
        let path = path_when_known(turn, after, turn_id.clone(), is_over.subscribe()).await;
        let Some(path) = path else {
            return Ok(None);
        };
        let acknowledged = match demand {
            Demand::Stop => {
                world.count("stop");
                let owner = turn.id.conversation.owner;
                let request = ("POST", &*(path + "/stop"));
                insist(world, turn.host, owner, request, &[200, 202, 404]).await?
            }
            Demand::Delete(what) => delete(world, turn, &path, what).await?,
        };
        let acknowledged = acknowledged.map(|status| (world.now(), status));
        Ok(Some((demand, acknowledged)))
    };
    let second = async {
        let mut second = Caller::new(world, turn, known, SECOND);
        let Some(after) = turn.second else {
            return Ok((second, None));
        };
        let path = path_when_known(turn, after, turn_id.clone(), is_over.subscribe()).await;
        if path.is_none() {
            return Ok((second, None));
        }
        world.count("second-device");
        let outcome = second.until_told().await?;
        anyhow::Ok((second, Some(outcome)))
    };
    let intruder = async {
        let Some((intruder, after)) = turn.intruder else {
            return Ok(Vec::new());
        };
        let path = path_when_known(turn, after, turn_id.clone(), is_over.subscribe()).await;
        match path {
            Some(path) => intruder::intrude(world, turn, intruder, &path).await,
            None => Ok(Vec::new()),
        }
    };
    let first = async {
        let outcome = caller.until_told().await;
        is_over.send_replace(true);
        outcome
    };
    let (mut outcome, demanded, (second, seconds), intruded) =
        tokio::try_join!(first, demand, second, intruder)?;
    seen.wrong.extend(second.wrong);
    seen.wrong.extend(intruded);
    if seconds == Some(Outcome::Unanswered) {
        seen.wrong
            .push((Lost, "a second device got no answer".to_owned()));
    }
    match demanded {
        Some((Demand::Stop, acknowledged)) => seen.stopped = acknowledged,
        Some((Demand::Delete(what), acknowledged)) => {
            seen.is_deleted = true;
            // The outcome that was told may have gone since.
            caller.device.forget();
            outcome = caller.until_told().await?;
            let is_gone = outcome == Outcome::Deleted;
            if what == Deletion::Turn && acknowledged.is_some() && !is_gone {
                let what = format!("the turn was deleted, and is {outcome:?}");
                seen.wrong.push((Untrue, what));
            }
        }
        None => {}
    }
    let is_same = second.device.text == caller.device.text;
    if !is_same && !seen.is_deleted && outcome == Outcome::Told && seconds == Some(Outcome::Told) {
        let what = format!(
            "two devices were told {:?} and {:?}",
            second.device, caller.device
        );
        seen.wrong.push((Mixed, what));
    }
    for _ in 0..turn.agains {
        if outcome == Outcome::Told {
            world.count("again");
            seen.agains += 1;
            caller.device.forget();
            outcome = caller.again(seen).await?;
        }
    }
    if let (Some(what), Outcome::Told) = (turn.deletion, outcome) {
        seen.is_deleted = true;
        let path = path(turn, turn_id.borrow().as_deref().unwrap_or_default());
        let acknowledged = delete(world, turn, &path, what).await?;
        outcome = match what {
            Deletion::Reply if acknowledged.is_some() => Outcome::WithoutReply,
            _ => {
                caller.device.forget();
                caller.until_told().await?
            }
        };
        if acknowledged.is_some() && outcome == Outcome::Told {
            let what = "the turn was deleted, and is there".to_owned();
            seen.wrong.push((Untrue, what));
        }
    }
    if let (Some(has_id), Outcome::Told) = (turn.asks_after, outcome) {
        outcome = caller.ask_after(has_id).await?;
    }
    if outcome == Outcome::Told && !seen.is_uncertain {
        seen.wrong.extend(caller.look().await?);
    }
    // A prompt that had no answer may come after the deletion, and ask for the reply again.
    let mut connections = caller.connections.iter();
    seen.is_uncertain |= outcome == Outcome::WithoutReply
        && connections.any(|connection| connection.end == End::NoAnswer);
    seen.outcome = outcome;
    Ok(())
}

/// The path of a turn, so long after its id is known. `None` where its client has done before.
async fn path_when_known(
    turn: Turn,
    after: Duration,
    mut turn_id: watch::Receiver<Option<String>>,
    mut is_over: watch::Receiver<bool>,
) -> Option<String> {
    let id = tokio::select! {
        biased;
        id = turn_id.wait_for(Option::is_some) => id.ok()?.clone()?,
        _ = is_over.wait_for(|is_over| *is_over) => return None,
    };
    sleep(after).await;
    Some(path(turn, &id))
}

fn path(turn: Turn, id: &str) -> String {
    format!("/llmchat/{}/turns/{id}", app_id(turn.id.conversation))
}
