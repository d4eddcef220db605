//! What an operator gets wrong is told in one line, and nothing is touched.

use std::net::TcpListener;

use crate::deployment::{Deployment, NAMES, fails, run};

#[test]
fn init_refuses_what_makes_no_group_and_overwrites_nothing() {
    let group = Deployment::init("serve-init", &[]);
    let before = std::fs::read(&group.config).expect("reads");
    let dir = group.dir.to_str().expect("a plain path");
    let init = |words: &[&str]| fails(&[&["init", "--dir", dir][..], words].concat());
    let three = ["--server", "a=127.0.0.1", "--server", "b=127.0.0.2", "--server", "c=127.0.0.3"];
    assert!(init(&three).contains("exists"));
    assert_eq!(std::fs::read(&group.config).expect("reads"), before);

    assert!(init(&three[..4]).contains("--server c=ADDRESS"));
    assert!(init(&[&three[..], &["--server", "a=127.0.0.4"]].concat()).contains("two servers a"));
    assert!(init(&[&three[..], &["--server", "d=127.0.0.4"]].concat()).contains("no server \"d\""));
    assert!(init(&["--server", "a=host"]).contains("a=10.1.0.1"));
    assert!(init(&["--allow", "10.1.2.3/8"]).contains("10.0.0.0/8"));
    assert!(init(&["--squash", "some"]).contains("root, all or none"));
    let beyond = ["--server", "a=10.0.0.1", "--server", "b=10.0.0.2", "--server", "c=10.0.0.3"];
    assert!(init(&beyond).contains("--allow NETWORK"));
    let same = ["--server", "a=127.0.0.1", "--server", "b=127.0.0.1", "--server", "c=127.0.0.1"];
    assert!(
        fails(&[&["init", "--dir", "/nowhere/x"][..], &same].concat()).contains("server.b.peer")
    );
    assert!(!std::path::Path::new("/nowhere").exists());
}

#[test]
fn a_server_that_cannot_start_says_why_and_what_to_do() {
    let mut group = Deployment::init("serve-faults", &[]);
    NAMES.iter().for_each(|name| group.format(name));

    let taken = TcpListener::bind(group.nfs(0)).expect("binds");
    let said = group.serve_fails("a", &[]);
    let port = group.nfs(0).port().to_string();
    assert!(said.contains(&port) && said.contains("server.a.nfs"), "{said}");
    drop(taken);
    assert!(group.serve_fails("d", &[]).contains("no server \"d\""));
    group.start_server(0);
    group.await_what("its lock", |group| group.roles()[0] != "down");
    assert!(group.serve_fails("a", &[]).contains("in use by another process"));
    // The group's supervisor is for local groups.
    let up = fails(&["up", "--dir", group.dir.to_str().expect("a plain path")]);
    assert!(up.contains("harp serve"), "{up}");

    let text = std::fs::read_to_string(&group.config).expect("reads");
    for (right, wrong, key) in [
        ("[settings]", "[settings]\ncolour = 3", "settings.colour"),
        ("nfs = \"127.0.0.2", "nfs = \"127.0.0.256", "server.b.nfs"),
        ("nfs = \"127.0.0.2", "nfs = \"127.0.0.1", "server.b.nfs"),
        (&format!("nfs = \"127.0.0.2:{port}"), "nfs = \"127.0.0.2:1", "server.b.nfs"),
        ("[server.b]", "[server.a]", "server.a"),
        ("allow = [", "allow = [\"10.0.0.0/33\", ", "export.allow"),
        ("squash = \"none\"", "squash = \"most\"", "export.squash"),
    ] {
        std::fs::write(&group.config, text.replacen(right, wrong, 1)).expect("writes");
        let said = group.serve_fails("b", &[]);
        assert!(said.contains(key) && said.contains("harp.toml:"), "{wrong}: {said}");
    }
    // Of another group: its identity is another one.
    let id = text.lines().find(|line| line.starts_with("id = ")).expect("an identity");
    let other = format!("id = \"{}\"", "00".repeat(16));
    std::fs::write(&group.config, text.replace(id, &other)).expect("writes");
    let said = group.serve_fails("b", &[]);
    assert!(said.contains("belongs to another group") && said.contains(&"00".repeat(16)), "{said}");
    std::fs::write(&group.config, &text).expect("writes");

    // Keys for everybody to read.
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&group.config, permissions).expect("sets");
    };
    mode(0o644);
    assert!(group.serve_fails("b", &[]).contains("chmod 600"));
    mode(0o600);
    // Nothing was harmed.
    group.start_server(1);
    group.start_server(2);
    group.await_roles(&["primary", "backup", "witness"]);
}

#[test]
fn status_of_a_group_that_is_down_says_so() {
    let group = Deployment::init("serve-down", &[]);
    assert_eq!(group.roles(), ["down", "down", "down"]);
    let verify = ["status", "--config", &group.config];
    assert!(run(&verify).status.success());
}
