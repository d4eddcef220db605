//! Bodies of event records: what the service puts behind the log's record header.
//! Owns: the kinds of records, and the layout of each.
//! Never: interprets effects; `harp_fs` does.
//! Invariant: bytes from a disk or a peer give a typed error, never a panic.
//! Source: ARCHITECTURE.md; docs/disk-format.md.

use harp_vr::{ConfigurationChange, SERVERS_MAX, ServerId, View};

/// Kinds of records.
pub mod kind {
    /// A client's modification: stamp, effects, reply.
    pub const OPERATION: u8 = 1;
    /// A change of the group's configuration.
    pub const CONFIGURATION: u8 = 2;
    /// Every copy checkpoints and digests exactly here.
    pub const BARRIER: u8 = 3;
    /// Access times: effects, and nobody waits for them.
    pub const ACCESSES: u8 = 4;
}

/// Bytes of a [`Stamp`].
pub const STAMP_BYTES: usize = 48;

/// Which request a record answers, and how its body divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The request's identity.
    pub key: RequestKey,
    /// The client's port, a hint only.
    pub port: u16,
    /// The op of the first record of the client's connection: the connection's name in the client table.
    pub connection: u64,
    /// Length of the effects, which follow the stamp.
    pub effects_len: u32,
    /// Length of the reply, which follows the effects.
    pub reply_len: u32,
}

/// What makes two calls the same request (ARCHITECTURE.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The client's address, IPv4 mapped into IPv6.
    pub address: [u8; 16],
    /// Transaction id.
    pub xid: u32,
    /// NFS procedure.
    pub procedure: u16,
    /// Length and CRC32C of the whole call.
    pub checksum: u64,
}

/// A body that is not what its kind says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBody(pub &'static str);

impl std::fmt::Display for BadBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a record's body is malformed: {}", self.0)
    }
}

impl std::error::Error for BadBody {}

impl Stamp {
    /// Writes the stamp into the first [`STAMP_BYTES`] of `body`.
    pub fn write(&self, body: &mut [u8]) {
        body[0..16].copy_from_slice(&self.key.address);
        body[16..20].copy_from_slice(&self.key.xid.to_le_bytes());
        body[20..22].copy_from_slice(&self.key.procedure.to_le_bytes());
        body[22..24].copy_from_slice(&self.port.to_le_bytes());
        body[24..32].copy_from_slice(&self.key.checksum.to_le_bytes());
        body[32..40].copy_from_slice(&self.connection.to_le_bytes());
        body[40..44].copy_from_slice(&self.effects_len.to_le_bytes());
        body[44..48].copy_from_slice(&self.reply_len.to_le_bytes());
    }
}

/// An operation's body, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The request.
    pub stamp: Stamp,
    /// The effects; they start [`STAMP_BYTES`] into the body.
    pub effects: &'a [u8],
    /// The reply's results.
    pub reply: &'a [u8],
}

fn array<const N: usize>(body: &[u8], at: usize) -> [u8; N] {
    body[at..at + N].try_into().expect("N bytes")
}

/// Takes an operation's body apart.
pub fn operation(body: &[u8]) -> Result<Operation<'_>, BadBody> {
    if body.len() < STAMP_BYTES {
        return Err(BadBody("it ends within the stamp"));
    }
    let stamp = Stamp {
        key: RequestKey {
            address: array(body, 0),
            xid: u32::from_le_bytes(array(body, 16)),
            procedure: u16::from_le_bytes(array(body, 20)),
            checksum: u64::from_le_bytes(array(body, 24)),
        },
        port: u16::from_le_bytes(array(body, 22)),
        connection: u64::from_le_bytes(array(body, 32)),
        effects_len: u32::from_le_bytes(array(body, 40)),
        reply_len: u32::from_le_bytes(array(body, 44)),
    };
    let rest = &body[STAMP_BYTES..];
    let (effects_len, reply_len) = (stamp.effects_len as usize, stamp.reply_len as usize);
    if effects_len.checked_add(reply_len) != Some(rest.len()) {
        return Err(BadBody("its parts do not fill it"));
    }
    let (effects, reply) = rest.split_at(effects_len);
    Ok(Operation { stamp, effects, reply })
}

/// Bytes of a configuration record's body.
pub const CONFIGURATION_BYTES: usize = 16;

/// Writes the body of a configuration record.
pub fn write_configuration(change: ConfigurationChange, body: &mut [u8]) {
    let (what, server, disk) = match change {
        ConfigurationChange::Admit { server, disk } => (1, server, disk),
        ConfigurationChange::NeedsImage { server } => (2, server, 0),
        ConfigurationChange::HasImage { server } => (3, server, 0),
        ConfigurationChange::Overridden { server, view } => (4, server, view.0),
    };
    body[..CONFIGURATION_BYTES].fill(0);
    body[0] = what;
    body[1] = server.0;
    body[8..16].copy_from_slice(&u64::to_le_bytes(disk));
}

/// Reads the body of a configuration record.
pub fn configuration(body: &[u8]) -> Result<ConfigurationChange, BadBody> {
    if body.len() != CONFIGURATION_BYTES || body[1] as usize >= SERVERS_MAX {
        return Err(BadBody("a configuration change"));
    }
    let server = ServerId(body[1]);
    match body[0] {
        1 => Ok(ConfigurationChange::Admit { server, disk: u64::from_le_bytes(array(body, 8)) }),
        2 => Ok(ConfigurationChange::NeedsImage { server }),
        3 => Ok(ConfigurationChange::HasImage { server }),
        4 => {
            let view = View(u64::from_le_bytes(array(body, 8)));
            Ok(ConfigurationChange::Overridden { server, view })
        }
        _ => Err(BadBody("an unknown configuration change")),
    }
}

/// The change of the configuration that a record of this kind and body brings, if it brings one.
pub fn change_in(kind: u8, body: &[u8]) -> Option<ConfigurationChange> {
    (kind == kind::CONFIGURATION).then(|| configuration(body).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_comes_apart_as_it_was_put_together() {
        let key = RequestKey { address: [9; 16], xid: 7, procedure: 8, checksum: 1 << 40 };
        let stamp = Stamp { key, port: 700, connection: 5, effects_len: 3, reply_len: 2 };
        let mut body = vec![0; STAMP_BYTES];
        stamp.write(&mut body);
        body.extend_from_slice(b"effok");
        let op = operation(&body).unwrap();
        assert_eq!((op.stamp, op.effects, op.reply), (stamp, &b"eff"[..], &b"ok"[..]));
        for cut in 0..body.len() {
            assert!(operation(&body[..cut]).is_err());
        }
    }

    #[test]
    fn configuration_changes_survive_their_bytes() {
        for change in [
            ConfigurationChange::Admit { server: ServerId(2), disk: 77 },
            ConfigurationChange::NeedsImage { server: ServerId(1) },
            ConfigurationChange::HasImage { server: ServerId(1) },
            ConfigurationChange::Overridden { server: ServerId(1), view: View(1 << 56 | 1) },
        ] {
            let mut body = [0; CONFIGURATION_BYTES];
            write_configuration(change, &mut body);
            assert_eq!(configuration(&body), Ok(change));
        }
        assert!(configuration(&[9; CONFIGURATION_BYTES]).is_err());
    }
}
