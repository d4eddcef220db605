//! Bytes of messages and of the view file: little-endian, fixed order, every field bounded.
//! Owns: the encoding. Frames between servers are an envelope, a message, then attached records.
//! Never: allocates for a length it has not checked.

use crate::message::Past;
use crate::message::{
    Configuration, Envelope, Install, Message, Prepare, PrepareOk, Presence, Report,
};
use crate::overriding::Override;
use crate::room::Room;
use crate::types::{Incarnation, Nanos, Op, SERVERS_MAX, ServerId, ServerSet, View};

/// No group lives to count so many attempts at a view; behind it there is still a next one.
const COUNTER_MAX: u32 = 1 << 31;
/// Nor so many starts; the log's numbers, which begin with the start counter, never overflow.
const START_MAX: u64 = 1 << 34;
/// Nor so many ops; sums of them never overflow.
const OP_MAX: u64 = 1 << 60;

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// They end too early.
    Short,
    /// A checksum does not match.
    Checksum,
    /// A field holds what it cannot.
    Malformed(&'static str),
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CodecError::Short => write!(f, "the bytes end too early"),
            CodecError::Checksum => write!(f, "the checksum does not match"),
            CodecError::Malformed(what) => write!(f, "malformed {what}"),
        }
    }
}

impl std::error::Error for CodecError {}

/// Appends fields to a byte vector.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Goes on writing at the end of `out`.
    pub fn onto(out: Vec<u8>) -> Writer {
        Writer { out }
    }

    /// The bytes so far.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// The bytes so far behind their length and CRC32C, to stand alone in a file's slot.
    pub fn sealed(self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32(self.out.len() as u32).u32(checksum(&self.out)).bytes(&self.out);
        w.out
    }

    /// Appends raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Writer {
        self.bytes(&[value])
    }

    /// Appends a number.
    pub fn u32(&mut self, value: u32) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a number.
    pub fn u64(&mut self, value: u64) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends an incarnation.
    pub fn incarnation(&mut self, value: Incarnation) -> &mut Writer {
        self.u64(value.disk).u64(value.start)
    }

    /// Appends a configuration.
    pub fn configuration(&mut self, value: &Configuration) -> &mut Writer {
        value.disks.iter().for_each(|d| {
            self.u64(*d);
        });
        self.u8(value.needs_image.0);
        let Override { view, adopted, cut, at_seconds, absent, by } = value.overridden;
        self.u64(view.0).u64(adopted.0).u64(cut.0).u64(at_seconds).u8(absent.0).bytes(&by)
    }
}

/// Takes fields off a byte slice.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Opens what [`Writer::sealed`] made; anything may follow it in the slot.
    pub fn unsealed(slot: &'a [u8]) -> Result<Reader<'a>, CodecError> {
        let mut r = Reader { rest: slot };
        let (len, crc) = (r.u32()? as usize, r.u32()?);
        let body = r.rest.get(..len).ok_or(CodecError::Short)?;
        if checksum(body) == crc { Ok(Reader { rest: body }) } else { Err(CodecError::Checksum) }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes `N` raw bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(CodecError::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes a number.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Takes a number.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Takes a byte that is 0 or 1.
    pub fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Malformed("flag")),
        }
    }

    /// Takes a server.
    pub fn server(&mut self) -> Result<ServerId, CodecError> {
        let id = self.u8()?;
        if id as usize >= SERVERS_MAX {
            Err(CodecError::Malformed("server"))
        } else {
            Ok(ServerId(id))
        }
    }

    /// Takes an incarnation.
    pub fn incarnation(&mut self) -> Result<Incarnation, CodecError> {
        let (disk, start) = (self.u64()?, self.u64()?);
        if start > START_MAX {
            return Err(CodecError::Malformed("start counter"));
        }
        Ok(Incarnation { disk, start })
    }

    /// Takes a configuration.
    pub fn configuration(&mut self) -> Result<Configuration, CodecError> {
        let mut disks = [0; SERVERS_MAX];
        for disk in &mut disks {
            *disk = self.u64()?;
        }
        let needs_image = self.servers()?;
        let overridden = Override {
            view: self.view()?,
            adopted: self.view()?,
            cut: self.op()?,
            at_seconds: self.u64()?,
            absent: self.servers()?,
            by: self.array()?,
        };
        Ok(Configuration { disks, needs_image, overridden })
    }

    /// Takes a set of servers.
    pub fn servers(&mut self) -> Result<ServerSet, CodecError> {
        match self.u8()? {
            bits if bits >> SERVERS_MAX != 0 => Err(CodecError::Malformed("set of servers")),
            bits => Ok(ServerSet(bits)),
        }
    }

    /// Takes a view.
    pub fn view(&mut self) -> Result<View, CodecError> {
        let view = View(self.u64()?);
        let named = view.coordinator().index() < SERVERS_MAX;
        if named && view.counter() <= COUNTER_MAX {
            Ok(view)
        } else {
            Err(CodecError::Malformed("view"))
        }
    }

    pub(crate) fn op(&mut self) -> Result<Op, CodecError> {
        match self.u64()? {
            op if op > OP_MAX => Err(CodecError::Malformed("op")),
            op => Ok(Op(op)),
        }
    }

    fn nanos(&mut self) -> Result<Nanos, CodecError> {
        Ok(Nanos(self.u64()?))
    }
}

