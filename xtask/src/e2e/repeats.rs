//! Repeated requests: the same bytes sent again must get the same reply and do nothing twice.
//! Owns: the calls that were made and the replies they got.
//! Never: accepts a reply that differs in a single byte.
//! Invariant: every request here would fail or do harm if it ran a second time.
//! Source: the Harp paper, section 4.5, on replies that survive a view change.

use std::time::Instant;

use rustix::process::Signal;

use super::group::{Group, SETTLE_PATIENCE};
use super::raw::{Action, Call, REPLY_PATIENCE, RawClient, Reply};
use super::{Context, E2eError};

/// NFS3ERR_NOENT and NFS3ERR_EXIST.
const NO_ENTRY: u32 = 2;
const EXISTS: u32 = 17;

/// Requests are repeated on another connection, at the backup after the primary was killed, at the
/// primary when it is back, and after all servers were killed at once.
pub fn repeated_requests_run_once(context: &Context<'_>) -> Result<(), E2eError> {
    let group = Group::start(context)?;
    group.wait_settled()?;
    let mut client = RawClient::connect(group.nfs)?;
    let history = make_history(&mut client)?;

    client.reconnect()?;
    repeat(&mut client, &history, "on another connection")?;

    group.signal(group.server("a")?, Signal::KILL)?;
    let at_backup = |status: &super::group::GroupStatus| status.primary.as_deref() == Some("b");
    group.wait_until("b is primary", SETTLE_PATIENCE, at_backup)?;
    client.reconnect()?;
    repeat(&mut client, &history, "at the backup")?;

    group.wait_settled()?;
    client.reconnect()?;
    repeat(&mut client, &history, "at the primary that came back")?;

    for (_, pid) in group.servers()? {
        group.signal(pid, Signal::KILL)?;
    }
    client.reconnect()?;
    repeat(&mut client, &history, "after all were killed")?;
    group.wait_settled()?;
    expect_state(&mut client)?;
    group.verify()
}

/// Makes changes that must not happen twice, each successful the first time.
fn make_history(client: &mut RawClient) -> Result<Vec<(Call, Reply)>, E2eError> {
    let mut history = Vec::new();
    let mut take = |client: &mut RawClient, action: Action<'_>| {
        let call = client.prepare(action);
        let reply = client.send(&call)?;
        let status = reply.status()?;
        if status != 0 {
            return Err(E2eError::Wrong(format!("{action:?}: status {status} the first time")));
        }
        history.push((call, reply));
        Ok(())
    };
    take(client, Action::CreateGuarded("guarded"))?;
    take(client, Action::CreateExclusive("exclusive", 0x1234_5678_9abc_def0))?;
    take(client, Action::MakeDirectory("directory"))?;
    take(client, Action::CreateGuarded("before"))?;
    take(client, Action::Rename("before", "after"))?;
    let guarded = client.handle_of("guarded")?;
    take(client, Action::Link("second-name", &guarded))?;
    take(client, Action::CreateGuarded("gone"))?;
    take(client, Action::Remove("gone"))?;
    take(client, Action::MakeDirectory("gone-too"))?;
    take(client, Action::RemoveDirectory("gone-too"))?;
    expect_state(client)?;
    Ok(history)
}

/// Sends every call again and compares the replies byte by byte; then looks at the result.
fn repeat(client: &mut RawClient, history: &[(Call, Reply)], when: &str) -> Result<(), E2eError> {
    for (number, (call, first)) in history.iter().enumerate() {
        let again = client.insist(call, Instant::now() + REPLY_PATIENCE)?;
        if again != *first {
            let text = format!("request {number} repeated {when}: {again:02x?}, not {first:02x?}");
            return Err(E2eError::Wrong(text));
        }
    }
    expect_state(client)
}

/// New requests see that each change happened, and once.
fn expect_state(client: &mut RawClient) -> Result<(), E2eError> {
    let expected = [
        (Action::CreateGuarded("guarded"), EXISTS),
        (Action::CreateExclusive("exclusive", 1), EXISTS),
        (Action::MakeDirectory("directory"), EXISTS),
        (Action::LookUp("before"), NO_ENTRY),
        (Action::LookUp("after"), 0),
        (Action::LookUp("second-name"), 0),
        (Action::Remove("gone"), NO_ENTRY),
        (Action::RemoveDirectory("gone-too"), NO_ENTRY),
    ];
    for (action, status) in expected {
        let seen = client.perform(action)?.status()?;
        if seen != status {
            return Err(E2eError::Wrong(format!("{action:?}: status {seen}, expected {status}")));
        }
    }
    Ok(())
}
