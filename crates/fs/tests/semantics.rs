//! Cases of RFC 1813 and POSIX that random operations seldom meet, one story each.

mod common;

use common::model::Who;
use common::{World, made, mode, root, status, user};
use harp_fs::plan::Room;
use harp_fs::request::{
    CreateHow, DirName, FileType, Request, Response, SetAttr, SetTime, Status, Time,
};
use harp_fs::shadow::ShadowSettings;

fn call(world: &mut World, who: &Who, request: &Request<'_>) -> Status {
    status(&world.call(who, request).response)
}

fn rename(world: &mut World, who: &Who, from: (&[u8], &[u8]), to: (&[u8], &[u8])) -> Status {
    let from = DirName { dir: from.0, name: from.1 };
    let to = DirName { dir: to.0, name: to.1 };
    call(world, who, &Request::Rename { from, to })
}

fn set(world: &mut World, who: &Who, handle: &[u8], set: SetAttr) -> Status {
    call(world, who, &Request::SetAttr { handle, set, guard: None })
}

/// A world whose root anyone may write.
fn open_world() -> (World, Vec<u8>) {
    let mut world = World::new();
    let top = world.root();
    assert_eq!(set(&mut world, &root(), &top, mode(0o777)), Status::Ok);
    (world, top)
}

#[test]
fn handle_of_a_removed_file_is_stale_and_a_made_up_one_is_bad() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    assert_eq!(world.remove(&root(), &top, b"f"), Status::Ok);
    assert_eq!(world.attributes(&file), Err(Status::Stale));
    assert_eq!(world.attributes(&[0; 48]), Err(Status::BadHandle));
    assert_eq!(world.attributes(b""), Err(Status::BadHandle));
    let again = world.create(&root(), &top, b"f", 0o644);
    assert_ne!(again, file);
    assert_eq!(world.attributes(&file), Err(Status::Stale));
}

#[test]
fn names_that_cannot_be_are_refused() {
    let (mut world, top) = open_world();
    let long = [b'x'; 256];
    let cases: [(&[u8], Status); 6] = [
        (b"", Status::Access),
        (b".", Status::Exist),
        (b"..", Status::Exist),
        (b"a/b", Status::Inval),
        (b"a\0b", Status::Inval),
        (&long, Status::NameTooLong),
    ];
    for (name, expected) in cases {
        let what = DirName { dir: &top, name };
        let how = CreateHow::Unchecked(mode(0o644));
        assert_eq!(call(&mut world, &root(), &Request::Create { what, how }), expected);
    }
    world.create(&root(), &top, &long[..255], 0o644);
    assert_eq!(world.remove(&root(), &top, b"."), Status::Inval);
    let what = DirName { dir: &top, name: b".." };
    assert_eq!(call(&mut world, &root(), &Request::RmDir { what }), Status::Exist);
    assert_eq!(rename(&mut world, &root(), (&top, b".."), (&top, b"x")), Status::Inval);
}

#[test]
fn guard_with_another_ctime_is_not_in_sync() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    let ctime = world.attributes(&file).expect("alive").ctime;
    let old = Time { seconds: 1, nanos: 1 };
    let mut guarded = |guard| {
        let request = Request::SetAttr { handle: &file, set: mode(0o600), guard: Some(guard) };
        call(&mut world, &root(), &request)
    };
    assert_eq!(guarded(old), Status::NotSync);
    assert_eq!(guarded(ctime), Status::Ok);
    assert_eq!(guarded(ctime), Status::NotSync);
}

#[test]
fn client_times_that_are_no_times_are_refused() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    let bad = SetTime::ToClient(Time { seconds: 1, nanos: 1_000_000_000 });
    let bad = SetAttr { mtime: bad, ..SetAttr::default() };
    assert_eq!(set(&mut world, &root(), &file, bad), Status::Inval);
    let what = DirName { dir: &top, name: b"g" };
    assert_eq!(call(&mut world, &root(), &Request::MkDir { what, set: bad }), Status::Inval);
}

#[test]
fn owner_reads_and_writes_whatever_the_mode_and_access_says_no() {
    let (mut world, top) = open_world();
    let file = world.create(&user(5), &top, b"f", 0o000);
    assert_eq!(world.write(&user(5), &file, 0, b"mine"), Status::Ok);
    assert_eq!(world.read(&user(5), &file, 0, 10), b"mine");
    assert_eq!(world.write(&user(6), &file, 0, b"not"), Status::Access);
    let reply = world.call(&user(5), &Request::Access { handle: &file, want: 0x3f });
    assert!(matches!(reply.response, Response::Access { granted: 0, .. }));
    assert_eq!(set(&mut world, &root(), &file, mode(0o111)), Status::Ok);
    assert_eq!(world.read(&user(6), &file, 0, 10), b"mine", "execute permission lets read");
}

