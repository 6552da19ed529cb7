use racos_sim::{Fixed, run};
fn main() {
    let args: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let calm = std::env::var("CALM").is_ok();
    for seed in args[0]..args[0] + args.get(1).copied().unwrap_or(1) {
        let started = std::time::Instant::now();
        let result = run(seed, &Fixed { calm, code: None }, std::env::var("TRACE").is_ok());
        match result {
            Ok(report) => println!("{seed} {:?} {report:?}", started.elapsed()),
            Err(what) => println!("{seed} FAILED {what}"),
        }
    }
}
