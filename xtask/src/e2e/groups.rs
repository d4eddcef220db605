//! Groups: a user in twenty of them, with a server that believes calls and one that looks users up.
//! Owns: a user database of its own, which only the group's processes see.
//! Never: changes the machine's: the files are mounted over it in a mount namespace.
//! Invariant: whatever the database does, a user whom it does not concern is served.
//! Source: docs/operations.md, "A user in more than sixteen groups".

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use harp_bench::client::{Client, ClientError, Options};
use harp_bench::request::{
    CreateHow, Credential, DirName, HandleBytes, Request, Response, SetAttr, Status,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use super::group::{Group, GroupStatus, SETTLE_PATIENCE};
use super::{Context, E2eError, doing};

/// A user in all of [`GROUPS`].
const MEMBER: u32 = 61_001;
/// A user in no group but his own.
const OUTSIDER: u32 = 61_002;
/// A user whom the database does not know.
const STRANGER: u32 = 61_003;
/// Twenty groups.
const GROUPS: std::ops::RangeInclusive<u32> = 62_001..=62_020;
/// The last of them: a call that names sixteen leaves it out.
const LAST_GROUP: u32 = 62_020;
const CARRIED: usize = 16;

const CONTENT: &[u8] = b"for the last group";
/// ACCESS bits: to read, to change.
const MAY_READ: u32 = 1;
const MAY_MODIFY: u32 = 4;
/// How long a remark may take that comes after three seconds.
const REMARK_PATIENCE: Duration = Duration::from_secs(30);
/// Mounts two files over the machine's user database, in a namespace of its own, and goes on as the program.
const OVERLAY: &str =
    "mount --bind \"$1\" /etc/group && mount --bind \"$2\" /etc/passwd && shift 2 && exec \"$@\"";

/// A user database of passwd and group files.
#[derive(Debug)]
pub struct UserDatabase {
    passwd: PathBuf,
    group: PathBuf,
}

impl UserDatabase {
    /// The machine's, and our users.
    fn write(context: &Context<'_>) -> Result<UserDatabase, E2eError> {
        let passwd = (MEMBER..STRANGER).map(|id| format!("u{id}:x:{id}:{id}::/:/bin/false\n"));
        let own = (MEMBER..STRANGER).map(|id| format!("u{id}:x:{id}:\n"));
        let joined = GROUPS.map(|id| format!("g{id}:x:{id}:u{MEMBER}\n"));
        let dir = context.work.join("etc");
        doing(dir.display(), std::fs::create_dir(&dir))?;
        let write = |name: &str, lines: String| -> Result<PathBuf, E2eError> {
            let (from, to) = (format!("/etc/{name}"), dir.join(name));
            let old = doing(&from, std::fs::read_to_string(&from))?;
            doing(to.display(), std::fs::write(&to, old + &lines))?;
            Ok(to)
        };
        let passwd = write("passwd", passwd.collect())?;
        Ok(UserDatabase { passwd, group: write("group", own.chain(joined).collect())? })
    }

    /// From the next start on, whoever opens it waits for ever, as for a directory service that is cut off.
    fn hang(&self) -> Result<(), E2eError> {
        let shown = self.passwd.display();
        doing(&shown, std::fs::remove_file(&self.passwd))?;
        let made = mknodat(CWD, &self.passwd, FileType::Fifo, Mode::from_raw_mode(0o644), 0);
        doing(shown, made.map_err(Into::into))
    }

    /// The program, to be run with this database instead of the machine's.
    pub fn command(&self, program: PathBuf) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", OVERLAY, "sh"]);
        command.arg(&self.group).arg(&self.passwd).arg(program);
        command
    }
}

/// Who calls, and which groups the call names.
struct Caller {
    uid: u32,
    groups_be: Vec<u8>,
}

impl Caller {
    fn new(uid: u32, groups: impl IntoIterator<Item = u32>) -> Caller {
        let groups_be = groups.into_iter().flat_map(u32::to_be_bytes).collect();
        Caller { uid, groups_be }
    }
}

fn wrong(error: ClientError) -> E2eError {
    E2eError::Wrong(error.to_string())
}

/// A connection, and a file of root's that the last group may read.
struct Reader {
    client: Client,
    file: HandleBytes,
}