#[test]
fn writing_as_a_user_takes_set_id_bits_away() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o6777);
    assert_eq!(world.write(&root(), &file, 0, b"x"), Status::Ok);
    assert_eq!(world.attributes(&file).expect("alive").mode, 0o6777);
    assert_eq!(world.write(&user(9), &file, 0, b"x"), Status::Ok);
    assert_eq!(world.attributes(&file).expect("alive").mode, 0o777);
}

#[test]
fn set_gid_directory_hands_its_group_down() {
    let (mut world, top) = open_world();
    let dir = world.mkdir(&root(), &top, b"d", 0o777);
    let owner = SetAttr { gid: Some(50), mode: Some(0o2777), ..SetAttr::default() };
    assert_eq!(set(&mut world, &root(), &dir, owner), Status::Ok);
    let file = world.create(&user(9), &dir, b"f", 0o2775);
    let attributes = world.attributes(&file).expect("alive");
    assert_eq!((attributes.gid, attributes.mode), (50, 0o775));
    let below = world.mkdir(&user(9), &dir, b"below", 0o755);
    let attributes = world.attributes(&below).expect("alive");
    assert_eq!((attributes.gid, attributes.mode), (50, 0o2755));
}

#[test]
fn sticky_directory_keeps_strangers_from_removing() {
    let (mut world, top) = open_world();
    assert_eq!(set(&mut world, &root(), &top, mode(0o1777)), Status::Ok);
    world.create(&user(5), &top, b"f", 0o666);
    world.create(&user(6), &top, b"g", 0o666);
    assert_eq!(world.remove(&user(6), &top, b"f"), Status::Perm);
    assert_eq!(rename(&mut world, &user(6), (&top, b"g"), (&top, b"f")), Status::Perm);
    assert_eq!(world.remove(&user(5), &top, b"f"), Status::Ok);
}

#[test]
fn directory_never_moves_below_itself() {
    let (mut world, top) = open_world();
    let a = world.mkdir(&root(), &top, b"a", 0o755);
    let b = world.mkdir(&root(), &a, b"b", 0o755);
    let c = world.mkdir(&root(), &b, b"c", 0o755);
    for dir in [&a, &b, &c] {
        assert_eq!(rename(&mut world, &root(), (&top, b"a"), (dir, b"x")), Status::Inval);
    }
    assert_eq!(rename(&mut world, &root(), (&b, b"c"), (&top, b"a")), Status::NotEmpty);
    assert_eq!(rename(&mut world, &root(), (&b, b"c"), (&top, b"c")), Status::Ok);
    assert_eq!(rename(&mut world, &root(), (&top, b"a"), (&c, b"a")), Status::Ok);
    assert_eq!(world.lookup(&root(), &a, b".."), Ok(c.clone()));
    assert_eq!(world.attributes(&top).expect("alive").nlink, 3);
    assert_eq!(world.attributes(&c).expect("alive").nlink, 3);
}

#[test]
fn renaming_one_name_of_a_file_to_another_changes_nothing() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"one", 0o644);
    let to = DirName { dir: &top, name: b"two" };
    assert_eq!(call(&mut world, &root(), &Request::Link { handle: &file, to }), Status::Ok);
    let from = DirName { dir: &top, name: b"one" };
    let reply = world.call(&root(), &Request::Rename { from, to });
    assert!(reply.recorded, "a repeat is to find this reply");
    assert_eq!(world.names(&top, 4096).len(), 2);
    assert_eq!(world.attributes(&file).expect("alive").nlink, 2);
    assert_eq!(world.remove(&root(), &top, b"one"), Status::Ok);
    assert_eq!(world.attributes(&file).expect("alive").nlink, 1);
}

#[test]
fn what_is_not_there_is_said_before_what_may_not_be_changed() {
    let (mut world, top) = open_world();
    let dir = world.mkdir(&root(), &top, b"dir", 0o755);
    world.create(&root(), &dir, b"there", 0o666);
    let ann = user(1000);
    assert_eq!(world.remove(&ann, &dir, b"missing"), Status::NoEnt);
    assert_eq!(rename(&mut world, &ann, (&dir, b"missing"), (&dir, b"x")), Status::NoEnt);
    assert_eq!(world.remove(&ann, &dir, b"there"), Status::Access);
    assert_eq!(rename(&mut world, &ann, (&dir, b"there"), (&dir, b"there")), Status::Ok);
    assert_eq!(set(&mut world, &root(), &dir, mode(0o700)), Status::Ok);
    assert_eq!(world.remove(&ann, &dir, b"missing"), Status::Access);
    assert_eq!(
        world.remove(&ann, &dir, b"."),
        Status::Access,
        "a name matters where one may search"
    );
}

