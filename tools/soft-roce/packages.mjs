// @ts-check
// The Debian packages that the guest is made of. They are downloaded and unpacked, never installed on the host.
// Libraries of Debian's base system are left out: the guest runs on the host's root, which has them.

/** The package that depends on the distribution's newest stock kernel. */
export const KERNEL_META_PACKAGE = 'linux-image-amd64'

export const GUEST_PACKAGES = [
  'busybox-static', // the guest's first shell

  // the userland of RDMA
  'rdma-core',
  'libibverbs1',
  'ibverbs-providers',
  'ibverbs-utils',
  'librdmacm1',
  'rdmacm-utils',
  'perftest',
  'libibumad3',
  'libnl-3-200',
  'libnl-route-3-200',
  'libpci3',

  // `ip`, `rdma`, `tc`, `ss`
  'iproute2',
  'libbpf1',
  'libelf1',
  'libbsd0',
  'libcap2',
  'libmnl0',
  'libtirpc3',
  'libxtables12',
  'libgssapi-krb5-2',
  'libk5crypto3',
  'libkeyutils1',
  'libkrb5-3',
  'libkrb5support0',

  // captures
  'tcpdump',
  'libpcap0.8',
  'libdbus-1-3',

  // the packet filter
  'nftables',
  'libnftables1',
  'libnftnl11',
  'libedit2',
  'libgmp10',
  'libjansson4',
]
