//! Reed-Solomon over GF(2^8): a value becomes k data fragments, which are views of the value, and m
//! parity fragments; any k of the k + m give back the others.
//!
//! Bytes in, fragments out: nothing here knows of nodes, disks or messages. The matrix, the field
//! and so every parity byte are stable on disk and wire; CODEC.md defines them.
//!
//! ```
//! use racos_codec::{Codec, fragment_len};
//!
//! let codec = Codec::new(3, 2)?;
//! let value = b"twelve bytes";
//! let length = fragment_len(value.len(), codec.k());
//! let (mut p, mut q) = (vec![0; length], vec![0; length]);
//! codec.encode_value(value, &mut [&mut p, &mut q])?;
//!
//! // Fragments 0 and 1 are lost.
//! let (mut first, mut second) = (vec![0; length], vec![0; length]);
//! let present = [(2, &value[2 * length..]), (3, &p[..]), (4, &q[..])];
//! codec.rebuild(&present, &[0, 1], &mut [&mut first, &mut second])?;
//! assert_eq!([first, second].concat(), value[..2 * length]);
//! # Ok::<(), racos_codec::CodecError>(())
//! ```

mod arch;
mod cache;
mod error;
mod field;
mod matrix;
pub mod measure;
mod stripe;

pub use arch::{KERNEL_VARIABLE, Kernel, kernel};
pub use error::CodecError;
pub use stripe::{Codec, data_fragment, fragment_len};
