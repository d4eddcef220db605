//! What `harp status` shows: every server asked, the answers merged.
//! Owns: the merging of roles, the JSON document, the table.
//! Never: waits longer than [`PATIENCE`] for a server.
//! Invariant: roles come from the highest formed view that any server reports.
//! Source: README.md, "Commands".

use std::fmt::Write;
use std::time::Duration;

use harp_node::vr::{ServerId, ServerSet, Shape};
use serde::Serialize;

use crate::admin::{Answer, Overridden, Request, ServerStatus};
use crate::config::{Config, durability_name};
use crate::operator::ask;

/// How long a server may take to answer before it counts as down.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// The whole document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Document {
    /// One per group.
    pub groups: Vec<GroupStatus>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// The highest formed view that any server reports; null if there is none.
    pub view: Option<String>,
    /// That view's primary, if it answers.
    pub primary: Option<String>,
    /// When a record counts as held.
    pub durability: &'static str,
    /// The newest operator override; null if there never was one.
    #[serde(rename = "override")]
    pub overridden: Option<Overridden>,
    /// All servers.
    pub nodes: Vec<NodeLine>,
}

/// One server. What only it can say is null while it is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub struct NodeLine {
    pub name: String,
    pub pid: Option<u32>,
    pub designated: &'static str,
    pub role: &'static str,
    pub state: String,
    pub view: Option<String>,
    pub promised: Option<String>,
    pub serving: bool,
    pub fp: Option<u64>,
    pub cp: Option<u64>,
    pub ap: Option<u64>,
    pub lb: Option<u64>,
    pub glb: Option<u64>,
    /// Milliseconds of lease left; only at a primary.
    pub lease_ms: Option<u64>,
    /// Ops by which it is behind the primary's CP.
    pub lag: Option<u64>,
    pub log_bytes: Option<u64>,
    /// Bytes of the log that count and are in memory alone.
    pub unwritten_bytes: Option<u64>,
    pub durability: &'static str,
    /// Damaged blocks of a copy that are being fetched from another one.
    pub damaged: Option<u64>,
    /// Those that no other copy has.
    pub lost: Option<u64>,
    /// Blocks mended since the server started.
    pub mended: Option<u64>,
    pub last_mended: Option<String>,
}

/// Asks every server of the group, all at once.
pub fn gather(config: &Config) -> Document {
    let answers = gather_answers(config);
    let durability = durability_name(config.durability);
    Document { groups: vec![merge(&config.name, config.shape(), durability, &answers)] }
}

/// What each server says of itself, asked all at once; `None`: no answer.
pub fn gather_answers(config: &Config) -> Vec<Option<ServerStatus>> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = config
            .shape()
            .servers()
            .map(|server| scope.spawn(move || ask_one(config, server)))
            .collect();
        asking.into_iter().map(|thread| thread.join().expect("asking does not panic")).collect()
    })
}

fn ask_one(config: &Config, server: ServerId) -> Option<ServerStatus> {
    match ask(config, server, Request::Status, PATIENCE) {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    }
}

/// What a server is in the configuration.
pub fn designated(shape: Shape, server: ServerId) -> &'static str {
    match server {
        ServerId(0) => "primary",
        server if shape.is_copy(server) => "backup",
        _ => "witness",
    }
}

/// Merges what the servers said; `None`: no answer.
pub fn merge(
    name: &str,
    shape: Shape,
    durability: &'static str,
    answers: &[Option<ServerStatus>],
) -> GroupStatus {
    let formed = answers.iter().flatten().filter(|status| status.formed_number > 0);
    let newest = formed.max_by_key(|status| status.formed_number);
    let members = newest.map_or(ServerSet::EMPTY, |status| ServerSet(status.members));
    let primary = newest.and_then(|_| shape.primary_of(members));
    let of = |server: ServerId| answers.get(server.index()).and_then(Option::as_ref);
    let primary_cp = primary.and_then(of).map(|status| status.cp);
    let nodes = shape.servers().map(|server| {
        let status = of(server);
        let copy = shape.is_copy(server);
        let role = match status {
            None => "down",
            Some(_) if Some(server) == primary => "primary",
            Some(_) if members.contains(server) && copy => "backup",
            Some(_) if members.contains(server) => "promoted",
            Some(_) if copy => "learner",
            Some(_) => "witness",
        };
        let reached = |status: &ServerStatus| if copy { status.ap } else { status.cp };
        NodeLine {
            name: server.to_string(),
            pid: status.map(|s| s.pid),
            designated: designated(shape, server),
            role,
            state: status.map_or("down".into(), |s| s.state.clone()),
            view: status.filter(|s| s.formed_number > 0).map(|s| s.formed.clone()),
            promised: status.map(|s| s.promised.clone()),
            serving: status.is_some_and(|s| s.serving),
            fp: status.map(|s| s.fp),
            cp: status.map(|s| s.cp),
            ap: status.map(|s| s.ap),
            lb: status.map(|s| s.lb),
            glb: status.map(|s| s.glb),
            lease_ms: status.filter(|_| role == "primary").map(|s| s.lease_left_ms),
            lag: status.zip(primary_cp).map(|(s, cp)| cp.saturating_sub(reached(s))),
            log_bytes: status.map(|s| s.log_bytes),
            unwritten_bytes: status.map(|s| s.unwritten_bytes),
            durability,
            damaged: status.map(|s| s.damaged),
            lost: status.map(|s| s.lost),
            mended: status.map(|s| s.mended),
            last_mended: status.and_then(|s| s.last_mended.clone()),
        }
    });
    GroupStatus {
        name: name.to_string(),
        view: newest.map(|status| status.formed.clone()),
        primary: primary.filter(|server| of(*server).is_some()).map(|server| server.to_string()),
        durability,
        overridden: newest.and_then(|status| status.overridden.clone()),
        nodes: nodes.collect(),
    }
}

