//! Socket addresses in the kernel's form.

use libc::{AF_INET, AF_INET6, in_addr, in6_addr, sockaddr_in, sockaddr_in6, socklen_t};
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for an address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Name {
    v4: sockaddr_in,
    v6: sockaddr_in6,
}

impl Name {
    /// Nothing yet: for the kernel to fill.
    pub fn empty() -> Name {
        // SAFETY: both members are plain integers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    /// `address` as a socket of that family wants it, and its length. `None` if it cannot be reached
    /// from there: an IPv6 address from an IPv4 socket.
    pub fn new(address: SocketAddr, socket_is_v6: bool) -> Option<(Name, socklen_t)> {
        let v6 = match (address, socket_is_v6) {
            (SocketAddr::V4(v4), false) => {
                let v4 = sockaddr_in {
                    sin_family: AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                let mut whole = Name::empty();
                whole.v4 = v4;
                return Some((whole, size_of::<sockaddr_in>() as socklen_t));
            }
            (SocketAddr::V6(_), false) => return None,
            (SocketAddr::V4(v4), true) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)
            }
            (SocketAddr::V6(v6), true) => v6,
        };
        let v6 = sockaddr_in6 {
            sin6_family: AF_INET6 as u16,
            sin6_port: v6.port().to_be(),
            sin6_flowinfo: v6.flowinfo(),
            sin6_addr: in6_addr { s6_addr: v6.ip().octets() },
            sin6_scope_id: v6.scope_id(),
        };
        Some((Name { v6 }, size_of::<sockaddr_in6>() as socklen_t))
    }

    /// The address that the kernel wrote into `len` bytes of this; `None` for another family.
    pub fn get(&self, len: socklen_t) -> Option<SocketAddr> {
        // SAFETY: the family is the first field of both members, and every bit pattern of the
        // integers that make up either member is a value.
        let (family, v4, v6) = unsafe { (self.v4.sin_family, self.v4, self.v6) };
        if family == AF_INET as u16 && len as usize >= size_of::<sockaddr_in>() {
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            return Some(SocketAddr::from((ip, u16::from_be(v4.sin_port))));
        }
        if family != AF_INET6 as u16 || (len as usize) < size_of::<sockaddr_in6>() {
            return None;
        }
        let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
        Some(match ip.to_ipv4_mapped() {
            Some(ip) => SocketAddr::from((ip, port)),
            None => SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["127.0.0.1:4001", "10.1.2.3:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            for socket_is_v6 in [false, true] {
                let (name, len) = Name::new(address, socket_is_v6).unwrap();
                assert_eq!(name.get(len), Some(address));
            }
        }
        let address: SocketAddr = "[fe80::1%3]:4001".parse().unwrap();
        let (name, len) = Name::new(address, true).unwrap();
        assert_eq!(name.get(len), Some(address));
        assert_eq!(name.get(len - 1), None);
        assert!(Name::new(address, false).is_none());
        assert_eq!(Name::empty().get(28), None);
    }
}
