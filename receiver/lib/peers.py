"""Who is at the other end, as far as one customer can be told from the next."""

from ipaddress import IPv6Address, ip_address, ip_network


def network_of(peer: str) -> str:
    """Give the address that is counted for a peer: of IPv6 the /64, which one customer owns."""
    try:
        address = ip_address(peer)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(ip_network((address, 64), strict=False))
    return str(address)
