//! Contract: the checks that every engine must pass, in memory and on disk alike.
//! Owns: one list of expectations, written once and run against each engine.
//! Never: knows which engine it checks.
//! Invariant: `check_engine` leaves entries behind that `check_reopened` looks for.
//! Source: docs/disk-format.md.

use crate::{Engine, Snapshot, StoreError, Table, Walk};

/// A key-value pair, copied.
type Pair = (Vec<u8>, Vec<u8>);

fn put(engine: &impl Engine, table: Table, pairs: &[(&[u8], &[u8])]) {
    let result = engine.commit(&mut |batch| {
        pairs.iter().try_for_each(|(key, value)| batch.put(table, key, value))
    });
    result.expect("the engine has room");
}

fn list(view: &impl Snapshot, table: Table, from: &[u8], limit: usize) -> Vec<Pair> {
    let mut found = Vec::new();
    view.scan(table, from, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        Ok(if found.len() < limit { Walk::On } else { Walk::Stop })
    })
    .expect("the scan works");
    found
}

/// Runs the contract's checks on a fresh, empty engine.
///
/// Panics where the engine breaks the contract.
pub fn check_engine(engine: &impl Engine) {
    let empty = engine.snapshot().expect("a view of nothing");
    assert_eq!(empty.get(Table::Meta, b"a").expect("reads"), None);
    assert_eq!(empty.seek(Table::Meta, b"").expect("seeks"), None);

    put(engine, Table::Meta, &[(b"a", b"1"), (b"b", b""), (b"c", &[7; 3000])]);
    put(engine, Table::Map, &[(b"a", b"other")]);
    // A view is of its own moment.
    assert!(list(&empty, Table::Meta, b"", 9).is_empty());
    drop(empty);

    let view = engine.snapshot().expect("a view");
    assert_eq!(view.get(Table::Meta, b"a").expect("reads"), Some(&b"1"[..]));
    assert_eq!(view.get(Table::Meta, b"b").expect("reads"), Some(&b""[..]));
    assert_eq!(view.get(Table::Meta, b"bb").expect("reads"), None);
    assert_eq!(view.get(Table::Map, b"a").expect("reads"), Some(&b"other"[..]));
    assert_eq!(view.seek(Table::Meta, b"aa").expect("seeks"), Some((&b"b"[..], &b""[..])));
    assert_eq!(view.seek(Table::Meta, b"d").expect("seeks"), None);
    assert_eq!(list(&view, Table::Meta, b"b", 9).len(), 2);
    assert_eq!(list(&view, Table::Meta, b"", 2).len(), 2);

    // Deleting, replacing, deleting what is not there.
    let result = engine.commit(&mut |batch| {
        batch.delete(Table::Meta, b"a")?;
        batch.put(Table::Meta, b"b", b"2")?;
        batch.delete(Table::Meta, b"zz")
    });
    result.expect("the engine has room");
    assert_eq!(view.get(Table::Meta, b"a").expect("reads"), Some(&b"1"[..]));
    drop(view);
    let view = engine.snapshot().expect("a view");
    assert_eq!(view.get(Table::Meta, b"a").expect("reads"), None);
    assert_eq!(view.get(Table::Meta, b"b").expect("reads"), Some(&b"2"[..]));
    drop(view);

    // A batch that fails leaves nothing behind.
    let failed = engine.commit(&mut |batch| {
        batch.put(Table::Meta, b"half", b"")?;
        Err(StoreError::Full { what: "a test" })
    });
    assert!(matches!(failed, Err(StoreError::Full { what: "a test" })));
    assert_eq!(engine.snapshot().expect("a view").get(Table::Meta, b"half").expect("reads"), None);

    check_clear_and_many(engine);
}

fn check_clear_and_many(engine: &impl Engine) {
    put(engine, Table::Cut, &[(b"x", b"1"), (b"y", b"2")]);
    let result = engine.commit(&mut |batch| {
        batch.clear(Table::Cut)?;
        batch.put(Table::Cut, b"z", b"3")
    });
    result.expect("the engine has room");
    let view = engine.snapshot().expect("a view");
    assert_eq!(list(&view, Table::Cut, b"", 9), [(b"z".to_vec(), b"3".to_vec())]);
    drop(view);

    // Many entries, in an order that is not sorted, come back sorted.
    let result = engine.commit(&mut |batch| {
        (0..2000u32).try_for_each(|i| {
            let key = (i.wrapping_mul(2_654_435_761)).to_be_bytes();
            batch.put(Table::Used, &key, &i.to_le_bytes())
        })
    });
    result.expect("the engine has room");
    let view = engine.snapshot().expect("a view");
    let all = list(&view, Table::Used, b"", usize::MAX);
    assert_eq!(all.len(), 2000);
    assert!(all.is_sorted());
    for (key, _) in &all {
        let found = view.seek(Table::Used, key).expect("seeks").expect("is there");
        assert_eq!(found.0, &key[..]);
    }
    drop(view);
    let result = engine.commit(&mut |batch| {
        all.iter().step_by(2).try_for_each(|(key, _)| batch.delete(Table::Used, key))
    });
    result.expect("the engine has room");
    let view = engine.snapshot().expect("a view");
    assert_eq!(list(&view, Table::Used, b"", usize::MAX).len(), 1000);
    assert!(engine.space().expect("knows its size").used_bytes > 0);
}

/// Checks that a reopened engine holds exactly what `check_engine` left.
///
/// Panics where it does not.
pub fn check_reopened(engine: &impl Engine) {
    let view = engine.snapshot().expect("a view");
    assert_eq!(
        list(&view, Table::Meta, b"", 9),
        [(b"b".to_vec(), b"2".to_vec()), (b"c".to_vec(), vec![7; 3000])]
    );
    assert_eq!(list(&view, Table::Map, b"", 9), [(b"a".to_vec(), b"other".to_vec())]);
    assert_eq!(list(&view, Table::Used, b"", usize::MAX).len(), 1000);
}
