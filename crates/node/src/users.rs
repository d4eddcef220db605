//! The groups that the server's own user database gives to users.
//! Owns: what was looked up and how old it is, and which look-ups are under way.
//! Never: looks anything up itself; lets a look-up that hangs hold its user's calls longer than [`PATIENCE`].
//! Invariant: a user has at most one look-up under way; there are at most [`USERS_MAX`] users.
//! Source: docs/operations.md, "A user in more than sixteen groups"; rpc.mountd(8), `--manage-gids`.
//!
//! Only a primary asks, when it plans: a record holds what came of a call, not who was in which group. So the
//! databases of two servers may differ, and their copies are the same all the same.

use std::collections::{BTreeMap, VecDeque};

use harp_vr::Nanos;

use crate::export::Export;

/// How long (nanoseconds) an answer is taken as it is.
const FRESH: u64 = 300_000_000_000;
/// For so long an answer serves while it is asked for again: whoever works on never waits. An older one is asked
/// for again before it is used.
const USABLE: u64 = 2 * FRESH;
/// A look-up that failed is tried again after this time.
const RETRY: u64 = 10_000_000_000;
/// How long a call waits for a look-up.
const PATIENCE: u64 = 3_000_000_000;
/// Users in the table at most.
const USERS_MAX: usize = 4_096;
/// Groups kept of one user at most. Active Directory, which has the largest users that we know of, lets one be in
/// 1,015 groups. A full table has 16 MiB of them.
const GROUPS_PER_USER_MAX: usize = 1_024;