/// CRC32C, bit by bit through a small table: for the rare, short things of this crate.
fn checksum(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0u32; 16];
        let mut i = 0;
        while i < 16 {
            let mut crc = i as u32;
            let mut k = 0;
            while k < 4 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                k += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0u32, |crc, byte| {
        let crc = crc ^ *byte as u32;
        let crc = (crc >> 4) ^ TABLE[(crc & 15) as usize];
        (crc >> 4) ^ TABLE[(crc & 15) as usize]
    })
}

mod number {
    pub const PRESENCE: u8 = 1;
    pub const INVITE: u8 = 2;
    pub const PROMISE: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const INSTALL: u8 = 5;
    pub const WANT: u8 = 6;
    pub const GRANT: u8 = 7;
    pub const INSTALLED: u8 = 8;
    pub const PREPARE: u8 = 9;
    pub const PREPARE_OK: u8 = 10;
    pub const CATCH_UP: u8 = 11;
    pub const PAST: u8 = 12;
    pub const IMAGE_WANT: u8 = 13;
    pub const IMAGE_PART: u8 = 14;
    pub const BLOCK_WANT: u8 = 15;
    pub const BLOCK_GRANT: u8 = 16;
}

impl Envelope {
    /// Appends the envelope's bytes to `out`; attached records follow them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::onto(std::mem::take(out));
        w.u8(self.from.0).incarnation(self.from_incarnation).incarnation(self.to_incarnation);
        encode_message(&self.message, &mut w);
        *out = w.into_bytes();
    }

    /// Reads an envelope; what follows it are the attached records.
    pub fn decode(frame: &[u8]) -> Result<(Envelope, &[u8]), CodecError> {
        let mut r = Reader::new(frame);
        let envelope = Envelope {
            from: r.server()?,
            from_incarnation: r.incarnation()?,
            to_incarnation: r.incarnation()?,
            message: decode_message(&mut r)?,
        };
        Ok((envelope, r.rest()))
    }
}