#[test]
fn nothing_is_put_over_a_directory_that_leads_to_it() {
    let (mut world, top) = open_world();
    let outer = world.mkdir(&root(), &top, b"outer", 0o755);
    let inner = world.mkdir(&root(), &outer, b"inner", 0o755);
    world.create(&root(), &inner, b"file", 0o644);
    let ann = user(1000);
    for who in [root(), ann] {
        let over = rename(&mut world, &who, (&inner, b"file"), (&top, b"outer"));
        assert_eq!(over, Status::NotEmpty, "whoever asks and whatever it is");
    }
}

#[test]
fn strangers_to_its_group_take_set_gid_off_a_file_that_they_write() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o2666);
    let mode_after = |world: &mut World, who: &Who| {
        let request = Request::Write { handle: &file, offset: 0, count: 1, stable: 2, data: b"x" };
        assert_eq!(call(world, who, &request), Status::Ok);
        world.attributes(&file).expect("alive").mode
    };
    let member = Who { groups: vec![0], ..user(1000) };
    assert_eq!(mode_after(&mut world, &member), 0o2666);
    assert_eq!(mode_after(&mut world, &user(1000)), 0o666);
}

#[test]
fn a_directory_is_made_without_set_id_bits_of_its_own() {
    let (mut world, top) = open_world();
    let dir = world.mkdir(&root(), &top, b"d", 0o7777);
    assert_eq!(world.attributes(&dir).expect("alive").mode, 0o1777);
    assert_eq!(set(&mut world, &root(), &dir, mode(0o2777)), Status::Ok);
    let below = world.mkdir(&root(), &dir, b"d", 0o755);
    assert_eq!(world.attributes(&below).expect("alive").mode, 0o2755, "from its parent");
}

#[test]
fn holes_use_no_space_and_cuts_give_it_back() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    assert_eq!(world.write(&root(), &file, 1 << 40, b"far away"), Status::Ok);
    let used = |world: &mut World| world.attributes(&file).expect("alive").used;
    assert_eq!(used(&mut world), 4096);
    assert_eq!(world.read(&root(), &file, 1 << 20, 5), [0; 5]);
    assert_eq!(world.write(&root(), &file, 4096, &[1; 8192]), Status::Ok);
    assert_eq!(used(&mut world), 3 * 4096);
    assert_eq!(world.write(&root(), &file, 4096, &[2; 8192]), Status::Ok);
    assert_eq!(used(&mut world), 3 * 4096);
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    assert_eq!(set(&mut world, &root(), &file, size(5000)), Status::Ok);
    assert_eq!(set(&mut world, &root(), &file, size(9000)), Status::Ok);
    let mut expected = vec![0; 9000];
    expected[4096..5000].fill(2);
    assert_eq!(world.read(&root(), &file, 0, 9000), expected);
    assert_eq!(set(&mut world, &root(), &file, size(0)), Status::Ok);
    assert_eq!(used(&mut world), 0);
    world.settle();
}

#[test]
fn full_volume_refuses_writes_and_allows_removes() {
    let mut world = World::with(common::SETTINGS, 10);
    let top = world.root();
    let file = world.create(&root(), &top, b"f", 0o644);
    let other = world.create(&root(), &top, b"g", 0o644);
    assert_eq!(world.write(&root(), &file, 0, &[1; 8 * 4096]), Status::Ok);
    assert_eq!(world.write(&root(), &other, 0, &[1; 3 * 4096]), Status::NoSpc);
    assert_eq!(world.write(&root(), &other, 0, &[1; 4097]), Status::Ok);
    assert_eq!(world.write(&root(), &file, 0, &[2; 8 * 4096]), Status::Ok, "in place");
    assert_eq!(world.write(&root(), &file, 8 * 4096, b"x"), Status::NoSpc);
    assert_eq!(world.remove(&root(), &top, b"f"), Status::Ok);
    assert_eq!(world.write(&root(), &other, 8192, &[1; 8 * 4096]), Status::Ok);
    let reply = world.call(&root(), &Request::FsStat { handle: &top }).response;
    let Response::FsStat { ok: Some(stat), .. } = reply else { panic!() };
    assert_eq!((stat.total_bytes, stat.free_bytes), (40_960, 0));
}

