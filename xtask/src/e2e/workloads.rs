//! Workloads: a build, git, SQLite, fsx and pjdfstest over Linux's own NFS client.
//! Owns: what the trees must come out as, from the same work on the host's disk.
//! Never: calls a tree right by its own account; it is read again through a fresh mount.
//! Invariant: root and an ordinary user work at the same time, and neither sees an error.
//! Source: workloads.sh beside this file; docs/testing.md for what pjdfstest may fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::group::Group;
use super::kernel_client::mount_options;
use super::kills::{SPACING, kill, wait_home_again};
use super::raw::{Action, RawClient};
use super::{Context, E2eError, doing};
use crate::guest::{EXIT_WORD, Guest};
use crate::process::capture;

/// How long the guest may take: it has an emulated processor or two, shared with the servers.
const PATIENCE: Duration = Duration::from_secs(1500);
/// How long the same trees may take on the host.
const HOST_PATIENCE: Duration = Duration::from_secs(120);
/// How long the guest may take to boot and mount.
const BEGIN_PATIENCE: Duration = Duration::from_secs(120);
/// How often a server is killed at least in the scenario with kills.
const KILLS: u32 = 10;
const SERVERS: [&str; 3] = ["a", "b", "c"];
/// A directory in the export's root that tells the guest not to begin another round.
const ENOUGH: &str = "enough";
/// What the guest prints when it has mounted.
const BEGUN: &str = "begun";

/// What both sides run.
const WORKLOADS: &str = include_str!("workloads.sh");
/// The document whose table lists what pjdfstest cannot pass over NFSv3, and why.
const DOCUMENT: &str = include_str!("../../../docs/testing.md");
/// The table's heading.
const TABLE: &str = "| pjdfstest case | outcome | why |";

/// What the guest does once it has mounted: rounds of everything at once, until it is enough.
const GUEST: &str = r#"
in_the_name_of() {
  WHO=$1 SEED=1
  shift
  export WHO SEED STARTED=$SECONDS
  if [ "$WHO" = root ]; then bash "$KEEP/workloads.sh" "$@"
  else SEED=1000 setpriv --reuid 1000 --regid 1000 --clear-groups bash "$KEEP/workloads.sh" "$@"
  fi
}
# pjdfstest mounts what it works on read-only now and then, so each user's torture has a mount of its
# own.
round() {
  local who jobs=()
  mkdir /mnt/nfs/round-$1
  for who in root user; do
    mkdir -m 755 /mnt/nfs/round-$1/$who
    mount_at /mnt/torture/$who ,nosharecache
  done
  chown 1000:1000 /mnt/nfs/round-$1/user
  for who in root user; do
    in_the_name_of $who trees /mnt/nfs/round-$1/$who & jobs+=($!)
    in_the_name_of $who torture /mnt/torture/$who/round-$1/$who & jobs+=($!)
  done
  # Not all at once: `wait` tells the outcome of only one.
  for job in "${jobs[@]}"; do wait "$job"; done
  umount /mnt/torture/root /mnt/torture/user /mnt/nfs
}
compare() {
  for who in root user; do
    in_the_name_of $who sums "/mnt/nfs/round-$1/$who" > /tmp/sums
    diff "$KEEP/expected" /tmp/sums
    echo "$who, $SECONDS s: $(wc -l < /tmp/sums) lines of names, modes and SHA-256 as expected"
  done
}
# The other user may not enter every directory of the host that leads to the inputs.
cp -r "$INPUTS" /tmp/inputs
cp "$PROGRAMS/fsx" "$PROGRAMS/pjdfstest" /tmp/inputs/
chmod -R a+rX /tmp/inputs
export KEEP=/tmp/inputs
mkdir -p /mnt/torture/root /mnt/torture/user
echo begun
number=0
while true; do
  number=$((number + 1))
  round $number
  mount_at /mnt/nfs
  compare $number
  [ ! -d /mnt/nfs/enough ] || break
