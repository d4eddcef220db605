//! Records applied again: nothing happens twice, and nothing that never happened happens.
//! Scenarios of the replicated server that rest on effects being values.

mod common;

use common::rng::Rng;
use common::{World, mode, root, user};
use harp_fs::inode::BLOCK_BYTES;
use harp_fs::request::{CreateHow, DirName, Request, Response, SetAttr, Status};

/// L18. A write is denied, then permission is given, then the log is replayed. The write leaves no
/// record, so it never happens.
#[test]
fn replay_after_denied_write_and_later_grant_never_writes() {
    let mut world = World::new();
    let top = world.root();
    let file = world.create(&root(), &top, b"file", 0o600);
    let data = b"not allowed";
    let write = Request::Write { handle: &file, offset: 0, count: 11, stable: 2, data: &data[..] };
    let reply = world.call(&user(7), &write);
    assert_eq!(common::status(&reply.response), Status::Access);
    assert!(reply.failed_modification && !reply.recorded);

    let grant = Request::SetAttr { handle: &file, set: mode(0o666), guard: None };
    assert!(world.call(&root(), &grant).recorded);
    for _ in 0..2 {
        world.replay_primary_from(1);
        assert_eq!(world.attributes(&file).expect("alive").size, 0);
    }
    world.settle();
    assert_eq!(world.read(&root(), &file, 0, 100), b"");
}

/// L19. Create B, create A, remove A, create A, remove B; the last three again. A keeps the place
/// in the directory that it got, whichever way the image came to be.
#[test]
fn replay_of_a_suffix_keeps_directory_places() {
    let mut world = World::new();
    let top = world.root();
    world.create(&root(), &top, b"B", 0o644);
    world.create(&root(), &top, b"A", 0o644);
    let checkpointed = world.fp();
    world.primary.freeze();
    world.checkpoint_primary();
    assert_eq!(world.remove(&root(), &top, b"A"), Status::Ok);
    world.create(&root(), &top, b"A", 0o644);
    assert_eq!(world.remove(&root(), &top, b"B"), Status::Ok);
    let places = world.names(&top, 4096);
    assert_eq!(places.len(), 1);
    assert_eq!((places[0].0.as_slice(), places[0].1), (&b"A"[..], 5));

    let once = world.settle().clone();
    for from in [checkpointed + 1, checkpointed + 2, checkpointed + 3, 1] {
        for _ in 0..2 {
            world.replay_primary_from(from);
            assert_eq!(world.names(&top, 4096), places);
            assert!(*world.settle() == once, "replayed from {from}");
        }
    }
}

/// L20. An append is applied, the server crashes before its checkpoint, the log is replayed three
/// times. The file holds the bytes once.
#[test]
fn replay_of_an_append_appends_once() {
    let mut world = World::new();
    let top = world.root();
    let file = world.create(&root(), &top, b"file", 0o644);
    assert_eq!(world.write(&root(), &file, 0, b"first,"), Status::Ok);
    world.primary.freeze();
    world.checkpoint_primary();
    assert_eq!(world.write(&root(), &file, 6, b"second"), Status::Ok);
    for _ in 0..3 {
        let from = world.primary.image.op + 1;
        world.replay_primary_from(from);
        assert_eq!(world.read(&root(), &file, 0, 100), b"first,second");
    }
    let once = world.settle().clone();
    for _ in 0..3 {
        world.replay_primary_from(2);
        assert!(*world.settle() == once);
    }
    assert_eq!(world.attributes(&file).expect("alive").size, 12);
}

