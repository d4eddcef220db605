//! `harp override`: an operator's word in the place of servers that are gone.
//! Owns: the looking, the asking, the order, the wait until a view serves.
//! Never: orders what was not shown and agreed to.
//! Invariant: the server carries out exactly the history that was shown, or refuses.
//! Source: README.md, "Commands"; docs/operations.md, "When a group lost too much".

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use harp_node::vr::{
    Consent, OPERATOR_BYTES, Op, Order, OverrideAnswer, ServerId, ServerSet, View,
};
use serde::{Deserialize, Serialize};

use crate::admin::{Answer, Request, ServerStatus};
use crate::config::Config;
use crate::error::HarpError;
use crate::operator::ask;
use crate::status::{gather, gather_answers};

/// How many of the group's failure timeouts a server may take for an order, and some more.
const ORDER_TIMEOUTS: u32 = 80;
/// How long the first view of the new epoch may take until it serves.
const SERVING: Duration = Duration::from_secs(60);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// What is asked of a server: the operator's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The servers that are gone, one bit each.
    pub absent: u8,
    /// What was shown and agreed to; null only asks.
    pub consent: Option<Kept>,
    /// Who orders, in UTF-8, zeros behind.
    pub by: [u8; OPERATOR_BYTES],
}

/// The history that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The view whose log it is, as a number; 0: an image alone.
    pub adopted: u64,
    /// Its last op.
    pub end: u64,
}

/// What would be done, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are those of `harp_vr::Plan`
pub struct Shown {
    pub kept: Kept,
    /// The kept log's view; null: an image alone.
    pub adopted: Option<String>,
    pub holder: u8,
    pub members: u8,
    pub formed: String,
    pub formed_by: u8,
    pub committed: u64,
    pub fresh: u8,
    pub rebuilt: u8,
}

/// A server's answer to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answered {
    /// This would be done.
    Would(Shown),
    /// It is done: the view that begins the new epoch, and what was done.
    Done(String, Shown),
    /// It is not needed.
    NotNeeded(String),
    /// It cannot be done so.
    Refused(String),
}

impl Wanted {
    /// The order as a node takes it. Errors: it names servers that no group has.
    pub fn order(self, token: u64, at_seconds: u64) -> Option<Order> {
        let absent = ServerSet(self.absent);
        let consent =
            self.consent.map(|kept| Consent { adopted: View(kept.adopted), end: Op(kept.end) });
        let known = absent.iter().all(|server| server.index() < harp_node::vr::SERVERS_MAX);
        known.then_some(Order { token, absent, consent, at_seconds, by: self.by })
    }
}

impl From<&OverrideAnswer> for Answered {
    fn from(answer: &OverrideAnswer) -> Answered {
        let shown = |plan: &harp_node::vr::Plan| Shown {
            kept: Kept { adopted: plan.kept.adopted.0, end: plan.kept.end.0 },
            adopted: (plan.kept.adopted != View::NONE).then(|| plan.kept.adopted.to_string()),
            holder: plan.holder.0,
            members: plan.members.0,
            formed: plan.formed.to_string(),
            formed_by: plan.formed_by.0,
            committed: plan.committed.0,
            fresh: plan.fresh.0,
            rebuilt: plan.rebuilt.0,
        };
        match answer {
            OverrideAnswer::Would(plan) => Answered::Would(shown(plan)),
            OverrideAnswer::Done { view, plan } => Answered::Done(view.to_string(), shown(plan)),
            OverrideAnswer::NotNeeded { why } => Answered::NotNeeded(why.clone()),
            OverrideAnswer::Refused { why } => Answered::Refused(why.clone()),
        }
    }
}

/// What the command line asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverrideOptions {
    /// The servers that are gone.
    pub absent: Vec<ServerId>,
    /// Nobody is to be asked.
    pub yes_lose_data: bool,
    /// One JSON document, and no questions.
    pub json: bool,
}

fn refused(why: impl Into<String>) -> HarpError {
    HarpError::Refused { why: why.into() }
}

