//! End-to-end tests: named scenarios on real processes, real clients and real guests.
//! Owns: the list of scenarios and what each needs from the machine.
//! Never: looks inside a server; it sees what an operator and a client see.
//! Invariant: a scenario leaves no process behind, and no directory unless it failed.
//! Source: docs/testing.md.

pub mod chaos;
mod differential;
mod full_disk;
mod group;
mod groups;
mod image;
mod kernel_client;
mod kills;
mod libnfs;
mod listing;
mod load;
mod losses;
mod power;
mod raw;
mod repeats;
mod small_disk;
mod workloads;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::guest::{GuestError, Kit};
use crate::packages;
use crate::process::{ProcessError, Transcript, indented};
use crate::report::{Counts, Ending, Report};
use crate::tools::Tools;
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
    /// Whether its guest works with the tools that cargo fetches.
    tools: bool,
    /// Whether it runs only with `--full` or when it is asked for by name.
    only_full: bool,
    run: fn(&Context<'_>) -> Result<(), E2eError>,
}

const NFS_TOOLS: &[&str] = &["nfs-ls", "nfs-cp", "nfs-cat"];
/// Programs that mount a file system; root alone may.
const MOUNT_TOOLS: &[&str] = &["mke2fs", "mount", "umount"];
/// Programs that put other files in the place of the machine's for some processes; root alone may.
const NAMESPACE_TOOLS: &[&str] = &["mount", "unshare"];
const EMULATOR: &[&str] = &["qemu-system-x86_64", "busybox", "cpio", "depmod"];
const EMULATOR_AND_DISK: &[&str] = &["qemu-system-x86_64", "busybox", "cpio", "depmod", "mke2fs"];
const WORKLOADS: &[&str] = &[
    "qemu-system-x86_64",
    "busybox",
    "cpio",
    "depmod",
    "setpriv",
    "git",
    "make",
    "ar",
    "sqlite3",
    "tcc",
    "/usr/include/sys/acl.h",
];

