//! Scenarios: recorder, checker and load against a toy server with planted faults.
//! Owns: the proof that a faithful server passes and that each planted fault is seen.
//! Never: depends on how long anything takes.
//! Invariant: every scenario ends after a fixed number of operations.
//! Source: a checker that never found anything has not been checked.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::checker::{CheckOptions, CheckReport, check};
use crate::client::Options;
use crate::load::{self, LoadOptions, Phase};
use crate::recorder::{RecordOptions, RecordReport, record};
use crate::toy::{Faults, Toy};

/// A journal's path that no other test has; the file goes when this does.
struct TemporaryJournal(PathBuf);

impl TemporaryJournal {
    fn new() -> TemporaryJournal {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("harp-bench-{}-{count}.journal", std::process::id());
        TemporaryJournal(std::env::temp_dir().join(name))
    }
}

impl Drop for TemporaryJournal {
    fn drop(&mut self) {
        // A scenario that failed early may have left none.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn record_and_check(faults: Faults, break_every: u64) -> (RecordReport, CheckReport) {
    let toy = Toy::start(faults);
    let journal = TemporaryJournal::new();
    let mut server = Options::new(toy.address);
    if faults.swallow_reply_every > 0 {
        server.retransmit = Duration::from_millis(50);
    }
    let mut options = RecordOptions::new(server.clone(), journal.0.clone());
    options.operations = Some(6000);
    options.break_every = break_every;
    let recorded = record(&options, &AtomicBool::new(false)).expect("the recording runs");
    let check_options = CheckOptions { server, export: "/".into(), journal: journal.0.clone() };
    (recorded, check(&check_options).expect("the check runs"))
}

/// Replies are lost on both sides all the time, and the server sometimes puts the client off:
/// with a reply cache, nothing of that shows.
#[test]
fn record_bad_network_nothing_lost_nothing_twice() {
    let faults = Faults { drop_reply_every: 61, jukebox_every: 113, ..Faults::default() };
    let (recorded, checked) = record_and_check(faults, 97);
    assert_eq!(recorded.violations, [""; 0]);
    assert_eq!((recorded.gave_up, recorded.in_flight), (None, 0));
    assert!(recorded.reconnects > 50 && recorded.resent > 50, "{}", recorded.reconnects);
    assert!(recorded.acknowledged >= 6000 && recorded.reads > 500);
    assert_eq!(checked.told, [""; 0]);
    assert_eq!((checked.violations, checked.acknowledged), (0, recorded.acknowledged));
    assert!(checked.names > 100 && checked.bytes > 100_000);
}

/// A server that forgets to answer gets the call again on a new connection; how often that is
/// depends on the clock, the outcome does not.
#[test]
fn record_replies_swallowed_calls_are_sent_again() {
    let faults = Faults { swallow_reply_every: 1009, ..Faults::default() };
    let (recorded, checked) = record_and_check(faults, 0);
    assert_eq!((recorded.gave_up, recorded.in_flight), (None, 0));
    assert!(recorded.timeouts > 0);
    assert_eq!((recorded.violations, checked.told), (Vec::new(), Vec::new()));
}

/// One of two addresses takes connections and never answers: those that begin there, or come back to it, go on at the
/// other, with the same calls.
#[test]
fn record_a_silent_address_calls_go_on_elsewhere() {
    let toy = Toy::start(Faults { drop_reply_every: 401, ..Faults::default() });
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut server = Options::new(silent.local_addr().expect("it is bound"));
    (server.elsewhere, server.retransmit) = (vec![toy.address], Duration::from_millis(20));
    let journal = TemporaryJournal::new();
    let mut options = RecordOptions::new(server, journal.0.clone());
    options.operations = Some(2000);
    let recorded = record(&options, &AtomicBool::new(false)).expect("the recording runs");
    assert_eq!((recorded.violations, recorded.gave_up), (Vec::new(), None));
    assert!(recorded.timeouts >= 2 && recorded.reconnects > recorded.timeouts);
    let (server, export) = (Options::new(toy.address), "/".into());
    let checked = check(&CheckOptions { server, export, journal: journal.0.clone() });
    assert_eq!(checked.expect("the check runs").told, [""; 0]);
}

/// A refusal for want of space is wrong, unless the recording was told that it may come: then the call is made anew.
#[test]
fn record_no_space_is_borne_only_where_it_may_come() {
    let recorded = |may_run_out| {
        let toy = Toy::start(Faults { full_every: 57, ..Faults::default() });
        let journal = TemporaryJournal::new();
        let mut options = RecordOptions::new(Options::new(toy.address), journal.0.clone());
        (options.operations, options.may_run_out) = (Some(2000), may_run_out);
        record(&options, &AtomicBool::new(false)).expect("the recording runs").violations.len()
    };
    assert_eq!(recorded(true), 0);
    assert!(recorded(false) > 0);
}

/// A server that executes repeats again is caught while recording, by the second outcome.
#[test]
fn record_no_reply_cache_second_execution_is_seen() {
    let faults = Faults { drop_reply_every: 31, forgets_replies: true, ..Faults::default() };
    let (recorded, checked) = record_and_check(faults, 0);
    assert!(!recorded.violations.is_empty());
    assert!(recorded.violations.iter().all(|why| why.contains("sent again")), "{recorded}");
    assert_eq!(checked.violations as usize, recorded.violations.len());
}

/// Acknowledged writes that are not there are caught by a read or by the check.
#[test]
fn check_writes_lost_are_seen() {
    let (recorded, checked) =
        record_and_check(Faults { loses_writes: 700, ..Faults::default() }, 0);
    assert!(recorded.violations.len() as u64 + checked.violations > 0);
}

/// So are acknowledged renames.
#[test]
fn check_renames_lost_are_seen() {
    let (recorded, checked) =
        record_and_check(Faults { loses_renames: 300, ..Faults::default() }, 0);
    assert!(recorded.violations.len() as u64 + checked.violations > 0);
}

/// A server that lost the whole recording fails the check.
#[test]
fn check_everything_lost_is_seen() {
    let toy = Toy::start(Faults::default());
    let journal = TemporaryJournal::new();
    std::fs::write(&journal.0, "harp-recording 1 000000000000002a 1\n").expect("a journal");
    let server = Options::new(toy.address);
    let options = CheckOptions { server, export: "/".into(), journal: journal.0.clone() };
    let checked = check(&options).expect("the check runs");
    assert_eq!(checked.violations, 1);
    assert!(checked.told[0].contains("recording-000000000000002a"), "{checked}");
}

/// All phases run without an error, and leave nothing behind.
#[test]
fn load_all_phases_no_errors_and_nothing_left() {
    let toy = Toy::start(Faults { drop_reply_every: 401, ..Faults::default() });
    let mut options = LoadOptions::new(Options::new(toy.address));
    (options.files, options.seq_mib, options.depth) = (200, 1, 4);
    let mut told = Vec::new();
    let reports = load::run(&options, |report| told.push(report.name)).expect("the load runs");
    assert_eq!(told, Phase::ALL.map(Phase::name));
    for report in &reports {
        assert_eq!(report.errors, 0, "{report}");
    }
    assert_eq!(reports[0].ops, 200);
    assert_eq!(toy.names_in_root(), 0);
}

/// One phase alone runs what it needs before it, silently.
#[test]
fn load_one_phase_runs_after_what_it_needs() {
    let toy = Toy::start(Faults::default());
    let mut options = LoadOptions::new(Options::new(toy.address));
    (options.files, options.seq_mib, options.phases) = (50, 1, vec![Phase::Remove]);
    let reports = load::run(&options, |_| {}).expect("the load runs");
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].name, reports[0].ops, reports[0].errors), ("remove", 50, 0));
    assert_eq!(toy.names_in_root(), 0);
}