/// "a", "a and e", "a, d and e"; "none".
fn names(servers: impl IntoIterator<Item = ServerId>) -> String {
    let names: Vec<String> = servers.into_iter().map(|server| server.to_string()).collect();
    match names.split_last() {
        None => "none".into(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

fn of(bits: u8) -> impl Iterator<Item = ServerId> {
    ServerSet(bits).iter()
}

fn operator() -> [u8; OPERATOR_BYTES] {
    let name = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let name = name.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    let mut bytes = [0; OPERATOR_BYTES];
    let fits = |end: &usize| *end <= OPERATOR_BYTES;
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(fits).last();
    let end = end.unwrap_or(0);
    bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

/// Carries the command out. What is shown to people goes to standard output.
pub fn override_group(config: &Config, options: &OverrideOptions) -> Result<(), HarpError> {
    let answers = gather_answers(config);
    check_who_answers(config, &options.absent, &answers)?;
    let absent: ServerSet = options.absent.iter().copied().collect();
    let wanted = Wanted { absent: absent.0, consent: None, by: operator() };
    let (coordinator, shown) = look(config, &answers, wanted)?;
    if !options.json {
        print!("{}", story(config, absent, &answers, &shown));
    }
    if !options.yes_lose_data {
        if options.json {
            println!("{}", serde_json::json!({ "done": false, "plan": shown }));
        }
        consent(config, options)?;
    }
    let agreed = Wanted { consent: Some(shown.kept), ..wanted };
    let view = match order(config, coordinator, agreed)? {
        Answered::Done(view, _) => view,
        Answered::NotNeeded(why) => return Err(not_needed(&why)),
        Answered::Refused(why) => return Err(refused(why)),
        Answered::Would(_) => return Err(refused(format!("{coordinator} did nothing"))),
    };
    let serving = await_serving(config)?;
    if options.json {
        let document =
            serde_json::json!({ "done": true, "began": view, "view": serving, "plan": shown });
        println!("{document}");
    } else {
        println!("done: view {view} began a new epoch; view {serving} serves");
        println!("now compare the copies when they are all back: harp verify");
    }
    Ok(())
}

fn not_needed(why: &str) -> HarpError {
    refused(format!("an override is not needed: {why}"))
}

/// Every server that is not named must answer, and none that is named may.
fn check_who_answers(
    config: &Config,
    absent: &[ServerId],
    answers: &[Option<ServerStatus>],
) -> Result<(), HarpError> {
    if let Some(serving) = answers.iter().flatten().find(|status| status.serving) {
        return Err(not_needed(&format!("view {} serves", serving.formed)));
    }
    for server in config.shape().servers() {
        let answer = answers[server.index()].is_some();
        if answer && absent.contains(&server) {
            return Err(refused(format!(
                "server {server} is named absent and answers: stop it, and see to it that it stays off"
            )));
        }
        if !answer && !absent.contains(&server) {
            return Err(refused(format!(
                "server {server} does not answer and is not named absent: start it, or name it once it is really \
                 off for good (--absent)"
            )));
        }
    }
    Ok(())
}

/// Asks the copies in turn what they would do, those that know most first.
fn look(
    config: &Config,
    answers: &[Option<ServerStatus>],
    wanted: Wanted,
) -> Result<(ServerId, Shown), HarpError> {
    let mut copies: Vec<(u64, u64, ServerId)> = (config.shape().copies())
        .filter_map(|copy| answers[copy.index()].as_ref().map(|s| (s.formed_number, s.lb, copy)))
        .collect();
    copies.sort_by_key(|(formed, lb, copy)| {
        std::cmp::Reverse((*formed, *lb, std::cmp::Reverse(*copy)))
    });
    let mut first = None;
    for (_, _, copy) in copies {
        match order(config, copy, wanted)? {
            Answered::Would(shown) => return Ok((copy, shown)),
            Answered::NotNeeded(why) => return Err(not_needed(&why)),
            Answered::Refused(why) => {
                first.get_or_insert(why);
            }
            Answered::Done(..) => return Err(refused(format!("{copy} did more than was asked"))),
        }
    }
    Err(refused(
        first.unwrap_or_else(|| "no copy answers: there are no files to go on with".into()),
    ))
}

fn order(config: &Config, server: ServerId, wanted: Wanted) -> Result<Answered, HarpError> {
    let timeout = Duration::from_millis(config.tuning.failure_timeout_ms) * ORDER_TIMEOUTS;
    match ask(config, server, Request::Override(wanted), timeout) {
        Ok(Answer::Override(answered)) => Ok(answered),
        Ok(Answer::Error(why)) => Err(refused(format!("server {server}: {why}"))),
        Ok(_) => Err(refused(format!("server {server} answered something else"))),
        Err(error) => Err(refused(format!(
            "server {server} was asked and did not answer ({error}): see harp status before you ask again"
        ))),
    }
}

fn await_serving(config: &Config) -> Result<String, HarpError> {
    let until = Instant::now() + SERVING;
    loop {
        let group = gather(config).groups.remove(0);
        if let (true, Some(view)) = (group.nodes.iter().any(|node| node.serving), group.view) {
            return Ok(view);
        }
        if Instant::now() >= until {
            return Err(refused("the new epoch has begun and does not serve yet: see harp status"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// What was found, what would go on, and what that may lose.
fn story(
    config: &Config,
    absent: ServerSet,
    answers: &[Option<ServerStatus>],
    shown: &Shown,
) -> String {
    let shape = config.shape();
    let mut text = format!("group {}\n", config.name);
    // Writing to a string does not fail.
    for server in shape.servers() {
        let _ = match &answers[server.index()] {
            None => writeln!(text, "  {server}  named absent"),
            Some(status) => {
                let fresh = of(shown.fresh).any(|s| s == server);
                writeln!(text, "  {server}  {}", found(shape.is_copy(server), fresh, status))
            }
        };
    }
    let (holder, end) = (ServerId(shown.holder), shown.kept.end);
    let _ = match &shown.adopted {
        Some(view) => {
            writeln!(text, "The log of view {view} goes on, as {holder} has it, up to op {end}.")
        }
        None => writeln!(
            text,
            "No log can go on. The files of {holder} go on, as they were at op {end}."
        ),
    };
    let _ = writeln!(text, "{}", losses(shown));
    if !absent.is_empty() {
        let _ = writeln!(
            text,
            "{} must really be off, or cut off from every other server and from all clients: if one of them still \
             serves, there will be two histories.",
            names(absent.iter())
        );
        let _ = writeln!(
            text,
            "What they have alone is lost when they come back: they are rebuilt from the others."
        );
    }
    if shown.fresh != 0 {
        let _ = writeln!(
            text,
            "{} on a new disk: what the old one held counts for nothing any more.",
            match of(shown.fresh).count() {
                1 => format!("{} is", names(of(shown.fresh))),
                _ => format!("{} are, each,", names(of(shown.fresh))),
            }
        );
    }
    if shown.rebuilt != 0 {
        let _ = writeln!(
            text,
            "The files of {} are loaded anew from the others.",
            names(of(shown.rebuilt))
        );
    }
    let _ = writeln!(text, "Members of the new view: {}.", names(of(shown.members)));
    text
}

fn found(copy: bool, fresh: bool, status: &ServerStatus) -> String {
    if fresh {
        return "a new, empty disk".into();
    }
    let log = match status.votes {
        true if status.log_end < status.log_begin => "log whole, empty".to_string(),
        true => format!("log whole, ops {} to {}", status.log_begin, status.log_end),
        false => "log lost".to_string(),
    };
    let files = match (copy, status.whole) {
        (true, true) => format!(", files as of op {}", status.lb),
        (true, false) => ", files not whole".to_string(),
        (false, _) => String::new(),
    };
    format!("formed view {}, {log}{files}", status.formed)
}

fn losses(shown: &Shown) -> String {
    let end = shown.kept.end;
    let Some(adopted) = &shown.adopted else {
        let known = match shown.committed > end {
            true => format!(
                " Known to be lost: ops {} to {}, and what came later.",
                end + 1,
                shown.committed
            ),
            false => String::new(),
        };
        return format!(
            "Lost is everything that clients were told was done after op {end}.{known}"
        );
    };
    if *adopted != shown.formed {
        return format!(
            "View {} of {} was formed later, and its log is lost: so is everything that clients were told was done in \
             it and in any view after it.",
            shown.formed,
            names(of(shown.formed_by))
        );
    }
    format!(
        "Nothing that view {adopted} told clients was done is lost. What a later view told them, that none of the \
         servers at hand knows of, is."
    )
}

/// Asks on the terminal; the group's name is the only answer that counts.
fn consent(config: &Config, options: &OverrideOptions) -> Result<(), HarpError> {
    let stdin = std::io::stdin();
    if options.json || !stdin.is_terminal() {
        return Err(refused("nobody can be asked here: nothing was done; say --yes-lose-data"));
    }
    print!("Type the group's name, {}, to go on: ", config.name);
    let _ = std::io::stdout().flush();
    let mut line = String::new();
    stdin.lock().read_line(&mut line).map_err(|error| HarpError::io("read the answer", error))?;
    if line.trim() != config.name {
        return Err(refused("nothing was done"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(adopted: Option<&str>, committed: u64) -> Shown {
        Shown {
            kept: Kept { adopted: 1, end: 90 },
            adopted: adopted.map(str::to_string),
            holder: 1,
            members: 0b110,
            formed: "0.1.7.a".into(),
            formed_by: 0b101,
            committed,
            fresh: 0,
            rebuilt: 0,
        }
    }

    #[test]
    fn what_may_be_lost_is_said_plainly() {
        assert!(losses(&shown(Some("0.1.7.a"), 90)).starts_with("Nothing that view 0.1.7.a"));
        let later = losses(&shown(Some("0.1.5.b"), 90));
        assert!(later.contains("View 0.1.7.a of a and c was formed later"), "{later}");
        let alone = losses(&shown(None, 120));
        assert!(alone.contains("after op 90") && alone.contains("ops 91 to 120"), "{alone}");
    }

    #[test]
    fn servers_are_named_as_people_do() {
        let said = |bits| names(of(bits));
        assert_eq!(
            [said(0), said(1), said(0b101), said(0b11101)],
            ["none", "a", "a and c", "a, c, d and e"]
        );
    }

    #[test]
    fn an_order_names_servers_that_a_group_can_have() {
        let wanted = Wanted { absent: 1, consent: None, by: operator() };
        assert!(wanted.order(1, 2).is_some());
        assert!(Wanted { absent: 0x80, ..wanted }.order(1, 2).is_none());
    }
}
