//! Who may use the export, and as whom.
//! Owns: the allowed networks, and what becomes of a caller's user and groups.
//! Never: judges a file's permissions; that is planning's, with the credential made here.
//! Invariant: a client outside of the networks gets no handle and no answer about a file.
//! Source: docs/operations.md, "Who may connect"; RFC 1813, section 4.4, for the reasons.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use harp_fs::request::Credential;
use harp_wire::rpc::{Auth, GROUPS_MAX, NOBODY};

/// A network of clients: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text names no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkError {
    /// Neither an address nor an address with a prefix.
    Form,
    /// The address has bits that the prefix leaves out.
    Beyond {
        /// The network that was probably meant.
        meant: Network,
    },
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkError::Form => {
                write!(f, "must be a network like 10.1.0.0/16 or fd00::/8, or an address")
            }
            NetworkError::Beyond { meant } => {
                write!(f, "has bits beyond its prefix: the network is {meant}")
            }
        }
    }
}

impl std::error::Error for NetworkError {}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An address as a number, its first bit the highest of 128.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A number with its first `prefix` bits set.
fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Network {
    /// Addresses that only this machine's programs have.
    pub const LOOPBACK: [Network; 2] = [
        Network { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix: 8 },
        Network { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
    ];

    /// Whether an address lies in it. An IPv4 address within an IPv6 one counts as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && (number(address) ^ number(self.address)) & mask(self.prefix) == 0
    }

    /// Whether only this machine's programs have addresses in it.
    pub fn is_loopback(&self) -> bool {
        let within = |outer: &Network| outer.prefix <= self.prefix && outer.contains(self.address);
        Network::LOOPBACK.iter().any(within)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Form)?;
        let prefix = match prefix {
            None => bits_of(address),
            Some(prefix) => prefix.parse().map_err(|_| NetworkError::Form)?,
        };
        if prefix > bits_of(address) {
            return Err(NetworkError::Form);
        }
        let kept = number(address) & mask(prefix);
        if kept != number(address) {
            let address = match address {
                IpAddr::V4(_) => Ipv4Addr::from_bits((kept >> 96) as u32).into(),
                IpAddr::V6(_) => Ipv6Addr::from_bits(kept).into(),
            };
            return Err(NetworkError::Beyond { meant: Network { address, prefix } });
        }
        Ok(Network { address, prefix })
    }
}

/// Whose word about himself is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// Nobody's: a client's root is root.
    None,
    /// Root's: he becomes the anonymous user, and root's group the anonymous group.
    Root,
    /// Everybody's: all are the anonymous user.
    All,
}

/// Whose word counts on which groups a user is in besides the one that he acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSource {
    /// His client's, which can name sixteen.
    Client,
    /// The user database's of the server that is primary.
    Server,
}

/// How the file system is given to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The networks whose clients may use it.
    pub allow: Vec<Network>,
    /// Whose word about himself is not taken.
    pub squash: Squash,
    /// The user of those who are squashed, or say nothing about themselves.
    pub anonymous_uid: u32,
    /// Their group.
    pub anonymous_gid: u32,
    /// Whose word counts on a user's groups.
    pub groups: GroupSource,
}

impl Default for Export {
    /// For this machine's programs, each of which is who he says he is.
    fn default() -> Export {
        Export {
            allow: Network::LOOPBACK.to_vec(),
            squash: Squash::None,
            anonymous_uid: NOBODY,
            anonymous_gid: NOBODY,
            groups: GroupSource::Client,
        }
    }
}

/// A caller's groups after squashing, as on the wire.
pub(crate) type Groups = [u8; 4 * GROUPS_MAX];

