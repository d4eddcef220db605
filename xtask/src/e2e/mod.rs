//! End-to-end tests: named scenarios on real processes, real clients and real guests.
//! Owns: the list of scenarios and what each needs from the machine.
//! Never: looks inside a server; it sees what an operator and a client see.
//! Invariant: a scenario leaves no process behind, and no directory unless it failed.
//! Source: docs/testing.md.

mod full_disk;
mod group;
mod kernel_client;
mod kills;
mod libnfs;
mod load;
mod losses;
mod power;
mod raw;
mod repeats;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::{GuestError, Kit};
use crate::packages;
use crate::process::{ProcessError, Transcript, indented};
use crate::report::{Counts, Ending, Report};
use crate::workspace::Workspace;

/// One end-to-end test.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, a sentence: situation and result.
    pub name: &'static str,
    /// What happens, in one line.
    pub story: &'static str,
    /// The programs it needs from the machine.
    needs: &'static [&'static str],
    /// Whether it boots a guest.
    guest: bool,
    run: fn(&Context<'_>) -> Result<(), E2eError>,
}

const NFS_TOOLS: &[&str] = &["nfs-ls", "nfs-cp", "nfs-cat"];
/// Programs that mount a file system; root alone may.
const MOUNT_TOOLS: &[&str] = &["mke2fs", "mount", "umount"];
const EMULATOR: &[&str] = &["qemu-system-x86_64", "busybox", "cpio", "depmod"];
const EMULATOR_AND_DISK: &[&str] = &["qemu-system-x86_64", "busybox", "cpio", "depmod", "mke2fs"];

/// Every scenario, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "libnfs_tools_copy_there_and_back",
        story: "nfs-ls, nfs-cp and nfs-cat see what they stored, after a restart too",
        needs: NFS_TOOLS,
        guest: false,
        run: libnfs::tools_copy_there_and_back,
    },
    Scenario {
        name: "repeated_requests_run_once",
        story: "a request repeated after its server died gets the first reply",
        needs: &[],
        guest: false,
        run: repeats::repeated_requests_run_once,
    },
    Scenario {
        name: "primary_killed_nothing_lost",
        story: "kill -9 of the primary under load, again and again",
        needs: &[],
        guest: false,
        run: kills::primary_killed_nothing_lost,
    },
    Scenario {
        name: "backup_killed_nothing_lost",
        story: "kill -9 of the backup under load, again and again",
        needs: &[],
        guest: false,
        run: kills::backup_killed_nothing_lost,
    },
    Scenario {
        name: "primary_stopped_nothing_lost",
        story: "SIGSTOP of the primary for ten seconds under load, then SIGCONT",
        needs: &[],
        guest: false,
        run: kills::primary_stopped_nothing_lost,
    },
    Scenario {
        name: "all_killed_at_once_nothing_lost",
        story: "kill -9 of every server at once under load; later of the supervisor too",
        needs: &[],
        guest: false,
        run: kills::all_killed_at_once_nothing_lost,
    },
    Scenario {
        name: "two_of_five_killed_nothing_lost",
        story: "three copies and two witnesses: kill -9 of primary and backup at once under load",
        needs: &[],
        guest: false,
        run: kills::two_of_five_killed_nothing_lost,
    },
    Scenario {
        name: "log_of_one_server_lost_nothing_lost",
        story: "all die, one server's log is gone from its disk; the others bring it back",
        needs: &[],
        guest: false,
        run: losses::log_of_one_server_lost_nothing_lost,
    },
    Scenario {
        name: "disk_of_a_copy_lost_it_is_rebuilt_under_load",
        story: "the backup's disk is emptied under load, then the primary's; each is rebuilt",
        needs: &[],
        guest: false,
        run: losses::disk_of_a_copy_lost_it_is_rebuilt_under_load,
    },
    Scenario {
        name: "full_disk_refuses_writes_and_lets_removes_go_on",
        story: "others fill the disk under a group, then it does so itself; nothing ends, removes work",
        needs: MOUNT_TOOLS,
        guest: false,
        run: full_disk::full_disk_refuses_writes_and_lets_removes_go_on,
    },
    Scenario {
        name: "kernel_client_copies_a_source_tree",
        story: "Linux's own NFS client copies a tree in and out, renames, removes, as two users",
        needs: EMULATOR,
        guest: true,
        run: kernel_client::copies_a_source_tree,
    },
    Scenario {
        name: "kernel_client_rides_out_a_killed_primary",
        story: "Linux's own NFS client writes while the primary is killed under it",
        needs: EMULATOR,
        guest: true,
        run: kernel_client::rides_out_a_killed_primary,
    },
    Scenario {
        name: "power_cut_nothing_lost",
        story: "a machine with all servers loses power under load and boots again",
        needs: EMULATOR_AND_DISK,
        guest: true,
        run: power::power_cut_nothing_lost,
    },
];

