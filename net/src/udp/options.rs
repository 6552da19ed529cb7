//! Socket options and control messages of UDP on Linux.

use libc::{SOL_SOCKET, SOL_UDP, c_int, c_void, cmsghdr, msghdr, socklen_t};
use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;

/// Room for one control message with a small integer, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize = 32;

impl Control {
    pub const EMPTY: Control = Control([0; CONTROL_BYTES]);

    /// Makes this the request to split the message into datagrams of `size` bytes, and attaches it.
    pub fn attach_segment(&mut self, message: &mut msghdr, size: u16) {
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
        // SAFETY: control pointer and length were just set to this buffer, which is aligned and has
        // room for one header with a u16 (CMSG_SPACE(2) = 24 bytes), so the first header lies in it.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(message);
            (*first).cmsg_level = SOL_UDP;
            (*first).cmsg_type = libc::UDP_SEGMENT;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(first).cast::<u16>().write_unaligned(size);
            message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
        }
    }

    /// Makes this the place for the kernel's control messages of a receive.
    pub fn attach(&mut self, message: &mut msghdr) {
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES;
    }
}

/// Size of the datagrams that the kernel joined in a received message; `None` if it joined none.
pub fn joined_size(message: &msghdr) -> Option<usize> {
    let mut control: *const cmsghdr;
    // SAFETY: the kernel filled the control buffer of `message` and set its length, and the buffer
    // lives in the receiver beside the message; the macros stay within that length.
    unsafe {
        control = libc::CMSG_FIRSTHDR(message);
        while !control.is_null() {
            if (*control).cmsg_level == SOL_UDP && (*control).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    None
}

/// Sets the socket's receive (or send) buffer to `bytes`, above the system's limit if we may.
/// Returns what it is then (the kernel counts twice what is asked).
pub fn set_buffer(fd: RawFd, receive: bool, bytes: usize) -> usize {
    let bytes = c_int::try_from(bytes / 2).unwrap_or(c_int::MAX / 2);
    let (force, plain) = if receive {
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)
    } else {
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)
    };
    if set(fd, SOL_SOCKET, force, bytes).is_err() {
        // Capped by the system rather than refused; what came of it is read back below.
        let _ = set(fd, SOL_SOCKET, plain, bytes);
    }
    get(fd, SOL_SOCKET, plain).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
}

/// Lets the kernel join datagrams of one sender before handing them up. Whether it can.
pub fn enable_joining(fd: RawFd) -> bool {
    set(fd, SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// Whether the kernel can split a large send into datagrams.
pub fn can_split(fd: RawFd) -> bool {
    get(fd, SOL_UDP, libc::UDP_SEGMENT).is_ok()
}

/// Sets an integer option.
pub fn set(fd: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let pointer: *const c_void = (&raw const value).cast();
    // SAFETY: `pointer` is valid for the four bytes that the length says.
    let result =
        unsafe { libc::setsockopt(fd, level, name, pointer, size_of::<c_int>() as socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(fd: RawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: both pointers are valid for writing and `len` says how much the first one holds.
    let result =
        unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