done
umount /mnt/nfs
if dmesg | grep -i -E 'nfs.*(error|stale|bad)'; then exit 1; fi
"#;

/// Each workload once, while nothing fails.
pub fn runs_real_workloads(context: &Context<'_>) -> Result<(), E2eError> {
    run(context, 0)
}

/// The workloads again while servers are killed in turn.
pub fn works_on_while_servers_are_killed(context: &Context<'_>) -> Result<(), E2eError> {
    run(context, KILLS)
}

fn run(context: &Context<'_>, kills: u32) -> Result<(), E2eError> {
    let inputs = Inputs::make(context)?;
    let group = Group::start(context)?;
    group.wait_settled()?;
    if kills == 0 {
        say_enough(&group)?;
    }
    let script = inputs.script(&group);
    let guest = Guest::boot(context.kit()?, None, &context.work.join("job"), &script)?;
    context.watch("the guest's console", &guest.console);
    if kills > 0 {
        kill_in_turn(context, &group, &guest, kills)?;
    }
    let console = guest.console.clone();
    guest.finish(PATIENCE)?;
    for line in console.text().lines().filter(|line| line.contains(" s: ")) {
        context.say(line);
    }
    group.wait_settled()?;
    group.verify()
}

/// Kills a, b, c, a and so on until the guest ends, each time when the group is whole and has worked
/// for a while. After `least` kills the guest is told not to begin again.
fn kill_in_turn(
    context: &Context<'_>,
    group: &Group<'_>,
    guest: &Guest,
    least: u32,
) -> Result<(), E2eError> {
    if guest.console.wait_for(BEGIN_PATIENCE, |line| line.trim() == BEGUN).is_none() {
        let (what, seen) = ("the guest mounts".to_owned(), guest.console.text());
        return Err(E2eError::NotReached { what, patience: BEGIN_PATIENCE, seen });
    }
    let begun = Instant::now();
    let ended = |patience| guest.console.wait_for(patience, |line| line.contains(EXIT_WORD));
    for (number, name) in (1..).zip(SERVERS.into_iter().cycle()) {
        if ended(SPACING).is_some() || begun.elapsed() > PATIENCE {
            break;
        }
        let at = begun.elapsed().as_secs();
        wait_home_again(group, &kill(group, name)?)?;
        let whole = begun.elapsed().as_secs() - at;
        context.say(format!("kill {number}, {at} s: {name}; the group was whole {whole} s later"));
        if number == least {
            say_enough(group)?;
        }
    }
    Ok(())
}

/// Lets the guest end with the round in which it is.
fn say_enough(group: &Group<'_>) -> Result<(), E2eError> {
    let made = RawClient::connect(group.nfs)?.perform(Action::MakeDirectory(ENOUGH))?;
    match made.status()? {
        0 => Ok(()),
        status => Err(E2eError::Wrong(format!("making {ENOUGH:?} ended with status {status}"))),
    }
}

/// What the guest works on, made on the host, and what must come of it.
struct Inputs {
    directory: PathBuf,
    programs: PathBuf,
}

impl Inputs {
    fn make(context: &Context<'_>) -> Result<Inputs, E2eError> {
        let tools = context.tools()?;
        let directory = context.work.join("inputs");
        doing(directory.display(), std::fs::create_dir(&directory))?;
        let inputs = Inputs { programs: tools.programs.clone(), directory };
        let exclusions = Exclusions::read(DOCUMENT)?;
        inputs.write("workloads.sh", WORKLOADS)?;
        inputs.write("pjdfstest.toml", &exclusions.rules())?;
        inputs.write("skipped", &exclusions.skipped_lines())?;
        let trees = context.work.join("trees");
        doing(trees.display(), std::fs::create_dir(&trees))?;
        inputs.on_host(&["prepare"], &tools.sources)?;
        inputs.on_host(&["trees", &trees.to_string_lossy()], &tools.sources)?;
        let sums = inputs.on_host(&["sums", &trees.to_string_lossy()], &tools.sources)?;
        inputs.write("expected", &format!("{sums}\n"))?;
        doing(trees.display(), std::fs::remove_dir_all(&trees))?;
        Ok(inputs)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), E2eError> {
        let path = self.directory.join(name);
        doing(path.display(), std::fs::write(&path, text))
    }

