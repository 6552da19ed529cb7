//! Tokens: what a client shows instead of a password, made by one node and good at every other.
//!
//! ```text
//! token = hexadecimal digits of (version (1 byte), since (8), revision (8), expires (8), user, MAC (32))
//! MAC   = BLAKE3, keyed with what follows from the cluster's secret, of all before it
//! ```
//! Invariant: only who knows the secret, which is drawn when authentication is switched on and known to
//! nodes alone, makes a token that is taken. It stands for a user as of a password: the nodes look up by
//! their users what it permits, so a role that is revoked is gone at once, and a token goes with the
//! password that it was given for. Nothing about tokens is stored.
//! What would break it: a part of the token that is believed before the MAC was compared, but for the
//! revision, for which a node at most looks whether it is behind.

use racos_engine::api::AuthView;
use racos_machine::{Caller, Secret};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds that a token is good for. Clients get another one by themselves.
const LIFETIME: u64 = 24 * 60 * 60;
const VERSION: u8 = 1;
const HEAD: usize = 1 + 3 * 8;
const MAC: usize = 32;
/// The longest that any token is, in bytes.
const BYTES_MAX: usize = HEAD + racos_machine::USER_BYTES_MAX + MAC;

/// What is to be thought of a token.
#[derive(Debug, PartialEq, Eq)]
pub enum Checked {
    Good(Caller),
    /// It may be of a time that this node has not reached yet.
    Ahead,
    Bad,
    /// Nobody needs one.
    NotNeeded,
}

/// Seconds since 1970 by this host's clock.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A token for a caller who has proved who it is.
pub fn issue(caller: &Caller, view: &AuthView, now: u64) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&caller.since.to_le_bytes());
    bytes.extend_from_slice(&view.revision.to_le_bytes());
    bytes.extend_from_slice(&now.saturating_add(LIFETIME).to_le_bytes());
    bytes.extend_from_slice(&caller.user);
    let mac = mac(&view.secret, &bytes);
    bytes.extend_from_slice(mac.as_bytes());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a token is worth here and now.
pub fn check(text: &str, view: &AuthView, now: u64) -> Checked {
    let bytes = bytes_of(text).filter(|bytes| bytes.first() == Some(&VERSION));
    let Some((signed, told)) =
        bytes.as_ref().and_then(|it| it.split_at_checked(HEAD.max(it.len().saturating_sub(MAC))))
    else {
        return if view.enabled { Checked::Bad } else { Checked::NotNeeded };
    };
    let word = |at: usize| u64::from_le_bytes(signed[at..at + 8].try_into().expect("8 bytes"));
    let (since, revision, expires, user) = (word(1), word(9), word(17), &signed[HEAD..]);
    // Switching authentication on leaves the revision as it is, switching it off does not.
    let is_ahead = if view.enabled { revision > view.revision } else { revision >= view.revision };
    if is_ahead {
        return Checked::Ahead;
    }
    if !view.enabled {
        return Checked::NotNeeded;
    }
    // Compared in constant time.
    let is_ours = told.try_into().is_ok_and(|told: [u8; MAC]| mac(&view.secret, signed) == told);
    match is_ours && now < expires {
        true => Checked::Good(Caller { user: user.into(), since }),
        false => Checked::Bad,
    }
}

fn mac(secret: &Secret, bytes: &[u8]) -> blake3::Hash {
    blake3::keyed_hash(&blake3::derive_key("racos 1 token", &secret.0), bytes)
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    if text.len() > 2 * BYTES_MAX || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    text.as_bytes().chunks_exact(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn view(enabled: bool, revision: u64, secret: u8) -> AuthView {
        AuthView { enabled, revision, secret: Secret([secret; 32]) }
    }

    fn caller() -> Caller {
        Caller { user: b"u"[..].into(), since: 3 }
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_whatever_changes_but_the_secret() {
        let token = issue(&caller(), &view(true, 5, 1), NOW);
        for (revision, now) in [(5, NOW), (77, NOW), (5, NOW + LIFETIME - 1)] {
            assert_eq!(check(&token, &view(true, revision, 1), now), Checked::Good(caller()));
        }
        assert_eq!(check(&token, &view(true, 5, 1), NOW + LIFETIME), Checked::Bad);
        assert_eq!(check(&token, &view(true, 5, 2), NOW), Checked::Bad);
        assert_eq!(check(&token, &view(false, 6, 1), NOW), Checked::NotNeeded);
    }

    #[test]
    fn a_node_that_is_behind_the_token_knows_that_it_is() {
        let token = issue(&caller(), &view(true, 5, 1), NOW);
        assert_eq!(check(&token, &view(true, 4, 9), NOW), Checked::Ahead);
        // It was switched on, which did not change the revision.
        assert_eq!(check(&token, &view(false, 5, 0), NOW), Checked::Ahead);
        assert_eq!(check(&token, &view(false, 4, 0), NOW), Checked::Ahead);
    }

    #[test]
    fn no_byte_of_a_token_may_be_another_and_none_may_lack() {
        let token = issue(&caller(), &view(true, 5, 1), NOW);
        let on = view(true, 5, 1);
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            let other = String::from_utf8(other).unwrap();
            // A greater revision is asked about, and is as bad when this node has caught up.
            let checked = check(&other, &on, NOW);
            assert!(matches!(checked, Checked::Bad | Checked::Ahead), "digit {at}: {checked:?}");
            assert_eq!(check(&other, &view(true, u64::MAX, 1), NOW), Checked::Bad);
            assert_eq!(check(&token[..at], &on, NOW), Checked::Bad, "{at} digits");
        }
        for odd in ["", "0", "zz", "01", "\u{fc}", &"01".repeat(BYTES_MAX + 1)] {
            assert_eq!(check(odd, &on, NOW), Checked::Bad, "{odd}");
            assert_eq!(check(odd, &view(false, 1, 1), NOW), Checked::NotNeeded);
        }
    }
}
