//! Needs: what planning lacks in memory, and how it is read from an image.
//! Owns: the requests to a store thread and what comes back.
//! Never: runs on the server's loop; only the results do.
//! Invariant: a [`Fetched`] says at which op its image was exact, so that the shadow can tell
//! whether it is still good.
//! Source: ARCHITECTURE.md.

use crate::inode::{BLOCK_BYTES, Entry, Inode, Super};
use crate::key;

/// Entries that one [`Need::Listing`] or [`Need::Names`] asks for at most.
pub const LISTING_ENTRIES_MAX: u32 = 4096;
/// Blocks that one [`Need::Blocks`] asks for at most: 1 MiB and the block it may end in.
pub const NEED_BLOCKS_MAX: u32 = 257;

/// Something to be read from the image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Need {
    /// An inode.
    Inode(u64),
    /// What a name leads to.
    Entry {
        /// Where the name is.
        dir: u64,
        /// The name.
        name: Box<[u8]>,
    },
    /// A page of a directory, in the order of cookies.
    Listing {
        /// Which directory.
        dir: u64,
        /// Cookies above this one.
        after: u64,
        /// At most so many entries, at least 1, at most [`LISTING_ENTRIES_MAX`].
        limit: u32,
    },
    /// A page of a directory's names for its filter; the shadow asks for these itself.
    Names {
        /// Which directory.
        dir: u64,
        /// Cookies above this one.
        after: u64,
    },
    /// Data.
    Blocks {
        /// Which file.
        ino: u64,
        /// The first block.
        first: u64,
        /// How many, at least 1, at most [`NEED_BLOCKS_MAX`].
        count: u32,
    },
    /// A symbolic link's target.
    Target(u64),
    /// The counters of the whole.
    Super,
}

/// Why an image could not be read.
#[derive(Debug)]
pub enum ImageError {
    /// A row that is no value of the file system.
    BadRow {
        /// Its key.
        key: Vec<u8>,
    },
    /// An object that a change refers to is not there.
    NoInode {
        /// Which.
        ino: u64,
    },
    /// Two entries of a directory that records gave the same cookie.
    CookieTwice {
        /// The directory.
        dir: u64,
        /// The cookie.
        cookie: u64,
    },
    /// A block whose content does not have the checksum that its record promised.
    BadBlock {
        /// Of which file.
        ino: u64,
        /// Its index in the file.
        block: u64,
    },
    /// The reader underneath failed.
    Reader(Box<dyn std::error::Error + Send + Sync>),
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageError::BadRow { key } => write!(f, "the image's row {key:02x?} makes no sense"),
            ImageError::NoInode { ino } => write!(f, "the image lacks inode {ino}"),
            ImageError::CookieTwice { dir, cookie } => {
                write!(f, "two entries of directory {dir} have the cookie {cookie}")
            }
            ImageError::BadBlock { ino, block } => {
                write!(f, "block {block} of inode {ino} does not have its checksum")
            }
            ImageError::Reader(error) => write!(f, "the image cannot be read: {error}"),
        }
    }
}

impl std::error::Error for ImageError {}

/// A consistent view of an image: what the store implements for this crate.
pub trait ImageReader {
    /// The op the view is exact at.
    fn op(&self) -> u64;

    /// Whether the image is one that is being loaded from another copy while the log is redone over it.
    /// Objects may be missing in it, or newer than the log has got to; what is redone later sets both right.
    fn is_partial(&self) -> bool {
        false
    }

    /// The value under `key`, if there is one.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError>;

