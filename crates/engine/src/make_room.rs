//! MakeRoom: what the owner of a full disk is asked before something is refused.
//! Owns: the type of that question.
//! Never: called after a write or a sync failed; only what merely needs space is tried again (rule 8).
//! Invariant: none.
//! Source: rule 13.

use std::sync::Arc;

/// Gives up something that was kept for need. True: what was refused for lack of space may be tried again.
pub type MakeRoom = Arc<dyn Fn() -> bool + Send + Sync>;

/// For those who keep nothing.
pub fn nothing_to_give_up() -> MakeRoom {
    Arc::new(|| false)
}
