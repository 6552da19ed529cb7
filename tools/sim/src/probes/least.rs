//! Schedules of one slot of 4,1,2 under F* (PROTOCOL 5.5-h), in which three equal proposals decide.

use racos_protocol::{
    Action, Class, Config, Consensus, Contest, Digest, Fast, Node, NodeSet, Thresholds, Value,
    Waiting,
};

fn operation(number: Digest) -> Value {
    Value::Batch(Class::Ready.mark(number))
}

fn config() -> (Config, Thresholds) {
    let config = Config { fast: Fast::Least, ..Config::new((4, 1, 2), 0) };
    let thresholds = config.thresholds().expect("possible parameters");
    (config, thresholds)
}

/// What a node does that has heard these proposals of operations.
fn hears(proposals: &[(Node, Value)], consensus: &mut Consensus, contest: &mut Contest) -> Action {
    let (config, t) = config();
    for (from, value) in proposals {
        contest.propose(*from, *value, 0, t.quorum).expect("each proposes once");
    }
    let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
    let action = contest.advance(consensus, 0, &config, &t, waiting);
    action.expect("nobody contradicts himself")
}

/// PROTOCOL 5.5-h: two nodes propose one operation, two the other.
pub fn two_operations_are_not_both_decided() -> Result<(), String> {
    let decided = |nodes: [Node; 2], of| {
        let proposals = nodes.map(|node| (node, operation(of)));
        let action = hears(&proposals, &mut Consensus::default(), &mut Contest::default());
        matches!(action, Action::Decided(_))
    };
    match (decided([0, 1], 1), decided([2, 3], 2)) {
        (true, true) => Err("one node decides one operation, another the other".into()),
        _ => Ok(()),
    }
}

/// PROTOCOL 5.5-h, 5.5-i: three nodes propose an operation, and one that hears them decides; the others
/// hear two of them and one of another, and go on without it.
pub fn who_has_not_heard_all_comes_to_what_is_decided() -> Result<(), String> {
    let (mut consensus, mut contest) = (Consensus::default(), Contest::default());
    let heard = [(0, operation(1)), (1, operation(1)), (3, operation(2))];
    let ballot = match hears(&heard, &mut consensus, &mut contest) {
        Action::Vote { phase: 0, ballot } => ballot,
        other => return Err(format!("no vote but {other:?}")),
    };
    for from in [0, 1, 3] {
        contest.vote(from, 0, ballot).expect("each votes once");
    }
    match hears(&[], &mut consensus, &mut contest) {
        Action::State { phase: 1, value } if value == operation(1) => Ok(()),
        other => Err(format!("what three proposed may be decided, and the next is {other:?}")),
    }
}
