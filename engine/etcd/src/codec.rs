//! How messages become bytes: as prost has it, in buffers of the size that they need.
//!
//! Purpose: tonic begins every call with 8 KiB to encode into and 8 KiB to decode from, which are
//! hardly used by an answer of thirty bytes and grown four times by a value of 100 KiB.
//! Invariant: the bytes are those of [`ProstCodec`].

use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

/// Bytes that a buffer begins with: an answer to a put, with what gRPC puts before it.
const BEGIN_BYTES: usize = 64;
/// Answers of a stream that are ready are sent together up to so many bytes, as is tonic's default.
const TOGETHER_BYTES: usize = 32 << 10;

fn settings() -> BufferSettings {
    BufferSettings::new(BEGIN_BYTES, TOGETHER_BYTES)
}

/// The codec of all services.
pub struct FittedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for FittedCodec<T, U> {
    fn default() -> Self {
        FittedCodec(PhantomData)
    }
}

impl<T, U> Codec for FittedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = FittedEncoder<T>;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        FittedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(settings())
    }
}

/// Makes room for a message once, before it is encoded.
pub struct FittedEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for FittedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        item.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        settings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;
    use http_body_util::BodyExt;
    use tokio_stream::StreamExt;
    use tonic::codec::EncodeBody;

    fn encoded<E>(encoder: E, messages: &[KeyValue]) -> Vec<u8>
    where
        E: Encoder<Item = KeyValue, Error = Status>,
    {
        let items = tokio_stream::iter(messages.to_vec()).map(Ok::<_, Status>);
        let body = EncodeBody::new_server(encoder, items, None, Default::default(), None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(body.collect()).unwrap().to_bytes().to_vec()
    }

    #[test]
    fn bytes_are_those_of_prost_whatever_the_size() {
        let message = |len: usize| KeyValue { value: vec![7; len].into(), ..Default::default() };
        for lens in [vec![0], vec![1300], vec![300_000], vec![3; 5000], vec![100_000, 0, 20_000]] {
            let messages: Vec<_> = lens.into_iter().map(message).collect();
            let fitted = encoded(FittedCodec::<_, KeyValue>::default().encoder(), &messages);
            let usual = encoded(ProstCodec::<_, KeyValue>::default().encoder(), &messages);
            assert!(fitted == usual, "{} and {} bytes", fitted.len(), usual.len());
        }
    }
}
