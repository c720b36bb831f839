#!/bin/sh
# Makes two rxe devices in the guest, which talk to each other over a wire (a veth pair):
#   rxe0 on v0: 10.8.0.1, fd08::1        rxe1 on v1: 10.8.0.2, fd08::2
# usage: two-devices.sh MTU
#
# Both ends are in one network namespace, since rxe exists in the first one only. Left alone, the kernel would deliver
# what one local address sends to another by a shortcut, without any wire. Routing rules forbid that: whatever leaves
# for the other end's address goes out of its interface, be it a RoCE packet or TCP, and what comes in from the wire
# is delivered. So captures, packet filters and netem see all of it.
set -eu
MTU=$1

ip link add v0 mtu "$MTU" type veth peer name v1 mtu "$MTU"
for option in rp_filter=0 accept_local=1 arp_ignore=1 arp_announce=2; do
  for interface in all v0 v1; do
    echo "${option#*=}" >"/proc/sys/net/ipv4/conf/$interface/${option%=*}"
  done
done

# end INTERFACE TABLE OWN-IPV4 OWN-IPV6 PEER-INTERFACE PEER-IPV4 PEER-IPV6
end() {
  peer_mac=$(cat "/sys/class/net/$5/address")
  ip address add "$3/32" dev "$1"
  ip -6 address add "$4/128" dev "$1" nodad
  ip link set "$1" up
  # The wire is known from the start: no packet is lost to address resolution.
  ip neighbour add "$6" lladdr "$peer_mac" dev "$1" nud permanent
  ip -6 neighbour add "$7" lladdr "$peer_mac" dev "$1" nud permanent
  ip route add "$6/32" dev "$1" src "$3" table "$2"
  ip -6 route add "$7/128" dev "$1" src "$4" table "$2"
}
end v0 1000 10.8.0.1 fd08::1 v1 10.8.0.2 fd08::2
end v1 1001 10.8.0.2 fd08::2 v0 10.8.0.1 fd08::1

# wire FAMILY IPV4-OR-6-OF-V0 OF-V1
wire() {
  # What came in from the wire is for us.
  ip "$1" rule add pref 100 iif v0 lookup local
  ip "$1" rule add pref 101 iif v1 lookup local
  # What is bound to an interface leaves by it: rxe asks for its routes like this.
  ip "$1" rule add pref 110 oif v0 lookup 1000
  ip "$1" rule add pref 111 oif v1 lookup 1001
  # A connection from an address to itself stays inside.
  ip "$1" rule add pref 120 from "$2" to "$2" lookup local
  ip "$1" rule add pref 121 from "$3" to "$3" lookup local
  # What goes to the other end takes the wire, and unless it is bound has this end's address as its source.
  ip "$1" rule add pref 130 iif lo to "$3" lookup 1000
  ip "$1" rule add pref 131 iif lo to "$2" lookup 1001
  ip "$1" rule add pref 200 lookup local
  ip "$1" rule del pref 0
}
wire -4 10.8.0.1 10.8.0.2
wire -6 fd08::1 fd08::2

rdma link add rxe0 type rxe netdev v0
rdma link add rxe1 type rxe netdev v1

# has_gid DEVICE INDEX GID
has_gid() { grep -q "$3" "/sys/class/infiniband/$1/ports/1/gids/$2" 2>/dev/null; }

# The kernel fills the GID tables in its own time.
tries=0
until has_gid rxe0 1 ffff:0a08:0001 && has_gid rxe1 1 ffff:0a08:0002 &&
  has_gid rxe0 2 fd08:.*:0001 && has_gid rxe1 2 fd08:.*:0002; do
  tries=$((tries + 1))
  if [ "$tries" -gt 100 ]; then
    echo "two-devices: GIDs 1 and 2 are not the devices' addresses:"
    cat /sys/class/infiniband/rxe*/ports/1/gids/[0-3]
    exit 1
  fi
  sleep 0.1
done