    /// Runs a part of the workloads here.
    fn on_host(&self, part: &[&str], sources: &Path) -> Result<String, E2eError> {
        let mut command = Command::new("bash");
        command.arg(self.directory.join("workloads.sh")).args(part).env("KEEP", &self.directory);
        command.env("WHO", "host").env("SOURCES", sources);
        Ok(capture(&mut command, HOST_PATIENCE)?)
    }

    /// What the guest runs, with the programs that ran here: git's versions differ in what they keep.
    fn script(&self, group: &Group<'_>) -> String {
        format!(
            "set -euo pipefail\n\
             export PATH='{}' INPUTS='{}' PROGRAMS='{}'\n\
             mount_at() {{ mount -i -t nfs -o {}\"${{2:-}}\" 10.0.2.2:/ \"$1\"; }}\n\
             mount_at /mnt/nfs\n{GUEST}",
            std::env::var("PATH").unwrap_or_default(),
            self.directory.display(),
            self.programs.display(),
            mount_options(group),
        )
    }
}

/// The cases of pjdfstest that do not pass, as the document lists them.
#[derive(Debug, Default, PartialEq)]
struct Exclusions<'a> {
    /// They run and fail.
    failing: Vec<&'a str>,
    /// pjdfstest does not run them.
    skipped: Vec<&'a str>,
}

impl<'a> Exclusions<'a> {
    /// Reads the document's table.
    fn read(document: &'a str) -> Result<Exclusions<'a>, E2eError> {
        let wrong =
            |what: &str| E2eError::Wrong(format!("docs/testing.md, below {TABLE:?}: {what}"));
        let mut exclusions = Exclusions::default();
        // Below the heading stands the line that separates it from the rows.
        let rows = document.lines().skip_while(|line| *line != TABLE).skip(2);
        for row in rows.take_while(|line| line.starts_with('|')) {
            let mut cells = row.split('|').skip(1).map(str::trim);
            let name = cells.next().and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
            match (name, cells.next()) {
                (Some(name), Some("fails")) => exclusions.failing.push(name),
                (Some(name), Some("skipped")) => exclusions.skipped.push(name),
                _ => return Err(wrong(row)),
            }
        }
        if exclusions == Exclusions::default() {
            return Err(wrong("no rows"));
        }
        Ok(exclusions)
    }

    /// pjdfstest's configuration: it also fails when a case passes that is expected to fail.
    fn rules(&self) -> String {
        let failing: String = self.failing.iter().map(|name| format!("  {name:?},\n")).collect();
        format!(
            "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\n\
             utime_now = {{}}\nutimensat = {{}}\n\
             [settings]\nnaptime = 0.02\nallow_remount = false\n\
             expected_failures = [\n{failing}]\n\
             [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n"
        )
    }

    fn skipped_lines(&self) -> String {
        let mut lines: Vec<String> = self.skipped.iter().map(|name| format!("{name}\n")).collect();
        lines.sort();
        lines.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{DOCUMENT, Exclusions, TABLE};

    #[test]
    fn the_table_of_exclusions_is_read_to_its_end() {
        let rows = "| `a::b` | fails | why |\n| `c` | skipped | `d` |\n";
        let document = format!("text\n\n{TABLE}\n|---|---|---|\n{rows}\n| `e` | fails | f |");
        let expected = Exclusions { failing: vec!["a::b"], skipped: vec!["c"] };
        assert_eq!(Exclusions::read(&document).unwrap(), expected);
        assert!(Exclusions::read("no table").is_err());
        assert!(Exclusions::read(&document.replace("skipped", "passes")).is_err());
        Exclusions::read(DOCUMENT).unwrap();
    }
}