impl Reader {
    /// Connects; makes the file if it is not there.
    fn connect(group: &Group<'_>) -> Result<Reader, E2eError> {
        let mut client = Client::connect(Options::new(group.nfs)).map_err(wrong)?;
        let root = client.mount("/").map_err(wrong)?;
        let what = DirName { dir: root.as_slice(), name: b"file" };
        let how = CreateHow::Unchecked(SetAttr::default());
        let made = client.call(&Request::Create { what, how }).map_err(wrong)?.0;
        let Response::Create { ok: Some(file), .. } = made else {
            return Err(E2eError::Wrong(format!("making the file: {made:?}")));
        };
        let handle = file.as_slice();
        let set = SetAttr { mode: Some(0o640), gid: Some(LAST_GROUP), ..SetAttr::default() };
        let count = CONTENT.len() as u32;
        let write = Request::Write { handle, offset: 0, count, stable: 2, data: CONTENT };
        for request in [Request::SetAttr { handle, set, guard: None }, write] {
            match client.call(&request).map_err(wrong)?.0 {
                Response::Wcc { status: Status::Ok, .. }
                | Response::Write { status: Status::Ok, .. } => {}
                other => return Err(E2eError::Wrong(format!("{request:?}: {other:?}"))),
            }
        }
        Ok(Reader { client, file })
    }

    /// Whether READ shows the content; ACCESS must say the same.
    fn may_read(&mut self, caller: &Caller) -> Result<bool, E2eError> {
        let Caller { uid, groups_be } = caller;
        let who = Credential { uid: *uid, gid: *uid, groups_be };
        let handle = self.file.as_slice();
        let read = Request::Read { handle, offset: 0, count: 100 };
        let (response, data) = self.client.call_as(&who, &read).map_err(wrong)?;
        let may = match response {
            Response::Read { status: Status::Ok, .. } if data == CONTENT => true,
            Response::Read { status: Status::Access, .. } => false,
            other => return Err(E2eError::Wrong(format!("user {uid} reads {data:?}: {other:?}"))),
        };
        let access = Request::Access { handle, want: MAY_READ | MAY_MODIFY };
        match self.client.call_as(&who, &access).map_err(wrong)?.0 {
            Response::Access { status: Status::Ok, granted, .. }
                if granted == if may { MAY_READ } else { 0 } =>
            {
                Ok(may)
            }
            other => Err(E2eError::Wrong(format!("user {uid} may read: {may}, but {other:?}"))),
        }
    }

    /// Which of these may read: the member, whose call cannot name the last group; an outsider, and a user whom the
    /// database does not know, whose calls do.
    fn expect(&mut self, when: &str, wanted: [bool; 3]) -> Result<(), E2eError> {
        let callers = [
            Caller::new(MEMBER, GROUPS.take(CARRIED)),
            Caller::new(OUTSIDER, [LAST_GROUP]),
            Caller::new(STRANGER, [LAST_GROUP]),
        ];
        for (caller, wanted) in callers.iter().zip(wanted) {
            if self.may_read(caller)? != wanted {
                let uid = caller.uid;
                return Err(E2eError::Wrong(format!("{when}: user {uid} may read: {}", !wanted)));
            }
        }
        Ok(())
    }
}

/// With the groups that calls name, then with those of the user database: there, after a killed primary too, and
/// when the database hangs.
pub fn user_in_twenty_groups(context: &Context<'_>) -> Result<(), E2eError> {
    let users = UserDatabase::write(context)?;
    let mut group = Group::start_among(context, &users)?;
    group.wait_settled()?;
    Reader::connect(&group)?.expect("calls say it", [false, true, true])?;

    group.set("groups = \"client\"", "groups = \"server\"")?;
    group.wait_settled()?;
    let looked_up = [true, false, true];
    Reader::connect(&group)?.expect("the database says it", looked_up)?;
    group.signal(group.server("a")?, Signal::KILL)?;
    let at_backup = |status: &GroupStatus| status.primary.as_deref() == Some("b");
    group.wait_until("b is primary", SETTLE_PATIENCE, at_backup)?;
    Reader::connect(&group)?.expect("at the backup", looked_up)?;
    group.wait_settled()?;
    Reader::connect(&group)?.expect("at the primary that came back", looked_up)?;
    group.verify()?;

    group.stop()?;
    users.hang()?;
    group.resume()?;
    group.wait_settled()?;
    let mut reader = Reader::connect(&group)?;
    reader.expect("the database hangs", [false, true, true])?;
    let remark = "looking up groups takes more than";
    group.await_line("that the database hangs", REMARK_PATIENCE, |line| line.contains(remark))?;
    // Servers end although their look-ups do not.
    group.stop()
}