/// What a server's user database says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookedUp {
    /// The groups that he is in.
    Groups(Vec<u32>),
    /// It does not know him.
    Unknown,
    /// It could not be asked.
    Failed {
        /// Why not.
        why: String,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LookUp {
    #[default]
    None,
    UnderWay,
    /// Under way, and calls wait for it no longer.
    Late,
}

#[derive(Debug, Default)]
struct User {
    /// Squashed and as on the wire; `None`: the client's list counts.
    groups_be: Option<Vec<u8>>,
    fresh_until: Nanos,
    usable_until: Nanos,
    look_up: LookUp,
    /// Asked for again since it came, or was last thought of for removal.
    used: bool,
}

/// All users whose groups were asked for lately.
#[derive(Debug, Default)]
pub(crate) struct Users {
    /// Clients choose the keys: a tree, which none of them can make slow.
    table: BTreeMap<u32, User>,
    /// Each user of the table once; the next to be thought of for removal first.
    order: VecDeque<u32>,
    /// Look-ups that calls may wait for, the oldest first.
    awaited: VecDeque<(Nanos, u32)>,
    /// Users with a look-up under way, late ones included.
    looking_up: usize,
    /// It was told that the database does not answer.
    told_silent: bool,
    /// It was told that somebody has too many groups.
    told_cut: bool,
}

impl Users {
    /// Whether a call of this user may be planned now, with [`Users::groups`]. Adds the user to `ask` if a look-up
    /// is to begin; a call that may not be planned waits for its end, or for [`Users::expire`].
    pub fn is_ready(&mut self, now: Nanos, uid: u32, ask: &mut Vec<u32>) -> bool {
        let known = self.table.contains_key(&uid);
        if !known && !self.add(uid) {
            return true; // so many look-ups hang that nobody can wait for one more
        }
        let user = self.table.get_mut(&uid).expect("just looked for");
        user.used |= known;
        if now < user.fresh_until {
            return true;
        }
        if user.look_up == LookUp::None {
            user.look_up = LookUp::UnderWay;
            self.looking_up += 1;
            self.awaited.push_back((now, uid));
            ask.push(uid);
        }
        user.look_up == LookUp::Late || now < user.usable_until
    }

    /// The groups of a user who is ready, as on the wire; `None`: the client's list counts.
    pub fn groups(&self, uid: u32) -> Option<&[u8]> {
        self.table.get(&uid)?.groups_be.as_deref()
    }

    /// Makes room for a user. `false`: all the others have look-ups under way.
    fn add(&mut self, uid: u32) -> bool {
        if self.looking_up == USERS_MAX {
            return false;
        }
        while self.table.len() == USERS_MAX {
            let oldest = self.order.pop_front().expect("it names every user of the table");
            let user = self.table.get_mut(&oldest).expect("it names users of the table");
            // Whoever was asked for since the last time stays for another round.
            if std::mem::take(&mut user.used) || user.look_up != LookUp::None {
                self.order.push_back(oldest);
            } else {
                self.table.remove(&oldest);
            }
        }
        self.table.insert(uid, User::default());
        self.order.push_back(uid);
        true
    }

    /// A look-up ended; calls of its user need not wait any more. Returns what is worth a line.
    pub fn on_looked_up(
        &mut self,
        now: Nanos,
        uid: u32,
        answer: LookedUp,
        export: &Export,
    ) -> Option<String> {
        let user = self.table.get_mut(&uid).expect("a user with a look-up under way stays");
        assert_ne!(user.look_up, LookUp::None, "an answer that nobody asked for");
        let in_time = user.look_up == LookUp::UnderWay;
        user.look_up = LookUp::None;
        self.looking_up -= 1;
        self.awaited.retain(|(_, awaited)| *awaited != uid);
        user.usable_until = now.plus(USABLE);
        if let LookedUp::Failed { why } = answer {
            // What it said before still serves: an older answer says more than the client.
            user.fresh_until = now.plus(RETRY);
            return self.tell_silent(format!("failed for user {uid} ({why})"));
        }
        user.fresh_until = now.plus(FRESH);
        self.told_silent &= !in_time;
        let LookedUp::Groups(mut groups) = answer else {
            user.groups_be = None;
            return None;
        };
        let count = groups.len();
        groups.truncate(GROUPS_PER_USER_MAX);
        let squashed = groups.iter().map(|group| export.group_squashed(*group).to_be_bytes());
        user.groups_be = Some(squashed.flatten().collect());
        if count == groups.len() || std::mem::replace(&mut self.told_cut, true) {
            return None;
        }
        Some(format!(
            "user {uid} is in {count} groups: of one user's, only the first {GROUPS_PER_USER_MAX} count"
        ))
    }

    /// Calls wait no longer for look-ups that take too long. Returns whether there are any, and what is worth a
    /// line.
    pub fn expire(&mut self, now: Nanos) -> (bool, Option<String>) {
        let mut late = None;
        while let Some((asked, uid)) = self.awaited.front().copied()
            && now >= asked.plus(PATIENCE)
        {
            self.awaited.pop_front();
            let user = self.table.get_mut(&uid).expect("a user with a look-up under way stays");
            user.look_up = LookUp::Late;
            late.get_or_insert(uid);
        }
        let seconds = PATIENCE / 1_000_000_000;
        let text = |uid| format!("takes more than {seconds} s for user {uid}");
        (late.is_some(), late.and_then(|uid| self.tell_silent(text(uid))))
    }

    /// Whether calls of this user are still to wait.
    pub fn is_awaited(&self, uid: u32) -> bool {
        self.table.get(&uid).is_some_and(|user| user.look_up == LookUp::UnderWay)
    }

    /// Said once, until the database answers in time again.
    fn tell_silent(&mut self, what: String) -> Option<String> {
        let told = std::mem::replace(&mut self.told_silent, true);
        (!told).then(|| {
            format!(
                "looking up groups {what}: what was known before counts, or the client's list, until the user \
                 database answers"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Squash;

    const SECOND: u64 = 1_000_000_000;
    const START: Nanos = Nanos(SECOND);

    /// A table, and what it asked for.
    #[derive(Default)]
    struct Stage {
        users: Users,
        asked: Vec<u32>,
        export: Export,
    }

    impl Stage {
        fn is_ready(&mut self, now: Nanos, uid: u32) -> bool {
            self.users.is_ready(now, uid, &mut self.asked)
        }

        fn answer(&mut self, now: Nanos, uid: u32, groups: &[u32]) -> Option<String> {
            let answer = LookedUp::Groups(groups.to_vec());
            self.users.on_looked_up(now, uid, answer, &self.export)
        }

        fn fail(&mut self, now: Nanos, uid: u32) -> Option<String> {
            let answer = LookedUp::Failed { why: "no server".into() };
            self.users.on_looked_up(now, uid, answer, &self.export)
        }

        fn groups(&self, uid: u32) -> Option<Vec<u32>> {
            let words = self.users.groups(uid)?.as_chunks::<4>().0;
            Some(words.iter().map(|word| u32::from_be_bytes(*word)).collect())
        }
    }

    #[test]
    fn a_new_user_waits_and_is_asked_for_once() {
        let mut stage = Stage::default();
        assert!(!stage.is_ready(START, 7) && !stage.is_ready(START, 7));
        assert!(!stage.is_ready(START, 8), "another user is no business of this one's");
        assert_eq!(stage.asked, [7, 8]);
        assert_eq!(stage.answer(START, 7, &[20, 30]), None);
        assert!(stage.is_ready(START, 7) && !stage.is_ready(START, 8));
        assert_eq!(stage.groups(7), Some(vec![20, 30]));
        assert_eq!(stage.asked.len(), 2);
    }

    #[test]
    fn an_older_answer_serves_while_it_is_asked_for_again_and_an_old_one_does_not() {
        let mut stage = Stage::default();
        stage.is_ready(START, 7);
        stage.answer(START, 7, &[20]);
        let later = START.plus(FRESH);
        assert!(stage.is_ready(later, 7) && stage.is_ready(later, 7));
        assert_eq!(stage.asked, [7, 7], "once again");
        assert_eq!(stage.groups(7), Some(vec![20]));
        stage.answer(later, 7, &[21]);
        assert_eq!(stage.groups(7), Some(vec![21]));
        let much_later = later.plus(USABLE);
        assert!(!stage.is_ready(much_later, 7));
        stage.answer(much_later, 7, &[22]);
        assert!(stage.is_ready(much_later, 7));
    }

    #[test]
    fn a_look_up_that_hangs_is_waited_for_only_so_long_and_told_once() {
        let mut stage = Stage::default();
        stage.is_ready(START, 7);
        let second = START.plus(SECOND);
        stage.is_ready(second, 8);
        assert_eq!(stage.users.expire(START.plus(PATIENCE - 1)), (false, None));
        let (late, told) = stage.users.expire(START.plus(PATIENCE));
        assert!(late && told.is_some_and(|text| text.contains("user 7")));
        assert!(!stage.users.is_awaited(7) && stage.users.is_awaited(8));
        assert!(stage.is_ready(START.plus(PATIENCE), 7));
        assert_eq!(stage.groups(7), None, "the client's list counts");
        assert_eq!(stage.users.expire(second.plus(PATIENCE)), (true, None));
        assert_eq!(stage.asked, [7, 8], "it is not asked for again while it hangs");
        let later = START.plus(100 * SECOND);
        stage.answer(later, 7, &[20]);
        assert!(stage.is_ready(later, 7));
        assert_eq!(stage.groups(7), Some(vec![20]));
    }

    #[test]
    fn a_failed_look_up_leaves_what_was_known_and_is_tried_again_soon() {
        let mut stage = Stage::default();
        stage.is_ready(START, 7);
        stage.answer(START, 7, &[20]);
        let later = START.plus(USABLE);
        assert!(!stage.is_ready(later, 7));
        assert!(stage.fail(later, 7).is_some_and(|text| text.contains("no server")));
        assert!(stage.is_ready(later, 7));
        assert_eq!(stage.groups(7), Some(vec![20]));
        let again = later.plus(RETRY);
        assert!(stage.is_ready(again, 7), "nobody waits for the second try");
        assert_eq!(stage.asked, [7, 7, 7]);
        assert_eq!(stage.fail(again, 7), None, "it was told");
        let well = again.plus(RETRY);
        stage.is_ready(well, 7);
        stage.answer(well, 7, &[20]);
        let ill = well.plus(FRESH);
        stage.is_ready(ill, 7);
        assert!(stage.fail(ill, 7).is_some(), "it had answered in between");
    }

    #[test]
    fn an_unknown_user_has_what_the_client_says() {
        let mut stage = Stage::default();
        stage.is_ready(START, 7);
        stage.answer(START, 7, &[20]);
        stage.is_ready(START.plus(FRESH), 7);
        let answer = LookedUp::Unknown;
        assert_eq!(stage.users.on_looked_up(START.plus(FRESH), 7, answer, &stage.export), None);
        assert_eq!(stage.groups(7), None);
        assert!(stage.is_ready(START.plus(FRESH + 1), 7));
        assert_eq!(stage.asked.len(), 2);
    }

    #[test]
    fn roots_group_is_squashed_as_in_a_clients_list() {
        let export = |squash| Export { squash, anonymous_gid: 80, ..Export::default() };
        for (squash, want) in [(Squash::Root, [80, 20]), (Squash::None, [0, 20])] {
            let mut stage = Stage { export: export(squash), ..Stage::default() };
            stage.is_ready(START, 7);
            stage.answer(START, 7, &[0, 20]);
            assert_eq!(stage.groups(7), Some(want.to_vec()));
        }
    }

    #[test]
    fn groups_and_users_are_bounded_and_who_is_used_stays() {
        let mut stage = Stage::default();
        let many: Vec<u32> = (0..GROUPS_PER_USER_MAX as u32 + 1).collect();
        stage.is_ready(START, 0);
        assert!(stage.answer(START, 0, &many).is_some_and(|text| text.contains("1025 groups")));
        assert_eq!(stage.groups(0).map(|groups| groups.len()), Some(GROUPS_PER_USER_MAX));
        for uid in 1..3 * USERS_MAX as u32 {
            assert!(stage.is_ready(START, 0), "it is used all the time");
            assert!(!stage.is_ready(START, uid));
            stage.answer(START, uid, &[uid]);
            assert!(stage.users.table.len() <= USERS_MAX);
            assert_eq!(stage.users.table.len(), stage.users.order.len());
        }
        assert_eq!(stage.asked.len(), 3 * USERS_MAX, "each once");
    }

    #[test]
    fn where_all_look_ups_hang_one_more_user_does_not_wait() {
        let mut stage = Stage::default();
        for uid in 0..USERS_MAX as u32 {
            assert!(!stage.is_ready(START, uid));
        }
        assert!(stage.is_ready(START, 9_999));
        assert_eq!(stage.groups(9_999), None);
        assert_eq!(stage.asked.len(), USERS_MAX);
        assert!(stage.users.expire(START.plus(PATIENCE)).0);
        assert!(stage.is_ready(START.plus(PATIENCE), 9_999), "they hang all the same");
        stage.answer(START.plus(PATIENCE), 5, &[]);
        assert!(!stage.is_ready(START.plus(PATIENCE), 9_999));
    }
}
