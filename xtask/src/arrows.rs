//! Arrows: which crate of the workspace may depend on which.
//! Owns: the list of allowed arrows.
//! Never: looks at crates from outside the workspace.
//! Invariant: an arrow that is not in the list fails the lint, for tests and build scripts too.
//! Source: ARCHITECTURE.md; a crate exists to forbid a dependency.

use std::fmt;

use crate::workspace::Workspace;

/// Every crate with all that it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("harp-vr", &[]),
    ("harp-fs", &[]),
    ("harp-log", &[]),
    ("harp-store", &[]),
    ("harp-wire", &["harp-fs"]),
    ("harp-engine", &["harp-store"]),
    ("harp-node", &["harp-vr", "harp-fs", "harp-wire", "harp-log", "harp-store"]),
    ("harp-bench", &["harp-wire"]),
    ("harp-model", &["harp-vr"]),
    ("harp-sim", &["harp-node"]),
    ("harp", &["harp-node", "harp-engine", "harp-bench"]),
    ("harp-fuzz", &["harp", "harp-node"]),
    ("xtask", &["harp-bench"]),
];

/// What is wrong with the crates' dependencies.
#[derive(Debug, PartialEq, Eq)]
pub enum ArrowError {
    /// A crate depends on one that it must not know.
    Forbidden {
        /// The crate that depends.
        from: String,
        /// The crate depended on.
        to: String,
    },
    /// A crate has no line in the list.
    Unknown(String),
}

impl fmt::Display for ArrowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArrowError::Forbidden { from, to } => write!(f, "forbidden arrow: {from} -> {to}"),
            ArrowError::Unknown(name) => write!(f, "crate without a line of arrows: {name}"),
        }
    }
}

/// All violations, in the order of the crates.
pub fn violations(workspace: &Workspace) -> Vec<ArrowError> {
    let mut found = Vec::new();
    for package in &workspace.packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            found.push(ArrowError::Unknown(package.name.clone()));
            continue;
        };
        // A dependency on itself lets a crate's own tests switch a feature on; it is no arrow.
        let inside = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some() && dependency.name != package.name);
        for dependency in inside {
            if !allowed.contains(&dependency.name.as_str()) {
                let (from, to) = (package.name.clone(), dependency.name.clone());
                found.push(ArrowError::Forbidden { from, to });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{ArrowError, violations};
    use crate::workspace::Workspace;

    fn workspace(packages: &str) -> Workspace {
        let json = format!(
            r#"{{"workspace_root":"/r","target_directory":"/r/target","packages":[{packages}]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn an_arrow_outside_the_list_is_named() {
        let seen = violations(&workspace(
            r#"{"name":"harp-vr","dependencies":[{"name":"harp-fs","path":"/r/crates/fs"}]},
               {"name":"harp-wire","dependencies":[{"name":"harp-fs","path":"/r/crates/fs"},
                                                   {"name":"harp-log","path":null}]},
               {"name":"harp-new","dependencies":[]}"#,
        ));
        let forbidden = ArrowError::Forbidden { from: "harp-vr".into(), to: "harp-fs".into() };
        assert_eq!(seen, [forbidden, ArrowError::Unknown("harp-new".into())]);
    }
}