/// Every scenario, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "libnfs_tools_copy_there_and_back",
        story: "nfs-ls, nfs-cp and nfs-cat see what they stored, after a restart too",
        needs: NFS_TOOLS,
        guest: false,
        tools: false,
        only_full: false,
        run: libnfs::tools_copy_there_and_back,
    },
    Scenario {
        name: "repeated_requests_run_once",
        story: "a request repeated after its server died gets the first reply",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: repeats::repeated_requests_run_once,
    },
    Scenario {
        name: differential::NAME,
        story: "random operations of several users, on a group and on the host: the same outcome",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: differential::random_operations,
    },
    Scenario {
        name: differential::FAILOVER_NAME,
        story: "random operations compared with the host while the primary is killed again and again",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: differential::random_operations_under_failover,
    },
    Scenario {
        name: listing::NAME,
        story: "a directory of 100,000 or a million entries shows each once while others come and go",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: listing::large_directory,
    },
    Scenario {
        name: "primary_killed_nothing_lost",
        story: "kill -9 of the primary under load, again and again",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: kills::primary_killed_nothing_lost,
    },
    Scenario {
        name: "backup_killed_nothing_lost",
        story: "kill -9 of the backup under load, again and again",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: kills::backup_killed_nothing_lost,
    },
    Scenario {
        name: "primary_stopped_nothing_lost",
        story: "SIGSTOP of the primary for ten seconds under load, then SIGCONT",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: kills::primary_stopped_nothing_lost,
    },
    Scenario {
        name: "all_killed_at_once_nothing_lost",
        story: "kill -9 of every server at once under load; later of the supervisor too",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: kills::all_killed_at_once_nothing_lost,
    },
    Scenario {
        name: "two_of_five_killed_nothing_lost",
        story: "three copies and two witnesses: kill -9 of primary and backup at once under load",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: kills::two_of_five_killed_nothing_lost,
    },
    Scenario {
        name: "log_of_one_server_lost_nothing_lost",
        story: "all die, one server's log is gone from its disk; the others bring it back",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: losses::log_of_one_server_lost_nothing_lost,
    },
    Scenario {
        name: "disk_of_a_copy_lost_it_is_rebuilt_under_load",
        story: "the backup's disk is emptied under load, then the primary's; each is rebuilt",
        needs: &[],
        guest: false,
        tools: false,
        only_full: false,
        run: losses::disk_of_a_copy_lost_it_is_rebuilt_under_load,
    },
    Scenario {
        name: "full_disk_refuses_writes_and_lets_removes_go_on",
        story: "others fill the disk under a group, then it does so itself; nothing ends, removes work",
        needs: MOUNT_TOOLS,
        guest: false,
        tools: false,
        only_full: false,
        run: full_disk::full_disk_refuses_writes_and_lets_removes_go_on,
    },
    Scenario {
        name: "user_in_twenty_groups_has_them_all",
        story: "a file for the last of a user's twenty groups: by the call's sixteen, then by the user database",
        needs: NAMESPACE_TOOLS,
        guest: false,
        tools: false,
        only_full: false,
        run: groups::user_in_twenty_groups,
    },
    Scenario {
        name: "image_is_exact_after_a_power_cut_at_any_call",
        story: "the calls of real checkpoints are recorded; what a power cut leaves of them is a whole image",
        needs: &["strace"],
        guest: false,
        tools: false,
        only_full: false,
        run: image::image_is_exact_after_a_power_cut_at_any_call,
    },
    Scenario {
        name: chaos::NAME,
        story: "a minute of faults of every kind on a network of its own; every answer is in some order",
        needs: chaos::NEEDS,
        guest: false,
        tools: false,
        only_full: false,
        run: chaos::for_a_minute,
    },
    Scenario {
        name: "kernel_client_copies_a_source_tree",
        story: "Linux's own NFS client copies a tree in and out, renames, removes, as two users",
        needs: EMULATOR,
        guest: true,
        tools: false,
        only_full: false,
        run: kernel_client::copies_a_source_tree,
    },
    Scenario {
        name: "kernel_client_rides_out_a_killed_primary",
        story: "Linux's own NFS client writes while the primary is killed under it",
        needs: EMULATOR,
        guest: true,
        tools: false,
        only_full: false,
        run: kernel_client::rides_out_a_killed_primary,
    },
    Scenario {
        name: "kernel_client_runs_real_workloads",
        story: "build, git, SQLite, fsx and pjdfstest over Linux's own NFS client, as two users",
        needs: WORKLOADS,
        guest: true,
        tools: true,
        only_full: false,
        run: workloads::runs_real_workloads,
    },
    Scenario {
        name: "kernel_client_works_on_while_servers_are_killed",
        story: "the same while servers are killed in turn, ten times",
        needs: WORKLOADS,
        guest: true,
        tools: true,
        only_full: true,
        run: workloads::works_on_while_servers_are_killed,
    },
    Scenario {
        name: "power_cut_nothing_lost",
        story: "a machine with all servers loses power under load and boots again",
        needs: EMULATOR_AND_DISK,
        guest: true,
        tools: false,
        only_full: false,
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
    /// The scenario cannot run on this machine; the text says why.
    NotHere(String),
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
            E2eError::Wrong(what) | E2eError::NotHere(what) => f.write_str(what),
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
    tools: Option<&'a Tools>,
    full: bool,
    /// Where random choices begin, if that was given.
    seed: Option<u64>,
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

    /// The test programs and sources that cargo fetched.
    fn tools(&self) -> Result<&Tools, E2eError> {
        self.tools.ok_or_else(|| E2eError::Wrong("this scenario is not marked for tools".into()))
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

/// Which scenarios run, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Faults and operations many times over.
    pub full: bool,
    /// Where random choices begin.
    pub seed: Option<u64>,
    /// Those whose name contains one of these, or all when there is none.
    pub names: Vec<String>,
}

/// Runs the scenarios chosen: all whose name contains one of the names, or when there is none all of them, with
/// `full` also those that are left for it.
pub fn run(workspace: &Workspace, report: &mut Report, choice: &Choice) {
    let Choice { full, names, .. } = choice;
    let named = |scenario: &Scenario| names.iter().any(|name| scenario.name.contains(name));
    let selected = |scenario: &&Scenario| match &names[..] {
        [] => *full || !scenario.only_full,
        _ => named(scenario),
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(selected).collect();
    if chosen.is_empty() {
        report.step("end-to-end tests", || Ending::Failed("no scenario of that name".into()));
    }
    let (mut kit, mut tools) = (None, None);
    for scenario in chosen {
        let prepared = match not_here(scenario.needs) {
            Some(why) => Err(why),
            None => prepare(scenario, workspace, report, &mut kit, &mut tools),
        };
        match prepared {
            Ok((kit, tools)) => {
                report.step(scenario.name, || one(scenario, workspace, kit, tools, choice));
            }
            Err(why) => report.leave_out(scenario.name, &why),
        }
    }
}

/// Why what needs these programs cannot run on this machine: one is missing, or root alone may use it.
pub fn not_here(needs: &[&str]) -> Option<String> {
    let mounts = needs.contains(&"mount");
    let not_root = (mounts && !rustix::process::geteuid().is_root()).then(|| "not root".into());
    packages::lacks(needs).or(not_root)
}

/// What was made ready for the first scenario that wants it; what cannot be had leaves scenarios
/// out.
type Kept<T> = Option<Result<T, String>>;

/// Makes ready what the scenario's guest wants and earlier ones did not.
fn prepare<'a>(
    scenario: &Scenario,
    workspace: &Workspace,
    report: &mut Report,
    kit: &'a mut Kept<Kit>,
    tools: &'a mut Kept<Tools>,
) -> Result<(Option<&'a Kit>, Option<&'a Tools>), String> {
    let cache = workspace.target.join("guest");
    let kit = scenario.guest.then(|| {
        kept(kit, report, "guest's kernel", || Kit::prepare(&cache).map_err(|e| e.to_string()))
    });
    let tools = scenario.tools.then(|| {
        let cache = cache.join("tools");
        kept(tools, report, "guest's tools", || Tools::prepare(&cache).map_err(|e| e.to_string()))
    });
    Ok((kit.transpose()?, tools.transpose()?))
}

/// What is in the slot, made in a step of its own if nothing is.
fn kept<'a, T>(
    slot: &'a mut Kept<T>,
    report: &mut Report,
    step: &str,
    make: impl FnOnce() -> Result<T, String>,
) -> Result<&'a T, String> {
    if slot.is_none() {
        report.step(step, || {
            *slot = Some(make());
            Ending::Ran(Counts::default())
        });
    }
    let made = slot.as_ref().ok_or_else(|| format!("{step}: not made"))?;
    made.as_ref().map_err(String::clone)
}