/// What needs space is refused when the group has none, whatever the volume may hold; the rest goes on.
#[test]
fn full_group_refuses_what_needs_space_and_allows_the_rest() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    assert_eq!(world.write(&root(), &file, 0, &[1; 8192]), Status::Ok);
    world.room = Room { blocks: 2, free_blocks: 5, grows: true };
    assert_eq!(world.write(&root(), &file, 0, &[2; 8192]), Status::Ok);
    assert_eq!(
        world.write(&root(), &file, 1, &[2; 8192]),
        Status::NoSpc,
        "a third block is touched"
    );
    let reply = world.call(&root(), &Request::FsStat { handle: &top }).response;
    let Response::FsStat { ok: Some(stat), .. } = reply else { panic!() };
    assert_eq!(stat.free_bytes, 5 * 4096);

    world.room = Room { grows: false, ..Room::ENDLESS };
    let made = |name| DirName { dir: &top, name };
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let how = CreateHow::Guarded(SetAttr::default());
    let refused = [
        Request::Create { what: made(b"g"), how },
        Request::MkDir { what: made(b"g"), set: SetAttr::default() },
        Request::SymLink { what: made(b"g"), set: SetAttr::default(), target: b"f" },
        Request::Link { handle: &file, to: made(b"g") },
        Request::SetAttr { handle: &file, set: size(8193), guard: None },
        Request::Write { handle: &file, offset: 0, count: 1, stable: 2, data: b"x" },
    ];
    for request in &refused {
        assert_eq!(call(&mut world, &root(), request), Status::NoSpc, "{request:?}");
    }
    let how = CreateHow::Guarded(SetAttr::default());
    let exists = Request::Create { what: made(b"f"), how };
    assert_eq!(call(&mut world, &root(), &exists), Status::Exist, "other failures come first");
    assert_eq!(set(&mut world, &root(), &file, mode(0o600)), Status::Ok);
    assert_eq!(set(&mut world, &root(), &file, size(100)), Status::Ok);
    // A rename gives back what it takes.
    let moved = Request::Rename { from: made(b"f"), to: made(b"g") };
    assert_eq!(call(&mut world, &root(), &moved), Status::Ok);
    assert_eq!(world.remove(&root(), &top, b"g"), Status::Ok);
    world.settle();
}

#[test]
fn sizes_beyond_the_largest_are_too_big() {
    let (mut world, top) = open_world();
    let file = world.create(&root(), &top, b"f", 0o644);
    let last = i64::MAX as u64;
    assert_eq!(world.write(&root(), &file, last, b"x"), Status::FBig);
    assert_eq!(world.write(&root(), &file, u64::MAX, b"x"), Status::FBig);
    assert_eq!(world.write(&root(), &file, last - 1, b"x"), Status::Ok);
    assert_eq!(world.read(&root(), &file, last - 3, 10), b"\0\0x");
    let size = SetAttr { size: Some(last + 1), ..SetAttr::default() };
    assert_eq!(set(&mut world, &root(), &file, size), Status::FBig);
    assert_eq!(world.read(&root(), &file, u64::MAX, 10), b"");
}

#[test]
fn special_files_are_roots_to_make_and_links_read_back() {
    let (mut world, top) = open_world();
    let device = (8, 1);
    let mut make = |who: &Who, kind, name| {
        let what = DirName { dir: &top, name };
        world.call(who, &Request::MkNod { what, kind, set: mode(0o600), device })
    };
    assert_eq!(status(&make(&user(5), FileType::Block, b"b").response), Status::Perm);
    assert_eq!(status(&make(&root(), FileType::Regular, b"r").response), Status::BadType);
    let fifo = made(make(&user(5), FileType::Fifo, b"p"));
    let block = made(make(&root(), FileType::Block, b"b"));
    assert_eq!(world.attributes(&block).expect("alive").device, device);
    assert_eq!(world.attributes(&fifo).expect("alive").device, (0, 0));
    assert_eq!(world.write(&root(), &fifo, 0, b"x"), Status::Inval);
    let what = DirName { dir: &top, name: b"l" };
    let long = [b'x'; 4096];
    let request = Request::SymLink { what, set: mode(0), target: &long };
    assert_eq!(call(&mut world, &root(), &request), Status::NameTooLong);
    let request = Request::SymLink { what, set: mode(0), target: b"/some/where" };
    let link = made(world.call(&user(5), &request));
    let reply = world.call(&user(6), &Request::ReadLink { handle: &link }).response;
    assert!(matches!(reply, Response::ReadLink { ref target, .. } if target == b"/some/where"));
    assert_eq!(call(&mut world, &root(), &Request::ReadLink { handle: &fifo }), Status::Inval);
}