impl Export {
    /// Whether a client at that address may use the export.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.allow.iter().any(|network| network.contains(address))
    }

    /// Whether clients of other machines may use it.
    pub fn is_beyond_loopback(&self) -> bool {
        !self.allow.iter().all(Network::is_loopback)
    }

    /// The user whose groups the server's user database is to say before this call is judged, if it is: not the
    /// anonymous user, whom the database knows nothing about, nor root, whose groups decide nothing.
    pub(crate) fn looks_up(&self, auth: &Auth<'_>) -> Option<u32> {
        match *auth {
            Auth::Sys(Credential { uid, .. }) => {
                let asks = self.groups == GroupSource::Server && self.squash != Squash::All;
                (asks && uid != 0).then_some(uid)
            }
            Auth::None => None,
        }
    }

    /// A group of a caller's as it counts.
    pub(crate) fn group_squashed(&self, gid: u32) -> u32 {
        if gid == 0 && self.squash == Squash::Root { self.anonymous_gid } else { gid }
    }

    /// The credential to judge a call by, with the groups that the server's user database gives its user (squashed)
    /// if it does; `groups` holds the client's if they had to be changed.
    pub(crate) fn credential<'a>(
        &self,
        auth: &Auth<'a>,
        looked_up: Option<&'a [u8]>,
        groups: &'a mut Groups,
    ) -> Credential<'a> {
        let anonymous =
            Credential { uid: self.anonymous_uid, gid: self.anonymous_gid, groups_be: &[] };
        let Auth::Sys(credential) = *auth else { return anonymous };
        if let Some(groups_be) = looked_up {
            // Whoever is squashed is not looked up.
            let gid = self.group_squashed(credential.gid);
            return Credential { gid, groups_be, ..credential };
        }
        match self.squash {
            Squash::None => credential,
            Squash::All => anonymous,
            Squash::Root => self.without_root(credential, groups),
        }
    }

    fn without_root<'a>(&self, said: Credential<'a>, groups: &'a mut Groups) -> Credential<'a> {
        let uid = if said.uid == 0 { self.anonymous_uid } else { said.uid };
        let gid = self.group_squashed(said.gid);
        let of_root = |group: &[u8]| *group == [0; 4];
        if !said.groups_be.chunks_exact(4).any(of_root) {
            return Credential { uid, gid, ..said };
        }
        let groups = &mut groups[..said.groups_be.len()];
        groups.copy_from_slice(said.groups_be);
        for group in groups.chunks_exact_mut(4) {
            if of_root(group) {
                group.copy_from_slice(&self.anonymous_gid.to_be_bytes());
            }
        }
        Credential { uid, gid, groups_be: groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        for (text, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.1", "10.2.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/32", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("0.0.0.0/0", "255.255.255.255", "fd00::1"),
            ("fd00::/8", "fdff::1", "fe00::"),
            ("::/0", "2001:db8::1", "10.1.2.3"),
        ] {
            assert!(network(text).contains(address(inside)), "{inside} in {text}");
            assert!(!network(text).contains(address(outside)), "{outside} in {text}");
        }
        assert_eq!(network("10.1.2.3").to_string(), "10.1.2.3/32");
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_was_meant() {
        for text in ["", "10.1", "10.0.0.0/33", "10.0.0.0/", "host/8", "::/129", "10.0.0.0/-1"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError::Form), "{text}");
        }
        let meant = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        assert!(meant("10.1.2.3/16").ends_with("10.1.0.0/16"));
        assert!(meant("fd00::1/64").ends_with("fd00::/64"));
    }

    #[test]
    fn loopback_is_known_whatever_its_form() {
        assert!(
            ["127.0.0.1", "127.0.0.0/8", "127.2.0.0/16", "::1"]
                .iter()
                .all(|text| network(text).is_loopback())
        );
        assert!(
            !["126.0.0.0/7", "0.0.0.0/0", "::/0"].iter().any(|text| network(text).is_loopback())
        );
        assert!(!Export::default().is_beyond_loopback());
    }

    #[test]
    fn squashing_takes_root_from_users_and_groups() {
        let groups_be = [7u32, 0, 9].map(u32::to_be_bytes).concat();
        let root = Auth::Sys(Credential { uid: 0, gid: 0, groups_be: &groups_be });
        let user = Auth::Sys(Credential { uid: 5, gid: 6, groups_be: &groups_be[..4] });
        let of = |squash, auth: &Auth<'_>| {
            let export =
                Export { squash, anonymous_uid: 70, anonymous_gid: 80, ..Export::default() };
            let mut groups = [0; 4 * GROUPS_MAX];
            let credential = export.credential(auth, None, &mut groups);
            let list = credential.groups_be.chunks(4).map(|g| g[3]).collect::<Vec<u8>>();
            (credential.uid, credential.gid, list)
        };
        assert_eq!(of(Squash::None, &root), (0, 0, vec![7, 0, 9]));
        assert_eq!(of(Squash::Root, &root), (70, 80, vec![7, 80, 9]));
        assert_eq!(of(Squash::All, &root), (70, 80, vec![]));
        assert_eq!(of(Squash::Root, &user), (5, 6, vec![7]));
        assert_eq!(of(Squash::All, &user), (70, 80, vec![]));
        for squash in [Squash::None, Squash::Root, Squash::All] {
            assert_eq!(of(squash, &Auth::None), (70, 80, vec![]));
        }
    }

    #[test]
    fn groups_looked_up_take_the_place_of_the_clients_and_leave_the_group_acted_as() {
        let sys = |uid, gid| Auth::Sys(Credential { uid, gid, groups_be: &[0, 0, 0, 7] });
        let looked_up = [0, 0, 0, 9].repeat(40);
        let of = |squash, auth: &Auth<'_>| {
            let groups = GroupSource::Server;
            let export = Export { squash, groups, anonymous_gid: 80, ..Export::default() };
            let found = export.looks_up(auth).map(|_| &looked_up[..]);
            let mut buffer = [0; 4 * GROUPS_MAX];
            let credential = export.credential(auth, found, &mut buffer);
            (credential.gid, credential.groups_be.len() / 4)
        };
        for squash in [Squash::None, Squash::Root] {
            assert_eq!(of(squash, &sys(5, 6)), (6, 40));
            assert_eq!(of(squash, &sys(0, 6)), (6, 1), "root has no need of groups");
        }
        assert_eq!(of(Squash::None, &sys(5, 0)), (0, 40));
        assert_eq!(of(Squash::Root, &sys(5, 0)), (80, 40));
        assert_eq!(of(Squash::All, &sys(5, 6)), (80, 0));
        assert_eq!(of(Squash::None, &Auth::None), (80, 0));
        assert_eq!(Export::default().looks_up(&sys(5, 6)), None);
    }
}