/// Runs one scenario in a fresh directory, which is kept only if it fails.
fn one(
    scenario: &Scenario,
    workspace: &Workspace,
    kit: Option<&Kit>,
    tools: Option<&Tools>,
    choice: &Choice,
) -> Ending {
    let work = workspace.target.join("e2e").join(scenario.name);
    if let Err(error) = fresh_directory(&work) {
        return Ending::Failed(error.to_string());
    }
    let transcripts = RefCell::default();
    let Choice { full, seed, .. } = *choice;
    let context = Context { workspace, kit, tools, full, seed, work, transcripts };
    let result = (scenario.run)(&context);
    if let Err(error) = &result
        && !matches!(error, E2eError::NotHere(_))
    {
        let mut text = format!("{error}\n    kept: {}", context.work.display());
        for (name, transcript) in context.transcripts.borrow().iter() {
            let all = transcript.text();
            text.push_str(&format!("\n    last lines of {name}:{}", indented(&all)));
            let file = context.work.join(format!("{name}.txt"));
            if let Err(error) = std::fs::write(&file, all) {
                text.push_str(&format!("\n    {}: {error}", file.display()));
            }
        }
        return Ending::Failed(text);
    }
    let removed = doing(context.work.display(), std::fs::remove_dir_all(&context.work));
    match (result, removed) {
        (Err(E2eError::NotHere(why)), Ok(())) => Ending::LeftOut(why),
        (_, removed) => Ending::of(removed),
    }
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
