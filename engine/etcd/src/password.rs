//! Passwords hashed and checked with bcrypt, which takes long on purpose.
//!
//! Invariant: it is done by threads beside the one that serves clients, by few at a time, and only so
//! many requests wait for them. Who asks for a user that there is not, waits as long as for one there is.

use crate::errors::{TOO_MANY_REQUESTS, known};
use racos_machine::Password;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Status;

/// Cost of a hash, by the logarithm: etcd's default.
const COST: u32 = 10;
/// Hashed at a time: the node needs the processor, too.
const AT_ONCE: usize = 2;
/// Requests that wait.
const WAITING_MAX: usize = 64;
/// A hash that no password is asked for, for users that are not there.
const NOBODY: &str = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";

#[derive(Clone)]
pub struct Passwords {
    waiting: Arc<Semaphore>,
    working: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        let of = |permits| Arc::new(Semaphore::new(permits));
        Passwords { waiting: of(WAITING_MAX), working: of(AT_ONCE) }
    }
}

impl Passwords {
    /// # Errors
    /// A password that is too long, or too many requests.
    pub async fn hash(&self, password: String) -> Result<Password, Status> {
        let hashed = self.work(move || bcrypt::non_truncating_hash(password, COST)).await?;
        match hashed {
            Ok(hash) => Ok(Password(hash.into_bytes().into())),
            Err(bcrypt::BcryptError::Truncation(_)) => {
                Err(Status::unknown("bcrypt: password length exceeds 72 bytes"))
            }
            Err(error) => Err(Status::internal(format!("racos: {error}"))),
        }
    }

    /// Whether it is the password with this hash; never, without one.
    ///
    /// # Errors
    /// Too many requests.
    pub async fn check(&self, password: String, hash: Option<&Password>) -> Result<bool, Status> {
        let is_known = hash.is_some();
        let hash = hash.map_or_else(
            || NOBODY.to_string(),
            |hash| String::from_utf8_lossy(&hash.0).into_owned(),
        );
        // A hash that is none, such as that of an empty password, is nobody's.
        let same = self.work(move || bcrypt::verify(password, &hash).unwrap_or(false)).await?;
        Ok(is_known && same)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let _place = self.waiting.try_acquire().map_err(|_| known(TOO_MANY_REQUESTS))?;
        let working = self.working.clone().acquire_owned().await;
        let working = working.expect("it is never closed");
        let done = tokio::task::spawn_blocking(move || {
            // Held until the work is done, also if nobody waits for it any more.
            let _working = working;
            work()
        });
        done.await.map_err(|error| Status::internal(format!("racos: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_and_nobodys_is_checked_as_well() {
        let passwords = Passwords::default();
        let hash = passwords.hash("secret".into()).await.unwrap();
        assert!(passwords.check("secret".into(), Some(&hash)).await.unwrap());
        assert!(!passwords.check("Secret".into(), Some(&hash)).await.unwrap());
        assert!(!passwords.check("secret".into(), None).await.unwrap());
        assert!(!passwords.check(String::new(), Some(&Password::default())).await.unwrap());
        let empty = passwords.hash(String::new()).await.unwrap();
        assert!(passwords.check(String::new(), Some(&empty)).await.unwrap());
        let too_long = passwords.hash("x".repeat(73)).await.unwrap_err();
        assert!(too_long.message().contains("72 bytes"));
        // As long as for a user that there is: it is a hash, of the same cost.
        assert!(bcrypt::verify("x", NOBODY).is_ok_and(|same| !same));
    }

    #[tokio::test]
    async fn only_so_many_wait() {
        let passwords = Passwords::default();
        let _all = passwords.waiting.acquire_many(WAITING_MAX as u32).await.unwrap();
        let refused = passwords.hash("x".into()).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), TOO_MANY_REQUESTS);
    }
}
