#!/bin/sh
# Makes a wire in the guest between a soft-RoCE device and a network namespace that has none, for the embedded device:
#   rxe2 on v2: 10.9.0.1, fd09::1        namespace `peer`, p0: 10.9.0.2, fd09::2
# usage: peer.sh [--together] [MTU]      (4200 unless told otherwise: RoCE's path MTU is then 4096)
#
# rdma_rxe holds UDP 4791 in the first network namespace and in no other, so that the embedded device has it in `peer`.
# `peer` is as a machine that has no RDMA device. With --together it sees them all, and has the other end's addresses too: one
# process there, `nsenter --net=/run/netns/peer COMMAND`, is at both ends of the wire, with rxe2 at one and the embedded
# device at the other. What an earlier call has made goes first.
set -eu
TOGETHER=
if [ "${1:-}" = --together ]; then
  TOGETHER=1
  shift
fi
MTU=${1:-4200}

# The kernel takes a namespace down in its own time, and changes the mode only while there is none.
if [ -e /run/netns/peer ]; then
  rdma link delete rxe2
  ip netns delete peer
fi
mode=$([ "$TOGETHER" ] && echo shared || echo exclusive)
tries=0
until rdma system set netns "$mode" 2>/tmp/peer.log; do
  tries=$((tries + 1))
  if [ "$tries" -gt 100 ]; then
    cat /tmp/peer.log
    exit 1
  fi
  sleep 0.1
done
ip netns add peer
ip -n peer link set lo up
ip link add v2 mtu "$MTU" type veth peer name p0 mtu "$MTU" netns peer

# end ARGUMENTS-OF-ip INTERFACE IPV4 IPV6
end() {
  # shellcheck disable=SC2086 # none, or two words
  set -- "$1" "$2" "$3" "$4"
  ip $1 address add "$3/24" dev "$2"
  ip $1 -6 address add "$4/64" dev "$2" nodad
  ip $1 link set "$2" up
}
end "" v2 10.9.0.1 fd09::1
end "-n peer" p0 10.9.0.2 fd09::2
# A batch that the embedded device sends in one call is cut before it goes over the wire: a capture shows packets, as on a
# wire between two machines.
ip -n peer link set dev p0 gso_max_segs 1
# The wire is known from the start: no packet is lost to address resolution.
mac() { ip $1 -o link show dev "$2" | sed -n 's/.*link\/ether \([^ ]*\).*/\1/p'; }
outside=$(mac "" v2)
inside=$(mac "-n peer" p0)
ip neighbour add 10.9.0.2 lladdr "$inside" dev v2 nud permanent
ip -6 neighbour add fd09::2 lladdr "$inside" dev v2 nud permanent
ip -n peer neighbour add 10.9.0.1 lladdr "$outside" dev p0 nud permanent
ip -n peer -6 neighbour add fd09::1 lladdr "$outside" dev p0 nud permanent

if [ "$TOGETHER" ]; then
  # Between its two addresses TCP stays inside. RoCE's packets, which rxe2 sends and receives outside, take the wire.
  for option in rp_filter=0 accept_local=1; do
    for interface in all p0; do
      nsenter --net=/run/netns/peer sh -c "echo ${option#*=} >/proc/sys/net/ipv4/conf/$interface/${option%=*}"
    done
  done
  ip -n peer address add 10.9.0.1/32 dev lo
  ip -n peer -6 address add fd09::1/128 dev lo nodad
  ip -n peer route add 10.9.0.1/32 dev p0 src 10.9.0.2 table 1000
  ip -n peer -6 route add fd09::1/128 dev p0 src fd09::2 table 1000
  for family in -4 -6; do
    ip -n peer "$family" rule add pref 100 iif lo ipproto udp dport 4791 lookup 1000
    ip -n peer "$family" rule add pref 200 lookup local
    ip -n peer "$family" rule delete pref 0
  done
fi

rdma link add rxe2 type rxe netdev v2

# The kernel fills the GID table in its own time.
gids=/sys/class/infiniband/rxe2/ports/1/gids
tries=0
until grep -qs ffff:0a09:0001 "$gids"/* && grep -qs 'fd09:.*:0001' "$gids"/*; do
  tries=$((tries + 1))
  if [ "$tries" -gt 100 ]; then
    echo "peer: the GIDs of rxe2 are not its addresses:"
    cat "$gids"/[0-3]
    exit 1
  fi
  sleep 0.1
done