#[test]
fn listing_in_pieces_misses_and_repeats_nothing_that_stays() {
    let (mut world, top) = open_world();
    for i in 0..300u32 {
        world.create(&root(), &top, format!("stays-{i}").as_bytes(), 0o644);
        world.create(&root(), &top, format!("goes-{i}").as_bytes(), 0o644);
        if i % 100 == 99 {
            world.primary.freeze();
            world.checkpoint_primary();
        }
    }
    let (mut cookie, mut seen, mut round) = (0, Vec::new(), 0);
    loop {
        let request = Request::ReadDir { handle: &top, cookie, verifier: [0; 8], count: 1000 };
        let reply = world.call(&root(), &request).response;
        let Response::ReadDir { listing, .. } = reply else { panic!() };
        for entry in &listing.entries {
            cookie = entry.cookie;
            seen.push(listing.names[entry.name.clone()].to_vec());
        }
        if listing.end {
            break;
        }
        world.remove(&root(), &top, format!("goes-{round}").as_bytes());
        world.remove(&root(), &top, format!("goes-{}", 299 - round).as_bytes());
        world.create(&root(), &top, format!("new-{round}").as_bytes(), 0o644);
        if round % 5 == 0 {
            world.primary.freeze();
            world.checkpoint_primary();
            world.drain(7);
        }
        round += 1;
    }
    let stays: Vec<_> = seen.iter().filter(|name| name.starts_with(b"stays")).collect();
    assert_eq!(stays.len(), 300);
    seen.sort();
    assert!(seen.is_sorted_by(|a, b| a != b), "no name twice");
}

#[test]
fn listing_gets_past_a_removed_front_that_is_larger_than_the_cache() {
    // More entries than pages have room for, all in the image; then all but the last are removed,
    // and no checkpoint has told the image.
    const ENTRIES: usize = 120_000;
    let settings = ShadowSettings { cache_bytes: 0, ..common::SETTINGS };
    let mut world = World::with(settings, common::CAPACITY_BLOCKS);
    let top = world.root();
    for number in 0..ENTRIES {
        world.create(&root(), &top, format!("{number}").as_bytes(), 0o644);
    }
    world.primary.freeze();
    world.checkpoint_primary();
    world.drain(usize::MAX);
    for number in 0..ENTRIES - 1 {
        assert_eq!(world.remove(&root(), &top, format!("{number}").as_bytes()), Status::Ok);
    }
    world.primary.shadow.forget_clean();
    let fetches = world.fetches;
    let list = Request::ReadDir { handle: &top, cookie: 2, verifier: [0; 8], count: 4096 };
    let Response::ReadDir { listing, .. } = world.call(&root(), &list).response else {
        panic!("a listing");
    };
    assert_eq!((listing.entries.len(), listing.end), (1, true));
    assert_eq!(listing.names, format!("{}", ENTRIES - 1).as_bytes());
    let pages = world.fetches - fetches;
    assert!(pages < 50, "{pages} fetches, each of thousands of entries");
}

#[test]
fn reply_too_small_for_an_entry_says_so() {
    let (mut world, top) = open_world();
    let request = Request::ReadDir { handle: &top, cookie: 0, verifier: [0; 8], count: 100 };
    assert_eq!(call(&mut world, &root(), &request), Status::TooSmall);
    let request = Request::ReadDir { handle: &top, cookie: 2, verifier: [0; 8], count: 100 };
    assert_eq!(call(&mut world, &root(), &request), Status::Ok, "an empty rest always fits");
}

#[test]
fn answers_show_the_op_they_depend_on() {
    let (mut world, top) = open_world();
    let old = world.create(&root(), &top, b"old", 0o644);
    world.settle();
    let new = world.create(&root(), &top, b"new", 0o644);
    let op = world.fp();
    assert_eq!(world.call(&root(), &Request::GetAttr { handle: &new }).shows, op);
    assert_eq!(world.call(&root(), &Request::GetAttr { handle: &top }).shows, op);
    assert!(world.call(&root(), &Request::GetAttr { handle: &old }).shows < op);
    assert_eq!(world.remove(&root(), &top, b"new"), Status::Ok);
    let what = DirName { dir: &top, name: b"new" };
    assert_eq!(world.call(&root(), &Request::Lookup { what }).shows, op + 1);
    assert_eq!(world.call(&root(), &Request::GetAttr { handle: &new }).shows, op + 1);
}
