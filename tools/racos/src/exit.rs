//! How a command ends: the exit status for scripts, the message for people.

use racos_client::ClientError;

/// Something failed that is none of the below: refused, a failed check, no space, data loss, files.
pub const FAILED: u8 = 1;
/// The command line or a configuration is wrong.
pub const USAGE: u8 = 2;
/// The key is not there.
pub const NOT_FOUND: u8 = 3;
/// No node answered, or not in time; a write may or may not take effect.
pub const UNAVAILABLE: u8 = 4;
/// Done, but for what was printed and left out (`salvage`).
pub const LEFT_OUT: u8 = 5;

/// For `--help`.
pub const HELP: &str = "Exit status: 0 ok, 1 failed, 2 wrong usage or configuration, 3 key not \
                        found, 4 cluster unavailable (a write may or may not take effect), 5 done without what \
                        was printed as left out (salvage).";

/// Why a command did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// Printed after `racos: `; empty if there is nothing to say.
    pub text: String,
}

pub type Outcome = Result<(), Failure>;

/// A failure of no special kind.
pub fn failed(text: impl Into<String>) -> Failure {
    Failure { code: FAILED, text: text.into() }
}

/// A mistake of the caller.
pub fn usage(text: impl Into<String>) -> Failure {
    Failure { code: USAGE, text: text.into() }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let code = if error.is_unavailable() { UNAVAILABLE } else { FAILED };
        Failure { code, text: error.to_string() }
    }
}
