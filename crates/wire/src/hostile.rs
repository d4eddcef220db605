//! What strangers may send: every truncation and pseudo-random damage of every call.
//! Owns: the proof by trial that decoding never panics and never takes half a call for a whole.
//! Never: depends on time or on a random seed of the day.
//! Invariant: whatever decodes can be encoded again, and then decodes to the same.
//! Source: the rule that bytes from outside get typed errors, never a panic.

use crate::incoming::{Body, decode};
use crate::nfs3::{decode_body, encode_args, encode_body, procedure_of};
use crate::record::{RECORD_BYTES_MAX, Split, join, split};
use crate::rpc::{self, Auth, begin_call, finish};
use crate::samples;

/// A xorshift generator: enough to spread damage about.
struct Damage(u64);

impl Damage {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Overwrites, cuts or doubles a few places of `bytes`.
    fn strike(&mut self, bytes: &mut Vec<u8>) {
        const WORDS: [u32; 8] = [0, 1, 2, 64, 65, 255, 0x7fff_ffff, u32::MAX];
        for _ in 0..1 + self.below(3) {
            if bytes.len() < 8 {
                return;
            }
            let at = self.below(bytes.len() - 4);
            match self.below(4) {
                0 => bytes[at] = self.below(256) as u8,
                1 => {
                    let word = WORDS[self.below(WORDS.len())].to_be_bytes();
                    bytes[at & !3..][..4].copy_from_slice(&word);
                }
                2 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
    }
}

fn calls() -> Vec<Vec<u8>> {
    let groups_be: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 2];
    let sys = Auth::Sys(harp_fs::request::Credential { uid: 1, gid: 2, groups_be });
    let mut calls = Vec::new();
    for (i, request) in samples::requests().iter().enumerate() {
        let auth = if i % 3 == 0 { Auth::None } else { sys };
        let mut call = Vec::new();
        let mark = begin_call(i as u32, 100_003, 3, procedure_of(request), &auth, &mut call);
        encode_args(request, &mut call);
        finish(mark, &mut call);
        calls.push(call);
    }
    calls
}

#[test]
fn every_truncation_of_every_call_is_an_error() {
    for call in calls() {
        let record = &call[4..];
        assert!(decode(record).is_ok());
        for cut in 0..record.len() {
            assert!(decode(&record[..cut]).is_err(), "{cut} bytes of {record:x?} made a call");
        }
    }
}

#[test]
fn damaged_calls_never_panic_and_what_decodes_is_consistent() {
    let mut damage = Damage(0x9e37_79b9_7f4a_7c15);
    let calls = calls();
    let mut survived = 0;
    for _ in 0..200_000 {
        let mut call = calls[damage.below(calls.len())].clone();
        damage.strike(&mut call);
        let record = match split(&call, RECORD_BYTES_MAX) {
            Ok(Split::Complete { record }) => record,
            Ok(Split::Fragmented { consumed }) => join(&mut call[..consumed]),
            Ok(Split::NeedMore { bytes_at_least }) => {
                assert!(bytes_at_least > call.len());
                continue;
            }
            Err(_) => continue,
        };
        let Ok((call, Body::Nfs(request))) = decode(&call[record]) else { continue };
        survived += 1;
        let mut again = Vec::new();
        encode_args(&request, &mut again);
        assert_eq!(crate::nfs3::decode_args(call.procedure, &again), Ok(request));
    }
    assert!(survived > 10_000, "only {survived} damaged calls decoded: the test is too rough");
}

#[test]
fn damaged_replies_never_panic_and_what_decodes_is_consistent() {
    let mut damage = Damage(0x2545_f491_4f6c_dd1d);
    let responses = samples::responses();
    let mut survived = 0;
    for _ in 0..200_000 {
        let (procedure, response) = &responses[damage.below(responses.len())];
        let mut reply = Vec::new();
        let mark = rpc::begin_reply(1, &mut reply);
        encode_body(response, &mut reply);
        finish(mark, &mut reply);
        damage.strike(&mut reply);
        let Some(Ok(reply)) = reply.get(4..).map(rpc::decode_reply) else { continue };
        let Ok(body) = reply.outcome else { continue };
        let Ok(decoded) = decode_body(*procedure, body) else { continue };
        survived += 1;
        let mut again = Vec::new();
        encode_body(&decoded.response, &mut again);
        again.extend_from_slice(decoded.data);
        again.extend_from_slice(crate::xdr::pad(decoded.data.len()));
        let twice = decode_body(*procedure, &again).map(|decoded| decoded.response);
        assert_eq!(twice, Ok(decoded.response));
    }
    assert!(survived > 10_000, "only {survived} damaged replies decoded: the test is too rough");
}
