//! Replies: what the load generator and the recording client take from a server.
//! Owns: the comparison of results with what they are to `nfs3_types`.
//! Source: RFC 5531, RFC 1813.
//!
//! Input: a procedure, then the reply's record.

use harp_node::wire::mount::{self, decode_mounted};
use harp_node::wire::nfs3::{decode_body, encode_body, proc};
use harp_node::wire::rpc::{self, decode_reply};
use harp_node::wire::samples;
use harp_node::wire::xdr::pad;

use crate::memory::within;
use crate::oracle;

/// For each byte of a listing: an entry takes 24 bytes on the wire, and in memory the attributes' place.
const LISTING_BYTES_PER_BYTE: usize = 40;

/// One input.
pub fn run(input: &[u8]) {
    let Some((procedure, record)) = input.split_first() else { return };
    let procedure = u32::from(*procedure) % 23;
    let Ok(reply) = within(0, || decode_reply(record)) else { return };
    let Ok(body) = reply.outcome else { return };
    if procedure == 22 {
        let _ = within(0, || decode_mounted(body));
        return;
    }
    let bytes_max = 512 + LISTING_BYTES_PER_BYTE * body.len();
    let Ok(decoded) = within(bytes_max, || decode_body(procedure, body)) else { return };
    let mut again = Vec::new();
    encode_body(&decoded.response, &mut again);
    again.extend_from_slice(decoded.data);
    again.extend_from_slice(pad(decoded.data.len()));
    let twice = decode_body(procedure, &again).expect("our own encoding");
    assert_eq!(twice, decoded, "it does not come back");
    let theirs = oracle::results(procedure, body);
    let theirs = theirs.unwrap_or_else(|| panic!("the oracle cannot read {:?}", decoded.response));
    // Ours keeps an entry's attributes and handle only together, and takes any committed write for one
    // that is stable.
    if !matches!(procedure, proc::READDIRPLUS | proc::WRITE) {
        assert_eq!(theirs, again, "the oracle reads another {:?}", decoded.response);
    }
}

/// A reply of every result that there is a sample of, and refusals.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let reply = |procedure: u32, body: &[u8]| {
        let mut bytes = Vec::new();
        let mark = rpc::begin_reply(7, &mut bytes);
        bytes.extend_from_slice(body);
        rpc::finish(mark, &mut bytes);
        [&[procedure as u8], &bytes[4..]].concat()
    };
    for (procedure, response) in samples::responses() {
        let mut body = Vec::new();
        encode_body(&response, &mut body);
        if procedure == proc::READ {
            body.extend_from_slice(b"7 bytes\0");
        }
        seeds.push(reply(procedure, &body));
    }
    let mut body = Vec::new();
    let handle = harp_node::fs::request::HandleBytes::new(samples::HANDLE);
    mount::encode_body(&mount::Reply::Mounted { handle, flavors: &[1, 0] }, &mut body);
    seeds.push(reply(22, &body));
    for refusal in [rpc::Refusal::RpcMismatch, rpc::Refusal::GarbageArgs] {
        let mut bytes = vec![0];
        rpc::encode_refusal(7, refusal, &mut bytes);
        bytes.drain(1..5);
        seeds.push(bytes);
    }
    seeds
}
