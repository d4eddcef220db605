//! The few names that all clients use, so that they get in each other's way.
//! Owns: the alphabet; files and directories never share a name.
//! Never: produces a name that a file system would refuse.

/// File names there can be.
pub const FILES: u8 = 32;
/// Directory names there can be.
pub const DIRECTORIES: u8 = 8;

/// A name, by number: files first, then directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(u8);

impl Name {
    /// How many names there are.
    pub const COUNT: usize = (FILES + DIRECTORIES) as usize;

    /// The file name with this number.
    pub fn file(number: u8) -> Name {
        assert!(number < FILES);
        Name(number)
    }

    /// The directory name with this number.
    pub fn directory(number: u8) -> Name {
        assert!(number < DIRECTORIES);
        Name(FILES + number)
    }

    /// Its place in tables of names.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// The name with this place.
    pub fn at(index: usize) -> Name {
        assert!(index < Name::COUNT);
        Name(index as u8)
    }

    /// Its bytes.
    pub fn text(self) -> &'static str {
        TEXTS[self.index()]
    }

    /// The name with these bytes.
    pub fn named(bytes: &[u8]) -> Option<Name> {
        let at = TEXTS.iter().position(|text| text.as_bytes() == bytes)?;
        Some(Name::at(at))
    }
}

#[rustfmt::skip] // a table
const TEXTS: [&str; Name::COUNT] = [
    "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14",
    "f15", "f16", "f17", "f18", "f19", "f20", "f21", "f22", "f23", "f24", "f25", "f26", "f27",
    "f28", "f29", "f30", "a-file-with-a-rather-long-name-that-fills-more-than-one-cache-line.txt",
    "d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_bytes() {
        for index in 0..Name::COUNT {
            let name = Name::at(index);
            assert_eq!(Name::named(name.text().as_bytes()), Some(name));
        }
        assert_eq!(Name::named(b"x"), None);
        assert_eq!(Name::directory(0).text(), "d0");
    }
}