/// Why a scenario failed.
#[derive(Debug)]
pub enum E2eError {
    /// A program failed.
    Process(ProcessError),
    /// The guest failed.
    Guest(GuestError),
    /// A file or socket failed.
    Io {
        /// What was done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something did not come about in time.
    NotReached {
        /// What was waited for.
        what: String,
        /// For how long.
        patience: Duration,
        /// What was there instead.
        seen: String,
    },
    /// `harp status --json` was not of the promised form.
    Status(serde_json::Error),
    /// Something is not as it must be.
    Wrong(String),
}

impl fmt::Display for E2eError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            E2eError::Process(error) => error.fmt(f),
            E2eError::Guest(error) => error.fmt(f),
            E2eError::Io { what, source } => write!(f, "{what}: {source}"),
            E2eError::NotReached { what, patience, seen } => {
                write!(f, "not within {patience:?}: {what}; seen: {seen}")
            }
            E2eError::Status(error) => write!(f, "harp status --json: {error}"),
            E2eError::Wrong(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for E2eError {}

impl From<ProcessError> for E2eError {
    fn from(error: ProcessError) -> E2eError {
        E2eError::Process(error)
    }
}

impl From<GuestError> for E2eError {
    fn from(error: GuestError) -> E2eError {
        E2eError::Guest(error)
    }
}

/// Attaches what was done to an error of the system.
fn doing<T>(what: impl fmt::Display, result: io::Result<T>) -> Result<T, E2eError> {
    result.map_err(|source| E2eError::Io { what: what.to_string(), source })
}

/// What a scenario runs in.
#[derive(Debug)]
pub struct Context<'a> {
    workspace: &'a Workspace,
    kit: Option<&'a Kit>,
    full: bool,
    /// The scenario's own directory.
    work: PathBuf,
    transcripts: RefCell<Vec<(String, Transcript)>>,
}

impl Context<'_> {
    /// How often a fault is repeated: `few` normally, `many` with `--full`.
    fn times(&self, few: u32, many: u32) -> u32 {
        if self.full { many } else { few }
    }

    /// The program under test.
    fn harp(&self) -> PathBuf {
        self.workspace.program("harp")
    }

    /// The kernel and initial file system for a guest.
    fn kit(&self) -> Result<&Kit, E2eError> {
        self.kit.ok_or_else(|| E2eError::Wrong("this scenario is not marked as a guest's".into()))
    }

    /// Shows the end of this transcript if the scenario fails.
    fn watch(&self, name: &str, transcript: &Transcript) {
        self.transcripts.borrow_mut().push((name.to_owned(), transcript.clone()));
    }

    /// One line of a scenario's progress.
    fn say(&self, line: impl fmt::Display) {
        println!("    {line}");
    }
}

/// Runs all scenarios whose name contains one of `names`, or all when there is none.
pub fn run(workspace: &Workspace, report: &mut Report, full: bool, names: &[String]) {
    let selected = |scenario: &&Scenario| {
        names.is_empty() || names.iter().any(|name| scenario.name.contains(name.as_str()))
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(selected).collect();
    if chosen.is_empty() {
        report.step("end-to-end tests", || Ending::Failed("no scenario of that name".into()));
    }
    let needs_kit =
        |scenario: &&Scenario| scenario.guest && packages::lacks(scenario.needs).is_none();
    let kit = chosen.iter().any(needs_kit).then(|| prepare_kit(workspace, report));
    for scenario in chosen {
        let mounts = scenario.needs.contains(&"mount");
        let not_root = (mounts && !rustix::process::geteuid().is_root()).then(|| "not root".into());
        if let Some(why) = packages::lacks(scenario.needs).or(not_root) {
            report.leave_out(scenario.name, &why);
            continue;
        }
        let kit = match kit.as_ref().filter(|_| scenario.guest) {
            Some(Err(why)) => {
                report.leave_out(scenario.name, why);
                continue;
            }
            Some(Ok(kit)) => Some(kit),
            None => None,
        };
        report.step(scenario.name, || one(scenario, workspace, kit, full));
    }
}

/// Makes the guest's kernel ready; what cannot be had leaves scenarios out.
fn prepare_kit(workspace: &Workspace, report: &mut Report) -> Result<Kit, String> {
    let mut kit = Err(String::new());
    report.step("guest's kernel", || {
        kit = Kit::prepare(&workspace.target.join("guest")).map_err(|error| error.to_string());
        Ending::Ran(Counts::default())
    });
    kit
}

/// Runs one scenario in a fresh directory, which is kept only if it fails.
fn one(scenario: &Scenario, workspace: &Workspace, kit: Option<&Kit>, full: bool) -> Ending {
    let work = workspace.target.join("e2e").join(scenario.name);
    if let Err(error) = fresh_directory(&work) {
        return Ending::Failed(error.to_string());
    }
    let transcripts = RefCell::default();
    let context = Context { workspace, kit, full, work, transcripts };
    let result = (scenario.run)(&context);
    if let Err(error) = &result {
        let mut text = format!("{error}\n    kept: {}", context.work.display());
        for (name, transcript) in context.transcripts.borrow().iter() {
            text.push_str(&format!("\n    last lines of {name}:{}", indented(&transcript.text())));
        }
        return Ending::Failed(text);
    }
    Ending::of(doing(context.work.display(), std::fs::remove_dir_all(&context.work)))
}

/// Makes an empty directory, removing what an earlier run kept there.
fn fresh_directory(path: &Path) -> Result<(), E2eError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return doing(path.display(), Err(error));
        }
        _ => {}
    }
    doing(path.display(), std::fs::create_dir_all(path))
}
