//! Memory that is freed stays with the process, for the next allocation.
//!
//! Purpose: glibc gives what is free at the end of a heap back to the kernel as soon as it is more than
//! 128 KiB, and the next message of 133 KB is faulted in again, page by page, beside other threads that wait
//! for the same map of memory.
//! Invariant: what is kept is bounded: 64 MiB for each of the allocator's heaps.
//! What would break it: an allocator that has another rule; then this costs one call and changes nothing.

/// The largest allocation from which glibc learns, with room for its header.
const LEARNT_MAX: usize = (32 << 20) - (64 << 10);

/// From now on keeps up to 64 MiB that are free at the end of a heap; to be called once, first.
///
/// glibc moves its threshold by itself, to twice the longest allocation of the kernel's own pages that was
/// freed ("dynamic mmap threshold", `mallopt(3)`): so one of the longest is freed here, never touched.
pub fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LEARNT_MAX)));
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Pages that this process was given one by one, by all its threads.
    fn faults() -> u64 {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (_, after_name) = text.rsplit_once(')').unwrap();
        after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    /// Buffers as of messages on their way, below glibc's first thresholds one by one and above them together.
    fn use_buffers() {
        let mut buffers: Vec<Vec<u8>> = (0..40).map(|_| vec![1; 100_000]).collect();
        std::hint::black_box(&mut buffers);
    }

    #[test]
    fn what_is_freed_is_not_faulted_in_again() {
        const ROUNDS: u64 = 50;
        const PAGES: u64 = 40 * 100_000 / 4096;
        keep_freed_memory();
        use_buffers();
        let before = faults();
        (0..ROUNDS).for_each(|_| use_buffers());
        let again = faults() - before;
        assert!(again < ROUNDS * PAGES / 4, "{again} pages of {} came again", ROUNDS * PAGES);
    }
}