/// Every suffix of a busy log, applied again over the image at its end, gives the same bytes.
#[test]
fn replay_of_any_suffix_gives_identical_images() {
    let mut world = World::new();
    let top = world.root();
    let mut rng = Rng(5);
    let dirs: Vec<_> =
        (0..3).map(|i| world.mkdir(&root(), &top, &[b'd', b'0' + i], 0o755)).collect();
    for step in 0..120u64 {
        busy_step(&mut world, &mut rng, &dirs, step);
        if step % 31 == 30 {
            world.primary.freeze();
            world.checkpoint_primary();
        }
        if step % 47 == 46 {
            world.backup.freeze();
            world.checkpoint_backup();
        }
    }
    let once = world.settle().clone();
    for from in 1..=world.fp() {
        world.replay_primary_from(from);
        assert!(*world.settle() == once, "replayed from {from}");
    }
}

fn busy_step(world: &mut World, rng: &mut Rng, dirs: &[Vec<u8>], step: u64) {
    let name = [b'a' + rng.below(5) as u8];
    let dir = rng.pick(dirs).clone();
    let found = world.lookup(&root(), &dir, &name);
    match (found, rng.below(4)) {
        (Err(_), _) => drop(world.create(&root(), &dir, &name, 0o644)),
        (Ok(_), 0) => drop(world.remove(&root(), &dir, &name)),
        (Ok(_), 1) => {
            let to_dir: &Vec<u8> = rng.pick(dirs);
            let to = DirName { dir: to_dir, name: &[b'a' + rng.below(5) as u8] };
            let from = DirName { dir: &dir, name: &name };
            world.call(&root(), &Request::Rename { from, to });
        }
        (Ok(file), 2) => {
            let set = SetAttr { size: Some(rng.below(20_000)), ..SetAttr::default() };
            world.call(&root(), &Request::SetAttr { handle: &file, set, guard: None });
        }
        (Ok(file), _) => {
            let len = *rng.pick(&[1, 100, 4096, 9000]);
            let data = vec![step as u8; len];
            world.write(&root(), &file, rng.below(12_000), &data);
        }
    }
}

/// The image tells everything: a copy that starts from it answers as the one that made it.
#[test]
fn restart_from_the_image_alone_reads_everything_back() {
    let mut world = World::new();
    let top = world.root();
    let dir = world.mkdir(&root(), &top, b"dir", 0o755);
    let file = world.create(&root(), &dir, b"file", 0o640);
    let data: Vec<u8> = (0..3 * BLOCK_BYTES + 17).map(|at| (at % 251) as u8).collect();
    assert_eq!(world.write(&root(), &file, 100, &data), Status::Ok);
    let attributes = world.attributes(&file);
    world.settle();
    let end = world.fp();
    world.replay_primary_from(end + 1);
    let fetches = world.fetches;
    assert_eq!(world.lookup(&root(), &dir, b"file"), Ok(file.clone()));
    assert_eq!(world.attributes(&file), attributes);
    assert_eq!(world.read(&root(), &file, 100, 1 << 20), data);
    assert_eq!(world.read(&root(), &file, 0, 100), [0; 100]);
    assert!(world.fetches > fetches, "nothing was in memory");
}

/// An exclusive create is repeated after a restart: the verifier is part of the state.
#[test]
fn exclusive_create_repeated_after_restart_is_the_same_file() {
    let mut world = World::new();
    let top = world.root();
    let top = world.mkdir(&root(), &top, b"open to all", 0o777);
    let how = CreateHow::Exclusive(*b"verifier");
    let request = Request::Create { what: DirName { dir: &top, name: b"once" }, how };
    let first = common::made(world.call(&user(3), &request));
    world.settle();
    let end = world.fp();
    world.replay_primary_from(end + 1);
    let again = world.call(&user(3), &request);
    assert!(again.recorded, "as any success");
    let Response::Create { status: Status::Ok, ok: Some(handle), .. } = again.response else {
        panic!("the same create succeeds again");
    };
    assert_eq!(handle.as_slice(), first);
    let how = CreateHow::Exclusive(*b"another!");
    let request = Request::Create { what: DirName { dir: &top, name: b"once" }, how };
    assert_eq!(common::status(&world.call(&user(3), &request).response), Status::Exist);
}