fn encode_message(message: &Message, w: &mut Writer) {
    match message {
        Message::Presence(p) => {
            w.u8(number::PRESENCE).u64(p.promised.0).u64(p.formed.0).u8(p.members.0);
            w.u8(p.serving as u8).u8(p.normal as u8).u64(p.cp.0).u64(p.lb.0).u64(p.glb.0);
            w.u8(p.loading.is_some() as u8).u64(p.loading.unwrap_or_default().0);
            w.u64(p.branch.0).configuration(&p.configuration);
            let Room { op, blocks, more_blocks, grows } = p.room;
            w.u64(op.0).u64(blocks).u64(more_blocks).u8(grows as u8);
        }
        Message::Invite { view } => {
            w.u8(number::INVITE).u64(view.0);
        }
        Message::Promise { view, report } => {
            w.u8(number::PROMISE).u64(view.0);
            encode_report(report, w);
        }
        Message::Decline { view, promised } => {
            w.u8(number::DECLINE).u64(view.0).u64(promised.0);
        }
        Message::Install(i) => {
            w.u8(number::INSTALL).u64(i.view.0).u8(i.members.0).u64(i.adopted.0).u8(i.holder.0);
            w.u64(i.begin.0).u64(i.end.0).u64(i.cp.0).u64(i.glb.0).u64(i.lease_left);
            w.configuration(&i.configuration);
        }
        Message::Want { view, from, to } => {
            w.u8(number::WANT).u64(view.0).u64(from.0).u64(to.0);
        }
        Message::Grant { view, first, last } => {
            w.u8(number::GRANT).u64(view.0).u64(first.0).u64(last.0);
        }
        Message::Installed { view, end } => {
            w.u8(number::INSTALLED).u64(view.0).u64(end.0);
        }
        Message::Prepare(p) => {
            w.u8(number::PREPARE).u64(p.view.0).u64(p.first.0).u64(p.last.0).u64(p.cp.0);
            w.u64(p.ap.0).u64(p.glb.0).u8(p.all_formed as u8).u64(p.sent.0).u64(p.stalled);
        }
        Message::PrepareOk(p) => {
            w.u8(number::PREPARE_OK).u64(p.view.0).u64(p.received.0).u64(p.durable.0);
            w.u64(p.lb.0).u64(p.echo.0).u8(p.gap as u8);
        }
        Message::CatchUp { view, from } => {
            w.u8(number::CATCH_UP).u64(view.0).u64(from.0);
        }
        Message::Past(p) => {
            w.u8(number::PAST)
                .u64(p.view.0)
                .u64(p.first.0)
                .u64(p.last.0)
                .u64(p.cp.0)
                .u64(p.begin.0);
        }
        Message::ImageWant { view, part, at_least } => {
            w.u8(number::IMAGE_WANT).u64(view.0).u64(*part).u64(at_least.0);
        }
        Message::ImagePart { view, part, op } => {
            w.u8(number::IMAGE_PART).u64(view.0).u64(*part).u64(op.0);
        }
        Message::BlockWant { lb } => {
            w.u8(number::BLOCK_WANT).u64(lb.0);
        }
        Message::BlockGrant { lb } => {
            w.u8(number::BLOCK_GRANT).u64(lb.0);
        }
    }
}

fn encode_report(report: &Report, w: &mut Writer) {
    let (begin, end) = report.log.unwrap_or_default();
    w.u64(report.formed.0).u8(report.members.0);
    w.u8(report.log.is_some() as u8).u64(begin.0).u64(end.0).u64(report.cp.0);
    w.u8(report.image.is_some() as u8).u64(report.image.unwrap_or_default().0);
    w.u64(report.glb.0).u64(report.level.0).u64(report.lease_left);
    w.configuration(&report.configuration).configuration(&report.settled);
    w.u64(report.branch.0).u64(report.reached.0).u8(report.files.is_some() as u8);
    w.u64(report.files.unwrap_or_default().0).u64(report.applied.0);
}

fn decode_report(r: &mut Reader<'_>) -> Result<Report, CodecError> {
    let (formed, members) = (r.view()?, r.servers()?);
    let (has_log, begin, end, cp) = (r.flag()?, r.op()?, r.op()?, r.op()?);
    let (has_image, lb) = (r.flag()?, r.op()?);
    let (glb, level, lease_left) = (r.op()?, r.op()?, r.u64()?);
    let (configuration, settled) = (r.configuration()?, r.configuration()?);
    let (branch, reached) = (r.view()?, r.view()?);
    let (has_files, files) = (r.flag()?, r.op()?);
    Ok(Report {
        formed,
        members,
        log: has_log.then_some((begin, end)),
        cp,
        image: has_image.then_some(lb),
        glb,
        level,
        lease_left,
        configuration,
        settled,
        branch,
        reached,
        files: has_files.then_some(files),
        applied: r.op()?,
    })
}