/// The document as one line of JSON.
pub fn json(document: &Document) -> String {
    serde_json::to_string(document).expect("a status can always be encoded")
}

fn epoch_line(record: &Overridden) -> String {
    let Overridden { epoch, at_seconds, absent, cut, by, .. } = record;
    let what = match &absent[..] {
        [] => "the loss of disks".into(),
        names => format!("the absence of {}", names.join(", ")),
    };
    let when = utc(*at_seconds);
    format!("epoch {epoch} since {when}: operator {by:?} overrode {what} at op {cut}")
}

/// A time in seconds since 1970 as people write it.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that leap days come last: counted from the year 0, in eras of 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes, seconds) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
}

/// The document as a table for people.
pub fn table(document: &Document) -> String {
    let mut text = String::new();
    for group in &document.groups {
        let view = group.view.as_deref().unwrap_or("none");
        let primary = group.primary.as_deref().unwrap_or("none");
        let GroupStatus { name, durability, .. } = group;
        // Writing to a string does not fail.
        let _ =
            writeln!(text, "group {name}: view {view}, primary {primary}, durability {durability}");
        if let Some(record) = &group.overridden {
            let _ = writeln!(text, "{}", epoch_line(record));
        }
        let _ = writeln!(
            text,
            "{:<5}{:>8}  {:<11}{:<9}{:>12}{:>12}{:>12}{:>12}{:>12}{:>9}{:>7}  state",
            "name", "pid", "designated", "role", "FP", "CP", "AP", "LB", "GLB", "lease", "lag"
        );
        for node in &group.nodes {
            let number =
                |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
            let lease = node.lease_ms.map_or("-".into(), |ms| format!("{ms} ms"));
            let _ = writeln!(
                text,
                "{:<5}{:>8}  {:<11}{:<9}{:>12}{:>12}{:>12}{:>12}{:>12}{:>9}{:>7}  {}",
                node.name,
                number(node.pid.map(u64::from)),
                node.designated,
                node.role,
                number(node.fp),
                number(node.cp),
                number(node.ap),
                number(node.lb),
                number(node.glb),
                lease,
                number(node.lag),
                node.state
            );
        }
        group.nodes.iter().filter_map(blocks_line).for_each(|line| text += &line);
    }
    text
}

/// What is to be said of a server's damaged blocks, if there were any.
fn blocks_line(node: &NodeLine) -> Option<String> {
    let (damaged, lost, mended) = (node.damaged?, node.lost?, node.mended?);
    if damaged + lost + mended == 0 {
        return None;
    }
    let last = node.last_mended.as_ref().map_or(String::new(), |last| format!(" (last: {last})"));
    let name = &node.name;
    let more = if lost > 0 { "; reading those fails" } else { "" };
    Some(format!(
        "{name}: {mended} damaged blocks mended{last}, {damaged} being fetched, {lost} on no other copy{more}\n"
    ))
}

#[cfg(test)]
mod tests {
    use harp_node::vr::View;

    use super::*;

    fn says(counter: u32, members: &[u8], cp: u64) -> Option<ServerStatus> {
        let formed = View::new(0, 1, counter, ServerId(0));
        let members: ServerSet = members.iter().map(|m| ServerId(*m)).collect();
        Some(ServerStatus {
            pid: 100,
            role: "whatever it believes".into(),
            state: "normal".into(),
            promised: formed.to_string(),
            formed: formed.to_string(),
            formed_number: if members.is_empty() { 0 } else { formed.0 },
            members: members.0,
            primary: None,
            fp: cp,
            cp,
            ap: cp,
            lb: 0,
            glb: 0,
            lease_left_ms: 7,
            serving: false,
            log_bytes: 0,
            unwritten_bytes: 0,
            durability: "disk".into(),
            damaged: 0,
            lost: 0,
            mended: 0,
            last_mended: None,
            log_begin: 1,
            log_end: cp,
            votes: true,
            whole: true,
            overridden: None,
        })
    }

