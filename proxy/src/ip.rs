//! IP addresses as text: each request has four of them, and the standard library's formatting takes far longer.

use std::net::IpAddr;

/// Three digits four times, and the dots between them.
const MAX_IPV4_CHARS: usize = 15;

/// `ip` as text; an IPv4 address in IPv6's form is one of IPv4.
pub(crate) fn text(ip: IpAddr) -> String {
    let IpAddr::V4(ip) = ip.to_canonical() else {
        return ip.to_string();
    };
    let mut text = [0; MAX_IPV4_CHARS];
    let mut length = 0;
    let mut push = |byte| {
        text[length] = byte;
        length += 1;
    };
    for (index, octet) in ip.octets().into_iter().enumerate() {
        if index > 0 {
            push(b'.');
        }
        if octet >= 100 {
            push(b'0' + octet / 100);
        }
        if octet >= 10 {
            push(b'0' + octet / 10 % 10);
        }
        push(b'0' + octet % 10);
    }
    str::from_utf8(&text[..length])
        .expect("digits and dots")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_the_standard_library_writes_it() {
        for octet in 0..=u8::MAX {
            let ip = IpAddr::from([octet, 0, 255, octet]);
            assert_eq!(text(ip), ip.to_string());
        }
        let ip: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(text(ip), "2001:db8::1");
    }

    #[test]
    fn an_ipv4_address_in_the_form_of_ipv6_is_one_of_ipv4() {
        let ip: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        assert_eq!(text(ip), "192.0.2.1");
    }
}
