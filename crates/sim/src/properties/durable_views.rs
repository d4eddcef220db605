//! Durable view and promise never go back; nothing is sent above them, nothing acknowledged below.
//! Owns: what each disk's view file says, as it was written.
//! Never: asks a server; it reads the slots and the messages.
//! Source: property 6, rule 1.

use harp_node::vr::{Durable, Envelope, Message, SERVERS_MAX, ServerId, View};

use super::{Verdict, require};

/// The property, in words.
pub const NAME: &str = "6, durable views never go back";

/// What the view files say.
#[derive(Debug, Default)]
pub struct DurableViews {
    files: [Option<(u64, View, View)>; SERVERS_MAX],
}

impl DurableViews {
    /// `server` has this view file, durably.
    pub fn written(&mut self, server: ServerId, durable: &Durable) -> Verdict {
        let (disk, promised, formed) = (durable.incarnation.disk, durable.promised, durable.formed);
        let known = self.files[server.index()].replace((disk, promised, formed));
        let Some((_, p, f)) = known.filter(|(known, _, _)| *known == disk) else { return Ok(()) };
        require(NAME, promised >= p && formed >= f, || {
            format!(
                "{server} had promised {p} and formed {f}, now its file says {promised}, {formed}"
            )
        })
    }

    /// The disk of `server` is gone.
    pub fn wiped(&mut self, server: ServerId) {
        self.files[server.index()] = None;
    }

    /// `server` sends a message.
    pub fn sent(&self, server: ServerId, envelope: &Envelope) -> Verdict {
        let (_, promised, formed) = self.files[server.index()].unwrap_or_default();
        if let Message::PrepareOk(ok) = &envelope.message {
            require(NAME, ok.view >= promised, || {
                format!("{server} acknowledges in view {}, below its promise {promised}", ok.view)
            })?;
        }
        let (word, bound, view) = match &envelope.message {
            Message::Promise { view, .. } => ("promises", promised, *view),
            Message::Invite { view } => ("invites to", promised, *view),
            Message::Install(install) => ("installs", promised, install.view),
            Message::Installed { view, .. } => ("has installed", formed, *view),
            Message::Prepare(prepare) => ("prepares in", formed, prepare.view),
            Message::PrepareOk(ok) => ("acknowledges in", formed, ok.view),
            _ => return Ok(()),
        };
        require(NAME, view <= bound, || {
            format!("{server} {word} view {view}, but its disk says only {bound}")
        })
    }
}
