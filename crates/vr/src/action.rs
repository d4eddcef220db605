//! What a replica wants done: by its caller, and with what came with a message.
//! Owns: the actions, the changes of the configuration that records carry, the use of what is attached.
//! Never: does any of it.
//! Source: docs/protocol.md.

use crate::durable::Durable;
use crate::message::{Configuration, Message};
use crate::overriding::OverrideAnswer;
use crate::types::{Op, ServerId, ServerSet, View};

/// What the caller is to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message that carries no records.
    Send {
        /// To whom.
        to: ServerId,
        /// What.
        message: Message,
    },
    /// Attach records `from..=to` of the current log, as many as fit, to a `Grant` for `to_server`.
    Grant {
        /// To whom.
        to_server: ServerId,
        /// The view being formed.
        view: View,
        /// First op wanted.
        from: Op,
        /// Last op wanted.
        to: Op,
    },
    /// Attach committed records from `from` on, as many as fit, to a `Past` for `to_server`.
    Past {
        /// To whom.
        to_server: ServerId,
        /// First op wanted.
        from: Op,
    },
    /// Make the view file durable; answer with [`crate::Replica::on_persisted`].
    Persist {
        /// Number of this write.
        sequence: u64,
        /// Its content.
        durable: Durable,
    },
    /// Begin a staged log at `begin`, dropping an earlier one.
    Stage {
        /// Its first op.
        begin: Op,
        /// Whether it goes to disk as it grows (a learner), or stays in memory (a standby witness).
        on_disk: bool,
    },
    /// Drop the staged log.
    DropStaged,
    /// The log of `view` is complete in the current (or staged) log: make it durable, tag it, and in the
    /// staged case swap it in; answer with [`crate::Replica::on_tagged`].
    Adopt {
        /// The tag.
        view: View,
        /// The tag's members.
        members: ServerSet,
        /// Whether it is the staged log that becomes the current one.
        staged: bool,
        /// Who counts at the log's end; kept with the tag, for a start before the view file is written.
        configuration: Configuration,
    },
    /// Throw the image away; answer with [`crate::Replica::on_image_discarded`].
    DiscardImage,
    /// Ask for a part of another copy's image by a `Message::ImageWant`, with the place where it begins.
    WantImage {
        /// Whom.
        to: ServerId,
        /// The running view.
        view: View,
        /// Number of the part.
        part: u64,
        /// The image may not be older.
        at_least: Op,
    },
    /// The demoted witness's log is needed no more (rule 10).
    DropLog,
    /// Log a record that changes the configuration.
    LogConfiguration(ConfigurationChange),
    /// A view formed here.
    Formed {
        /// Which.
        view: View,
        /// Its members.
        members: ServerSet,
        /// Its primary.
        primary: ServerId,
    },
    /// This server is primary and all members formed the view: clients may come.
    Serving {
        /// The view.
        view: View,
    },
    /// This server stopped being primary of `view`.
    Stopped {
        /// The view.
        view: View,
    },
    /// What was known to be committed was of a history that an operator overrode.
    CrossedOver,
    /// What became of an operator's order.
    Overridden {
        /// Which order.
        token: u64,
        /// What became of it.
        answer: OverrideAnswer,
    },
    /// No view can form for now.
    Refusing {
        /// Which predicate fails and whom to bring back.
        why: String,
    },
}

/// A change of the configuration, carried by a record of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConfigurationChange {
    /// `server`'s disk `disk` counts from here on (rule 3).
    Admit {
        /// The server.
        server: ServerId,
        /// Its new disk.
        disk: u64,
    },
    /// The copy's image cannot be completed from the log (rule 10).
    NeedsImage {
        /// The copy.
        server: ServerId,
    },
    /// It has one again that can (rule 9).
    HasImage {
        /// The copy.
        server: ServerId,
    },
    /// The history was overridden by an operator: says so in the log, and makes the image say so.
    Overridden {
        /// Who carried it out.
        server: ServerId,
        /// The view that it began with.
        view: View,
    },
}

/// What to do with what is attached to a message: records, if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// Nothing.
    Ignore,
    /// Append those above `above` to the current log.
    Current {
        /// End of the log.
        above: Op,
    },
    /// Append those above `above` to the staged log.
    Staged {
        /// End of the staged log.
        above: Op,
    },
    /// It is the place from which a part of the image is wanted: send it, from a snapshot at `at_least` or above.
    ImageWant {
        /// Number of the part.
        part: u64,
        /// The image may not be older.
        at_least: Op,
    },
    /// It is a part of an image: take it in, and say so by [`crate::Replica::on_image_taken`].
    ImagePart {
        /// Its number.
        part: u64,
        /// Its op.
        op: Op,
    },
    /// It names a block that another copy lacks: send it, if it is here.
    BlockWant {
        /// The op of the other copy's image.
        lb: Op,
    },
    /// It is the answer to such a question.
    BlockGrant {
        /// The op of the other copy's image.
        lb: Op,
    },
}
