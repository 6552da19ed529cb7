//! Scripts: one hazard each, told step by step, with the whole trace expected.
//!
//! A script is a file in `tests/scripts`: directives, each followed by what all nodes did because of
//! it. `REWRITE=1 cargo test -p racos-protocol --test scripts` writes the traces anew; read the
//! difference before it is committed. The oracle of the other tests watches these runs too.
//!
//! | directive | does |
//! |---|---|
//! | `cluster n=3 f=1 k=1 [eager] [queue] [least]` | founds a cluster, idle; `eager`: nodes vote as soon as they may; `queue`: its slots are filled from queues; `least`: F* proposals decide class R |
//! | `open node=0 [key=7] [ready]` | a client's batch gets a slot; `ready`: it is stored already |
//! | `offer node=0 [key=7]` | a client's operation is stored, to get a slot from a queue |
//! | `flush [node=(0,1)]` | what these nodes, or all, have appended becomes durable |
//! | `deliver`, `lose` `[from=] [to=] [kind=] [slot=]` | what is on its way and fits |
//! | `deliver first ...` | one packet only |
//! | `copy` `[from=] ...` | the network has made a second one |
//! | `refuse slot=0 to=2` | SPREAD arrives where there is no room for it |
//! | `settle [among=(0,1)]` | flushes and delivers until all is quiet |
//! | `pass ms=5 [among=(0,1)]` | time passes; these nodes, or none, flush and hear each other |
//! | `crash node=0`, `restart node=0`, `power-cut` | what is not flushed is lost |
//! | `hear node=0 slot=9` | a message names this slot: it is in use at the node |
//! | `read from=(1,2) key=0` | what a reader concludes from these answers |
//! | `mail`, `state` | what is on its way; where each node is |
#![expect(clippy::panic, reason = "a script that cannot be understood is a failed test")]

mod cluster;

use cluster::lab::Lab;
use cluster::story::{kind_of, of_mail};
use cluster::{MS, Mail, Packet};
use datadriven::TestCase;
use racos_protocol::{Class, Fast, Input, Node, Policy, ReadQuorum, ReadStep, Slot, Wait};
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Write;
use std::str::FromStr;

/// Arguments of a directive; one that nobody asked for is a mistake in the script.
struct Args(HashMap<String, Vec<String>>);

impl Args {
    fn list<T: FromStr>(&mut self, name: &str) -> Option<Vec<T>> {
        let parse = |text: &String| text.parse().ok();
        let list = self.0.remove(name)?.iter().map(parse).collect::<Option<Vec<T>>>();
        Some(list.unwrap_or_else(|| panic!("{name}: not understood")))
    }

    fn one<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let list = self.list(name)?;
        let [one] = list.try_into().ok().unwrap_or_else(|| panic!("{name}: give one"));
        Some(one)
    }

    fn need<T: FromStr>(&mut self, name: &str) -> T {
        self.one(name).unwrap_or_else(|| panic!("{name}=: missing"))
    }

    fn flag(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// Which mail a directive means.
    fn filter(&mut self) -> impl Fn(&Mail) -> bool + use<> {
        let (from, to) = (self.list::<Node>("from"), self.list::<Node>("to"));
        let (kinds, slots) = (self.list::<String>("kind"), self.list::<Slot>("slot"));
        move |mail| {
            let (kind, slot) = kind_of(&mail.packet);
            from.as_ref().is_none_or(|from| from.contains(&mail.from))
                && to.as_ref().is_none_or(|to| to.contains(&mail.to))
                && kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|wanted| wanted == kind))
                && slots.as_ref().is_none_or(|slots| slot.is_some_and(|slot| slots.contains(&slot)))
        }
    }
}

fn found(args: &mut Args) -> Lab {
    let shape = (args.need("n"), args.need("f"), args.need("k"));
    let (eager, queue) = (args.flag("eager"), args.flag("queue"));
    let least = args.flag("least");
    let mut lab = Lab::with(shape, |config| {
        // A narrow window keeps what follows a restart short.
        config.alpha = 3 * shape.0 as Slot;
        if queue {
            config.policy = Policy::Queue;
        }
        if least {
            config.fast = Fast::Least;
        }
        if eager {
            config.timing.vote_wait = Wait::Fixed(0);
            config.timing.support_wait = 0;
        }
    });
    lab.story.clear();
    lab
}

