//! What a cluster is founded with besides its members: equal at all nodes, for ever.
//!
//! Invariant: nodes that count each other's words have the same terms (PROTOCOL 6.4-h, 5.5-l).
//! What would break it: a node that decides by fewer proposals than the votes of the others allow for.

use std::fmt;
use std::str::FromStr;

/// Who fills the slots: part of what a cluster is founded with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub enum Policy {
    /// Each slot belongs to a node, which puts a batch into it (PROTOCOL 6.1).
    #[default]
    OwnerSlots,
    /// One operation a slot, one slot after the other; all propose the oldest that is stored (6.4).
    Queue,
}

impl Policy {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Policy::OwnerSlots => "owner",
            Policy::Queue => "queue",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Policy, String> {
        let found = [Policy::OwnerSlots, Policy::Queue].into_iter().find(|it| it.name() == name);
        found.ok_or_else(|| format!("\"{name}\" is no policy: it is \"owner\" or \"queue\""))
    }
}

/// How many equal proposals decide a slot of class R at once: part of what a cluster is founded with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub enum Fast {
    /// f more than it takes to vote (PROTOCOL 5.2).
    #[default]
    Support,
    /// F*, the fewest that can: votes of phase 0 may be weak (PROTOCOL 5.5-h).
    Least,
}

impl Fast {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Fast::Support => "sup+f",
            Fast::Least => "f*",
        }
    }
}

impl fmt::Display for Fast {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Fast {
    type Err = String;

    fn from_str(name: &str) -> Result<Fast, String> {
        let found = [Fast::Support, Fast::Least].into_iter().find(|it| it.name() == name);
        found.ok_or_else(|| format!("\"{name}\" is no fast threshold: it is \"sup+f\" or \"f*\""))
    }
}

/// All of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Terms {
    pub policy: Policy,
    pub fast: Fast,
}

/// As in a configuration file.
impl fmt::Display for Terms {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "policy = \"{}\", fast = \"{}\"", self.policy, self.fast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_known_by_its_name_and_nothing_is_chosen_unasked() {
        for policy in [Policy::OwnerSlots, Policy::Queue] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for fast in [Fast::Support, Fast::Least] {
            assert_eq!(fast.to_string().parse(), Ok(fast));
        }
        assert!("F*".parse::<Fast>().unwrap_err().contains("\"sup+f\" or \"f*\""));
        let usual = Terms { policy: Policy::OwnerSlots, fast: Fast::Support };
        assert_eq!(Terms::default(), usual);
        assert_eq!(usual.to_string(), "policy = \"owner\", fast = \"sup+f\"");
    }
}
