//! SPIFFE identities: what one is, and the one of a certificate (SPIFFE-ID and X.509-SVID standards).

use std::fmt;
use std::str::FromStr;

use secure_rdma_rdma::{Error, ErrorCode, Result};

/// SPIFFE-ID §2.3: what all implementations must support, and none should exceed.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// The SPIFFE ID of a workload, `spiffe://trust-domain/path`.
///
/// Strict, so that equal identities are equal texts: a trust domain of `a-z 0-9 . - _`; a path of segments of
/// `A-Z a-z 0-9 . - _`, none of them empty, `.` or `..`; no port, user, query, fragment or percent-encoding; at the most 2048
/// bytes. An ID without a path names a trust domain, and no workload may show it (X.509-SVID §5.2): it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId(String);

impl SpiffeId {
    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one of a certificate with these URIs among its subject alternative names. An X.509-SVID has exactly one, and
    /// validators must refuse more (X.509-SVID §2).
    pub(super) fn of_uris<'a>(mut uris: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (uri, another) = (uris.next()?, uris.next());
        if another.is_some() {
            return None;
        }
        check(uri).ok().map(|()| Self(uri.to_owned()))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SpiffeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check(text).map(|()| Self(text.to_owned())).map_err(|what| {
            Error::new(
                ErrorCode::TlsConfig,
                format!("{text:?} is no SPIFFE ID of a workload ({what}): give spiffe://trust-domain/path"),
            )
        })
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_ID {
        return Err("it is longer than 2048 bytes");
    }
    let rest = text.strip_prefix(SCHEME).ok_or("it does not begin with spiffe://")?;
    let (domain, path) = rest.split_once('/').ok_or("it has no path")?;
    if domain.is_empty() || domain.len() > MAX_TRUST_DOMAIN {
        return Err("its trust domain does not have 1 to 255 characters");
    }
    if !domain.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c)) {
        return Err("its trust domain holds others than a-z, 0-9, dot, dash and underscore");
    }
    for segment in path.split('/') {
        if segment.is_empty() {
            return Err("a segment of its path is empty");
        }
        if segment == "." || segment == ".." {
            return Err("a segment of its path is a dot or two");
        }
        if !segment.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_".contains(&c)) {
            return Err("its path holds others than letters, digits, dot, dash and underscore");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_as_it_stands() {
        let domain = "d".repeat(255);
        let long = format!("spiffe://a/{}", "p".repeat(2048 - 11));
        for id in [
            "spiffe://example.org/ns/default/sa/web",
            "spiffe://1.2.3.4/a",
            "spiffe://a_b-c/A.b_c-9/...",
            &format!("spiffe://{domain}/a"),
            &long,
        ] {
            let parsed: SpiffeId = id.parse().unwrap();
            assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (id, id));
            assert_eq!(SpiffeId::of_uris([id].into_iter()), Some(parsed));
        }
    }

    #[test]
    fn what_is_no_id_of_a_workload_is_refused() {
        for id in [
            "",
            "spiffe:",
            "spiffe:///a",
            "spiffe://a",
            "spiffe://a/",
            "spiffe://a/b/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/..",
            "SPIFFE://a/b",
            "https://a/b",
            "spiffe://A/b",
            "spiffe://a:1/b",
            "spiffe://u@a/b",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/%62",
            "spiffe://a/b c",
            "spiffe://a/ä",
            &format!("spiffe://{}/a", "d".repeat(256)),
            &format!("spiffe://a/{}", "p".repeat(2048 - 10)),
        ] {
            assert_eq!(id.parse::<SpiffeId>().unwrap_err().code(), ErrorCode::TlsConfig, "{id:?}");
            assert_eq!(SpiffeId::of_uris([id].into_iter()), None, "{id:?}");
        }
    }

    #[test]
    fn a_certificate_has_exactly_one() {
        assert_eq!(SpiffeId::of_uris(std::iter::empty()), None);
        for two in [
            ["spiffe://a/b", "spiffe://a/b"],
            ["spiffe://a/b", "https://a/b"],
            ["https://a/b", "spiffe://a/b"],
        ] {
            assert_eq!(SpiffeId::of_uris(two.into_iter()), None);
        }
    }
}