/// PROTOCOL 8.1: what a reader of `key` does with the answers of these nodes.
fn read(lab: &Lab, from: &[Node], key: u64) -> String {
    let mut quorum = ReadQuorum::new(lab.oracle.t.quorum);
    let mut told = String::new();
    for &node in from {
        let core = lab.core(node);
        let mark = core.mark(|batch| batch.touches(key));
        quorum.answer(node, core.exec(), mark);
        let mark = mark.map_or("none".into(), |slot| slot.to_string());
        writeln!(told, "{node} answers exec {} mark {mark}", core.exec()).expect("to memory");
    }
    told + &match quorum.step() {
        ReadStep::Wait => "the reader waits for more answers\n".into(),
        ReadStep::Use(node) => format!("the reader uses the answer of {node}\n"),
        ReadStep::WaitExecuted(slot) => format!("the reader waits until it has executed {slot}\n"),
    }
}

fn state(lab: &Lab) -> String {
    let line = |node: Node| match &lab.hosts[usize::from(node)].core {
        None => format!("{node} is down\n"),
        Some(core) => {
            format!(
                "{node} exec {} seen {} own open {}\n",
                core.exec(),
                core.seen(),
                core.own_open()
            )
        }
    };
    lab.nodes().map(line).collect()
}

/// Delivers one SPREAD to a node that has no room for it.
fn refuse(lab: &mut Lab, to: Node, slot: Slot) {
    let fits = |mail: &Mail| mail.to == to && kind_of(&mail.packet) == ("spread", Some(slot));
    let spread = lab.mail.iter().find(|mail| fits(mail)).cloned();
    let Some(Packet::Spread { batch, .. }) = spread.map(|mail| mail.packet) else {
        panic!("no SPREAD of {slot} is on its way to {to}")
    };
    lab.lose(fits);
    lab.spread(to, slot, batch, false);
}

fn run(lab: &mut Option<Lab>, case: &TestCase) -> String {
    let mut args = Args(case.args.clone());
    let args = &mut args;
    if case.directive == "cluster" {
        *lab = Some(found(args));
    }
    let lab = lab.as_mut().unwrap_or_else(|| panic!("a script begins with `cluster`"));
    let all: Vec<Node> = lab.nodes().collect();
    let mut answer = String::new();
    match case.directive.as_str() {
        "cluster" => {}
        "open" => {
            let (node, key) = (args.need("node"), args.one("key").unwrap_or(0));
            let class = if args.flag("ready") { Class::Ready } else { Class::Eager };
            let slot = lab.open_class(node, key, class);
            answer = slot.map_or("the node opens nothing now\n".into(), |_| String::new());
        }
        "offer" => {
            let (node, key) = (args.need("node"), args.one("key").unwrap_or(0));
            lab.offer_key(node, key);
        }
        "flush" => {
            let nodes = args.list("node").unwrap_or(all);
            for node in nodes {
                lab.is_up(node).then(|| lab.flush(node));
            }
        }
        "deliver" => {
            let (fits, only_first) = (args.filter(), args.flag("first"));
            let done = Cell::new(false);
            lab.deliver(|mail| {
                fits(mail) && !(done.replace(done.get() || fits(mail)) && only_first)
            });
        }
        "lose" => {
            let lost = lab.lose(args.filter());
            answer = format!("{lost} packets are lost\n");
        }
        "copy" => {
            let fits = args.filter();
            let copies: Vec<Mail> = lab.mail.iter().filter(|mail| fits(mail)).cloned().collect();
            answer = format!("{} packets are on their way twice\n", copies.len());
            lab.mail.extend(copies);
        }
        "refuse" => refuse(lab, args.need("to"), args.need("slot")),
        "settle" => lab.settle_among(&args.list("among").unwrap_or(all)),
        "pass" => {
            let (ms, among) = (args.need::<u64>("ms"), args.list("among").unwrap_or_default());
            lab.pass_among(ms * MS, &among);
        }
        "crash" => lab.crash(args.need("node")),
        "restart" => lab.restart(args.need("node")),
        "power-cut" => {
            lab.lose(|_| true);
            for node in all {
                lab.is_up(node).then(|| lab.crash(node));
            }
        }
        "hear" => lab.input(args.need("node"), Input::InUse { slot: args.need("slot") }),
        "read" => answer = read(lab, &args.list("from").unwrap_or_default(), args.need("key")),
        "mail" => answer = lab.mail.iter().map(|mail| of_mail(mail) + "\n").collect(),
        "state" => answer = state(lab),
        unknown => panic!("unknown directive {unknown}"),
    }
    assert!(args.0.is_empty(), "{}: unknown arguments {:?}", case.directive, args.0.keys());
    let story: String =
        std::mem::take(&mut lab.story).into_iter().map(|line| line + "\n").collect();
    match story + &answer {
        nothing if nothing.is_empty() => "nothing happens\n".into(),
        something => something,
    }
}

#[test]
fn every_script_tells_the_trace_that_it_expects() {
    let mut scripts = 0;
    datadriven::walk(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), |file| {
        scripts += 1;
        let mut lab = None;
        file.run(|case| run(&mut lab, case));
    });
    assert!(scripts >= 20, "only {scripts} scripts were found");
}