    fn roles(answers: &[Option<ServerStatus>]) -> (Option<String>, Vec<&'static str>) {
        let shape = Shape { n: (answers.len() / 2) as u8 };
        let group = merge("g", shape, "disk", answers);
        (group.primary, group.nodes.iter().map(|node| node.role).collect())
    }

    #[test]
    fn roles_come_from_the_highest_formed_view() {
        let all = [says(1, &[0, 1], 5), says(1, &[0, 1], 4), says(1, &[0, 1], 5)];
        assert_eq!(roles(&all), (Some("a".into()), vec!["primary", "backup", "witness"]));
        // a is cut off in the old view; b and c went on.
        let cut = [says(1, &[0, 1], 5), says(2, &[1, 2], 9), says(2, &[1, 2], 9)];
        assert_eq!(roles(&cut), (Some("b".into()), vec!["learner", "primary", "promoted"]));
        let dead = [None, says(2, &[1, 2], 9), says(2, &[1, 2], 9)];
        assert_eq!(roles(&dead), (Some("b".into()), vec!["down", "primary", "promoted"]));
        // The primary of the highest view does not answer.
        let gone = [None, says(2, &[0, 1], 9), says(1, &[0, 1], 9)];
        assert_eq!(roles(&gone), (None, vec!["down", "backup", "witness"]));
        let fresh = [says(0, &[], 0), None, says(0, &[], 0)];
        assert_eq!(roles(&fresh), (None, vec!["learner", "down", "witness"]));
    }

    #[test]
    fn an_override_is_shown_for_ever() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_827_696), "2000-02-29 12:34:56 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59 UTC");
        let mut status = says(3, &[0, 2], 7).expect("a status");
        status.overridden = Some(Overridden {
            epoch: 1,
            view: "1.1.2.b".into(),
            at_seconds: 0,
            absent: vec!["a".into(), "c".into()],
            cut: 77,
            adopted: None,
            by: "root".into(),
        });
        let group = merge("g", Shape { n: 1 }, "disk", &[Some(status), None, None]);
        let document = Document { groups: vec![group] };
        let line = "epoch 1 since 1970-01-01 00:00:00 UTC: operator \"root\" overrode the absence of a, c at op 77";
        assert_eq!(table(&document).lines().nth(1), Some(line));
        let parsed: serde_json::Value = serde_json::from_str(&json(&document)).expect("JSON");
        assert_eq!(parsed["groups"][0]["override"]["cut"], 77);
    }

    #[test]
    fn the_document_has_what_others_rely_on() {
        let answers = [says(3, &[0, 2], 7), None, says(3, &[0, 2], 6)];
        let group = merge("g", Shape { n: 1 }, "disk", &answers);
        let document = Document { groups: vec![group] };
        let parsed: serde_json::Value = serde_json::from_str(&json(&document)).expect("JSON");
        let group = &parsed["groups"][0];
        assert_eq!((&group["name"], &group["view"]), (&"g".into(), &"0.1.3.a".into()));
        assert_eq!(group["primary"], "a");
        let a = &group["nodes"][0];
        assert_eq!((&a["pid"], &a["designated"]), (&100.into(), &"primary".into()));
        for (key, value) in [("fp", 7), ("cp", 7), ("ap", 7), ("lb", 0), ("glb", 0), ("lag", 0)] {
            assert_eq!(a[key], value, "{key}");
        }
        assert_eq!(group["nodes"][2]["lag"], 1);
        assert_eq!(group["nodes"][2]["role"], "promoted");
        assert_eq!(
            (&group["nodes"][1]["role"], &group["nodes"][1]["pid"]),
            (&"down".into(), &serde_json::Value::Null)
        );
        let table = table(&document);
        assert_eq!(table.lines().count(), 5);
        let mut damaged = says(3, &[0, 2], 7).expect("a status");
        (damaged.mended, damaged.last_mended) = (3, Some("block 1".into()));
        let group = merge("g", Shape { n: 1 }, "disk", &[Some(damaged), None, None]);
        let told = super::table(&Document { groups: vec![group] });
        let line =
            "a: 3 damaged blocks mended (last: block 1), 0 being fetched, 0 on no other copy";
        assert_eq!(told.lines().last(), Some(line));
        assert!(table.lines().nth(2).expect("a line").contains("primary"), "{table}");
    }
}