    /// Shows rows from key `from` on, in key order, at most `limit`, until `show` returns false.
    fn scan(
        &self,
        from: &[u8],
        limit: usize,
        show: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ImageError>;

    /// Reads `count` blocks of `file` from block `first` on into `out` (`count` * 4096 bytes);
    /// holes read as zeros. `held` is told each stretch that has blocks: its first block and
    /// its length, ascending, within the range asked for.
    fn read_blocks(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImageError>;

    /// The same, and tells `damaged` each block that does not have its checksum, ascending. In `out` it is as it
    /// was found. An image that knows no such blocks need not have this.
    fn read_blocks_but(
        &self,
        file: u64,
        first: u64,
        count: u32,
        out: &mut [u8],
        held: &mut dyn FnMut(u64, u64),
        damaged: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        let _ = damaged;
        self.read_blocks(file, first, count, out, held)
    }
}

/// Entries of a directory in the order of their cookies, with their names back to back.
#[derive(Clone, Default, Debug)]
pub struct Page {
    /// Each entry and where its name ends in `names`; it begins where the one before ends.
    pub entries: Vec<(Entry, u32)>,
    /// All names.
    pub names: Vec<u8>,
    /// Whether the directory has no entry after these.
    pub end: bool,
}

impl Page {
    /// The name of the entry at `index`.
    pub fn name(&self, index: usize) -> &[u8] {
        let begin = if index == 0 { 0 } else { self.entries[index - 1].1 as usize };
        &self.names[begin..self.entries[index].1 as usize]
    }
}

/// What was read, exact at `op`.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The op of the image it was read from.
    pub op: u64,
    /// What it is.
    pub value: FetchedValue,
}

/// The value of a [`Fetched`], for each kind of [`Need`].
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the fields are those of the need
pub enum FetchedValue {
    Inode {
        ino: u64,
        inode: Option<Inode>,
    },
    Entry {
        dir: u64,
        name: Box<[u8]>,
        entry: Option<Entry>,
    },
    Listing {
        dir: u64,
        after: u64,
        page: Page,
    },
    Names {
        dir: u64,
        after: u64,
        page: Page,
    },
    /// Those in `damaged`, ascending, are not what they should be; nothing comes of them.
    Blocks {
        ino: u64,
        first: u64,
        held: Vec<bool>,
        data: Vec<u8>,
        damaged: Vec<u64>,
    },
    Target {
        ino: u64,
        target: Option<Box<[u8]>>,
    },
    Super(Option<Super>),
}

impl Fetched {
    /// Damaged blocks count as what they should be. Only to see that somebody notices.
    pub fn take_as_sound(&mut self) {
        if let FetchedValue::Blocks { damaged, .. } = &mut self.value {
            damaged.clear();
        }
    }
}

impl Need {
    /// Reads it. Runs on a store thread.
    ///
    /// Errors: the reader's own, and [`ImageError::BadRow`] where a row makes no sense.
    pub fn fetch(&self, image: &dyn ImageReader) -> Result<Fetched, ImageError> {
        let value = match self {
            Need::Inode(ino) => {
                let inode = row(image, &key::inode_key(*ino), key::parse_inode)?;
                FetchedValue::Inode { ino: *ino, inode }
            }
            Need::Entry { dir, name } => {
                let entry = row(image, &key::name_key(*dir, name), key::parse_name)?;
                FetchedValue::Entry { dir: *dir, name: name.clone(), entry }
            }
            Need::Listing { dir, after, limit } => {
                let limit = (*limit).clamp(1, LISTING_ENTRIES_MAX);
                FetchedValue::Listing {
                    dir: *dir,
                    after: *after,
                    page: page(image, *dir, *after, limit)?,
                }
            }
            Need::Names { dir, after } => FetchedValue::Names {
                dir: *dir,
                after: *after,
                page: page(image, *dir, *after, LISTING_ENTRIES_MAX)?,
            },
            Need::Blocks { ino, first, count } => blocks(image, *ino, *first, *count)?,
            Need::Target(ino) => {
                let target = image.get(&key::target_key(*ino))?.map(Vec::into_boxed_slice);
                FetchedValue::Target { ino: *ino, target }
            }
            Need::Super => FetchedValue::Super(row(image, &key::super_key(), key::parse_super)?),
        };
        Ok(Fetched { op: image.op(), value })
    }
}

fn row<T>(
    image: &dyn ImageReader,
    key: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, ImageError> {
    let Some(value) = image.get(key)? else { return Ok(None) };
    match parse(&value) {
        Some(value) => Ok(Some(value)),
        None => Err(ImageError::BadRow { key: key.to_vec() }),
    }
}

fn page(image: &dyn ImageReader, dir: u64, after: u64, limit: u32) -> Result<Page, ImageError> {
    let mut page = Page { end: true, ..Page::default() };
    let Some(first) = after.checked_add(1) else { return Ok(page) };
    let from = key::cookie_key(dir, first);
    let mut bad = None;
    image.scan(&from, limit as usize + 1, &mut |key, value| {
        if !key.starts_with(&from[..9]) {
            return false;
        }
        if page.entries.len() == limit as usize {
            page.end = false;
            return false;
        }
        let Some((_, entry, name)) = key::parse_cookie_row(key, value) else {
            bad = Some(key.to_vec());
            return false;
        };
        page.names.extend_from_slice(name);
        page.entries.push((entry, page.names.len() as u32));
        true
    })?;
    match bad {
        Some(key) => Err(ImageError::BadRow { key }),
        None => Ok(page),
    }
}

fn blocks(
    image: &dyn ImageReader,
    ino: u64,
    first: u64,
    count: u32,
) -> Result<FetchedValue, ImageError> {
    let count = count.clamp(1, NEED_BLOCKS_MAX);
    let mut held = vec![false; count as usize];
    let mut data = vec![0; count as usize * BLOCK_BYTES];
    let mut holds = |at: u64, len: u64| {
        let begin = at.saturating_sub(first).min(count.into()) as usize;
        let end = (at.saturating_add(len).saturating_sub(first)).min(count.into()) as usize;
        held[begin.min(end)..end].fill(true);
    };
    let mut damaged = Vec::new();
    let damage = &mut |block| damaged.push(block);
    image.read_blocks_but(ino, first, count, &mut data, &mut holds, damage)?;
    Ok(FetchedValue::Blocks { ino, first, held, data, damaged })
}
