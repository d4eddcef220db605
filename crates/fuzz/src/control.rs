//! Control: what operators, the supervisor and servers tell each other on one machine.
//! Owns: nothing but the trial.
//! Source: `crates/harp/src/control.rs`, `admin.rs`, `http.rs`, `segments.rs`.
//!
//! Input: which of them it is for, then its bytes.

use harp::admin::{Answer, LINE_BYTES_MAX, Line, Request, decode_answer, take_request};
use harp::control::{self, PACKET_BYTES_MAX, ToServer, ToSupervisor};
use harp::http::Head;
use harp::segments::parse_list;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::within;

/// One input.
pub fn run(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    match which % 6 {
        0 => packet::<ToServer>(bytes),
        1 => packet::<ToSupervisor>(bytes),
        2 => requests(bytes),
        3 => answer(bytes),
        4 => head(bytes),
        _ => segments(bytes),
    }
}

/// Memory for what was read, and for a message that says what is wrong with it.
fn bytes_max(input: &[u8]) -> usize {
    1024 + 16 * input.len()
}

fn packet<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(PACKET_BYTES_MAX)];
    if let Some(message) = within(bytes_max(bytes), || control::decode::<M>(bytes)) {
        let again = serde_json::to_vec(&message).expect("a message can always be encoded");
        assert_eq!(control::decode::<M>(&again), Some(message));
    }
    if let Some(message) = control::decode::<ToSupervisor>(bytes) {
        let again = serde_json::to_vec(&message.bounded()).expect("likewise");
        assert!(again.len() <= PACKET_BYTES_MAX, "a packet of {} bytes", again.len());
    }
}

/// Lines come off one by one; what is left is a line that has not ended.
fn requests(bytes: &[u8]) {
    let mut received = bytes.to_vec();
    let mut lines = 0;
    loop {
        let before = received.len();
        let taken = within(bytes_max(bytes), || take_request(&mut received));
        match taken {
            Line::Unfinished => {
                assert!(received.len() == before && before <= LINE_BYTES_MAX);
                break;
            }
            Line::TooLong => {
                assert!(received.len() == before && before > LINE_BYTES_MAX);
                break;
            }
            Line::Nonsense(why) => {
                let line = serde_json::to_vec(&Answer::Error(why)).expect("can be encoded");
                assert!(!line.contains(&b'\n'), "an answer is one line");
            }
            Line::Request(request) => {
                let again = serde_json::to_vec(&request).expect("can be encoded");
                assert_eq!(serde_json::from_slice::<Request>(&again).ok(), Some(request));
            }
        }
        assert!(received.len() < before);
        lines += 1;
    }
    assert_eq!(lines, bytes.iter().filter(|byte| **byte == b'\n').count());
}

fn answer(bytes: &[u8]) {
    if let Ok(answer) = within(bytes_max(bytes), || decode_answer(bytes)) {
        let again: Vec<u8> = serde_json::to_vec(&answer).expect("an answer can be encoded");
        let same: Option<Answer> = decode_answer(&again).ok();
        assert_eq!(same, Some(answer));
    }
}

/// A head is never taken back when more arrives, unless it grows too long.
fn head(bytes: &[u8]) {
    let mut known = Head::Unfinished;
    for count in 0..=bytes.len().min(1 << 10) {
        let now = within(0, || Head::of(&bytes[..count]));
        assert!(known == Head::Unfinished || now == known);
        known = now;
    }
}

fn segments(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(listed) = within(bytes_max(bytes), || parse_list(text)) {
        let again: String = listed.iter().map(|number| format!("{number}\n")).collect();
        assert_eq!(parse_list(&again), Some(listed));
    }
}

/// One of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let client = ToServer::Client { handle: 7, address: [127, 0, 0, 1].into(), port: 9 };
    let to_supervisor = [
        ToSupervisor::Started,
        ToSupervisor::Serving { view: 7 },
        ToSupervisor::Formed { view: 7, members: 3, primary: 0 },
        ToSupervisor::Remark { text: "a \u{e9} line".into() },
    ];
    let status = r#"{"status":{"pid":1,"role":"primary","state":"normal","promised":"0.1.7.a","formed":"0.1.7.a",
        "formed_number":1792,"members":3,"primary":0,"fp":5,"cp":5,"ap":5,"lb":4,"glb":4,"lease_left_ms":100,
        "serving":true,"log_bytes":77,"durability":"disk",
        "damaged":1,"lost":0,"mended":2,"last_mended":null}}"#;
    let json = |message: &ToSupervisor| serde_json::to_vec(message).expect("can be encoded");
    let mut seeds: Vec<(u8, Vec<u8>)> = vec![
        (0, serde_json::to_vec(&client).expect("can be encoded")),
        (2, b"\"status\"\n{\"digest\":7}\n\"verify\"".to_vec()),
        (3, status.replace('\n', "").into_bytes()),
        (3, br#"{"digest":{"Ok":"00ff"}}"#.to_vec()),
        (3, br#"{"barrier":null}"#.to_vec()),
        (4, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        (5, b"0\n1\n17\n".to_vec()),
    ];
    seeds.extend(to_supervisor.iter().map(|message| (1, json(message))));
    seeds.into_iter().map(|(which, bytes)| [&[which], &bytes[..]].concat()).collect()
}