fn decode_presence(r: &mut Reader<'_>) -> Result<Presence, CodecError> {
    let (promised, formed, members) = (r.view()?, r.view()?, r.servers()?);
    let (serving, normal) = (r.flag()?, r.flag()?);
    let (cp, lb, glb) = (r.op()?, r.op()?, r.op()?);
    let (loads, at) = (r.flag()?, r.op()?);
    let (loading, branch) = (loads.then_some(at), r.view()?);
    let configuration = r.configuration()?;
    let room = Room { op: Op(r.u64()?), blocks: r.u64()?, more_blocks: r.u64()?, grows: r.flag()? };
    Ok(Presence {
        promised,
        formed,
        members,
        serving,
        normal,
        cp,
        lb,
        loading,
        glb,
        branch,
        configuration,
        room,
    })
}

fn decode_message(r: &mut Reader<'_>) -> Result<Message, CodecError> {
    Ok(match r.u8()? {
        number::PRESENCE => Message::Presence(decode_presence(r)?),
        number::INVITE => Message::Invite { view: r.view()? },
        number::PROMISE => Message::Promise { view: r.view()?, report: decode_report(r)? },
        number::DECLINE => Message::Decline { view: r.view()?, promised: r.view()? },
        number::INSTALL => Message::Install(Install {
            view: r.view()?,
            members: r.servers()?,
            adopted: r.view()?,
            holder: r.server()?,
            begin: r.op()?,
            end: r.op()?,
            cp: r.op()?,
            glb: r.op()?,
            lease_left: r.u64()?,
            configuration: r.configuration()?,
        }),
        number::WANT => Message::Want { view: r.view()?, from: r.op()?, to: r.op()? },
        number::GRANT => Message::Grant { view: r.view()?, first: r.op()?, last: r.op()? },
        number::INSTALLED => Message::Installed { view: r.view()?, end: r.op()? },
        number::PREPARE => Message::Prepare(Prepare {
            view: r.view()?,
            first: r.op()?,
            last: r.op()?,
            cp: r.op()?,
            ap: r.op()?,
            glb: r.op()?,
            all_formed: r.flag()?,
            sent: r.nanos()?,
            stalled: r.u64()?,
        }),
        number::PREPARE_OK => Message::PrepareOk(PrepareOk {
            view: r.view()?,
            received: r.op()?,
            durable: r.op()?,
            lb: r.op()?,
            echo: r.nanos()?,
            gap: r.flag()?,
        }),
        number::CATCH_UP => Message::CatchUp { view: r.view()?, from: r.op()? },
        number::PAST => Message::Past(Past {
            view: r.view()?,
            first: r.op()?,
            last: r.op()?,
            cp: r.op()?,
            begin: r.op()?,
        }),
        number::IMAGE_WANT => {
            Message::ImageWant { view: r.view()?, part: r.u64()?, at_least: r.op()? }
        }
        number::IMAGE_PART => Message::ImagePart { view: r.view()?, part: r.u64()?, op: r.op()? },
        number::BLOCK_WANT => Message::BlockWant { lb: r.op()? },
        number::BLOCK_GRANT => Message::BlockGrant { lb: r.op()? },
        _ => return Err(CodecError::Malformed("message number")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let configuration = Configuration {
            disks: [1, 2, 3, 4, 5, 6, 7],
            needs_image: ServerSet(1),
            overridden: Override {
                view: View::new(1, 1, 7, ServerId(1)),
                adopted: View::new(0, 1, 6, ServerId(0)),
                cut: Op(4),
                at_seconds: 1_800_000_000,
                absent: ServerSet(4),
                by: *b"an operator\0\0\0",
            },
        };
        let report = Report {
            formed: View(3),
            members: ServerSet(3),
            log: Some((Op(1), Op(9))),
            cp: Op(8),
            image: Some(Op(4)),
            glb: Op(2),
            level: Op(7),
            lease_left: 5,
            configuration,
            settled: Configuration { needs_image: ServerSet::EMPTY, ..configuration },
            branch: View::new(1, 1, 7, ServerId(1)),
            reached: View(3),
            files: Some(Op(4)),
            applied: Op(5),
        };
        let (view, op) = (View::new(0, 1, 7, ServerId(2)), Op(5));
        vec![
            Message::Presence(Presence {
                promised: view,
                formed: view,
                members: ServerSet(5),
                serving: true,
                normal: false,
                cp: op,
                lb: op,
                loading: Some(op),
                glb: op,
                branch: View::NONE,
                configuration,
                room: Room { op, blocks: 7, more_blocks: 8, grows: true },
            }),
            Message::Invite { view },
            Message::Promise { view, report },
            Message::Promise { view, report: Report { log: None, image: None, ..report } },
            Message::Decline { view, promised: View::new(0, 1, 9, ServerId(1)) },
            Message::Install(Install {
                view,
                members: ServerSet(3),
                adopted: View(3),
                holder: ServerId(1),
                begin: op,
                end: op,
                cp: op,
                glb: op,
                lease_left: 4,
                configuration,
            }),
            Message::Want { view, from: op, to: op },
            Message::Grant { view, first: op, last: op },
            Message::Installed { view, end: op },
            Message::Prepare(Prepare {
                view,
                first: op,
                last: op,
                cp: op,
                ap: op,
                glb: op,
                all_formed: true,
                sent: Nanos(4),
                stalled: 9,
            }),
            Message::PrepareOk(PrepareOk {
                view,
                received: op,
                durable: op,
                lb: op,
                echo: Nanos(4),
                gap: false,
            }),
            Message::CatchUp { view, from: op },
            Message::Past(Past { view, first: op, last: op, cp: op, begin: op }),
            Message::ImageWant { view, part: 6, at_least: op },
            Message::ImagePart { view, part: 6, op },
            Message::BlockWant { lb: op },
            Message::BlockGrant { lb: op },
        ]
    }

    #[test]
    fn every_message_survives_its_bytes_and_no_truncation_passes() {
        for message in samples() {
            let envelope = Envelope {
                from: ServerId(2),
                from_incarnation: Incarnation { disk: 8, start: 1 },
                to_incarnation: Incarnation { disk: 9, start: 2 },
                message,
            };
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            for cut in 0..bytes.len() {
                assert!(Envelope::decode(&bytes[..cut]).is_err(), "{message:?} cut at {cut}");
            }
            bytes.extend_from_slice(b"records");
            assert_eq!(Envelope::decode(&bytes), Ok((envelope, &b"records"[..])));
        }
    }

    #[test]
    fn servers_views_and_ops_that_no_group_has_are_refused() {
        let read = |bytes: &[u8; 8]| {
            let r = || Reader::new(bytes);
            (r().servers().is_ok(), r().view().is_ok(), r().op().is_ok())
        };
        let last = View::new(u8::MAX, u16::MAX, COUNTER_MAX, ServerId(6));
        assert_eq!(read(&[0x7f, 0, 0, 0, 0, 0, 0, 0]), (true, false, true));
        assert_eq!(read(&[0x80, 0, 0, 0, 0, 0, 0, 0]), (false, false, true));
        assert_eq!(read(&last.0.to_le_bytes()), (true, true, false));
        assert_eq!(last.next(ServerId(0)).counter(), COUNTER_MAX + 1);
        let beyond = View::new(0, 0, COUNTER_MAX + 1, ServerId(0));
        assert!(!read(&beyond.0.to_le_bytes()).1);
        assert!(!read(&View::new(0, 0, 1, ServerId(7)).0.to_le_bytes()).1);
        assert!(!read(&(OP_MAX + 1).to_le_bytes()).2);
        let started = |start: u64| {
            Reader::new(&[7, start].map(u64::to_le_bytes).concat()).incarnation().is_ok()
        };
        assert!(started(START_MAX) && !started(START_MAX + 1));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }
}
